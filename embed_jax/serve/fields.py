"""The fields of requests: JSON objects that are read, checked and refused in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from embed_jax.registry import unknown

MOST_BYTES = 8 * 2**20  # of a request
MOST_CHARACTERS = 100_000  # of a text: far beyond what models read
SHOWN_NAME = 60  # characters of an unknown name in a message


class Refused(Exception):
    """A request that cannot be answered.

    Attributes:
        status: of HTTP.
        field: the field that is at fault; "": none in particular.
        code: a word for programs, in OpenAI's form; "": none.
    """

    def __init__(self, message: str, status: int = 400, field: str = "", code: str = ""):
        super().__init__(message)
        self.status, self.field, self.code = status, field, code


async def read_object(request: Request, known: Sequence[str]) -> dict[str, Any]:
    """Reads the JSON object of a request.

    Args:
        request: whose body is read, up to MOST_BYTES.
        known: names of its fields.

    Raises:
        Refused: the body is too long, not JSON or not an object, or has an unknown field.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(f"Content-Type: expected application/json, found {kind!r}", 415)
    body = b""
    async for block in request.stream():
        body += block
        if len(body) > MOST_BYTES:
            raise Refused(f"the request has more than {MOST_BYTES:,} bytes", 413)
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused("the request's body is not JSON") from None
    if not isinstance(content, dict):
        raise Refused(f"expected a JSON object, found {_kind(content)}")
    for name in content:
        if name not in known:
            raise Refused(unknown("field", name[:SHOWN_NAME], known), field=name[:SHOWN_NAME])
    return content


def text_field(content: Mapping[str, Any], name: str) -> str:
    """Returns a field that is a text; see `check_request_text`."""
    return check_request_text(content.get(name), name)


def texts_field(content: Mapping[str, Any], name: str, most: int) -> list[str]:
    """Returns a field that is a list of texts, or of objects with a "text".

    Args:
        content: the request.
        name: of the field.
        most: how many texts there may be.

    Raises:
        Refused: it is missing, empty or too long, or has something else; see
            `check_request_text`.
    """
    value = content.get(name)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        raise Refused(f"{name}: expected a list of texts, found {_kind(value)}", field=name)
    if len(values) > most:
        raise Refused(f"{name}: expected at most {most:,} texts, found {len(values):,}", field=name)
    texts = []
    for index, each in enumerate(values):
        text = each.get("text") if isinstance(each, dict) else each
        texts.append(
            check_request_text(text, f"{name}[{index}]" if value is values else name, name)
        )
    return texts


def check_request_text(value: Any, where: str, field: str = "") -> str:
    """Returns a text that a model can read.

    Args:
        value: what should be a text.
        where: its place in the request, for messages.
        field: the name of the field; "": `where`.

    Raises:
        Refused: it is another kind of value, blank, too long, contains a NUL or is not Unicode.
    """
    message = ""
    if not isinstance(value, str):
        message = f"expected a text, found {_kind(value)}"
    elif not value.strip():
        message = "expected a text, found an empty one"
    elif len(value) > MOST_CHARACTERS:
        message = f"has {len(value):,} characters, at most {MOST_CHARACTERS:,} are accepted"
    elif "\0" in value:
        message = "contains a NUL character"
    elif value != value.encode(errors="replace").decode():  # a lone surrogate of a JSON escape
        message = "is not valid Unicode"
    if message:
        raise Refused(f"{where}: {message}", field=field or where)
    return value


def whole_number(
    content: Mapping[str, Any], name: str, most: int, otherwise: int | None = None
) -> int | None:
    """Returns a field that is a whole number from 1 to `most`.

    Args:
        content: the request.
        name: of the field.
        most: the largest value.
        otherwise: the value where the field is missing or null.

    Raises:
        Refused: it is anything else.
    """
    value = content.get(name)
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        shown = value if isinstance(value, int) else _kind(value)
        raise Refused(f"{name}: expected a number from 1 to {most:,}, found {shown}", field=name)
    return value


def choice_field(content: Mapping[str, Any], name: str, known: Sequence[str]) -> str:
    """Returns a field with one of the known values; the first of them where it is missing.

    Raises:
        Refused: it has another value.
    """
    value = content.get(name)
    if value is None:
        return known[0]
    if value not in known:
        shown = value[:SHOWN_NAME] if isinstance(value, str) else _kind(value)
        raise Refused(unknown(name, shown, [each for each in known if each]), field=name)
    return value


def _kind(value: Any) -> str:
    """Returns a value's kind in the words of JSON."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    if isinstance(value, list) and value and not isinstance(value[0], list | dict):
        return f"a list with {_kind(value[0])}"
    return names.get(type(value), "nothing")
