"""Texts in, embeddings out: the only place where model and text meet at inference."""

from __future__ import annotations

import collections
import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.data.pack import pack_sentences
from embed_jax.data.tokenize import Tokenizer, load_tokenizer
from embed_jax.encoders.build import EncoderSpec, build_encoder
from embed_jax.encoders.hf import read_model, resolve, write_model
from embed_jax.errors import InputError
from embed_jax.parallel.gather import sharded_encode
from embed_jax.parallel.mesh import batch_devices, gather_params, make_mesh, own_groups, replicate, split_groups
from embed_jax.registry import unknown
from embed_jax.types import Params, TokenBatch

WINDOW = 8192  # texts sorted and packed together; what bounds the memory beside the output
SHORTEST_ROW = 16  # slots


class SentenceEncoder:
    """A model with its tokenizer and prompts: `encode` texts, `save` for sentence-transformers and for `load`.

    Attributes:
        spec: backbone, pooling and heads.
        params: float32 tree of the encoder's parameters.
        tokenizer: cuts texts at `tokenizer.max_length` tokens.
        prompts: texts put before the input, by name.
        default_prompt_name: the prompt used when none is named, or None.
        include_prompt: whether a prompt's tokens count towards pooling.
        similarity: "cosine", "dot", "euclidean" or "manhattan": how the model's embeddings are meant to be compared.
        lower_case: whether the tokenizer was told to lower-case texts first; kept for `save`.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        params: Params,
        tokenizer: Tokenizer,
        *,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        include_prompt: bool = True,
        similarity: str = "cosine",
        lower_case: bool = False,
        compute_dtype: str = "float32",
        devices: int = 0,
    ):
        """As the attributes; `devices`: how many to encode on, 0 for all."""
        self.spec = spec
        self.tokenizer = tokenizer
        self.prompts = dict(prompts or {})
        self.default_prompt_name = default_prompt_name
        self.include_prompt = include_prompt
        self.similarity = similarity
        self.lower_case = lower_case
        self.compute_dtype = compute_dtype
        self._mesh = make_mesh(devices)
        self._encoder = build_encoder(spec, compute_dtype=compute_dtype)
        self._encode = sharded_encode(self._encoder, self._mesh)
        self.params = replicate(params, self._mesh)

    @property
    def dim(self) -> int:
        """D, the size of an embedding."""
        return self._encoder.dim

    @property
    def max_length(self) -> int:
        """Tokens that a text is cut to, special tokens included."""
        return self.tokenizer.max_length

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_tokens: int = 0,
        show_progress: bool = False,
        params: Params | None = None,
    ) -> Float[np.ndarray, "N D"]:
        """Embeddings of texts, float32, in input order; of one string, a single vector `[D]`.

        Memory does not grow with the number of texts beyond the output. Texts over the model's limit are cut, and one
        warning counts them.

        Args:
            texts: a string, or any iterable of strings.
            prompt_name: which of `prompts` to put before each text.
            prompt: the prompt itself, instead of a name.
            batch_tokens: slots a device encodes at a time; 0: what is fast on this backend.
            show_progress: a progress bar over texts.
            params: other parameters of the same model, as while training.

        Raises:
            InputError: for an unknown prompt, a text that is no string, or `batch_tokens` below one text's length.
        """
        if isinstance(texts, str):
            return self.encode(
                [texts], prompt_name=prompt_name, prompt=prompt, batch_tokens=batch_tokens, params=params
            )[0]
        blocks = self.encode_blocks(
            texts,
            prompt_name=prompt_name,
            prompt=prompt,
            batch_tokens=batch_tokens,
            show_progress=show_progress,
            params=params,
        )
        if not isinstance(texts, Sequence):
            return np.concatenate([np.zeros((0, self.dim), np.float32), *blocks])
        embeddings, start = np.empty((len(texts), self.dim), np.float32), 0
        for block in blocks:
            embeddings[start : start + len(block)] = block
            start += len(block)
        return embeddings

    def encode_blocks(
        self,
        texts: Iterable[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_tokens: int = 0,
        show_progress: bool = False,
        params: Params | None = None,
    ) -> Iterator[Float[np.ndarray, "n D"]]:
        """As `encode`, but yields the embeddings of up to 8,192 texts at a time, for outputs larger than memory."""
        prefix = self._prompt(prompt_name, prompt)
        params = self.params if params is None else gather_params(params, self._mesh)
        default = max(default_batch_tokens(), self.max_length)
        total = len(texts) if isinstance(texts, Sequence) else None
        truncated = count = 0
        with _progress(show_progress, total) as advance:
            for window in _windows(texts):
                tokenized = self.tokenizer.encode(window, prefix, self.include_prompt)
                truncated, count = truncated + tokenized.truncated, count + len(window)
                block = np.zeros((len(window), self.dim), np.float32)
                batches = pack_window(tokenized.ids, tokenized.skip, batch_tokens or default)
                for number, embeddings in self._run(batches, params):
                    block[number] = embeddings
                    advance(len(number))
                yield block
        if truncated:
            warnings.warn(
                f"{truncated} of {count} texts were cut at the model's limit of {self.max_length} tokens", stacklevel=2
            )

    def save(self, directory: str | Path) -> None:
        """Writes a model directory in the layout of sentence-transformers, which `load` reads too; atomic."""
        write_model(
            Path(directory),
            self.spec,
            jax.device_get(self.params),
            tokenizer=self.tokenizer,
            max_length=self.max_length,
            prompts=self.prompts,
            default_prompt_name=self.default_prompt_name,
            include_prompt=self.include_prompt,
            similarity=self.similarity,
            lower_case=self.lower_case,
        )

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        name = name if name is not None else self.default_prompt_name
        if name is None:
            return ""
        if name not in self.prompts:
            raise InputError(
                unknown("prompt", name, self.prompts) if self.prompts else f"this model has no prompts: {name!r}"
            )
        return self.prompts[name]

    def _run(self, batches: Iterator, params: Params) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Runs batches of equal shape, one a device; the next is prepared while the devices work."""
        waiting: collections.deque = collections.deque()
        for numbers, group in _by_devices(batches, batch_devices(self._mesh)):
            waiting.append((numbers, self._encode(params, split_groups(own_groups(group, self._mesh), self._mesh))))
            if len(waiting) > 1:
                yield from _fetch(*waiting.popleft())
        while waiting:
            yield from _fetch(*waiting.popleft())


def load(name: str, *, max_length: int = 0, compute_dtype: str = "float32") -> SentenceEncoder:
    """Loads an embedding model.

    Args:
        name: a directory (ours, sentence-transformers' or plain Hugging Face), or a hub name.
        max_length: cut texts at so many tokens; 0: the model's own limit.
        compute_dtype: "float32" or "bfloat16".

    Raises:
        InputError: if it can't be found or read, or is of an unknown architecture.
    """
    saved = read_model(resolve(name))
    return SentenceEncoder(
        saved.spec,
        saved.params,
        load_tokenizer(saved.tokenizer_directory, max_length or saved.max_length, lower_case=saved.lower_case),
        prompts=saved.prompts,
        default_prompt_name=saved.default_prompt_name,
        include_prompt=saved.include_prompt,
        similarity=saved.similarity,
        lower_case=saved.lower_case,
        compute_dtype=compute_dtype,
    )


def default_batch_tokens() -> int:
    """Slots a device encodes at a time: what fits a CPU's cache, or fills an accelerator."""
    return 2048 if jax.default_backend() == "cpu" else 65536


def pack_window(ids: Sequence[np.ndarray], skip: int, batch_tokens: int) -> Iterator[tuple[np.ndarray, TokenBatch]]:
    """Packs texts into batches of few different shapes.

    Texts share rows at least twice as long as themselves (up to the longest text's), so that best-fit packing finds
    something for every gap; short and long texts go to different rows, since attention costs a row's length.

    Args:
        ids: token ids of each text.
        skip: leading tokens that don't count towards pooling.
        batch_tokens: slots of a batch.

    Yields:
        The numbers of the texts of a batch, and the batch: leaves `[R, T]`, text i of the batch is sentence i. Texts
        without tokens are in no batch.

    Raises:
        InputError: if a text is longer than `batch_tokens`.
    """
    lengths = np.array([len(one) for one in ids], np.int64)
    longest = int(lengths.max(initial=1))
    if longest > batch_tokens:
        raise InputError(f"batch_tokens: expected at least {longest}, the tokens of one text, found {batch_tokens}")
    if len(ids) <= 4:  # a few texts: the quickest answer comes from rows of their own size
        row_lengths = np.full(len(ids), _row_length(longest))
    else:
        wanted = [128 << max(-(-2 * n // 128) - 1, 0).bit_length() for n in lengths.tolist()]
        row_lengths = np.minimum(wanted, _row_length(longest))
    row_lengths = np.minimum(row_lengths, batch_tokens)
    for row_length in np.unique(row_lengths):
        numbers = np.flatnonzero((row_lengths == row_length) & (lengths > 0))
        rows = max(batch_tokens // int(row_length), 1)
        packed = pack_sentences([ids[number] for number in numbers], row_length=int(row_length), skip=skip)
        used = int(np.sum((packed.sentence < packed.sentences).any(axis=1)))
        start = 0
        while start < used:
            stop = min(start + rows, used)
            present = np.unique(packed.sentence[start:stop])
            while stop - start > 1 and len(present) > _room_for_sentences(stop - start, int(row_length)):
                stop -= 1
                present = np.unique(packed.sentence[start:stop])
            yield numbers[present[present < packed.sentences]], _rows(packed, start, stop, rows)
            start = stop


def _row_length(length: int) -> int:
    """The smallest row of 16, 24, 32, 48, 64, 96, ... slots that holds `length` tokens: two sizes to a doubling."""
    row = SHORTEST_ROW
    while row < length:
        row = row * 3 // 2 if row & (row - 1) == 0 else row * 4 // 3
    return row


def _room_for_sentences(rows: int, row_length: int) -> int:
    """S as a function of the shape, so that shapes are few: room for texts of four tokens, or a row of ones."""
    return max(rows * row_length // 4, row_length + 1)


def _rows(packed: TokenBatch, start: int, stop: int, rows: int) -> TokenBatch:
    """Some rows of a packed batch as a batch of its own: sentences numbered anew, rows padded to a power of two."""
    padded = min(1 << (stop - start - 1).bit_length(), rows)
    shape = (padded, packed.sentence.shape[1])
    sentences = _room_for_sentences(*shape)

    def pad(leaf, value):
        result = np.full(shape, value, leaf.dtype)
        result[: stop - start] = leaf[start:stop]
        return result

    number = np.full(shape, sentences, np.int32)
    number[: stop - start] = np.unique(packed.sentence[start:stop], return_inverse=True)[1].reshape(-1, shape[1])
    number[: stop - start][packed.sentence[start:stop] == packed.sentences] = sentences
    return TokenBatch(
        token_ids=pad(packed.token_ids, 0),
        sentence=number,
        position=pad(packed.position, 0),
        pooled=pad(packed.pooled, False),
        sentences=sentences,
    )


def _by_devices(
    batches: Iterable[tuple[np.ndarray, TokenBatch]], devices: int
) -> Iterator[tuple[list[np.ndarray], TokenBatch]]:
    """Stacks batches of equal shape, one a device; where there are too few, empty ones fill up."""
    for _, alike in itertools.groupby(batches, key=lambda item: (item[1].token_ids.shape, item[1].sentences)):
        alike = iter(alike)
        while chunk := list(itertools.islice(alike, devices)):
            numbers, groups = [item[0] for item in chunk], [item[1] for item in chunk]
            empty = groups[0].replace(sentence=np.full_like(groups[0].sentence, groups[0].sentences))
            groups += [empty] * (devices - len(groups))
            yield numbers, jax.tree.map(lambda *leaves: np.stack(leaves), *groups)


def _fetch(numbers: list[np.ndarray], embeddings: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for number, group in zip(numbers, np.asarray(embeddings), strict=False):
        yield number, group[: len(number)]


def _windows(texts: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(texts)
    while window := list(itertools.islice(texts, WINDOW)):
        yield window


@contextlib.contextmanager
def _progress(show: bool, total: int | None) -> Iterator[Any]:
    """A function that is told how many texts are done."""
    if not show:
        yield lambda count: None
        return
    import tqdm

    with tqdm.tqdm(total=total, unit="text", dynamic_ncols=True) as bar:
        yield bar.update
