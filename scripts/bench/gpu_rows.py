"""The measurements of the bench of an accelerator, one a function."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import launches, loss, maxsim, pairs
from .flops import measure_peak, needed_flops, time_program
from .measure import GIB, make_words, on_cpu, random_model
from .parts import kernel_shapes
from .peers import as_peer, start_peers
from .train import Trainer, add_bench_adapter, batch_of_pairs, their_steps

if TYPE_CHECKING:
    from embed_jax.encoders.spec import EncoderSpec
    from embed_jax.types import Batch, Params, TokenBatch

DTYPE = "bfloat16"
RUNS = 5  # timed runs, of which the median counts
PAIR_TOKENS = 256  # to which a pair is cut
PACKED_ROW = 128  # slots of a row of shorter texts
RECOMPUTED = 2048  # tokens of a text from which layers are computed again in the backward pass


# ---- encoders ------------------------------------------------------------------------------------


@functools.cache
def card_peak() -> float:
    """Returns the FLOP/s of the device in bfloat16: those of its data sheet, or as measured."""
    import jax

    from embed_jax.train.speed import known_peak

    squares = (256,) if on_cpu() else ()
    return known_peak(jax.devices()[0].device_kind) or max(
        measure_peak(DTYPE, RUNS, squares).values()
    )


def long_spec(shape: str, length: int) -> EncoderSpec:
    """Returns the spec of a shape, with as many positions as a text needs."""
    from embed_jax.encoders.spec import random_spec

    spec = random_spec(shape)
    positions = max(spec.backbone.max_positions, length)  # type: ignore[attr-defined]
    return dataclasses.replace(
        spec, backbone=dataclasses.replace(spec.backbone, max_positions=positions)
    )


def full_rows(slots: int, length: int, vocab_size: int) -> TokenBatch:
    """Returns rows without padding, `[R, T]`, of an even number of texts of equal length."""
    from embed_jax.types import TokenBatch

    row_length = max(length, PACKED_ROW // length * length)
    in_row = row_length // length
    rows = max(slots // row_length, 2)
    ids = np.random.default_rng(0).integers(5, vocab_size, (rows, row_length), np.int32)
    sentence = np.arange(rows * in_row, dtype=np.int32).repeat(length).reshape(rows, row_length)
    position = np.tile(np.arange(length, dtype=np.int32), (rows, in_row))
    count = rows * in_row // 2 * 2
    sentence = np.minimum(sentence, count)  # an odd one is padding
    position = np.where(sentence < count, position, 0)
    return TokenBatch(ids, sentence, position, sentence < count, sentences=count)


def _figures(seconds: float, tokens: int, flops: float, compiled: Any) -> dict[str, Any]:
    from embed_jax.train.memory import compiled_bytes

    return {
        "rate": tokens / seconds,
        "unit": "tokens",
        "ms": 1000 * seconds,
        "mfu": flops / seconds / card_peak(),
        "gib": sum(compiled_bytes(compiled).values()) / GIB,
    }


def encode_row(shape: str, length: int, slots: int) -> dict[str, Any]:
    """Measures the encoding of one batch on one device."""
    import jax

    from embed_jax.encoders.build import build_encoder

    spec = long_spec(shape, length)
    encoder = build_encoder(spec, compute_dtype=DTYPE)
    params = jax.jit(encoder.init)(jax.random.key(0))
    tokens = jax.device_put(full_rows(slots, length, spec.backbone.vocab_size))
    compiled = jax.jit(encoder.apply).lower(params, tokens).compile()
    seconds = time_program(compiled, (params, tokens), RUNS)
    lengths = [length] * tokens.sentences
    flops = needed_flops(spec.backbone, kernel_shapes(params), lengths, training=False)
    return _figures(seconds, sum(lengths), flops, compiled)


def train_row(shape: str, rank: int, length: int, slots: int) -> dict[str, Any]:
    """Measures a training step of pairs, InfoNCE with AdamW and dropout, on one device."""
    spec = long_spec(shape, length)
    tokens = full_rows(slots, length, spec.backbone.vocab_size)
    order = np.arange(tokens.sentences // 2, dtype=np.int32)[None]
    batch = batch_of_pairs(one_group(tokens), order)
    return _step_figures(spec, rank, "info_nce", batch, [length] * tokens.sentences)


def rerank_row(shape: str, length: int, slots: int) -> dict[str, Any]:
    """Measures a training step of a cross-encoder, binary cross entropy of pairs of `length`."""
    from embed_jax.encoders.classifier import make_classifier

    spec = make_classifier(long_spec(shape, length).backbone)
    tokens = full_rows(slots, length, spec.backbone.vocab_size)
    # The logits of a pair are those of its second text; the first one has no tokens.
    count = tokens.sentences
    tokens = tokens.replace(sentence=tokens.sentence + count, sentences=2 * count)
    batch = batch_of_pairs(one_group(tokens), np.arange(count, dtype=np.int32)[None])
    batch = batch.replace(score=np.arange(count, dtype=np.float32).reshape(1, count, 1) % 2)
    loss_name = "binary_cross_entropy(similarity='logit')"
    return _step_figures(spec, 0, loss_name, batch, [length] * count)


def one_group(tokens: TokenBatch) -> TokenBatch:
    """Returns the tokens of a batch that has one group."""
    import jax

    return jax.tree.map(lambda leaf: leaf[None], tokens)


def _step_figures(
    spec: EncoderSpec, rank: int, expression: str, batch: Batch, lengths: list[int]
) -> dict[str, Any]:
    import jax

    from embed_jax.encoders.build import build_encoder

    made: dict[str, EncoderSpec] = {}

    def initialise(key: jax.Array) -> Params:
        params = build_encoder(spec).init(key)
        made["spec"], params = add_bench_adapter(spec, params, rank, DTYPE)
        return params

    params = jax.jit(initialise)(jax.random.key(0))
    kernels = kernel_shapes(params)
    remat = "layer" if lengths[0] >= RECOMPUTED else "none"
    trainer = Trainer(made["spec"], params, expression, dtype=DTYPE, remat=remat, devices=1)
    del params
    placed = trainer.place(batch)
    compiled = trainer.compile(placed)
    seconds = time_program(trainer.take, (placed,), RUNS)
    flops = needed_flops(spec.backbone, kernels, lengths, training=True, frozen=bool(rank))
    value = float(trainer.take(placed)["loss"])
    note = "" if np.isfinite(value) else f"the loss is {value}"
    return {**_figures(seconds, sum(lengths), flops, compiled), "note": note, "loss": value}


# ---- losses --------------------------------------------------------------------------------------


def loss_row(form: str, negatives: int, dim: int) -> dict[str, Any]:
    """Measures a loss and its gradient; a ring on all devices."""
    import jax

    devices = jax.device_count() if form == "ring" else 1
    if form == "ring" and devices == 1:
        return {"note": "one device"}
    compiled, arguments = loss.compile_form("info_nce", form, negatives, dim, devices)
    seconds = time_program(compiled, arguments(), RUNS)
    # Scores, and the gradients of both sides.
    return _figures(seconds, negatives, 6.0 * negatives**2 * dim, compiled) | {"unit": "examples"}


def maxsim_row(queries: int, query_tokens: int, document_tokens: int, dim: int) -> dict[str, Any]:
    """Measures MaxSim and its gradient, beside the textbook's form."""
    sides = maxsim.compile_sides(queries, query_tokens, document_tokens, dim)
    seconds = [time_program(compiled, arguments, RUNS) for compiled, arguments in sides]
    compiled, flops = sides[0][0], 6.0 * queries**2 * query_tokens * document_tokens * dim
    figures = _figures(seconds[0], queries**2, flops, compiled) | {"unit": "scores"}
    temporary = sides[1][0].memory_analysis().temp_size_in_bytes / GIB
    note = f"the textbook's form: {1000 * seconds[1]:.4g} ms, {temporary:.3g} GiB of temporaries"
    return figures | {"note": note}


# ---- cross-encoders ------------------------------------------------------------------


def score_row(shape: str, number: int, folder: Path) -> dict[str, Any]:
    """Measures the scoring of pairs of about 70 words, tokenising included."""
    folder.mkdir(exist_ok=True)
    model = pairs.make_cross_encoder(shape, PAIR_TOKENS, folder, DTYPE)
    texts = pairs.scored_texts(number)
    seconds = time_program(lambda: model.score(*texts), (), RUNS)
    return {"rate": number / seconds, "unit": "pairs", "ms": 1000 * seconds}


# ---- sentence-transformers -----------------------------------------------------------------------


def peer_encode_row(shape: str, length: int, number: int, name: str) -> dict[str, Any]:
    """Measures the encoding of texts, tokenising included, here or by another library."""
    model = random_model(shape, length, DTYPE)
    texts = _texts(number, length)
    if not name:
        seconds = time_program(lambda: model.encode(texts), (), RUNS)
    else:
        with start_peers(model, [name]) as functions:
            (encode,) = functions.values()
            seconds = time_program(lambda: encode(texts), (), RUNS)
    return {"rate": number * length / seconds, "unit": "tokens", "ms": 1000 * seconds}


def peer_train_row(shape: str, length: int, slots: int) -> dict[str, Any]:
    """Measures the same training step in sentence-transformers, tokenising included."""
    if not launches.is_installed("sentence_transformers"):
        return {"note": "sentence-transformers is not installed"}
    texts = _texts(max(slots // length, 2) // 2 * 2, length)
    steps = their_steps(as_peer(random_model(shape, length)), [texts], DTYPE)
    seconds = time_program(steps, (), RUNS)
    return {"rate": len(texts) * length / seconds, "unit": "tokens", "ms": 1000 * seconds}


def _texts(number: int, length: int) -> list[str]:
    """Returns texts of `length` tokens with the two that the tokenizer adds."""
    words = np.resize(np.concatenate(make_words(256, 64)), (number, length - 2))
    return [" ".join(f"w{word}" for word in own) for own in words]
