"""Benches of encoding and training, also beside sentence-transformers, another model or loss."""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import InputError

from .measure import (
    alternate,
    count,
    count_or_none,
    counts,
    make_texts,
    median_ratio,
    print_json,
    random_model,
    result,
)

ENCODE = """Texts per second, and the latency of single calls by batch size."""
TRAIN = """Pairs per second of whole training steps, with packing, dropout, clipping and AdamW.

Also tokens per second, the model's TFLOP/s (6 FLOPs a trained parameter and token, 4 a frozen one;
recomputation does not count), and their share of the device's peak where that is known (MFU)."""
ENCODE_EXAMPLES = """examples:
  python -m scripts.bench encode --init random --shape minilm-l6
  python -m scripts.bench encode --model sentence-transformers/all-MiniLM-L6-v2 \\
      --data stsb/test.tsv \\
      --against sentence-transformers
  python -m scripts.bench encode --model runs/student/model \\
      --against sentence-transformers/all-MiniLM-L6-v2
  python -m scripts.bench encode --batch 1,4,16,64,256,1024"""
TRAIN_EXAMPLES = """examples:
  python -m scripts.bench train --init random --shape minilm-l6 --dtype bfloat16
  python -m scripts.bench train --batch-size 128 --against sentence-transformers --json
  python -m scripts.bench train --shape qwen3-0.6b --lora 16 --base bfloat16 --dtype bfloat16 \\
      --remat layer \\
      --words 100 --max-length 512 --row-length 512 --batch-size 512 --groups 8
  python -m scripts.bench train --loss "matryoshka(info_nce(), dims='384,256,128,64,32')" \\
      --against info_nce"""
PEER = "sentence-transformers"
LATENCY_REPETITIONS = 20


def add_encode_options(command: argparse.ArgumentParser) -> None:
    _add_options(
        command, f"{PEER}: the same model there; or another model, a directory or hub name, here"
    )
    command.add_argument(
        "--layers", type=count_or_none, default=0, help="stop after N layers (default: all)"
    )
    command.add_argument(
        "--texts", type=count, default=2000, help="how many texts (default: %(default)s)"
    )
    command.add_argument(
        "--batch",
        type=counts,
        default="",
        help="also latency of single calls with N texts each: 1,4,16,...",
    )
    command.add_argument(
        "--batch-tokens",
        type=count_or_none,
        default=0,
        help="slots that a device encodes at a time (default: auto)",
    )


def add_train_options(command: argparse.ArgumentParser) -> None:
    _add_options(command, f"{PEER}: the same model and InfoNCE there; or another loss, here")
    command.add_argument(
        "--loss", default="info_nce", help="loss, as in config.loss.name (default: %(default)s)"
    )
    command.add_argument(
        "--batch-size", type=count, default=128, help="pairs in a batch (default: %(default)s)"
    )
    command.add_argument(
        "--groups",
        type=count_or_none,
        default=0,
        help="groups of a batch (default: one per device)",
    )
    command.add_argument(
        "--row-length",
        type=count_or_none,
        default=0,
        help="slots of a packed row (default: as in training)",
    )
    command.add_argument(
        "--steps", type=count, default=3, help="steps of one repetition (default: %(default)s)"
    )
    command.add_argument(
        "--lora", type=count_or_none, default=0, help="train an adapter of this rank (default: all)"
    )
    command.add_argument(
        "--base",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="what --lora freezes",
    )
    command.add_argument(
        "--remat", choices=("none", "dots", "layer"), default="none", help="default: %(default)s"
    )


def _add_options(command: argparse.ArgumentParser, against: str) -> None:
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--model", help="directory or hub name")
    weights.add_argument(
        "--init", choices=["random"], default="random", help="random weights of --shape (default)"
    )
    command.add_argument(
        "--shape", default="minilm-l6", help="shape of random weights (default: %(default)s)"
    )
    command.add_argument(
        "--data", help="python_docs, or a file of texts or pairs (default: generated text)"
    )
    command.add_argument(
        "--words",
        type=float,
        default=10.0,
        help="median words of generated text (default: %(default)s)",
    )
    command.add_argument(
        "--max-length",
        type=count_or_none,
        default=0,
        help="tokens per text (default: the model's; random: 128)",
    )
    command.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="compute dtype"
    )
    command.add_argument(
        "--repeat",
        type=count,
        default=5,
        help="timed repetitions of each side (default: %(default)s)",
    )
    command.add_argument("--against", help=f"measured side by side: {against}")


# ---- material ------------------------------------------------------------------------------------


def load_model(args: argparse.Namespace):
    """Loads the named model, or makes random weights with a tokenizer of whole words."""
    if not args.model:
        return random_model(args.shape, args.max_length or 128, args.dtype)
    from embed_jax.sentence import load_sentence_encoder

    return load_sentence_encoder(args.model, max_length=args.max_length, compute_dtype=args.dtype)


def texts_for(args: argparse.Namespace, count: int) -> list[str]:
    """Returns `count` texts of the data, repeated if there are fewer."""
    if not args.data:
        return make_texts(count, args.words)
    from embed_jax.data.sources import open_records

    texts: list[str] = []
    for record in open_records(args.data, "train"):
        fields = [
            record[name]
            for name in ("text", "sentence1", "sentence2", "anchor", "positive")
            if name in record
        ]
        texts += fields[1:] if args.data == "python_docs" and args.what == "encode" else fields
        if len(texts) >= count:
            break
    if not texts:
        raise InputError(
            f"{args.data}: expected a field text, sentence1, sentence2, anchor or positive"
        )
    return [texts[index % len(texts)] for index in range(count)]


def report(
    args: argparse.Namespace,
    name: str,
    unit: str,
    ours: list[float],
    others: list[float],
    **details,
) -> None:
    """Prints one result; both sides are rates, higher is better."""
    mine, other = statistics.median(ours), statistics.median(others) if others else None
    ratio = median_ratio(ours, others) if others else None
    if args.json:
        print_json(result(name, unit, mine, other, ratio, len(ours), **details))
        return
    text = f"{name}: {mine:,.1f} {unit}"
    if others:
        text += (
            f", {args.against} {other:,.1f}, ratio {ratio:.2f} (median of {len(ours)} alternations)"
        )
    print(text + "".join(f", {key} {value}" for key, value in details.items()), flush=True)


def peer(model):
    """Returns the same model in sentence-transformers."""
    import logging

    logging.disable(logging.WARNING)
    from sentence_transformers import SentenceTransformer

    with tempfile.TemporaryDirectory() as directory:
        model.save(Path(directory) / "model")
        return SentenceTransformer(str(Path(directory) / "model"), device=_torch_device())


def _torch_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- encode --------------------------------------------------------------------------------------


def bench_encode(args: argparse.Namespace) -> None:
    model = load_model(args)
    texts = texts_for(args, args.texts)
    encode = functools.partial(model.encode, batch_tokens=args.batch_tokens, layers=args.layers)
    sides = [lambda: encode(texts)]
    other: Callable[..., Any] | None = None
    if args.against == PEER:
        peer_model = peer(model).bfloat16() if args.dtype == "bfloat16" else peer(model)
        other = functools.partial(peer_model.encode, show_progress_bar=False)
    elif args.against:
        from embed_jax.sentence import load_sentence_encoder

        other = load_sentence_encoder(
            args.against, max_length=model.max_length, compute_dtype=args.dtype
        ).encode
    if other:
        sides.append(lambda: other(texts))
    seconds = alternate(sides, args.repeat)
    rates = [[len(texts) / second for second in side] for side in seconds]
    report(
        args,
        f"encode/{Path(args.data or 'made').name}",
        "texts/s",
        rates[0],
        rates[1] if other else [],
    )

    for size in args.batch:
        batches = [texts_for(args, size * (turn + 1))[-size:] for turn in range(4)]
        calls: list[Callable[..., Any]] = [encode, *([other] if other else [])]
        for call in calls:
            for batch in batches:
                call(batch)  # every shape compiled
        repeat = max(LATENCY_REPETITIONS if size <= 64 else args.repeat, 3)
        turns = [itertools.cycle(batches) for _ in calls]
        sides = [
            functools.partial(_call_next, call, turn)
            for call, turn in zip(calls, turns, strict=True)
        ]
        seconds = alternate(sides, repeat)
        rates = [[size / second for second in side] for side in seconds]
        latency = {
            f"{who}_{name}_ms": round(1000 * float(np.percentile(side, share)), 2)
            for who, side in zip(("ours", "theirs"), seconds, strict=False)
            for name, share in (("p50", 50), ("p95", 95))
        }
        report(
            args, f"encode/batch={size}", "texts/s", rates[0], rates[1] if other else [], **latency
        )


def _call_next(call: Callable, batches: Iterator[list[str]]) -> None:
    call(next(batches))


# ---- train ---------------------------------------------------------------------------------------


def bench_train(args: argparse.Namespace) -> None:
    import jax

    from embed_jax.config import Lora, Optim
    from embed_jax.data.pack import fill_rate, pack_batch
    from embed_jax.encoders.build import build_encoder
    from embed_jax.encoders.lora import split_trainable
    from embed_jax.losses.expression import build_loss
    from embed_jax.parallel.gather import global_loss
    from embed_jax.parallel.mesh import make_mesh, num_groups, replicate, split_groups
    from embed_jax.train.model_changes import add_adapter, store_frozen
    from embed_jax.train.optim import make_optimizer
    from embed_jax.train.speed import model_flops_utilization, training_flops_per_token
    from embed_jax.train.step import init_state, make_train_step
    from embed_jax.types import BASE, Batch

    args.max_length = args.max_length or 128
    model = load_model(args)
    size, steps = args.batch_size, args.steps
    texts = texts_for(args, 2 * size * steps)
    batches = [texts[2 * size * step : 2 * size * (step + 1)] for step in range(steps)]
    mesh = make_mesh()
    groups = num_groups(args.groups, size, mesh)
    row_length = args.row_length or min(model.max_length, 128)

    optimizer = make_optimizer(
        Optim(learning_rate=1e-5, schedule="constant", weight_decay=0.01), 1000
    )
    key = jax.random.key(0)
    adapter = Lora(rank=args.lora, base=args.base)
    spec, weights = add_adapter(
        model.spec, store_frozen(jax.tree.map(np.array, model.params), adapter), adapter, key
    )
    trained, base = split_trainable(weights, spec)
    encoder = build_encoder(spec, compute_dtype=args.dtype, remat=args.remat)
    fills: list[float] = []
    tokens_of: list[int] = []

    def our_steps(expression: str) -> Callable[[], None]:
        """Makes steps that minimise a loss."""
        loss = build_loss(expression)
        step_fn = make_train_step(
            global_loss(encoder, loss.on_world, mesh, layers=loss.about.layers), optimizer
        )
        params = {"encoder": trained, "loss": loss.init(model.dim, key)}
        frozen = {BASE: base} if base else {}
        state = replicate(
            init_state(replicate(params, mesh), optimizer, replicate(frozen, mesh)), mesh
        )

        def steps() -> None:
            nonlocal state
            for batch in batches:
                ids = model.tokenizer.encode(batch).ids
                tokens, order = pack_batch(
                    [ids[:size], ids[size:]], groups=groups, row_length=row_length
                )
                fills.append(fill_rate(tokens))
                tokens_of.append(sum(map(len, ids)))
                present = np.ones((groups, 2, size // groups), bool)
                text_hash = np.random.default_rng(0).integers(
                    0, 2**32, (*present.shape, 2), np.uint32
                )
                placed = split_groups(Batch({"encoder": tokens}, present, text_hash, order), mesh)
                state, metrics = step_fn(state, placed, key)
            jax.block_until_ready(metrics)

        return steps

    sides = [our_steps(args.loss)]
    if args.against:
        sides.append(
            their_steps(args, model, batches) if args.against == PEER else our_steps(args.against)
        )
    seconds = alternate(sides, args.repeat)
    rates = [[size * steps / second for second in side] for side in seconds]
    details = {
        "fill_rate": round(statistics.mean(fills), 3),
        "rows_of": row_length,
        "groups": groups,
    }
    per_second = statistics.median(rates[0]) / size * statistics.mean(tokens_of)
    flops = training_flops_per_token(trained, base)
    details |= {"tokens_per_s": round(per_second), "tflops": round(per_second * flops / 1e12, 3)}
    mfu = model_flops_utilization(per_second, flops, jax.devices())
    details |= {} if mfu is None else {"mfu": round(mfu, 3)}
    name = f"train/{Path(args.data or 'made').name}/batch={size}" + (
        "" if args.loss == "info_nce" else f"/{args.loss}"
    )
    report(args, name, "pairs/s", rates[0], rates[1] if args.against else [], **details)


def their_steps(args: argparse.Namespace, model, batches: list[list[str]]) -> Callable[[], None]:
    """Returns the same steps in sentence-transformers.

    MultipleNegativesRankingLoss, clipping, AdamW, dropout on.
    """
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    other = peer(model)
    other.train()
    loss = MultipleNegativesRankingLoss(other)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-5, weight_decay=0.01)
    device, size = other.device, args.batch_size
    autocast = functools.partial(
        torch.autocast, device.type, torch.bfloat16, enabled=args.dtype == "bfloat16"
    )

    def steps() -> None:
        for batch in batches:
            columns = [other.preprocess(batch[:size]), other.preprocess(batch[size:])]
            columns = [
                {
                    name: value.to(device) if hasattr(value, "to") else value
                    for name, value in column.items()
                }
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
