"""Models that evaluate judges: ours and published ones by name or directory, and APIs."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError

from ..commands import OneLineParser, add_compute_dtype, load_cross_encoder, load_model

FLOAT32 = "float32"
OPTIONS = ("dim", "layers", "instruction", "prompt_name", "query_prompt_name", "corpus_prompt_name")


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """Options for how a model embeds, and with which prompts; see `add_arguments`."""

    dim: int = 0
    layers: int = 0
    instruction: str | None = None
    prompt_name: str | None = None
    query_prompt_name: str | None = None
    corpus_prompt_name: str | None = None
    batch_tokens: int = 0
    compute_dtype: str = FLOAT32
    endpoint_url: str = ""
    endpoint_cache: Path | None = None

    def chosen(self) -> dict[str, Any]:
        """Returns the options that decide the embeddings, as far as they are set."""
        chosen = {name: getattr(self, name) for name in OPTIONS if getattr(self, name)}
        if self.compute_dtype != FLOAT32:
            chosen["compute_dtype"] = self.compute_dtype
        return chosen


MODELS = """models:
  a directory (ours, of sentence-transformers or Hugging Face), a hub name, or PROVIDER:NAME of an
  embedding endpoint, its key in the environment: openai:text-embedding-3-small, cohere:embed-v4.0,
  voyage:voyage-3.5, google:gemini-embedding-001; --endpoint-url names another server that speaks
  the provider's form; or a file of scripts.export, DIRECTORY/onnx/NAME.onnx, run by ONNX Runtime
"""


def add_arguments(parser: OneLineParser) -> None:
    """Adds the options for how a model embeds, and with which prompts."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--batch-tokens",
        type=int,
        default=0,
        help="slots that a device encodes at a time (default: suits the device)",
    )
    add_compute_dtype(group)
    group.add_argument(
        "--dim", type=int, default=0, help="cut embeddings to N numbers (default: all)"
    )
    group.add_argument("--layers", type=int, default=0, help="stop after N layers (default: all)")
    group.add_argument(
        "--instruction",
        help="the task of the texts, for models with a template for instructions; in retrieval "
        "only for queries",
    )
    group.add_argument(
        "--prompt-name",
        help="the model's prompt for all texts except documents (default: its own for the task)",
    )
    group.add_argument(
        "--query-prompt-name",
        help="its prompt for queries (default: its own for the task, or 'query')",
    )
    group.add_argument(
        "--corpus-prompt-name",
        help="its prompt for documents (default: 'document', 'passage' or 'corpus' if it has "
        "one, else its own)",
    )
    group.add_argument(
        "--endpoint-url",
        default="",
        help="base URL of an endpoint's server (default: the provider's)",
    )
    group.add_argument(
        "--endpoint-cache",
        type=Path,
        help="file of an endpoint's embeddings, so that none is paid for twice (default: beside "
        "a suite's results)",
    )


def check_arguments(args: argparse.Namespace, parser: OneLineParser) -> None:
    """Exits with a one-line error for a value out of range or contradictory options."""
    if args.batch_tokens < 0:
        parser.error(f"--batch-tokens: expected 0 or more, found {args.batch_tokens}")
    for option in ("dim", "layers"):
        if getattr(args, option) < 0:
            parser.error(f"--{option}: expected 1 or more, found {getattr(args, option)}")
    if args.instruction is not None and (args.prompt_name or args.query_prompt_name) is not None:
        parser.error("--instruction: expected none beside --prompt-name or --query-prompt-name")


def read_options(args: argparse.Namespace) -> ModelOptions:
    """Returns the options that `add_arguments` defines."""
    return ModelOptions(
        **{field.name: getattr(args, field.name) for field in dataclasses.fields(ModelOptions)}
    )


def open_embedder(
    name: str, options: ModelOptions, cache: Path | None = None, show_progress: bool = False
) -> Any:
    """Returns the Embedder of a model, or the TokenEmbedder of one that gives tokens vectors.

    Args:
        name: a directory, a hub name, an ONNX file, or PROVIDER:NAME of an endpoint.
        options: how the model embeds.
        cache: where an endpoint's embeddings are kept, unless the options name it.
        show_progress: draws a bar on a terminal.
    """
    from embed_jax.evals.embedder import Embedder, TokenEmbedder, endpoint_options
    from embed_jax.scores import SIMILARITIES

    if provider(name):
        from embed_jax.remote.endpoint import EmbeddingEndpoint, endpoint_encoder

        refused = [option for option in options.chosen() if option != "dim"]
        if refused:
            raise InputError(f"{name}: --{refused[0].replace('_', '-')} is not for an endpoint")
        endpoint = EmbeddingEndpoint(
            provider(name), name.partition(":")[2], base_url=options.endpoint_url, dim=options.dim
        )
        return Embedder(
            name,
            endpoint_encoder(endpoint, cache=options.endpoint_cache or cache),
            endpoint_options,
        )
    if name.endswith(".onnx"):
        return _onnx_embedder(Path(name), options)
    model = load_model(name, options.compute_dtype)
    gives_tokens = model.similarity_fn_name not in SIMILARITIES
    if gives_tokens and options.layers:
        raise InputError(f"{name}: --layers is not for a late-interaction model")
    return (TokenEmbedder if gives_tokens else Embedder)(
        name,
        encoder(options, model, show_progress),
        model_options(options, model),
        similarity=model.similarity_fn_name,
    )


def open_system(
    name: str, options: ModelOptions, cache: Path | None = None, show_progress: bool = False
) -> Any:
    """Returns the Reranker of a cross-encoder, or the Embedder of any other model.

    See `open_embedder` for the arguments.

    Raises:
        InputError: for options that a cross-encoder does not have, or several labels.
    """
    if not is_cross_encoder(name):
        return open_embedder(name, options, cache, show_progress)
    for option in OPTIONS:
        if getattr(options, option):
            raise InputError(f"{name}: --{option.replace('_', '-')} is not for a cross-encoder")
    return open_reranker(name, options)


def open_reranker(name: str, options: ModelOptions) -> Any:
    """Returns the Reranker of a cross-encoder.

    Raises:
        InputError: for a model that is not a cross-encoder, or has several labels.
    """
    from embed_jax.encoders.hub import resolve
    from embed_jax.evals.reranker import cross_encoder_reranker

    if not is_cross_encoder(name):
        raise InputError(f"{name}: expected a cross-encoder, found an embedding model")
    model = load_cross_encoder(str(model_directory(resolve(name))), options.compute_dtype)
    return cross_encoder_reranker(
        model, name, batch_tokens=options.batch_tokens, show_progress=sys.stderr.isatty()
    )


def is_cross_encoder(name: str) -> bool:
    """Tells whether a model's files are those of a cross-encoder; an endpoint has none."""
    from embed_jax.encoders import model_kind
    from embed_jax.encoders.hub import resolve

    if provider(name) or name.endswith(".onnx"):
        return False
    return model_kind.is_cross_encoder(model_directory(resolve(name)))


def _onnx_embedder(path: Path, options: ModelOptions) -> Any:
    """Returns the Embedder of an exported file, with tokenizer and prompts of its directory."""
    import numpy as np

    from embed_jax.evals.embedder import Embedder
    from embed_jax.export.onnx_run import encode_onnx
    from embed_jax.prompts import resolve_prompt

    for option in options.chosen():
        if option in ("dim", "layers", "compute_dtype"):
            raise InputError(
                f"{path}: --{option.replace('_', '-')} is not for a file, which gives what it was "
                "exported with"
            )
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    model = load_model(str(path.parent.parent))

    def encode(texts: Sequence[str], **options_of_use: str) -> Any:
        prompt = resolve_prompt(
            model.prompts,
            model.template,
            **(options_of_use or {"prompt_name": model.default_prompt_name}),
        )
        order = np.argsort([-len(text) for text in texts], kind="stable")  # little padding
        sorted_embeddings = encode_onnx(
            path, model, [texts[index] for index in order], prompt=prompt
        )
        embeddings = np.empty_like(sorted_embeddings)
        embeddings[order] = sorted_embeddings
        return embeddings

    return Embedder(
        str(path), encode, model_options(options, model), similarity=model.similarity_fn_name
    )


def encoder(options: ModelOptions, model: Any, show_progress: bool = False) -> Callable:
    """Returns `model.encode` with the options that hold for all texts."""
    size = {name: getattr(options, name) for name in ("dim", "layers") if getattr(options, name)}
    return functools.partial(
        model.encode,
        **size,
        batch_tokens=options.batch_tokens,
        show_progress=show_progress and sys.stderr.isatty(),
    )


def model_options(options: ModelOptions, model: Any) -> Callable:
    """Returns `embedder.prompt_options` of the model with these options."""
    from embed_jax.evals.embedder import prompt_options

    names = ("instruction", "prompt_name", "query_prompt_name", "corpus_prompt_name")
    return prompt_options(model, **{name: getattr(options, name) for name in names})


def provider(name: str) -> str:
    """Returns the provider in an endpoint's name, or ""."""
    from embed_jax.remote.embedding_forms import INTERFACES

    before, colon, _ = name.partition(":")
    return before if colon and before in INTERFACES and not Path(name).exists() else ""


def model_fingerprint(name: str, options: ModelOptions) -> str:
    """Returns a text that differs for another model, rewritten weights and other options."""
    from embed_jax.encoders.hub import resolve
    from embed_jax.evals.results import fingerprint

    embedding = {option: getattr(options, option) for option in OPTIONS} | options.chosen()
    if provider(name):
        return fingerprint(name, options.endpoint_url, embedding)
    directory = (
        Path(name).parent.parent if name.endswith(".onnx") else model_directory(resolve(name))
    )
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    stats = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    return fingerprint(stats, embedding)


def model_directory(path: Path) -> Path:
    """Returns the model of a run's directory, or the directory itself."""
    return path / "model" if (path / "model" / "modules.json").is_file() else path


def published_line(name: str) -> str:
    """Returns the published facts of a model in one line; "" if it is not in the catalogue."""
    from embed_jax import catalogue

    entry = catalogue.entry(name)
    return "" if entry is None else catalogue.line(entry)
