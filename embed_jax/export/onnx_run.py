"""Exported ONNX files, run by ONNX Runtime, and compared with their model."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from embed_jax.cross_encoder import CrossEncoder
from embed_jax.data.tokenize import TokenizedTexts
from embed_jax.errors import InputError, one_line, require
from embed_jax.sentence import SentenceEncoder

OUTPUT = "sentence_embedding"
LOGITS = "logits"  # the output of a cross-encoder
BATCHES = (1, 3, 8, 32)  # texts of the batches that are compared, in turn


def encode_onnx(
    path: str | Path, model: SentenceEncoder, texts: Sequence[str], *, prompt: str = ""
) -> Float[np.ndarray, "N D"]:
    """Computes embeddings by ONNX Runtime on CPU, in batches of different sizes (BATCHES) in turn.

    Args:
        path: the ONNX file.
        model: the model that the file was written from; its tokenizer is used.
        texts: N texts.
        prompt: a text put before each text.

    Raises:
        InputError: onnxruntime is not installed, or it cannot read the file.
    """
    tokenized = model.tokenizer.encode(texts, prompt, model.include_prompt)
    return _run(path, OUTPUT, tokenized, model.tokenizer.pad_id, model.dim)


def logits_onnx(
    path: str | Path, model: CrossEncoder, queries: Sequence[str], passages: Sequence[str]
) -> Float[np.ndarray, "N L"]:
    """Computes logits of pairs by ONNX Runtime on CPU, in batches of different sizes in turn.

    Args:
        path: the ONNX file.
        model: the model that the file was written from; its tokenizer is used.
        queries: N texts.
        passages: N texts.

    Raises:
        InputError: see `encode_onnx`.
    """
    tokenized = model.tokenize(queries, passages)
    return _run(path, LOGITS, tokenized, model.tokenizer.pad_id, model.num_labels)


def _run(
    path: str | Path, output: str, tokenized: TokenizedTexts, pad_id: int, size: int
) -> Float[np.ndarray, "N D"]:
    """Runs a file on texts in batches of BATCHES, and returns its output for each text."""
    require("onnxruntime")
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the library has a kind for each of its status codes
        raise InputError(f"{path}: ONNX Runtime cannot read it: {one_line(error)[:200]}") from None
    names = [each.name for each in session.get_inputs()]
    sizes, start, blocks = itertools.cycle(BATCHES), 0, [np.zeros((0, size), np.float32)]
    while start < len(tokenized.ids):
        rows = slice(start, start := start + next(sizes))
        types = None if tokenized.segments is None else tokenized.segments[rows]
        arrays = pad_rows(tokenized.ids[rows], tokenized.skip, pad_id, types)
        blocks += session.run([output], {name: arrays[name] for name in names})
    return np.concatenate(blocks)


def pad_rows(
    rows: Sequence[Int[np.ndarray, " _"]],
    skip: int,
    pad_id: int,
    types: Sequence[Int[np.ndarray, " _"]] | None = None,
) -> dict[str, Int[np.ndarray, "B T"]]:
    """Returns a file's inputs by name, with rows padded to the longest.

    >>> pad_rows([np.array([5, 6]), np.array([7])], skip=1, pad_id=0)["input_ids"].tolist()
    [[5, 6], [7, 0]]

    Args:
        rows: the token ids of each text.
        skip: the number of leading tokens of each text that are not pooled.
        pad_id: the token id at padding.
        types: the token types of each text; None: 0 everywhere.
    """
    lengths = np.array([len(row) for row in rows])[:, None]
    slots = np.arange(max(int(lengths.max(initial=1)), 1))
    input_ids = np.full((len(rows), len(slots)), pad_id, np.int64)
    token_types = np.zeros_like(input_ids)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = row
        if types is not None:
            token_types[number, : len(row)] = types[number]
    mask = slots < lengths
    pooled = mask & (slots >= skip)
    return {
        "input_ids": input_ids,
        "attention_mask": mask.astype(np.int64),
        "pooling_mask": pooled.astype(np.int64),
        "token_type_ids": token_types,
    }


def compare_onnx(path: str | Path, model: SentenceEncoder, texts: Sequence[str]) -> float:
    """Returns the largest difference between the file's embeddings and the model's own.

    Texts have the model's default prompt. The difference is infinite if a number is not finite.

    Raises:
        InputError: see `encode_onnx`.
    """
    prompt = (
        model.prompts[model.default_prompt_name] if model.default_prompt_name is not None else ""
    )
    ours = model.encode(texts, prompt=prompt)
    return _largest_difference(encode_onnx(path, model, texts, prompt=prompt), ours)


def compare_logits_onnx(
    path: str | Path, model: CrossEncoder, queries: Sequence[str], passages: Sequence[str]
) -> float:
    """Returns the largest difference between the file's logits and the model's own.

    The difference is infinite if a number is not finite.

    Raises:
        InputError: see `encode_onnx`.
    """
    ours = model.logits(queries, passages)
    return _largest_difference(logits_onnx(path, model, queries, passages), ours)


def _largest_difference(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "N D"]) -> float:
    difference = np.abs(a - b)
    return float(np.where(np.isfinite(difference), difference, np.inf).max(initial=0.0))
