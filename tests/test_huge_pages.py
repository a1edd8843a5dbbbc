"""A command starts once more, as the same process, where huge pages must be asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embed_jax.huge_pages import SETTING, SWITCH, VARIABLE

ROOT = Path(__file__).parents[1]
COMMAND = """
import os, sys
print(os.environ.get("GLIBC_TUNABLES"), os.getpid(), sys.argv[1:], flush=True)
"""
PACKAGE = """
from pathlib import Path
from embed_jax import huge_pages
print("start", flush=True)
huge_pages.SWITCH = Path("switch")
huge_pages.restart_with_huge_pages()
"""


def run(*arguments, cwd=ROOT, tunables=None, stderr=None, **changes):
    others = {name: value for name, value in os.environ.items() if name != VARIABLE}
    setting = {} if tunables is None else {VARIABLE: tunables}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=others | {"PYTHONPATH": str(ROOT)} | setting | changes,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    output, _ = process.communicate()
    return process.pid, output


@pytest.mark.parametrize(
    ("switch", "value", "starts", "expected"),
    [
        ("always [madvise] never", None, 2, f"{SETTING}=1"),
        ("always [madvise] never", "glibc.malloc.arena_max=4", 2,
         f"glibc.malloc.arena_max=4:{SETTING}=1"),
        ("always [madvise] never", f"{SETTING}=0", 1, f"{SETTING}=0"),
        ("[always] madvise never", None, 1, "None"),
        ("always madvise [never]", None, 1, "None"),
        (None, None, 1, "None"),
    ],
)  # fmt: skip
def test_a_command_starts_again_where_huge_pages_are_given_on_request(
    tmp_path, switch, value, starts, expected
):
    if switch is not None:
        (tmp_path / "switch").write_text(switch)
    (tmp_path / "command").mkdir()
    (tmp_path / "command" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "command" / "__main__.py").write_text(COMMAND)
    pid, output = run("-m", "command", "--name", "a b", cwd=tmp_path, tunables=value)
    assert output.splitlines() == ["start"] * starts + [f"{expected} {pid} ['--name', 'a b']"]


@pytest.mark.parametrize(
    "arguments",
    # Of names that are not there: they are looked for after the start.
    [["-m", "scripts.nothing"], ["-m", "experiments.nothing"], ["-m", "embed_jax", "--version"]],
)
def test_every_command_asks_for_them(tmp_path, arguments):
    """Python notes each of its starts; with another program than a command there is one."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os; open({str(tmp_path / 'starts')!r}, 'a').write("
        f"os.environ.get({VARIABLE!r}, '') + chr(10))"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    run(*arguments, stderr=subprocess.DEVNULL, **paths)
    on_request = SWITCH.exists() and "[madvise]" in SWITCH.read_text()
    assert (tmp_path / "starts").read_text().splitlines() == ["", f"{SETTING}=1"][: 1 + on_request]
    (tmp_path / "starts").unlink()
    run("-c", "import embed_jax, experiments, scripts", **paths)
    assert (tmp_path / "starts").read_text() == "\n", "a program that imports them goes on"
