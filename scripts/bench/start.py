"""Bench of the start: time until a first embedding and a first step, and of compiling."""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_jax.errors import RunError

from ..commands import PARENT
from .launches import NO_EVALUATION, missing_packages
from .measure import (
    MIB,
    alternate,
    count,
    counts,
    fresh_environment,
    make_texts,
    peak_resident,
    print_json,
    print_row,
    result,
)
from .peers import PEER
from .speed import OURS, RANDOM_LENGTH, add_model_options, open_model

if TYPE_CHECKING:
    from embed_jax.encoders.spec import EncoderSpec
    from embed_jax.sentence import SentenceEncoder

DESCRIPTION = """Seconds until a first embedding and a first training step, and of compiling.

Each start is a process from its first instruction on: packages are imported, the model is loaded,
and one text is embedded, or a file of sentences is read and trained on (unsupervised SimCSE). The
first start of each side is not counted: after it the compilation cache and the files' pages are
warm. "peak" is the most memory that the process has held until then. "wait" is how long the host
waits for the batch of a step, in the median of those after the first 8, whose batches are made
while the step is compiled. The other side of "tokenising" is the tokenizers library by itself.
Compiling is without a cache; the other side of a deep model is the shallowest one."""
EXAMPLES = """examples:
  python -m scripts.bench start --against sentence-transformers
  python -m scripts.bench start --model sentence-transformers/all-MiniLM-L6-v2 --repeat 3
  python -m scripts.bench start --sentences 1000000 --layers ''"""
WIDTHS = (32, 12, 22, 8)
READY = "bench: ready"
TEXT = "How long does it take until a first text is embedded?"
# What a process runs until a first text is embedded, the model's directory and the compute dtype as
# its arguments. It then waits until its memory has been read.
FIRST_EMBEDDING = {
    OURS: f"""
import sys, embed_jax
embed_jax.load(sys.argv[1], compute_dtype=sys.argv[2]).encode([{TEXT!r}])
print({READY!r}, flush=True)
sys.stdin.read()""",
    PEER: f"""
import sys
from sentence_transformers import SentenceTransformer
SentenceTransformer(sys.argv[1]).encode([{TEXT!r}])
print({READY!r}, flush=True)
sys.stdin.read()""",
}
TOKENISED = 20_000  # texts
AHEAD = 8  # first steps, whose batches were made while the first one was compiled


def add_options(command: argparse.ArgumentParser) -> None:
    add_model_options(command)
    command.add_argument("--against", choices=[PEER], help="also a first embedding there")
    command.add_argument(
        "--sentences",
        type=count,
        default=10_000,
        help="sentences of the file that is trained on (default: %(default)s)",
    )
    command.add_argument(
        "--batch-size", type=count, default=64, help="sentences in a batch (default: %(default)s)"
    )
    command.add_argument(
        "--steps", type=count, default=30, help="steps of the training (default: %(default)s)"
    )
    command.add_argument(
        "--layers",
        type=counts,
        default="6,24",
        help="layers of the models that are compiled, '' for none (default: %(default)s)",
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    if missing := missing_packages():
        return f"training needs {', '.join(missing)}"
    if args.sentences < args.batch_size:
        return f"--sentences: expected {args.batch_size} or more, found {args.sentences}"
    return None


def bench_start(args: argparse.Namespace) -> None:
    def show(name: str, unit: str, ours: float, other: float | None = None) -> None:
        ratio = ours / other if other else None
        if args.json:
            print_json(result(f"start/{name}", unit, ours, other, ratio, args.repeat))
        else:
            print_row((f"{name}, {unit}", ours, other, ratio), WIDTHS)

    model = open_model(args.model, args.shape, RANDOM_LENGTH, args.dtype)
    if not args.json:
        print_row(("", OURS, args.against or "", "ratio"), WIDTHS)
    with tempfile.TemporaryDirectory() as folder:
        directory, sentences = Path(folder) / "model", Path(folder) / "sentences.txt"
        model.save(directory)
        sentences.write_text("\n".join(make_texts(args.sentences, 10.0)) + "\n")
        names = [OURS, *filter(None, [args.against])]
        commands = {name: _embedding_command(name, directory, args.dtype) for name in names}
        starts = alternate_starts(commands, args.repeat)
        show("first embedding", "s", *map(median_seconds, starts))
        show("peak of the first embedding", "MiB", *map(median_peak, starts))
        _, *runs = [first_step(directory, sentences, args) for _ in range(args.repeat + 1)]
        show("first training step", "s", median_seconds(runs))
        show("peak of the first step", "MiB", median_peak(runs))
        waits = [statistics.median(run.waits[AHEAD:] or run.waits) for run in runs]
        show("wait of a step", "ms", 1000 * statistics.median(waits))
    show("tokenising", "texts/s", *tokenising_rates(model, args.repeat))
    for name, seconds in compile_seconds(model, sorted(args.layers), args.repeat).items():
        least = min(seconds)
        for depth, compiling in seconds.items():
            shallowest = None if depth == least else seconds[least]
            show(f"compile {name}, {depth} layers", "s", compiling, shallowest)


# ---- starts of processes -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Start:
    """A start: seconds until a line was printed, peak bytes of the process, waits of its steps."""

    seconds: float
    peak: int
    waits: tuple[float, ...] = ()


def median_seconds(starts: Sequence[Start]) -> float:
    return statistics.median(start.seconds for start in starts)


def median_peak(starts: Sequence[Start]) -> float:
    """Returns MiB."""
    return statistics.median(start.peak for start in starts) / MIB


def start_process(name: str, command: Sequence[str], until: str) -> Start:
    """Runs a command to its end, and measures until it prints a line that begins with `until`.

    Args:
        name: what a message calls it.
        command: the program and its arguments.
        until: the beginning of the line.

    Raises:
        RunError: if it ends without that line.
    """
    began = time.perf_counter()
    seconds, peak = 0.0, 0
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=fresh_environment(),
        ) as process,
    ):
        assert process.stdout is not None and process.stdin is not None
        try:
            for line in process.stdout:
                if not seconds and line.startswith(until):
                    seconds, peak = time.perf_counter() - began, peak_resident(process.pid)
                    process.stdin.close()
            process.wait()
        finally:
            process.terminate()
        if process.returncode or not seconds:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["nothing"])[-1]
            raise RunError(f"{name} ended with {process.returncode}: {last}")
    return Start(seconds, peak)


def alternate_starts(commands: Mapping[str, Sequence[str]], repeat: int) -> list[list[Start]]:
    """Returns the starts of each command; they take turns after one that is not counted."""
    turns = [
        [start_process(name, command, READY) for name, command in commands.items()]
        for _ in range(repeat + 1)
    ]
    return [list(side) for side in zip(*turns[1:], strict=True)]


def _embedding_command(name: str, directory: Path, dtype: str) -> list[str]:
    return [sys.executable, "-c", FIRST_EMBEDDING[name], str(directory), dtype]


def first_step(model: Path, sentences: Path, args: argparse.Namespace) -> Start:
    """Trains by the command that users type, and measures until the line of its first step."""
    fields: dict[str, Any] = {
        "model.name": model,
        "model.compute_dtype": args.dtype,
        "data.train": sentences,
        "data.max_length": 64,
        "batch.size": args.batch_size,
        "train.steps": args.steps,
        "train.log_every": 1,
        "checkpoint.every": 0,
        "tracking.wandb": "disabled",
        **{name.replace("__", "."): value for name, value in NO_EVALUATION.items()},
    }
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", f"{PARENT}experiments.simcse", f"--workdir={workdir}/run"]
        command += ["--config=configs/simcse/unsup_bert_base.py"]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        start = start_process("experiments.simcse", command, "step 1/")
        lines = (Path(workdir) / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    waits = tuple(json.loads(line)["wait_seconds"] for line in lines)
    return dataclasses.replace(start, waits=waits)


# ---- inside of a process -------------------------------------------------------------------------


def tokenising_rates(model: SentenceEncoder, repeat: int) -> tuple[float, float]:
    """Returns the texts a second of our tokenizer, and of the library by itself."""
    texts = make_texts(TOKENISED, 10.0)
    library = model.tokenizer.backend
    sides: list[Callable[[], Any]] = [
        lambda: model.tokenizer.encode(texts),
        lambda: [each.ids for each in library.encode_batch_fast(texts)],
    ]
    seconds = alternate(sides, repeat)
    ours, library_rate = (len(texts) / statistics.median(side) for side in seconds)
    return ours, library_rate


def compile_seconds(
    model: SentenceEncoder, layers: Sequence[int], repeat: int
) -> dict[str, dict[int, float]]:
    """Returns the seconds of compiling the encoder and a training step, by number of layers."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    seconds: dict[str, dict[int, list[float]]] = {}
    cached = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it remembers whether it was used
    try:
        for _ in range(repeat):
            for count_of_layers in layers:
                backbone = dataclasses.replace(model.spec.backbone, num_layers=count_of_layers)
                spec = dataclasses.replace(model.spec, backbone=backbone)
                for name, build in programs(model, spec).items():
                    jax.clear_caches()
                    began = time.perf_counter()
                    build()
                    by_depth = seconds.setdefault(name, {})
                    by_depth.setdefault(count_of_layers, []).append(time.perf_counter() - began)
    finally:
        jax.config.update("jax_enable_compilation_cache", cached)
        compilation_cache.reset_cache()
    return {
        name: {depth: statistics.median(each) for depth, each in by_depth.items()}
        for name, by_depth in seconds.items()
    }


def programs(model: SentenceEncoder, spec: EncoderSpec) -> dict[str, Callable[[], Any]]:
    """Returns functions that compile the encoder, and a training step, for the model's tokenizer.

    Args:
        model: whose tokenizer makes a batch.
        spec: of the encoder.
    """
    import jax

    from embed_jax.encoders.build import build_encoder

    from .train import Trainer, pack_pairs

    batch = pack_pairs(model, make_texts(32, 10.0), groups=1, row_length=RANDOM_LENGTH)
    tokens = jax.tree.map(lambda leaf: leaf[0], batch.tokens["encoder"])
    dtype = model.compute_dtype
    encoder = build_encoder(spec, compute_dtype=dtype)
    params = jax.jit(encoder.init)(jax.random.key(0))
    trainer = Trainer(spec, params, "info_nce", dtype=dtype, devices=1)
    placed = trainer.place(batch)
    return {
        "encoding": lambda: jax.jit(encoder.apply).lower(params, tokens).compile(),
        "training": lambda: trainer.compile(placed),
    }
