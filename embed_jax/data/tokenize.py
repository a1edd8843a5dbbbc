"""Makes token ids of texts with the model's own fast tokenizer, like sentence-transformers."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from embed_jax.data.pack import UNPOOLED, UNSEEN
from embed_jax.errors import InputError
from embed_jax.types import LONGEST_FIRST, ONLY_SECOND


@dataclasses.dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of texts, special tokens included, not padded.

    Attributes:
        ids: one int32 array per text.
        skip: the number of each text's leading tokens that belong to a prompt and are not pooled.
        truncated: the number of texts that were cut at the tokenizer's limit.
        segments: token types, an int32 array per text; None: all are 0.
        marks: marks of the tokens (`pack.UNPOOLED` and `pack.UNSEEN`), an array per text; None: no
            token has any.
    """

    ids: list[Int[np.ndarray, " _"]]
    skip: int
    truncated: int
    segments: list[Int[np.ndarray, " _"]] | None = None
    marks: list[Int[np.ndarray, " _"]] | None = None


@dataclasses.dataclass(frozen=True)
class Expansion:
    """Tokens that lengthen short texts, for a model that gives each token a vector.

    Attributes:
        length: texts with fewer tokens get as many as are missing.
        token_id: which token is added.
        attend: whether others see these tokens, which themselves see the text in any case.
    """

    length: int
    token_id: int
    attend: bool = False


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A fast tokenizer that never changes, so that threads may share it; see `load_tokenizer`.

    Attributes:
        backend: our own `tokenizers.Tokenizer`, with truncation and without padding.
        hf: the unchanged transformers tokenizer, for saving.
        max_length: the limit in tokens, special tokens included.
        pad_id: the padding token's id, 0 if the tokenizer has none.
        special_tokens: whether special tokens are put around a text; if not, `save` writes only
            tokenizer.json, which records this.
        rows: the number of rows of the model's table of token embeddings; a text with a token
            beyond them is refused. 0: not known.
        expansion: see Expansion; None: texts are not lengthened.
        unpooled_ids: tokens that never count towards pooling, such as punctuation.
        by_config: whether `save` writes transformers' config too where there are no special tokens.
    """

    backend: Any
    hf: Any
    max_length: int
    pad_id: int
    special_tokens: bool = True
    rows: int = 0
    expansion: Expansion | None = None
    unpooled_ids: tuple[int, ...] = ()
    by_config: bool = False

    @functools.cached_property
    def vocab_size(self) -> int:
        """The number of rows that a table for it needs: one more than the largest token id."""
        return 1 + max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(
        self, texts: Sequence[str], prompt: str = "", include_prompt: bool = True
    ) -> TokenizedTexts:
        """Tokenizes `prompt + text` for each text.

        Args:
            texts: any strings; an empty one gives the special tokens only.
            prompt: a text put before every text.
            include_prompt: whether the prompt's tokens count towards pooling.

        Returns:
            The ids in the order of the texts. With `include_prompt=False`, `skip` follows the rule
            of sentence-transformers: it is the number of tokens of the prompt by itself, without a
            special token at its end.
        """
        check_texts(texts)
        encodings = self.tokenize([prompt + text for text in texts])
        skip = 0
        if prompt and not include_prompt:
            (prompt_ids,) = self.tokenize([prompt])
            skip = len(prompt_ids) - (
                len(prompt_ids) > 0 and prompt_ids.ids[-1] in self.hf.all_special_ids
            )
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        truncated = self._count_truncated(encodings)
        if self.expansion is None and not self.unpooled_ids:
            return TokenizedTexts(ids, skip, truncated)
        marks = [np.isin(text, self.unpooled_ids) * np.int32(UNPOOLED) for text in ids]
        if self.expansion is not None:
            missing = [max(self.expansion.length - len(text), 0) for text in ids]
            ids = _lengthen(ids, missing, self.expansion.token_id)
            marks = _lengthen(marks, missing, 0 if self.expansion.attend else UNSEEN)
        return TokenizedTexts(ids, skip, truncated, marks=marks)

    def encode_pairs(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        prompt: str = "",
        *,
        truncation: str = LONGEST_FIRST,
    ) -> TokenizedTexts:
        """Tokenizes `prompt + query` and passage as one text: `[CLS] query [SEP] passage [SEP]`.

        Args:
            queries: N strings.
            passages: N strings.
            prompt: a text put before every query.
            truncation: what a pair over the limit loses, under transformers' names:
                "longest_first", tokens of the longer of its texts first, or "only_second", tokens
                of the passage only.

        Raises:
            InputError: there are not as many queries as passages, a text is not a string, the limit
                leaves no room for a pair, or with "only_second" a query no room for a passage.
        """
        if len(queries) != len(passages):
            raise InputError(
                f"pairs: expected as many passages as queries, found {len(passages)} and "
                f"{len(queries)}"
            )
        check_texts(queries)
        check_texts(passages)
        _check_room(self.backend, self.max_length, pair=True)
        prompted = [prompt + query for query in queries]
        pairs = list(zip(prompted, passages, strict=True))
        if truncation == ONLY_SECOND:
            self._check_queries(prompted)
            encodings = self.tokenize(pairs, backend=self.passage_cutter)
        else:
            encodings = self.tokenize(pairs)
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        segments = None
        if "token_type_ids" in self.hf.model_input_names:
            segments = [np.array(encoding.type_ids, np.int32) for encoding in encodings]
        return TokenizedTexts(ids, 0, self._count_truncated(encodings), segments)

    @functools.cached_property
    def unlimited(self) -> Any:
        """A copy of `backend` that cuts no text."""
        backend = type(self.backend).from_str(self.backend.to_str())
        backend.no_truncation()
        return backend

    @functools.cached_property
    def passage_cutter(self) -> Any:
        """A copy of `backend` that cuts the second text of a pair only."""
        backend = type(self.backend).from_str(self.backend.to_str())
        side = self.hf.truncation_side
        backend.enable_truncation(self.max_length, strategy=ONLY_SECOND, direction=side)
        return backend

    def _check_queries(self, queries: Sequence[str]) -> None:
        """Raises an InputError for a query that leaves no room for a passage."""
        room = self.max_length - self.backend.num_special_tokens_to_add(is_pair=True)
        unique = list(dict.fromkeys(queries))
        for query, encoding in zip(unique, self.tokenize(unique, whole=True), strict=True):
            if len(encoding) >= room:
                raise InputError(
                    f"a query takes {len(encoding)} tokens, which leaves no room for a passage in "
                    f"max_length {self.max_length}: {query[:60]!a}"
                )

    def with_table(self, rows: int) -> Tokenizer:
        """Returns the same tokenizer for a table of `rows` token embeddings.

        Added tokens may be beyond the table, if they were added without resizing it: a text with
        such a token is refused.

        Raises:
            InputError: tokens of the vocabulary itself are beyond the table, which is then another
                model's.
        """
        if self.vocab_size > rows:
            added = self.backend.get_added_tokens_decoder()
            vocabulary = self.backend.get_vocab(with_added_tokens=True).values()
            if any(index >= rows and index not in added for index in vocabulary):
                raise InputError(
                    f"a table of {rows} rows for a tokenizer of {self.vocab_size} tokens"
                )
        return dataclasses.replace(self, rows=rows)

    def cut_at(self, max_length: int) -> Tokenizer:
        """Returns the same tokenizer with another limit."""
        backend = type(self.backend).from_str(self.backend.to_str())
        set_limit(backend, max_length, self.hf.truncation_side)
        return dataclasses.replace(self, backend=backend, max_length=max_length)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the tokenizer's files as transformers lays them out."""
        if self.special_tokens or self.by_config:
            self.hf.save_pretrained(directory)
        else:
            self.backend.save(str(Path(directory) / "tokenizer.json"))

    def tokenize(
        self, texts: Sequence[str | tuple[str, str]], *, whole: bool = False, backend: Any = None
    ) -> list[Any]:
        """Returns the encodings of texts or pairs, as the `tokenizers` library has them.

        Args:
            texts: strings, or pairs of them.
            whole: whether texts are taken as they are: neither cut nor put between special tokens.
            backend: instead of the tokenizer's own, where texts are cut in another way.

        Raises:
            InputError: a text is not valid Unicode, or has a token beyond the model's table.
        """
        try:
            if whole:
                encodings = self.unlimited.encode_batch(texts, add_special_tokens=False)
            else:
                encodings = (backend or self.backend).encode_batch_fast(texts)
        except TypeError:  # a lone surrogate, from a faulty JSON escape, is not UTF-8
            single = (
                part for text in texts for part in ([text] if isinstance(text, str) else text)
            )
            wrong = next(text for text in single if text != text.encode(errors="replace").decode())
            raise InputError(f"a text is not valid Unicode: {ascii(wrong[:60])}") from None
        if 0 < self.rows < self.vocab_size:
            for text, encoding in zip(texts, encodings, strict=True):
                self._check_ids(text, encoding.ids)
        return encodings

    def _check_ids(self, text: str | tuple[str, str], ids: list[int]) -> None:
        largest = max(ids, default=0)
        if largest >= self.rows:
            token = self.backend.id_to_token(largest)
            where = ascii(text if isinstance(text, str) else " / ".join(text))
            where = where if len(where) < 100 else f"{where[:96]}..."
            raise InputError(
                f"token {token!r} has no embedding: its id is {largest}, the model's table has "
                f"{self.rows} rows; found in the text {where}"
            )

    def _count_truncated(self, encodings: list[Any]) -> int:
        # Only a text that fills the limit can have been cut; reading `overflowing` of every text
        # would copy them.
        return sum(len(e) == self.max_length and bool(e.overflowing) for e in encodings)


def _lengthen(
    arrays: Sequence[Int[np.ndarray, " _"]], counts: Sequence[int], value: int
) -> list[Int[np.ndarray, " _"]]:
    """Appends a value to each array, as often as its count says."""
    pairs = zip(arrays, counts, strict=True)
    return [np.append(array, np.full(count, value, np.int32)) for array, count in pairs]


def set_limit(backend: Any, max_length: int, side: str) -> None:
    """Makes a backend cut texts at a number of tokens, on a side ("left" or "right").

    Raises:
        InputError: the limit leaves no room beside the special tokens.
    """
    _check_room(backend, max_length, pair=False)
    backend.enable_truncation(max_length, strategy=LONGEST_FIRST, direction=side)


def _check_room(backend: Any, max_length: int, pair: bool) -> None:
    special = backend.num_special_tokens_to_add(is_pair=pair)
    if max_length <= special:
        what = "a pair of texts" if pair else "text"
        raise InputError(
            f"max_length {max_length} leaves no room for {what}: {special} are special tokens"
        )


def check_texts(texts: Sequence[str]) -> None:
    """Raises an InputError for a text that is not a string."""
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"a text must be a string, found {type(text).__name__}")
