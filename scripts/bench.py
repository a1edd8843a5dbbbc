"""Measures speed: encoding and training, alone or side by side with sentence-transformers.

Needs only jax, flax, optax, transformers, jaxtyping and numpy, no data file and no weights; --against needs
sentence-transformers. The two sides take turns, the medians are printed, and the ratio is above 1 where ours is faster.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from embed_jax.errors import InputError, exit_with_one_line, require
from scripts.commands import OneLineParser

EXAMPLES = """examples:
  python -m scripts.bench encode --init random --shape minilm-l6
  python -m scripts.bench encode --model sentence-transformers/all-MiniLM-L6-v2 --data stsb/test.tsv \\
      --against sentence-transformers
  python -m scripts.bench encode --batch 1,4,16,64,256,1024
  python -m scripts.bench train --batch-size 128 --against sentence-transformers --json
"""
LATENCY_REPETITIONS = 20


def main() -> None:
    args = parse(sys.argv[1:])
    if args.against:
        require("sentence_transformers", "peers")
    {"encode": bench_encode, "train": bench_train}[args.what](args)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="python -m scripts.bench",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="what", required=True)
    for name, text in (("encode", "texts per second, and latency by batch size"), ("train", "pairs per second")):
        command = commands.add_parser(
            name, help=text, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        weights = command.add_mutually_exclusive_group()
        weights.add_argument("--model", help="directory or hub name")
        weights.add_argument("--init", choices=["random"], default="random", help="random weights of --shape (default)")
        command.add_argument("--shape", default="minilm-l6", help="shape of random weights (default: %(default)s)")
        command.add_argument("--data", help="python_docs, or a file of texts or pairs (default: made text)")
        command.add_argument(
            "--words", type=float, default=10.0, help="median words of made text (default: %(default)s)"
        )
        command.add_argument("--max-length", type=int, default=0, help="tokens (default: the model's; random: 128)")
        command.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="compute dtype")
        command.add_argument(
            "--repeat", type=int, default=5, help="timed repetitions of each side (default: %(default)s)"
        )
        command.add_argument("--against", choices=["sentence-transformers"], help="measure this side by side")
        command.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    encode, train = commands.choices["encode"], commands.choices["train"]
    encode.add_argument("--texts", type=int, default=2000, help="how many texts (default: %(default)s)")
    encode.add_argument("--batch", default="", help="also latency of single calls with so many texts: 1,4,16,...")
    encode.add_argument("--batch-tokens", type=int, default=0, help="slots a device encodes at a time (default: auto)")
    train.add_argument("--batch-size", type=int, default=128, help="pairs in a batch (default: %(default)s)")
    train.add_argument("--groups", type=int, default=0, help="groups of a batch (default: one a device)")
    train.add_argument("--row-length", type=int, default=0, help="slots of a packed row (default: as in training)")
    train.add_argument("--steps", type=int, default=3, help="steps of one repetition (default: %(default)s)")
    args = parser.parse_args(argv)
    for name in ("repeat", "texts", "batch_size", "steps"):
        if getattr(args, name, 1) < 1:
            parser.error(f"--{name.replace('_', '-')}: expected 1 or more, found {getattr(args, name)}")
    if args.what == "encode":
        sizes = [size for size in args.batch.split(",") if size]
        if not all(size.isdecimal() and int(size) > 0 for size in sizes):
            parser.error(f"--batch: expected numbers from 1 up, separated by commas, found {args.batch!r}")
        args.batch = [int(size) for size in sizes]
    return args


# ---- material ------------------------------------------------------------------------------------------------


def load_model(args: argparse.Namespace):
    """The model named, or random weights with a made tokenizer of whole words."""
    from embed_jax.sentence import SentenceEncoder, load

    if args.model:
        return load(args.model, max_length=args.max_length, compute_dtype=args.dtype)
    import jax

    from embed_jax.encoders.build import build_encoder, random_spec

    spec = random_spec(args.shape)
    params = jax.jit(build_encoder(spec).init)(jax.random.key(0))
    return SentenceEncoder(
        spec, params, made_tokenizer(spec.backbone.vocab_size, args.max_length or 128), compute_dtype=args.dtype
    )


def made_tokenizer(vocab_size: int, max_length: int):
    """A WordPiece tokenizer whose vocabulary is w0, w1, ...: one token a made word."""
    from transformers import BertTokenizerFast

    from embed_jax.data.tokenize import load_tokenizer

    with tempfile.TemporaryDirectory() as directory:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(vocab_size - 5))]
        (Path(directory) / "vocab.txt").write_text("\n".join(words) + "\n")
        BertTokenizerFast(vocab=str(Path(directory) / "vocab.txt")).save_pretrained(directory)
        return load_tokenizer(directory, max_length)


def made_texts(count: int, words: float) -> list[str]:
    """Texts of log-normal length, as sentences have; STS-B's have a median of 10 words."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(rng.lognormal(np.log(words), 0.45, size=count).round().astype(int), 1)
    return [" ".join(f"w{word}" for word in rng.integers(0, 20000, length)) for length in lengths]


def texts_for(args: argparse.Namespace, count: int) -> list[str]:
    """`count` texts from the data named, over again if there are fewer."""
    if not args.data:
        return made_texts(count, args.words)
    from embed_jax.data.sources import open_records

    texts: list[str] = []
    for record in open_records(args.data, "train"):
        fields = [record[name] for name in ("text", "sentence1", "sentence2", "anchor", "positive") if name in record]
        texts += fields[1:] if args.data == "python_docs" and args.what == "encode" else fields
        if len(texts) >= count:
            break
    if not texts:
        raise InputError(f"{args.data}: expected a field text, sentence1, sentence2, anchor or positive")
    return [texts[number % len(texts)] for number in range(count)]


def report(args: argparse.Namespace, name: str, unit: str, ours: list[float], theirs: list[float], **more) -> None:
    """Prints one result; both sides are rates, higher is better."""
    import jax

    mine, other = statistics.median(ours), statistics.median(theirs) if theirs else None
    line = {
        "name": name,
        "unit": unit,
        "ours": round(mine, 2),
        "theirs": None if other is None else round(other, 2),
        "ratio": None
        if other is None
        else round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3),
        "n": len(ours),
        **more,
        "machine": f"{jax.devices()[0].device_kind} x{jax.device_count()}, {os.cpu_count()} CPUs, {platform.machine()}",
    }
    if args.json:
        print(json.dumps(line), flush=True)
        return
    text = f"{name}: {mine:,.1f} {unit}"
    if other is not None:
        text += f", {args.against} {other:,.1f}, ratio {line['ratio']:.2f} (median of {len(ours)} alternations)"
    print(text + "".join(f", {key} {value}" for key, value in more.items()), flush=True)


def alternate(sides: Sequence[Callable[[], None]], repeat: int, warm_up: int = 1) -> list[list[float]]:
    """Seconds of each side's runs, the sides taking turns, after `warm_up` runs that don't count."""
    seconds: list[list[float]] = [[] for _ in sides]
    for turn in range(warm_up + repeat):
        for side, taken in zip(sides, seconds, strict=True):
            began = time.perf_counter()
            side()
            if turn >= warm_up:
                taken.append(time.perf_counter() - began)
    return seconds


def peer(model):
    """The same model in sentence-transformers."""
    import logging

    logging.disable(logging.WARNING)
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as directory:
        model.save(Path(directory) / "model")
        return SentenceTransformer(str(Path(directory) / "model"), device=_torch_device())


def _torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- encode --------------------------------------------------------------------------------------------------


def bench_encode(args: argparse.Namespace) -> None:
    model = load_model(args)
    texts = texts_for(args, args.texts)
    sides = [lambda: model.encode(texts, batch_tokens=args.batch_tokens)]
    other = None
    if args.against:
        other = peer(model)
        if args.dtype == "bfloat16":
            other = other.bfloat16()
        sides.append(lambda: other.encode(texts, show_progress_bar=False))
    seconds = alternate(sides, args.repeat)
    rates = [[len(texts) / second for second in side] for side in seconds]
    report(args, f"encode/{Path(args.data or 'made').name}", "texts/s", rates[0], rates[1] if other else [])

    for size in args.batch:
        batches = [texts_for(args, size * (turn + 1))[-size:] for turn in range(4)]
        calls = [lambda batch: model.encode(batch)]
        if other:
            calls.append(lambda batch: other.encode(batch, show_progress_bar=False))
        for call in calls:
            for batch in batches:
                call(batch)  # every shape compiled
        repeat = max(LATENCY_REPETITIONS if size <= 64 else args.repeat, 3)
        turns = [itertools.cycle(batches) for _ in calls]
        sides = [functools.partial(_call_next, call, turn) for call, turn in zip(calls, turns, strict=True)]
        seconds = alternate(sides, repeat)
        rates = [[size / second for second in side] for side in seconds]
        latency = {
            f"{who}_{name}_ms": round(1000 * float(np.percentile(side, share)), 2)
            for who, side in zip(("ours", "theirs"), seconds, strict=False)
            for name, share in (("p50", 50), ("p95", 95))
        }
        report(args, f"encode/batch={size}", "texts/s", rates[0], rates[1] if other else [], **latency)


def _call_next(call: Callable, batches: Iterator[list[str]]) -> None:
    call(next(batches))


# ---- train ---------------------------------------------------------------------------------------------------


def bench_train(args: argparse.Namespace) -> None:
    import jax

    from embed_jax.config import Optim
    from embed_jax.data.pack import fill_rate, pack_batch
    from embed_jax.encoders.build import build_encoder
    from embed_jax.losses.contrastive import in_batch_info_nce
    from embed_jax.parallel.gather import global_loss
    from embed_jax.parallel.mesh import make_mesh, num_groups, replicate, split_groups
    from embed_jax.train.optim import make_optimizer
    from embed_jax.train.step import init_state, make_train_step
    from embed_jax.types import Batch

    args.max_length = args.max_length or 128
    model = load_model(args)
    size, steps = args.batch_size, args.steps
    texts = texts_for(args, 2 * size * steps)
    batches = [texts[2 * size * step : 2 * size * (step + 1)] for step in range(steps)]
    mesh = make_mesh()
    groups = num_groups(args.groups, size, mesh)
    row_length = args.row_length or min(model.max_length, 128)

    optimizer = make_optimizer(Optim(learning_rate=1e-5, schedule="constant", weight_decay=0.01), 1000)
    objective = global_loss(build_encoder(model.spec, compute_dtype=args.dtype), in_batch_info_nce, mesh)
    step_fn = make_train_step(objective, optimizer)
    params = {"encoder": jax.tree.map(np.array, model.params), "loss": {}}
    state = replicate(init_state(replicate(params, mesh), optimizer), mesh)
    key = jax.random.key(0)
    fills: list[float] = []

    def our_steps() -> None:
        nonlocal state
        for batch in batches:
            ids = model.tokenizer.encode(batch).ids
            tokens, order = pack_batch([ids[:size], ids[size:]], groups=groups, row_length=row_length)
            fills.append(fill_rate(tokens))
            present = np.ones((groups, 2, size // groups), bool)
            text_hash = np.random.default_rng(0).integers(0, 2**32, (*present.shape, 2), np.uint32)
            placed = split_groups(Batch({"encoder": tokens}, present, text_hash, order), mesh)
            state, metrics = step_fn(state, placed, key)
        jax.block_until_ready(metrics)

    sides: list[Callable[[], None]] = [our_steps]
    if args.against:
        sides.append(their_steps(args, model, batches))
    seconds = alternate(sides, args.repeat)
    rates = [[size * steps / second for second in side] for side in seconds]
    more = {"fill_rate": round(statistics.mean(fills), 3), "rows_of": row_length, "groups": groups}
    name = f"train/{Path(args.data or 'made').name}/batch={size}"
    report(args, name, "pairs/s", rates[0], rates[1] if args.against else [], **more)


def their_steps(args: argparse.Namespace, model, batches: list[list[str]]) -> Callable[[], None]:
    """The same steps in sentence-transformers: MultipleNegativesRankingLoss, clipping, AdamW, dropout on."""
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    other = peer(model)
    other.train()
    loss = MultipleNegativesRankingLoss(other)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-5, weight_decay=0.01)
    device, size = other.device, args.batch_size
    autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, enabled=args.dtype == "bfloat16")

    def steps() -> None:
        for batch in batches:
            columns = [other.preprocess(batch[:size]), other.preprocess(batch[size:])]
            columns = [
                {name: value.to(device) if hasattr(value, "to") else value for name, value in column.items()}
                for column in columns
            ]
            with autocast():
                value = loss(columns, None)
            value.backward()
            torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        value.item()

    return steps


if __name__ == "__main__":
    exit_with_one_line(main)
