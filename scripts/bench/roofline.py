"""Bench of where the time goes: each part of encoding and of a training step, beside the peak."""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from embed_jax.errors import InputError

from .flops import measure_peak, needed_flops, time_program
from .measure import alternate, count, make_words, print_json, print_row, result
from .parts import PRODUCTS, Part, kernel_shapes, list_parts
from .speed import add_model_options, open_model
from .train import Trainer, pack_pairs

if TYPE_CHECKING:
    from embed_jax.sentence import SentenceEncoder
    from embed_jax.types import TokenBatch

DESCRIPTION = """Where the time of encoding and of a training step goes, and how far the peak is.

The peak is the most that this machine's matrix products reach, square ones of a few sizes or those
of the model's shapes. The parts are small programs of the shapes of the whole, each timed by itself
and multiplied by how often the whole does it; in training with their gradients. "program" is the
compiled function with its batches ready, "rest" what the parts don't explain of it; it is below 0
where the compiler merges them. "host waits" is what the whole takes beyond its program: tokenising
and packing, as far as they are not done beside it. Both are also timed by themselves, in brackets.
GFLOP/s count what the texts need: products of parameters with tokens, and attention between tokens
that see each other, but no padding. The gap to the limit is the time of the whole over that of
these FLOPs at the peak. On one device."""
EXAMPLES = """examples:
  python -m scripts.bench roofline --shape minilm-l6 --length 128
  python -m scripts.bench roofline --model sentence-transformers/all-MiniLM-L6-v2 --length 256
  python -m scripts.bench roofline --shape modernbert-base --length 2048 --of encode --texts 8
  python -m scripts.bench roofline --shape bert-base --dtype bfloat16 --of train --json"""
ENCODE, TRAIN = "encode", "train"
WIDTHS = (24, 12, 8, 10)
REST, PROGRAM, WAITS = "rest", "program", "host waits"
TOKENISING, PACKING = "tokenising", "packing"


def add_options(command: argparse.ArgumentParser) -> None:
    add_model_options(command)
    command.add_argument(
        "--length", type=count, default=128, help="tokens of each text (default: %(default)s)"
    )
    command.add_argument(
        "--of", choices=(ENCODE, TRAIN), help="only this one (default: first one, then the other)"
    )
    command.add_argument(
        "--texts", type=count, default=256, help="texts to encode (default: %(default)s)"
    )
    command.add_argument(
        "--batch-size", type=count, default=32, help="pairs of a step (default: %(default)s)"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    return None if args.length >= 4 else f"--length: expected 4 or more, found {args.length}"


def bench_roofline(args: argparse.Namespace) -> None:
    from embed_jax.sentence import SentenceEncoder

    model = open_model(args.model, args.shape, args.length, args.dtype)
    if not model.spec.backbone.num_layers:
        raise InputError(f"{args.model or args.shape}: expected a transformer, found a table")
    model = SentenceEncoder(
        model.spec, model.params, model.tokenizer, compute_dtype=args.dtype, devices=1
    )
    shapes = kernel_shapes(model.params)
    squares = measure_peak(args.dtype, args.repeat)
    peak = max(squares.values())
    if not args.json:
        _print_head(args, squares)
    for what in (args.of,) if args.of else (ENCODE, TRAIN):
        measure = measure_encoding if what == ENCODE else measure_training
        number = args.texts if what == ENCODE else 2 * args.batch_size
        texts = exact_texts(number, args.length)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # texts are cut on purpose
            lengths = [len(ids) for ids in model.tokenizer.encode(texts).ids]
            seconds, parts = measure(model, texts, args.repeat)
        needed = needed_flops(model.spec.backbone, shapes, lengths, training=what == TRAIN)
        times = 3 if what == TRAIN else 1
        rates = {
            name: times * sum(part.flops * runs for part, _, runs in own) / seconds[name]
            for name, own in parts.items()
            if any(part.flops for part, *_ in own)
        }
        own_peak = max(times * part.flops / taken for part, taken, _ in parts[PRODUCTS])
        limit = needed / max(peak, own_peak)
        rates |= {what: needed / seconds[what], PROGRAM: needed / seconds[PROGRAM]}
        _print_parts(args, what, seconds, rates, limit, parts[PRODUCTS], times)


def exact_texts(number: int, length: int) -> list[str]:
    """Makes texts that a tokenizer cuts at `length` tokens, whether or not it knows their words."""
    words = [
        f"w{word}" for numbers in make_words(number * length // 8 + 64, 16) for word in numbers
    ]
    return [" ".join(words[start : start + length]) for start in range(0, number * length, length)]


# ---- what is measured ----------------------------------------------------------------------------

Timed = tuple[Part, float, int]  # a part, the seconds of a run, and the runs of the whole


def measure_encoding(
    model: SentenceEncoder, texts: list[str], repeat: int
) -> tuple[dict[str, float], dict[str, list[Timed]]]:
    """Returns the seconds of encoding texts and of its parts by name, and the timed programs."""
    import jax

    from embed_jax.data.window import pack_window
    from embed_jax.encoders.build import build_encoder
    from embed_jax.parallel.inference import default_batch_tokens

    slots = max(default_batch_tokens(), model.max_length)
    whole, tokenising = (
        statistics.median(side)
        for side in alternate(
            [lambda: model.encode(texts), lambda: model.tokenizer.encode(texts)], repeat
        )
    )
    tokenized = model.tokenizer.encode(texts)
    (packing,) = alternate(
        [lambda: list(pack_window(tokenized.ids, tokenized.skip, slots))], repeat
    )
    batches = [tokens for _, tokens in pack_window(tokenized.ids, tokenized.skip, slots)]
    encode = jax.jit(build_encoder(model.spec, compute_dtype=model.compute_dtype).apply)
    placed = jax.device_put(batches)

    def run() -> Any:
        return [encode(model.params, tokens) for tokens in placed]

    program = time_program(run, (), repeat)
    shapes = Counter((tokens.token_ids.shape, tokens.sentences) for tokens in batches)
    parts: dict[str, list[Timed]] = defaultdict(list)
    for shape, runs in shapes.items():
        tokens = next(
            tokens for tokens in batches if (tokens.token_ids.shape, tokens.sentences) == shape
        )
        _time_parts(parts, model, tokens, runs, repeat, training=False)
    seconds = {ENCODE: whole, PROGRAM: program, **_sums(parts)}
    return _complete(seconds, tokenising, statistics.median(packing)), parts


def measure_training(
    model: SentenceEncoder, texts: list[str], repeat: int
) -> tuple[dict[str, float], dict[str, list[Timed]]]:
    """Returns the seconds of a training step and of its parts by name, and the timed programs."""
    import jax

    from .loss import compile_form

    trainer = Trainer(
        model.spec,
        jax.tree.map(np.array, model.params),
        "info_nce",
        dtype=model.compute_dtype,
        devices=1,
    )
    pack = pack_pairs
    options = {"groups": 1, "row_length": model.max_length}
    batch = trainer.place(pack(model, texts, **options))
    trainer.compile(batch)
    whole, tokenising = (
        statistics.median(side)
        for side in alternate(
            [
                lambda: trainer.take_all([pack(model, texts, **options)]),
                lambda: model.tokenizer.encode(texts),
            ],
            repeat,
        )
    )
    (both,) = alternate([lambda: pack(model, texts, **options)], repeat)
    program = time_program(trainer.take, (batch,), repeat)
    parts: dict[str, list[Timed]] = defaultdict(list)
    group = jax.tree.map(lambda leaf: np.asarray(leaf)[0], batch.tokens["encoder"])
    _time_parts(parts, model, group, 1, repeat, training=True)
    seconds = {TRAIN: whole, PROGRAM: program, **_sums(parts)}
    loss, arguments = compile_form("info_nce", "dense", len(texts) // 2, model.dim, 1)
    seconds["loss"] = time_program(loss, arguments(), repeat)
    params = trainer.state.params
    update = jax.jit(trainer.optimizer.update)
    seconds["optimiser"] = time_program(update, (params, trainer.state.opt_state, params), repeat)
    return _complete(seconds, tokenising, max(statistics.median(both) - tokenising, 0.0)), parts


def _time_parts(
    parts: dict[str, list[Timed]],
    model: SentenceEncoder,
    tokens: TokenBatch,
    runs: int,
    repeat: int,
    *,
    training: bool,
) -> None:
    for part in list_parts(model.spec, model.params, tokens, model.compute_dtype,
                           training=training):  # fmt: skip
        taken = part.seconds(repeat, training=training)
        parts[part.name].append((part, taken, runs * part.times))


def _sums(parts: Mapping[str, Sequence[Timed]]) -> dict[str, float]:
    return {name: sum(taken * runs for _, taken, runs in own) for name, own in parts.items()}


def _complete(seconds: dict[str, float], tokenising: float, packing: float) -> dict[str, float]:
    """Adds the rest of the program, and what the host takes; the whole stands first."""
    whole, program, *parts = seconds.values()
    seconds[REST] = program - sum(parts)
    return seconds | {WAITS: whole - program, TOKENISING: tokenising, PACKING: packing}


# ---- what is printed -----------------------------------------------------------------------------


def _print_head(args: argparse.Namespace, squares: Mapping[int, float]) -> None:
    import jax

    name = args.model or args.shape
    print(f"{name}, texts of {args.length} tokens, {args.dtype}, on {jax.devices()[0].device_kind}")
    rates = ", ".join(f"{size}: {rate / 1e9:,.0f}" for size, rate in squares.items())
    print(f"GFLOP/s of square matrix products by size: {rates}", flush=True)


def _print_parts(
    args: argparse.Namespace,
    what: str,
    seconds: Mapping[str, float],
    rates: Mapping[str, float],
    limit: float,
    products: Sequence[Timed],
    times: int,
) -> None:
    gap = seconds[what] / limit
    if args.json:
        for name, taken in seconds.items():
            details = {"share": taken / seconds[what], "gflops": rates.get(name, 0.0) / 1e9}
            label = f"roofline/{what}" if name == what else f"roofline/{what}/{name}"
            print_json(result(label, "s", taken, None, None, args.repeat, **details))
        print_json(result(f"roofline/{what}/gap", "", gap, None, None, args.repeat, limit=limit))
        return
    print()
    print_row((what, "seconds", "%", "GFLOP/s"), WIDTHS)
    for name, taken in seconds.items():
        is_aside = name in (TOKENISING, PACKING)
        share = f"{100 * taken / seconds[what]:.1f}"
        rate = f"{rates[name] / 1e9:,.0f}" if name in rates else None
        cells = (f"{taken:.4g}", share)
        row = tuple(f"({cell})" for cell in cells) if is_aside else cells
        print_row(("whole" if name == what else name, *row, rate), WIDTHS)
    shapes = defaultdict(list)
    for part, taken, _ in products:
        shapes[part.shape].append(times * part.flops / taken / 1e9)
    for shape, own in shapes.items():
        print(f"  {shape}: {own[0]:,.0f} GFLOP/s")
    print(
        f"gap to the limit of matrix products: {seconds[what]:.4g} s are {gap:.2f} times the "
        f"{limit:.4g} s of its products at the peak",
        flush=True,
    )
