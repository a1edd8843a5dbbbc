"""Shared parts of the benches: generated texts, taking turns, memory, printed results."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import RunError

MIB = 2**20
GIB = 2**30
# Of x86 and of ARM processors, as Linux names them: the width of vectors, and what multiplies
# matrices of 16 and 8 bits.
CPU_FLAGS = (
    *("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx_vnni", "avx512_vnni"),
    *("amx_bf16", "amx_int8", "amx_fp16", "asimd", "sve", "sve2", "bf16", "i8mm"),
)


# ---- material ------------------------------------------------------------------------------------


def random_model(shape: str, max_length: int = 128, dtype: str = "float32", *, vocab_size: int = 0):
    """Makes a SentenceEncoder of a well-known shape: random weights, a tokenizer of whole words.

    Args:
        shape: see `random_spec`.
        max_length: tokens that a text is cut to.
        dtype: the compute dtype.
        vocab_size: words of the tokenizer, with five special tokens; 0: the shape's own.
    """
    import jax

    from embed_jax.encoders.build import build_encoder
    from embed_jax.encoders.spec import random_spec
    from embed_jax.sentence import SentenceEncoder

    spec = random_spec(shape, vocab_size=vocab_size)
    params = jax.jit(build_encoder(spec).init)(jax.random.key(0))
    return SentenceEncoder(
        spec, params, make_tokenizer(spec.backbone.vocab_size, max_length), compute_dtype=dtype
    )


def make_tokenizer(vocab_size: int, max_length: int):
    """Makes a WordPiece tokenizer whose vocabulary is w0, w1, ...: one token per generated word."""
    from transformers import BertTokenizerFast

    from embed_jax.data.tokenizer_files import load_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        words = [
            "[PAD]",
            "[UNK]",
            "[CLS]",
            "[SEP]",
            "[MASK]",
            *(f"w{number}" for number in range(vocab_size - 5)),
        ]
        (Path(directory) / "vocab.txt").write_text("\n".join(words) + "\n")
        BertTokenizerFast(vocab=str(Path(directory) / "vocab.txt")).save_pretrained(directory)
        return load_tokenizer(directory, max_length)


def make_texts(count: int, words: float) -> list[str]:
    """Generates texts of log-normal length, as sentences have; STS-B's median is 10 words."""
    return [" ".join(f"w{word}" for word in numbers) for numbers in make_words(count, words)]


def make_words(count: int, words: float) -> list[np.ndarray]:
    """Returns the numbers of the words of `make_texts`, from 0 to 19,999."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(np.log(words), 0.45, size=count).round().astype(int), 1)
    return [rng.integers(0, 20000, length) for length in lengths]


# ---- devices -------------------------------------------------------------------------------------


def use_cpu_devices(devices: int) -> None:
    """Makes N devices out of a CPU, if there is no accelerator.

    Call it before anything touches a device.
    """
    import jax

    if jax.config.values["jax_num_cpu_devices"] < devices:
        jax.config.update("jax_num_cpu_devices", devices)


def share_device() -> None:
    """Leaves an accelerator's memory to PyTorch and to other processes until it is needed.

    Call it before anything touches a device.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")


def on_cpu() -> bool:
    import jax

    return jax.default_backend() == "cpu"


# ---- time ----------------------------------------------------------------------------------------


def alternate(
    sides: Sequence[Callable[[], Any]], repeat: int, warm_up: int = 1
) -> list[list[float]]:
    """Returns the seconds of each side's runs; the sides take turns after `warm_up` runs."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(warm_up + repeat):
        for side, taken in zip(sides, seconds, strict=True):
            began = time.perf_counter()
            side()
            if turn >= warm_up:
                taken.append(time.perf_counter() - began)
    return seconds


def median_ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    """Returns the median over the alternations of ours / others."""
    return statistics.median(a / b for a, b in zip(ours, others, strict=True))


# ---- memory --------------------------------------------------------------------------------------


def memory_limit() -> int:
    """Returns the bytes that a program may use on the first device."""
    import jax

    memory_stats = jax.devices()[0].memory_stats() or {}
    return memory_stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    )


def peak_growth(call: Callable[[], Any]) -> int:
    """Returns by how many bytes `call` raises the peak of the memory in use.

    Of the first device if it keeps count, else of this process. Call it in a process that did
    little before: what an earlier peak left behind is not seen again.
    """
    import jax

    device = jax.devices()[0]
    if at_start := device.memory_stats():
        call()
        return device.memory_stats()["peak_bytes_in_use"] - at_start["bytes_in_use"]
    before = _resident_now()
    call()
    return max(peak_resident() - before, 0)


def _resident_now() -> int:
    """Returns the resident bytes of this process, and resets the peak where the system can."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what compiling left free would be used again unseen
        Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):  # no Linux
        return peak_resident()


def peak_resident(process: int | str = "self") -> int:
    """Returns the most bytes that a process has held: this one, or on Linux any by its number.

    0 if that is not known.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):  # no Linux, or the process has ended
        if process != "self":
            return 0
        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024


def fresh_environment() -> dict[str, str]:
    """Returns the environment of a process that imports this package wherever it runs."""
    here = str(Path(__file__).parents[__name__.count(".")])
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    # Several processes use the accelerator's memory, so none may take it all in advance.
    return {**os.environ, "PYTHONPATH": path, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def in_fresh_process(
    module: str, function: str, arguments: dict[str, Any], **variables: str
) -> Any:
    """Returns the result of `module.function(**arguments)` in a fresh process.

    Arguments and result are passed as JSON.

    Args:
        module: its dotted name.
        function: the name of a function in it.
        arguments: of the function.
        **variables: of the environment, such as JAX_PLATFORMS="cpu".

    Raises:
        RunError: if that process fails.
    """
    code = (
        f"import json, sys; from {module} import {function} as f; "
        "print(json.dumps(f(**json.loads(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)],
        env=fresh_environment() | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RunError(
            f"{module}.{function} in a fresh process ended with {done.returncode}: {last}"
        )
    return json.loads(done.stdout.splitlines()[-1])


# ---- results -------------------------------------------------------------------------------------


def result(
    name: str,
    unit: str,
    ours: float | None,
    other: float | None,
    ratio: float | None,
    n: int,
    **details: Any,
) -> dict:
    """Returns one line of --json."""
    return {
        "name": name,
        "unit": unit,
        "ours": _short(ours),
        "theirs": _short(other),
        "ratio": _short(ratio),
        "n": n,
        **{key: _short(value) for key, value in details.items()},
        "machine": machine(),
    }


def _short(value: Any) -> Any:
    """Rounds a number to five digits."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def print_json(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def machine() -> str:
    """Describes the devices and the processor, for the line of a figure."""
    import jax

    return f"{jax.devices()[0].device_kind} x{jax.device_count()}, {describe_cpu()}"


@functools.cache
def describe_cpu(file: str = "/proc/cpuinfo") -> str:
    """Describes the processor: model, the flags that decide its speed, and number of CPUs.

    Args:
        file: Linux's description of the processor; elsewhere its architecture is all there is.
    """
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path(file).read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), " ".join(value.split()))
    present = fields.get("flags", fields.get("Features", "")).split()
    flags = " ".join(flag for flag in CPU_FLAGS if flag in present) or platform.machine()
    model = fields.get("model name") or platform.processor() or platform.machine()
    return f"{model} ({flags}), {os.cpu_count()} CPUs"


def print_row(cells: Sequence[Any], widths: Sequence[int]) -> None:
    """Prints a row of a table that grows while it is measured; None is a dash."""
    texts = [_cell(cell) for cell in cells]
    print(
        "  ".join(text.rjust(width) for text, width in zip(texts, widths, strict=True)), flush=True
    )


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.0f}"
        if abs(value) >= 1000
        else f"{value:.4g}"
    )


# ---- options -------------------------------------------------------------------------------------


def count(text: str) -> int:
    """Reads an option's number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 up, found {text!r}")
    return int(text)


def count_or_none(text: str) -> int:
    """Reads an option's number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, found {text!r}")
    return int(text)


def counts(text: str) -> list[int]:
    """Reads an option's numbers from 1 up, separated by commas; "" gives []."""
    sizes = [size.strip() for size in text.split(",") if size.strip()]
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(
            f"expected numbers from 1 up, separated by commas, found {text!r}"
        )
    return [int(size) for size in sizes]
