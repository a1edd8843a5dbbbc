"""The interface that every model that embeds texts has, and what its classes share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

import numpy as np
from jaxtyping import Float

from embed_jax.encoders.settings import EncodingSettings
from embed_jax.scores import Others, Vectors, pairwise_similarity, similarity_matrix

T = TypeVar("T")


@runtime_checkable
class EmbeddingModel(Protocol):
    """A model that embeds texts, of any kind: what commands and evaluations use of it.

    Attributes:
        settings: how texts are encoded and embeddings compared.
        routes: names of its encoders where texts of different tasks have different ones, in which
            case `encode` takes `task`; empty for a model that is one encoder.
    """

    settings: EncodingSettings

    @property
    def prompts(self) -> dict[str, str]: ...

    @property
    def default_prompt_name(self) -> str | None: ...

    @property
    def template(self) -> str: ...

    @property
    def similarity_fn_name(self) -> str: ...

    @property
    def routes(self) -> tuple[str, ...]: ...

    @property
    def dim(self) -> int: ...

    @property
    def max_length(self) -> int: ...

    # Called as `encode(texts, **options)`; each kind of model has its own options.
    @property
    def encode(self) -> Callable[..., Any]: ...

    @property
    def encode_query(self) -> Callable[..., Any]: ...

    @property
    def encode_document(self) -> Callable[..., Any]: ...

    @property
    def encode_blocks(self) -> Callable[..., Iterator[Any]]: ...

    def similarity(self, a: Any, b: Any) -> np.ndarray: ...

    def similarity_pairwise(self, a: Any, b: Any) -> np.ndarray: ...

    def save(self, directory: str | Path) -> None: ...


@dataclasses.dataclass(frozen=True)
class TextEncoder:
    """A model as a function of texts.

    Where queries and documents have their own encoders, it has a function for each.

    Attributes:
        model: an embedding model.
        params: its parameters, as while it is trained; None: those that it has.
    """

    model: Any
    params: Any = None

    def __call__(self, texts: Iterable[str], **options: Any) -> Any:
        """Returns embeddings of texts of no particular side.

        A model with routes gives them its default route.
        """
        if self.params is not None:
            options["params"] = self.params
        return self.model.encode(texts, **options)

    def query(self, texts: Iterable[str], **options: Any) -> Any:
        """Returns embeddings of queries, without a prompt unless `options` have one."""
        return self(texts, **self._task("query"), **options)

    def document(self, texts: Iterable[str], **options: Any) -> Any:
        """Returns embeddings of documents, without a prompt unless `options` have one."""
        return self(texts, **self._task("document"), **options)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of documents."""
        return (
            self.model.encoder("document").tokenizer if self.model.routes else self.model.tokenizer
        )

    def _task(self, name: str) -> dict[str, str]:
        return {"task": name} if self.model.routes else {}


class Setting(Generic[T]):
    """An attribute of a model that is a field of its `settings`; setting it replaces them.

    Args:
        field: the field's name; "": that of the attribute.
    """

    def __init__(self, field: str = ""):
        self.field = field

    def __set_name__(self, owner: type, name: str) -> None:
        self.field = self.field or name

    @overload
    def __get__(self, model: None, owner: type) -> Setting[T]: ...

    @overload
    def __get__(self, model: object, owner: type) -> T: ...

    def __get__(self, model: Any, owner: type) -> Setting[T] | T:
        return self if model is None else getattr(model.settings, self.field)

    def __set__(self, model: Any, value: T) -> None:
        model.settings = dataclasses.replace(model.settings, **{self.field: value})


class HasSettings:
    """The settings of an embedding model as attributes, and the comparison that they name.

    Attributes:
        settings: all of them; the attributes below are its fields, and may be set.
        similarity_fn_name: `settings.similarity`, under sentence-transformers' name.
    """

    settings: EncodingSettings
    prompts: Setting[dict[str, str]] = Setting()
    default_prompt_name: Setting[str | None] = Setting()
    similarity_fn_name: Setting[str] = Setting("similarity")
    template: Setting[str] = Setting()
    matryoshka_dims: Setting[tuple[int, ...]] = Setting()
    adaptive_layers: Setting[bool] = Setting()

    def similarity(self, a: Vectors, b: Others) -> Float[np.ndarray, "_ _"]:
        """Computes the similarity of each embedding with each other one, by `similarity_fn_name`.

        See `similarity_matrix`.
        """
        return similarity_matrix(a, b, self.similarity_fn_name)

    def similarity_pairwise(self, a: Vectors, b: Vectors) -> Float[np.ndarray, " _"]:
        """Returns the similarity of each embedding with the one at the same position."""
        return pairwise_similarity(a, b, self.similarity_fn_name)
