"""Huge pages for a command's memory, which the C library asks for only if it starts that way.

It imports nothing slow: a command that starts again has lost nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
VARIABLE, SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Starts the running command again, as the same process, with memory in pages of 2 MiB.

    On CPU a training step writes gigabytes that the step before has given back, in pages of 4 KiB
    each with a fault, and with more addresses than the processor remembers. Where Linux gives huge
    pages to those who ask ("madvise"), glibc 2.35 and newer asks if GLIBC_TUNABLES says so when the
    process starts. Nothing happens where Linux gives them to all or to nobody, or where the
    variable has the setting: `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` switches it off.
    """
    tunables = os.environ.get(VARIABLE, "")
    if SETTING in tunables or not sys.executable or not _are_given_on_request():
        return
    os.environ[VARIABLE] = ":".join(filter(None, [tunables, f"{SETTING}=1"]))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def restart_module_with_huge_pages() -> None:
    """Does the same for `python -m PACKAGE.NAME`, at the top of the package.

    Other programs that import the package go on: only while Python looks for a module to run is
    `sys.argv[0]` "-m", and nothing slow is imported yet.
    """
    if sys.argv[:1] == ["-m"]:
        restart_with_huge_pages()


def _are_given_on_request() -> bool:
    try:
        return "[madvise]" in SWITCH.read_text()
    except OSError:  # not Linux, or a kernel without them
        return False
