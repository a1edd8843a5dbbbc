"""Bench of cross-encoders: pairs scored and trained on per second."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measure import alternate, count, make_texts, make_tokenizer, print_json, print_row, result
from .peers import PEER, peer_autocast
from .speed import OURS

if TYPE_CHECKING:
    from embed_jax.cross_encoder import CrossEncoder

DESCRIPTION = """Pairs per second that a cross-encoder of random weights scores, and trains on.

The pairs are generated: a query of 9 words and a passage of 60, by their medians. Training is
binary cross entropy with AdamW and clipping, tokenising included. With --against the same model
does the same in sentence-transformers, in bfloat16 by torch.autocast; the two sides take turns, and
medians are printed."""
EXAMPLES = """examples:
  python -m scripts.bench pairs --shape minilm-l6
  python -m scripts.bench pairs --shape minilm-l6 --against sentence-transformers --json
  python -m scripts.bench pairs --dtype bfloat16 --against sentence-transformers"""
WIDTHS = (12, 12, 24, 8)
QUERY_WORDS, PASSAGE_WORDS = 9.0, 60.0


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--shape", default="minilm-l6", help="shape of the model (default: %(default)s)"
    )
    command.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16"),
        help="compute dtype of both sides (default: %(default)s)",
    )
    command.add_argument("--against", choices=(PEER,), help="the other side")
    command.add_argument(
        "--pairs", type=count, default=512, help="pairs to score at once (default: %(default)s)"
    )
    command.add_argument(
        "--batch-size", type=count, default=32, help="pairs of a step (default: %(default)s)"
    )
    command.add_argument(
        "--steps", type=count, default=4, help="steps of a repeat (default: %(default)s)"
    )
    command.add_argument(
        "--max-length", type=count, default=256, help="tokens of a pair (default: %(default)s)"
    )
    command.add_argument(
        "--repeat", type=count, default=5, help="timed repeats (default: %(default)s)"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    return None if args.batch_size >= 2 else "--batch-size: expected 2 or more"


def bench_pairs(args: argparse.Namespace) -> None:
    texts = scored_texts(args.pairs)
    needed = args.steps * args.batch_size
    with tempfile.TemporaryDirectory() as directory:
        model = make_cross_encoder(args.shape, args.max_length, Path(directory), args.dtype)
        peer = _peer(Path(directory), args.max_length) if args.against else None
        scored: list[Callable[[], Any]] = [lambda: model.score(*texts)]
        sizes = args.batch_size, args.steps
        trained = [training_steps(Path(directory), args.max_length, *sizes, args.dtype)]
        if peer:
            pairs = list(zip(*texts, strict=True))
            scored.append(peer_autocast("cpu", args.dtype)(lambda: peer.predict(pairs)))
            trained.append(_their_steps(peer, *sizes, args.dtype))
        if not args.json:
            print_row(("pairs/s", OURS, args.against or "", "ratio"), WIDTHS)
        for name, sides, number in (("score", scored, args.pairs), ("train", trained, needed)):
            seconds = alternate(sides, args.repeat)
            rates = [statistics.median(number / second for second in side) for side in seconds]
            other = rates[1] if peer else None
            ratio = rates[0] / rates[1] if peer else None
            if args.json:
                print_json(result(f"pairs/{name}", "pairs/s", rates[0], other, ratio, args.repeat))
            else:
                print_row((name, *rates, ratio), WIDTHS)


def scored_texts(number: int) -> tuple[list[str], list[str]]:
    """Makes queries and passages."""
    return make_texts(number, QUERY_WORDS), make_texts(number, PASSAGE_WORDS)


def make_cross_encoder(
    shape: str, max_length: int, directory: Path, dtype: str = "float32"
) -> CrossEncoder:
    """Returns a cross-encoder of random weights, saved in the directory too."""
    import jax

    from embed_jax.cross_encoder import CrossEncoder
    from embed_jax.encoders.build import build_encoder
    from embed_jax.encoders.classifier import make_classifier
    from embed_jax.encoders.spec import random_spec

    spec = make_classifier(random_spec(shape).backbone)
    params = jax.jit(build_encoder(spec).init)(jax.random.key(0))
    tokenizer = make_tokenizer(spec.backbone.vocab_size, max_length)
    model = CrossEncoder(spec, params, tokenizer, compute_dtype=dtype)
    model.save(directory / "model")
    return model


def _peer(directory: Path, max_length: int) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(str(directory / "model"), max_length=max_length, device="cpu")


def _training_pairs(size: int) -> list[dict[str, Any]]:
    return [
        {"sentence1": query, "sentence2": passage, "score": float(number % 2)}
        for number, (query, passage) in enumerate(zip(*scored_texts(size), strict=True))
    ]


def training_steps(
    directory: Path, max_length: int, batch_size: int, number: int, dtype: str = "float32"
) -> Callable[[], None]:
    """Returns a function that trains a cross-encoder for some steps.

    Args:
        directory: see `make_cross_encoder`.
        max_length: tokens of a pair.
        batch_size: pairs of a step.
        number: steps of a call.
        dtype: the compute dtype.
    """
    import jax

    from embed_jax.config import Experiment
    from embed_jax.config_file import override
    from embed_jax.data.record_source import RecordSource
    from embed_jax.data.sources import record_fields
    from embed_jax.parallel.mesh import split_groups
    from embed_jax.train.assembly import assemble
    from embed_jax.train.pair_model import initial_cross_encoder, pair_loss, pair_objective
    from embed_jax.train.sources import ONLY

    config = override(
        Experiment(),
        model__name=str(directory / "model"),
        model__compute_dtype=dtype,
        data__max_length=max_length,
        batch__size=batch_size,
        loss__name="binary_cross_entropy",
        optim__learning_rate=1e-5,
        optim__schedule="constant",
        train__steps=10**6,
        tracking__wandb="disabled",
    )
    records = _training_pairs(number * batch_size)
    run = assemble(
        config,
        {ONLY: RecordSource(records, record_fields(records))},
        model=initial_cross_encoder(config, pair_loss(config)),
        objective=pair_objective,
    )
    assert run.data is not None
    batches = run.data.batches(0, run.state)
    state, key = run.state, jax.random.key(0)

    def steps() -> None:
        nonlocal state
        for _ in range(number):
            _, batch = next(batches)
            state, metrics = run.step(state, split_groups(batch, run.mesh), key)
        jax.block_until_ready(metrics)

    return steps


def _their_steps(peer: Any, batch_size: int, number: int, dtype: str) -> Callable[[], None]:
    """Returns the same steps in sentence-transformers: BinaryCrossEntropyLoss, clipping, AdamW."""
    import torch
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    loss = BinaryCrossEntropyLoss(peer)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-5, weight_decay=0.01)
    records = _training_pairs(number * batch_size)
    autocast = peer_autocast("cpu", dtype)

    def steps() -> None:
        peer.train()
        for start in range(0, len(records), batch_size):
            batch = records[start : start + batch_size]
            columns = [[record[name] for record in batch] for name in ("sentence1", "sentence2")]
            with autocast:
                value = loss(columns, torch.tensor([record["score"] for record in batch]))
            value.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        value.item()
        peer.eval()

    return steps
