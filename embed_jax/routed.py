"""Texts of different kinds by different encoders into one space.

This is sentence-transformers' Router, or Asym; for example a table of vectors for queries and a
transformer for documents:

    model = embed_jax.load("asymmetric")
    model.similarity(model.encode_query(["..."]), model.encode_document(["...", "..."]))
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Unpack

import jax

from embed_jax.data.tokenize import Tokenizer
from embed_jax.embedding_model import HasSettings
from embed_jax.encode_options import EncodeOptions, no_attribute
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.read import read_routes
from embed_jax.encoders.router import TEXT
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.write import list_modules, settings_fields, write_routes
from embed_jax.errors import InputError
from embed_jax.parallel.mesh import make_mesh, on_mesh
from embed_jax.pretrained import tokenizer_of
from embed_jax.registry import unknown
from embed_jax.sentence import SentenceEncoder
from embed_jax.sparse import SparseEncoder, encoder_class, load_one_encoder
from embed_jax.text_model import model_of
from embed_jax.types import Params

# Settings that all routes share; the others are each encoder's own.
SHARED = (
    "prompts",
    "default_prompt_name",
    "template",
    "similarity",
    "matryoshka_dims",
    "adaptive_layers",
)
OneEncoder = SentenceEncoder | SparseEncoder
DOCUMENT_ROUTES = ("document", "doc", "passage", "corpus")  # "doc" as in the examples of Asym


class PromptOptions(EncodeOptions, total=False):
    """Options of `SentenceEncoder.encode_document`."""

    prompt_name: str | None
    prompt: str | None


class RoutedEncoder(HasSettings):
    """An encoder for each route, all dense or all sparse; a text's task decides its route.

    Attributes:
        encoders: by route, all of one dimension; those that share parameters have the same arrays.
        default_route: of texts of no named task; None: they must name one.
        tasks: route of a task where it is not the task's own name; under None that of any task not
            named here.
        settings: those that all routes share, the fields named in SHARED. Each is an attribute too,
            which may be set for all routes at once; `settings.similarity` is `similarity_fn_name`.
    """

    def __init__(
        self,
        encoders: Mapping[str, OneEncoder],
        *,
        default_route: str | None = None,
        tasks: Mapping[str | None, str] | None = None,
        settings: EncodingSettings | None = None,
    ):
        """Makes a model of an encoder for each route.

        Args:
            encoders: a SentenceEncoder, or a SparseEncoder, for each route.
            default_route: of texts without a task; None: they must name one.
            tasks: route of a task where it is not the task's own name; under None that of all other
                tasks.
            settings: its fields named in SHARED replace those of the encoders; None: the defaults.

        Raises:
            InputError: without encoders, for encoders of different dimensions, dense and sparse
                ones, sparse ones over different words, or a default or a task's route that is not
                one of them.
        """
        dims = {route: encoder.dim for route, encoder in encoders.items()}
        if len(set(dims.values())) != 1:
            sizes = ", ".join(f"{route} {dim}" for route, dim in dims.items()) or "none"
            raise InputError(f"routes: expected embeddings of one size, found {sizes}")
        _check_kinds(encoders)
        self.default_route, self.tasks = default_route, dict(tasks or {})
        for route in filter(None, (default_route, *self.tasks.values())):
            if route not in encoders:
                raise InputError(unknown("route", route, encoders))
        self.encoders = {route: copy.copy(encoder) for route, encoder in encoders.items()}
        self.settings = dataclasses.replace(settings or EncodingSettings())
        self.comparison: Any = None  # of `finetune` with data__holdout: before, after and BM25

    @property
    def settings(self) -> EncodingSettings:
        """The settings that all routes share; setting them sets those of each route's encoder."""
        return self._settings

    @settings.setter
    def settings(self, settings: EncodingSettings) -> None:
        self._settings = settings
        shared = {name: getattr(settings, name) for name in SHARED}
        for encoder in self.encoders.values():
            encoder.settings = dataclasses.replace(encoder.settings, **shared)

    def __repr__(self) -> str:
        routes = ", ".join(f"{route}={encoder!r}" for route, encoder in self.encoders.items())
        return f"RoutedEncoder({routes})"

    def __getattr__(self, name: str) -> Any:
        raise no_attribute(self, name)

    def __getstate__(self) -> dict[str, Any]:
        params = {route: encoder.params for route, encoder in self.encoders.items()}
        bare = {route: encoder.with_params({}) for route, encoder in self.encoders.items()}
        return vars(self) | {"encoders": bare, "params": _each_once(params, jax.device_get)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        settings = dict(state)
        params = settings.pop("params")
        self.__dict__.update(settings)
        # All of a model's encoders are on the same devices, and arrays that routes share stay
        # shared.
        params = _each_once(params, lambda leaves: on_mesh(leaves, make_mesh()))
        for route, encoder in self.encoders.items():
            encoder.params = params[route]

    @property
    def params(self) -> dict[str, Params]:
        """Parameters of each route's encoder; may be set."""
        return {route: encoder.params for route, encoder in self.encoders.items()}

    @params.setter
    def params(self, params: Mapping[str, Params] | None) -> None:
        for route, encoder in self.encoders.items():
            encoder.params = None if params is None else params[route]

    @property
    def include_prompt(self) -> bool:
        """Tells whether a prompt's tokens count towards pooling, by every route.

        Setting it sets it for all.
        """
        return all(encoder.include_prompt for encoder in self.encoders.values())

    @include_prompt.setter
    def include_prompt(self, include: bool) -> None:
        for encoder in self.encoders.values():
            encoder.include_prompt = include

    def with_params(self, params: Mapping[str, Params]) -> RoutedEncoder:
        """Returns the same model with other parameters of each route's encoder."""
        return self._with_encoders(
            {route: encoder.with_params(params[route]) for route, encoder in self.encoders.items()}
        )

    def merged(self) -> RoutedEncoder:
        """Returns the same model with the adapters of its encoders merged into their backbones."""
        return self._with_encoders(
            {route: encoder.merged() for route, encoder in self.encoders.items()}
        )

    def _with_encoders(self, encoders: Mapping[str, OneEncoder]) -> RoutedEncoder:
        other = copy.copy(self)
        other.encoders = dict(encoders)
        return other

    @property
    def routes(self) -> tuple[str, ...]:
        """Names of the routes."""
        return tuple(self.encoders)

    @property
    def dim(self) -> int:
        """D, the size of an embedding, by any route."""
        return next(iter(self.encoders.values())).dim

    @property
    def max_length(self) -> int:
        """Tokens that a text is cut to by the route that takes most."""
        return max(encoder.max_length for encoder in self.encoders.values())

    def encoder(self, task: str | None = None) -> OneEncoder:
        """Returns the encoder of a task's texts.

        The route is found in `tasks`, else it is the one of the task's name, or the default without
        a task. sentence-transformers has the same rule; here "document" is also a route called
        "doc", "passage" or "corpus".

        Raises:
            InputError: for a task without a route, or no task to a model without a default route.
        """
        return self.encoders[self._route(task)]

    def _route(self, task: str | None) -> str:
        """Returns the name of a task's route; see `encoder`."""
        for of_task in (task, None):
            if of_task in self.tasks:
                return self.tasks[of_task]
        named = DOCUMENT_ROUTES if task == "document" else (task,)
        for route in (*named, TEXT) if task else (TEXT, self.default_route):
            if route is not None and route in self.encoders:
                return route
        what = (
            f"for the task {task!r}"
            if task
            else "without a task: name it, or use encode_query, encode_document"
        )
        known = dict.fromkeys([*self.encoders, *filter(None, self.tasks)])
        raise InputError(f"no route {what}; known: {', '.join(known)}")

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        task: str | None = None,
        instruction: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> Any:
        """Embeds texts by the task's route: `[N, D]`, or `[D]` for one string.

        Args:
            texts: a string, or any iterable of strings.
            task: the purpose of the texts, such as "query"; None: the default route.
            instruction: see `SentenceEncoder.encode`.
            options: see `SentenceEncoder.encode`.

        Raises:
            InputError: see `encoder` and `SentenceEncoder.encode`.
        """
        encoder, options = self._encoder_and_options(task, options)
        return encoder.encode(texts, instruction=instruction, **options)

    def encode_query(
        self,
        texts: str | Iterable[str],
        *,
        instruction: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> Any:
        """Encodes queries by their route; see `SentenceEncoder.encode_query`."""
        encoder, options = self._encoder_and_options("query", options)
        return encoder.encode_query(texts, instruction=instruction, **options)

    def encode_document(self, texts: str | Iterable[str], **options: Unpack[PromptOptions]) -> Any:
        """Encodes documents by their route; see `SentenceEncoder.encode_document`."""
        encoder, options = self._encoder_and_options("document", options)
        return encoder.encode_document(texts, **options)

    def encode_blocks(
        self,
        texts: Iterable[str],
        *,
        task: str | None = None,
        instruction: str | None = None,
        **options: Unpack[PromptOptions],
    ) -> Iterator[Any]:
        """Encodes in blocks; see `SentenceEncoder.encode_blocks`."""
        encoder, options = self._encoder_and_options(task, options)
        return encoder.encode_blocks(texts, instruction=instruction, **options)

    def _encoder_and_options(
        self, task: str | None, options: PromptOptions
    ) -> tuple[OneEncoder, PromptOptions]:
        """Returns a task's encoder, and the options for it.

        Parameters in the options are those of the route.
        """
        route = self._route(task)
        if (params := options.get("params")) is not None:
            options = {**options, "params": params[route]}
        return self.encoders[route], options

    def save(self, directory: str | Path) -> None:
        """Writes a directory that sentence-transformers (version 5 on) and `load` read.

        The directory is written as a whole, or not at all. Whatever the model was loaded from, it
        is a Router of whole encoders; parts that routes share are written once.

        Raises:
            InputError: see `SentenceEncoder.save`; also for embeddings that only some routes cut.
        """
        settings = [
            settings_fields(encoder.spec, self.settings) for encoder in self.encoders.values()
        ]
        if settings != settings[:1] * len(settings):
            raise InputError(
                f"{directory}: embeddings are cut only after some routes, which cannot be written"
            )
        params = _each_once(
            {route: encoder.params for route, encoder in self.encoders.items()}, jax.device_get
        )
        routes = {
            route: list_modules(
                encoder.spec,
                params[route],
                encoder.settings,
                tokenizer=encoder.tokenizer,
                max_length=encoder.max_length,
                extra_tensors=encoder.pooler,
            )
            for route, encoder in self.encoders.items()
        }
        write_routes(
            Path(directory), routes, settings[0], default=self.default_route, tasks=self.tasks
        )


AnyEncoder = OneEncoder | RoutedEncoder


def _check_kinds(encoders: Mapping[str, OneEncoder]) -> None:
    """Refuses routes whose embeddings cannot be compared with each other."""
    words = {
        route: encoder.words if isinstance(encoder, SparseEncoder) else None
        for route, encoder in encoders.items()
    }
    first, *others = words
    for route in others:
        mine, other = words[first], words[route]
        if mine is None or other is None:
            if mine is not other:
                raise InputError(f"routes: {first} and {route}: one is sparse, the other is not")
        elif mine != other:
            index = next(
                i for i, pair in enumerate(zip(mine, other, strict=True)) if len({*pair}) > 1
            )
            raise InputError(
                f"routes: expected one vocabulary, found that token {index} is {mine[index]!r} in "
                f"{first} and {other[index]!r} in {route}"
            )


def load_routed(
    name: str | Path, *, max_length: int = 0, compute_dtype: str = "float32"
) -> AnyEncoder:
    """Loads a model with routes or without, dense or sparse.

    See `load_sentence_encoder` for arguments and errors.
    """
    directory = resolve(str(name))
    saved = read_routes(directory)
    if saved is None:
        return load_one_encoder(name, max_length=max_length, compute_dtype=compute_dtype)
    params = _each_once(
        {route: model.params for route, model in saved.models.items()},
        lambda leaves: on_mesh(leaves, make_mesh()),
    )
    tokenizers: dict[Any, Tokenizer] = {}
    encoders = {}
    for route, model in saved.models.items():
        limit = max_length or model.max_length
        key = model.tokenizer_directory, limit, model.settings.lower_case
        tokenizers[key] = tokenizers.get(key) or tokenizer_of(model, limit)
        model = dataclasses.replace(model, params=params[route])
        kind = encoder_class(model.spec)
        encoders[route] = model_of(kind, model, tokenizers[key], compute_dtype)
    settings = next(iter(encoders.values())).settings
    try:
        return RoutedEncoder(
            encoders, default_route=saved.default, tasks=saved.tasks, settings=settings
        )
    except InputError as error:
        raise InputError(f"{directory}: {error}") from None


def _each_once(trees: Any, make: Callable[[dict[int, Any]], dict[int, Any]]) -> Any:
    """Applies `make` to the leaves of all trees.

    An array that occurs several times is made once.
    """
    made = make({id(leaf): leaf for leaf in jax.tree.leaves(trees)})
    return jax.tree.map(lambda leaf: made[id(leaf)], trees)
