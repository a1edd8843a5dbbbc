"""Makes one of what is made twice from equal parts, so that its programs compile once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


def remembered(function: F) -> F:
    """Lets a function return what it returned before for equal arguments, of the last 64.

    For functions that make what is compiled. The arguments must be hashable, and nobody may change
    the result.

    >>> make = remembered(lambda size: [size])
    >>> make(1) is make(1)
    True
    """
    return cast(F, functools.lru_cache(maxsize=64)(function))
