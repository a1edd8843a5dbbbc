"""A model as tasks see it: which prompt each use of a text takes, and each text embedded once."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from embed_jax.errors import InputError
from embed_jax.evals.task import DOCUMENT, QUERY, Use
from embed_jax.prompts import prompt_for
from embed_jax.types import SparseRows

Options = Callable[[Use], Mapping[str, Any]]


class Embedder:
    """Embeds texts for tasks, each text once for all tasks of a run.

    Embeddings are kept in a file without a name that is deleted with the process; memory holds 16
    bytes and a number for each text. Sparse ones are kept in memory.

    Attributes:
        name: the model's, for tables.
        similarity: "cosine", "dot", "euclidean" or "manhattan": how its embeddings are meant to be
            compared.
        embedded: how many texts the model was given.
    """

    def __init__(
        self,
        name: str,
        encode: Callable[..., Any],
        options: Options,
        *,
        similarity: str = "cosine",
    ):
        """Encodes nothing yet.

        Args:
            name: the model's, for tables.
            encode: `encode(texts, **options(use))` gives embeddings [N, D], an array or scipy's
                CSR; equal options and text, equal embedding.
            options: the options of `encode` for a use of texts, such as a prompt.
            similarity: one of SIMILARITIES, the one that the embeddings are meant for.
        """
        self.name, self.similarity, self.embedded = name, similarity, 0
        self._encode, self._options = encode, options
        self._rows: dict[bytes, int] = {}
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the Embedder lives
        self._dim = 0
        self._sparse: Any = None  # the rows of a sparse model

    def __call__(self, texts: Sequence[str], use: Use) -> Any:
        """Returns the embeddings of texts [N, D], float32, in their order.

        Raises:
            InputError: if the model gives another number of vectors than texts, of another
                dimension than before, or numbers that are not finite; and what `encode` raises.
        """
        options = self._options(use)
        salt = repr(sorted(options.items())).encode()
        keys = [
            hashlib.blake2b(salt + b"\0" + text.encode(), digest_size=16).digest() for text in texts
        ]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._rows}
        if new:
            self._add(list(new), list(new.values()), options)
        if self._sparse is not None:
            return self._sparse[[self._rows[key] for key in keys]]
        if not keys:
            return np.zeros((0, self._dim), np.float32)
        stored = np.memmap(self._file, np.float32, "r", shape=(len(self._rows), self._dim))
        return stored[[self._rows[key] for key in keys]]

    def describe_work(self) -> str:
        """Returns how many texts the model was given, in words."""
        return f"{self.embedded} texts embedded"

    def _add(self, keys: Sequence[bytes], texts: Sequence[str], options: Mapping[str, Any]) -> None:
        vectors = self._encode(texts, **options)
        is_sparse = isinstance(vectors, SparseRows)
        vectors = vectors.tocsr() if is_sparse else np.asarray(vectors, np.float32)
        self._dim = self._dim or (vectors.shape[1] if vectors.ndim == 2 else 0)
        if vectors.shape != (len(texts), self._dim):
            raise InputError(f"{self.name}: expected {len(texts)} embeddings of {self._dim or 'D'} "
                             "numbers, "
                             f"found shape {list(vectors.shape)}")  # fmt: skip
        finite = np.isfinite(vectors.sum(axis=1) if is_sparse else vectors).reshape(len(texts), -1)
        finite = finite.all(axis=1)
        if not finite.all():
            text = texts[int(np.argmin(finite))]
            raise InputError(f"{self.name}: embeddings of {(~finite).sum()} texts are not finite, "
                             "such as of "
                             f"{text[:40]!r}")  # fmt: skip
        if is_sparse:
            import scipy.sparse

            parts = [vectors] if self._sparse is None else [self._sparse, vectors]
            self._sparse = scipy.sparse.vstack(parts, format="csr")
        else:
            self._file.seek(0, 2)
            self._file.write(vectors.tobytes())
            self._file.flush()
        start = len(self._rows)
        self._rows.update((key, start + number) for number, key in enumerate(keys))
        self.embedded += len(texts)


class TokenEmbedder:
    """Gives tasks a vector for each token of a text: a late-interaction model as tasks see it.

    The vectors of a corpus can be larger than memory, so none is kept. A model of several heads,
    one of which gives such vectors, is seen in this way, too.

    Attributes:
        name: the model's, for tables.
        similarity: "maxsim" or "mean_maxsim"; of several heads a sum, see `head_scores.read_sum`.
        embedded: how many texts the model was given.
    """

    def __init__(
        self,
        name: str,
        encode: Callable[..., Any],
        options: Options,
        *,
        similarity: str = "maxsim",
    ):
        """Encodes nothing yet; see `Embedder` for the arguments."""
        self.name, self.similarity, self.embedded = name, similarity, 0
        self._encode, self._options = encode, options

    def __call__(self, texts: Sequence[str], use: Use) -> Any:
        """Returns the vectors of each text's tokens, or embeddings by head, in order of texts."""
        self.embedded += len(texts)
        return self._encode(texts, **self._options(use))

    def describe_work(self) -> str:
        """Returns how many texts the model was given, in words."""
        return f"{self.embedded} texts embedded"


def prompt_options(
    model: Any,
    *,
    prompt_name: str | None = None,
    query_prompt_name: str | None = None,
    corpus_prompt_name: str | None = None,
    instruction: str | None = None,
) -> Options:
    """Returns the options of a model's `encode` for each use of texts.

    A prompt named here is used; otherwise the model's own, in this order: what its template makes
    of the use's instruction; the prompt of its `prompts` for the task, the kind of task or the side
    (`prompts.prompt_for`); its default. Documents of a model without a prompt for them get none, on
    purpose, and never an instruction. A RoutedEncoder is told the side too, as the task.

    Args:
        model: an EmbeddingModel or a late-interaction model; one with routes is told the side, as
            the task.
        prompt_name: of all texts except documents.
        query_prompt_name: of the queries of a search.
        corpus_prompt_name: of the documents of a search.
        instruction: what the template makes a prompt of, for all texts except documents; instead of
            a name.
    """

    def options(use: Use) -> dict[str, Any]:
        task = {"task": use.side} if use.side and model.routes else {}
        return {**prompted(use), **task}

    def prompted(use: Use) -> dict[str, Any]:
        own_name = prompt_for(model.prompts, task=use.task, kind=use.kind, side=use.side)
        if use.side == DOCUMENT:
            name = corpus_prompt_name or own_name
            if name is None and model.default_prompt_name is None:
                return {"prompt": ""}
            return {} if name is None else {"prompt_name": name}
        requested = (query_prompt_name if use.side == QUERY else None) or prompt_name
        if requested:
            return {"prompt_name": requested}
        if instruction is not None:
            return {"instruction": instruction}
        if use.instruction and model.template:
            return {"instruction": use.instruction}
        return {} if own_name is None else {"prompt_name": own_name}

    return options


def endpoint_options(use: Use) -> dict[str, str]:
    """Returns the options of `endpoint.endpoint_encoder` for a use of texts.

    The option is the provider's kind of input.
    """
    return {
        "kind": use.side
        or {"Classification": "classification", "Clustering": "clustering"}.get(use.kind, "")
    }
