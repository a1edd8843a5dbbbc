"""Embeddings by models behind an API, as a baseline: OpenAI, Cohere, Voyage and Google."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import json
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError, RunError
from embed_jax.registry import unknown
from embed_jax.remote.ask import Job, Retries, ask_all
from embed_jax.remote.embedding_forms import INTERFACES
from embed_jax.remote.server import Failed, Server, message_of, read_key
from embed_jax.remote.vector_cache import VectorCache

KINDS = ("", "query", "document", "classification", "clustering")


class EmbeddingEndpoint(Server):
    """A server that answers texts with embeddings.

    Attributes:
        interface: the provider's form.
        model: the model's name there.
        dim: the requested dimension; 0: the model's own.
        kinds: the provider's words for `kind`.
        settings: more fields of a request.
    """

    def __init__(
        self,
        interface: str,
        model: str,
        *,
        base_url: str = "",
        dim: int = 0,
        kinds: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        key_variable: str | None = None,
        timeout: float = 120.0,
    ):
        """Checks the arguments; sends nothing.

        Args:
            interface: one of INTERFACES.
            model: the model's name there.
            base_url: of another server than the provider's.
            dim: the requested dimension, for models that have several; 0: the model's own.
            kinds: other words for `kind`, or `{}` for no words: gemini-embedding-2 takes prompts,
                not task types; some servers of OpenAI's form take an input_type.
            settings: more fields of a request (of each text's part in Google's form), such as
                `{"encoding_format": "base64"}`.
            key_variable: the environment variable with the key; None: the provider's; "": no key.
            timeout: seconds for a whole answer.

        Raises:
            InputError: for an unknown interface, an invalid URL, a key that is missing.
        """
        if interface not in INTERFACES:
            raise InputError(unknown("interface", interface, INTERFACES))
        self.interface, self.model, self.dim = (
            INTERFACES[interface],
            model.removeprefix("models/"),
            dim,
        )
        self.kinds = dict(self.interface.kinds if kinds is None else kinds)
        self.settings = dict(settings or {})
        variable = self.interface.key_variable if key_variable is None else key_variable
        super().__init__(
            base_url or self.interface.base_url,
            self.interface.path.format(model=urllib.parse.quote(self.model)),
            key=read_key(variable, 'key_variable names another, "" goes without')
            if variable
            else None,
            key_header=self.interface.key_header,
            timeout=timeout,
        )

    def complete(self, texts_and_kind: tuple[Sequence[str], str]) -> Float[np.ndarray, "n D"]:
        """Returns the embeddings of one request's texts.

        Raises:
            Failed: if another try may succeed.
            InputError: if no other try can succeed, also for embeddings of another dimension than
                requested.
        """
        texts, kind = texts_and_kind
        body = self.post(self.interface.request(self.model, texts, self.dim, kind, self.settings))
        try:
            rows = self.interface.rows(body)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise Failed(
                self.without_key(f"the server's answer holds no embeddings: {message_of(body)}")
            ) from None
        vectors = _matrix(rows, len(texts))
        if self.dim and vectors.shape[1] != self.dim:
            raise InputError(
                f"{self.url}: asked {self.model} for {self.dim} dimensions, found "
                f"{vectors.shape[1]}"
            )
        return vectors

    def key_of(self, text: str, kind: str) -> str:
        """Returns 32 hex digits of everything that an embedding depends on."""
        content = json.dumps(
            [self.url, self.model, self.dim, kind, self.settings, text], sort_keys=True
        )
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


@runtime_checkable
class EncodeKind(Protocol):
    """See `endpoint_encoder`."""

    def __call__(
        self, texts: Sequence[str], *, prompt: str = "", kind: str = ""
    ) -> Float[np.ndarray, "N D"]: ...


def endpoint_encoder(
    endpoint: EmbeddingEndpoint,
    *,
    cache: Path | None = None,
    batch_size: int = 0,
    concurrency: int = 4,
    retries: Retries | None = None,
    per_minute: float = 0,
) -> EncodeKind:
    """Returns a function `encode(texts, *, prompt="", kind="")` of an endpoint's embeddings.

    They are float32 `[N, D]`, in the order of the texts, as the server returns them: not every
    model makes them of length 1. A text that occurs twice is sent once; an empty one is sent as a
    blank, as no provider takes it. `prompt` stands before each text; `kind`, one of KINDS, is what
    the provider takes in place of prompts.

    Args:
        endpoint: the server.
        cache: a file of embeddings, so that none is requested (and paid) again; None: no cache.
        batch_size: texts in one request; 0: as many as the provider takes.
        concurrency: requests at a time.
        retries: how often and when to try again.
        per_minute: requests; 0: no limit.

    Raises:
        InputError: at once for a cache that can't be kept. By `encode`: for an unknown kind, a
            server that can't be reached or refuses a request, embeddings of another dimension than
            requested.
        RunError: by `encode`: for a request that failed in every try, or embeddings of another
            dimension than earlier ones. What came before is in the cache.

    >>> endpoint = EmbeddingEndpoint("openai", "m", base_url="http://localhost", key_variable="")
    >>> endpoint.complete = lambda request: np.ones((len(request[0]), 2))  # in place of a server
    >>> print(endpoint_encoder(endpoint)(["a text", "another text"]))
    [[1. 1.]
     [1. 1.]]
    """
    stored = VectorCache(cache) if cache else None
    most = batch_size or endpoint.interface.most_texts
    size = endpoint.dim

    def checked(vectors: Float[np.ndarray, "n D"]) -> Float[np.ndarray, "n D"]:
        nonlocal size
        if size and vectors.shape[1] != size:
            message = f"found an embedding of {vectors.shape[1]} numbers after some of {size}"
            where = f" (embeddings of both in {stored.path}?)" if stored else ""
            raise RunError(
                f"{endpoint.url}: {message}: is {endpoint.model} another model now?{where}"
            )
        size = vectors.shape[1]
        return vectors

    def cached(keys: Iterable[str]) -> Iterator[tuple[Sequence[str], Float[np.ndarray, "n D"]]]:
        for key in keys:
            assert stored is not None, "without a cache all texts are missing"
            yield [key], checked(stored[key][None])

    def request_vectors(
        texts: Mapping[str, str], kind: str
    ) -> Iterator[tuple[Sequence[str], Float[np.ndarray, "n D"]]]:
        jobs = (
            _job(batch, texts, kind)
            for batch in _batches(texts, most, endpoint.interface.most_bytes)
        )
        answers = ask_all(
            endpoint, jobs, concurrency=concurrency, retries=retries, per_minute=per_minute
        )
        with contextlib.closing(answers):
            for job, answer in answers:
                if isinstance(answer, Failed):
                    raise RunError(f"{job.where}: {answer}")
                keys, vectors = answer
                checked(vectors)
                if stored is not None:
                    stored.add(keys, vectors)
                yield keys, vectors

    def encode(
        texts: Sequence[str], *, prompt: str = "", kind: str = ""
    ) -> Float[np.ndarray, "N D"]:
        if isinstance(texts, str):
            raise InputError("texts: expected a list of strings, found one string")
        if kind not in KINDS:
            raise InputError(unknown("kind", kind, KINDS))
        word = endpoint.kinds.get(kind, "")
        rows: dict[str, list[int]] = {}
        missing: dict[str, str] = {}
        for row, text in enumerate(texts):
            text = (prompt + text) or " "
            key = endpoint.key_of(text, word)
            rows.setdefault(key, []).append(row)
            if stored is None or key not in stored:
                missing[key] = text
        embeddings = np.zeros((len(texts), 0), np.float32)
        for keys, vectors in itertools.chain(
            cached(rows.keys() - missing.keys()), request_vectors(missing, word)
        ):
            if not embeddings.shape[1]:
                embeddings = np.empty((len(texts), vectors.shape[1]), np.float32)
            for key, vector in zip(keys, vectors, strict=True):
                embeddings[rows[key]] = vector
        return embeddings if len(texts) else np.zeros((0, size), np.float32)

    return encode


def _job(keys: Sequence[str], texts: Mapping[str, str], kind: str) -> Job:
    sent = [texts[key] for key in keys]
    where = (
        f"{len(keys)} texts from {sent[0][:40]!r} on"
        if len(keys) > 1
        else f"the text {sent[0][:40]!r}"
    )
    return Job(keys[0], (sent, kind), lambda vectors: (keys, vectors), where)


def _batches(texts: Mapping[str, str], most: int, most_bytes: int) -> Iterator[list[str]]:
    """Yields keys of at most this many texts, and this many bytes in UTF-8.

    A longer text is a batch by itself.
    """
    batch: list[str] = []
    total = 0
    for key, text in texts.items():
        length = len(text.encode(errors="replace"))
        if batch and (len(batch) == most or (most_bytes and total + length > most_bytes)):
            yield batch
            batch, total = [], 0
        batch.append(key)
        total += length
    if batch:
        yield batch


def _matrix(rows: Any, count: int) -> Float[np.ndarray, "n D"]:
    if not isinstance(rows, list):
        raise Failed("the server's answer holds no list of embeddings")
    if len(rows) != count:
        raise Failed(f"the server's answer holds {len(rows)} embeddings for {count} texts")
    try:
        vectors = [
            np.frombuffer(base64.b64decode(row), "<f4") if isinstance(row, str) else row
            for row in rows
        ]
        sizes = sorted({len(vector) for vector in vectors})
        if len(sizes) > 1 or not sizes[0]:
            raise Failed(
                f"the server's answer holds embeddings of {' and '.join(map(str, sizes))} numbers"
            )
        matrix = np.asarray(vectors)
    except (ValueError, TypeError):
        raise Failed("the server's answer holds embeddings that are no lists of numbers") from None
    if matrix.dtype.kind not in "fi" or matrix.ndim != 2:
        raise Failed("the server's answer holds embeddings that are no lists of numbers")
    with np.errstate(over="ignore"):
        matrix = matrix.astype(np.float32)
    if not np.isfinite(matrix).all():
        raise Failed("the server's answer holds numbers that are not finite")
    return matrix
