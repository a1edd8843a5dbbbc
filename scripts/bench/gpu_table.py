"""The table of the bench of an accelerator: its rows, in the order of their worth."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import gpu_checks, gpu_rows, launches, loss

LORA_RANK = 16
LOSS_DIM = 1024  # numbers of an embedding


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of what the rows measure.

    Attributes:
        shapes: of the encoders: (shape, rank of an adapter or 0).
        lengths: of the texts: the first ones, and those for which there may be no time.
        encode_slots: of an encoded batch.
        train_slots: of a training step.
        negatives: of a loss.
        maxsim: queries and documents, tokens of a query, tokens of a document, size of a vector.
        pairs: that a cross-encoder scores.
        families: experiments to launch.
        steps: of a launched run.
        peer_texts: texts that other libraries encode.
    """

    shapes: Sequence[tuple[str, int]]
    lengths: tuple[Sequence[int], Sequence[int]]
    encode_slots: int
    train_slots: int
    negatives: int
    maxsim: tuple[int, int, int, int]
    pairs: int
    families: Sequence[str]
    steps: int
    peer_texts: int


SIZES = {
    "full": Size(
        shapes=(("bert-base", 0), ("modernbert-base", 0), ("qwen3-0.6b", LORA_RANK)),
        lengths=((128, 512), (2048, 32, 8192)),
        encode_slots=65536,
        train_slots=32768,
        negatives=65536,
        maxsim=(128, 32, 180, 128),
        pairs=2048,
        families=tuple(launches.FAMILIES),
        steps=30,
        peer_texts=4096,
    ),
    "tiny": Size(
        shapes=(("tiny", 2),),
        lengths=((16,), ()),
        encode_slots=256,
        train_slots=256,
        negatives=64,
        maxsim=(4, 8, 16, 8),
        pairs=8,
        families=("simcse",),
        steps=4,
        peer_texts=8,
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        kind: rows of one kind take about as long.
        name: printed before the figures.
        measure: returns "rate" and "unit", and where they are known "ms", "mfu", "gib"; "note" is
            printed below, or by itself where there is no rate.
    """

    kind: str
    name: str
    measure: Callable[[], dict[str, Any]]


def list_rows(size: Size, folder: Path, train_slots: int = 0) -> list[Row]:
    """Lists the rows, in the order of their worth.

    Args:
        size: see SIZES.
        folder: for files that are only needed meanwhile.
        train_slots: instead of the size's.
    """
    slots = train_slots or size.train_slots

    def of_encoders(lengths: Sequence[int]) -> list[Row]:
        rows = []
        for length in lengths:
            for shape, rank in size.shapes:
                name = f"{shape}{f', LoRA {rank}' if rank else ''}, {length} tokens"
                train = functools.partial(gpu_rows.train_row, shape, rank, length, slots)
                encode = functools.partial(gpu_rows.encode_row, shape, length, size.encode_slots)
                rows.append(Row("train", f"train {name}", train))
                rows.append(Row("encode", f"encode {shape}, {length} tokens", encode))
        return rows

    first, last = size.lengths
    shape, length = size.shapes[0][0], first[0]
    queries, query_tokens, document_tokens, dim = size.maxsim
    return [
        *(
            Row("launch", name, measure)
            for name, measure in gpu_checks.launch_measures(size.families, size.steps, folder)
        ),
        *of_encoders(first),
        Row("checks", "tests that need a GPU", gpu_checks.run_gpu_tests),
        *(
            Row(
                "peer",
                f"encode {shape}, {length} tokens, {name or 'embed-jax, texts in'}",
                functools.partial(gpu_rows.peer_encode_row, shape, length, size.peer_texts, name),
            )
            for name in ("", "sentence-transformers:bfloat16", "sentence-transformers:compile")
        ),
        Row(
            "peer",
            f"train {shape}, {length} tokens, sentence-transformers",
            functools.partial(gpu_rows.peer_train_row, shape, length, slots),
        ),
        *(
            Row(
                "loss",
                f"info_nce, {form}, {size.negatives:,} negatives",
                functools.partial(gpu_rows.loss_row, form, size.negatives, LOSS_DIM),
            )
            for form in loss.FORMS
        ),
        Row(
            "maxsim",
            f"MaxSim and gradient, {queries} x {queries} of {query_tokens} x {document_tokens}",
            functools.partial(gpu_rows.maxsim_row, queries, query_tokens, document_tokens, dim),
        ),
        Row(
            "cross-encoder",
            f"train a cross-encoder, {shape}, {length} tokens",
            functools.partial(gpu_rows.rerank_row, shape, length, slots),
        ),
        Row(
            "cross-encoder",
            f"score by a cross-encoder, {shape}, texts in",
            functools.partial(gpu_rows.score_row, shape, size.pairs, folder / "reranker"),
        ),
        *of_encoders(last),
    ]
