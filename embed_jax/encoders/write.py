"""Writes a model's directory, whole or not at all, for sentence-transformers and transformers."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from embed_jax.encoders import module_files, modules, router
from embed_jax.encoders.adapter import WEIGHTS as ADAPTER_WEIGHTS
from embed_jax.encoders.base import ADAPTER_CONFIG
from embed_jax.encoders.branch_files import FILES, write_branches
from embed_jax.encoders.build import BRANCHES, TOKEN_HEAD
from embed_jax.encoders.heads import Truncate
from embed_jax.encoders.int8 import dequantize_params
from embed_jax.encoders.lora import merge_lora
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.stack import ADAPTER
from embed_jax.encoders.text_config import TextConfig, write_text_config
from embed_jax.encoders.token_heads import head_tensors
from embed_jax.encoders.vocabulary import VOCABULARY, Splade, TokenWeights, is_decoder
from embed_jax.encoders.weighted_layers import WeightedLayers
from embed_jax.encoders.weights import SHARD_BYTES, tensors_from_params, write_json, write_tensors
from embed_jax.encoders.write_adapter import write_adapter
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.types import Params

SETTINGS = "config_sentence_transformers.json"
DEFAULT_SETTINGS = EncodingSettings()
# Files of an earlier model that may be replaced, even if the new one lacks them
REPLACED = {"README.md", ".gitattributes", "config.json", "chat_template.jinja"}
REPLACED |= {ADAPTER_CONFIG, ADAPTER_WEIGHTS, *FILES.values()}


@runtime_checkable
class SavesItself(Protocol):
    """A tokenizer that can be written to a directory."""

    def save(self, directory: Path) -> None: ...


def write_model(
    directory: Path,
    spec: EncoderSpec,
    params: Params,
    settings: EncodingSettings = DEFAULT_SETTINGS,
    *,
    tokenizer: SavesItself,
    max_length: int,
    shard_bytes: int = SHARD_BYTES,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a directory for sentence-transformers, `read_model`, and transformers (no pooling).

    Tensors have the parameters' dtypes. A temporary directory is written first and then renamed, so
    `directory` holds a whole model or its earlier content. An earlier model is replaced; a
    directory with anything else in it is not changed. The "first_last_mean" pooling and a
    LatentAttention are ours only: sentence-transformers refuses such a model. A static encoder is
    written as a StaticEmbedding. If an encoder has an adapter, only the adapter is written, in
    PEFT's format, as by sentence-transformers; the backbone must be that of `settings.base`.
    Kernels in eight bits are written in float32. Branches are written beside the modules, see
    `branch_files`: sentence-transformers then loads the dense output.

    Args:
        directory: the directory to write.
        spec: the encoder's.
        params: the encoder's parameters; those of heads that the spec does not name are left out.
        settings: how texts are encoded and embeddings compared.
        tokenizer: writes the tokenizer's files.
        max_length: tokens, special ones included, after which a text is cut.
        shard_bytes: a larger backbone is written as shards of at most this many bytes.
        extra_tensors: tensors to write beside the backbone's, under Hugging Face's names, such as
            those of a language model's head; they are not written beside an adapter.

    Raises:
        InputError: the directory cannot be written, or holds anything but a model; or prompts of a
            static encoder are to be left out of pooling; or vectors are cut before the last head;
            or an adapter's base is not found, or of another size.
    """
    directory = Path(directory).absolute()
    written = list_modules(
        spec,
        params,
        settings,
        tokenizer=tokenizer,
        max_length=max_length,
        shard_bytes=shard_bytes,
        extra_tensors=extra_tensors,
    )
    with replace_directory(directory) as temporary:
        folders = [
            (module.kind, f"{i}_{module.kind}" if i else "") for i, module in enumerate(written)
        ]
        for module, (_, folder) in zip(written, folders, strict=True):
            module.write(temporary / folder)
        modules.write_modules(temporary, folders)
        if spec.branches:
            write_branches(temporary, spec, params[BRANCHES])
        write_json(temporary / SETTINGS, settings_fields(spec, settings))


def write_routes(
    directory: Path, routes: Mapping[str, Sequence[Module]], settings: Mapping[str, Any], **rules
) -> None:
    """Writes a directory with a Router, as sentence-transformers does from version 5 on.

    It is written whole or not at all; see `write_model`.

    Args:
        directory: the directory to write.
        routes: each route's modules, from `list_modules`; modules that share their parameters are
            written once.
        settings: the content of config_sentence_transformers.json, from `settings_fields`.
        **rules: `default` and `tasks`; see `router.Routes`.
    """
    with replace_directory(directory) as temporary:
        structure: dict[str, list[tuple[str, str]]] = {}
        folders: dict[Any, str] = {}
        for route, written in routes.items():
            for i, module in enumerate(written):
                if module.identity not in folders:
                    folders[module.identity] = f"{route}_{i}_{module.kind}"
                    module.write(temporary / folders[module.identity])
            structure[route] = [(module.kind, folders[module.identity]) for module in written]
        router.write_router(temporary, router.Routes(structure, **rules))
        write_json(temporary / SETTINGS, settings)


@dataclasses.dataclass(frozen=True)
class Module:
    """A module that is still to be written.

    Attributes:
        kind: the class name.
        identity: equal for two modules that are the same one: their settings and their arrays are.
        write: writes the module to its folder.
    """

    kind: str
    identity: Any
    write: Callable[[Path], None]


def list_modules(
    spec: EncoderSpec,
    params: Params,
    settings: EncodingSettings,
    *,
    tokenizer: SavesItself,
    max_length: int,
    shard_bytes: int = SHARD_BYTES,
    extra_tensors: Mapping[str, np.ndarray] | None = None,
) -> list[Module]:
    """Returns the modules of an encoder, in order; for the arguments see `write_model`.

    Raises:
        InputError: prompts of a static encoder are to be left out of pooling; or vectors are cut
            before the last head.
    """
    static = lookup("backbone", spec.backbone.family).write_config is None
    if static and not settings.include_prompt:
        raise InputError(
            "prompts count towards pooling in a StaticEmbedding: include_prompt False cannot be "
            "written"
        )
    heads = spec.heads[:-1] if spec.heads and isinstance(spec.heads[-1], Truncate) else spec.heads
    if any(isinstance(head, Truncate) for head in heads):
        raise InputError("vectors are cut before the last head, which cannot be written")

    vocabulary = spec.vocabulary
    if isinstance(vocabulary, TokenWeights):
        table = params["backbone"]["token"]

        def write_table(folder: Path) -> None:
            module_files.write_token_weights(folder, vocabulary, table)
            tokenizer.save(folder)

        identity = vocabulary, id(tokenizer)
        return [Module(modules.TOKEN_WEIGHTS, (*identity, id(table)), write_table)]

    def write_first(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        changes = {}
        if vocabulary is not None:
            merged = merge_lora(spec, params) if spec.lora else (spec, params)
            _write_language_model(folder, *merged, shard_bytes)
        elif spec.lora is None:
            _write_backbone(folder, spec, params["backbone"], shard_bytes, extra_tensors or {})
        else:
            changes = write_adapter(folder, spec, params[ADAPTER], settings.base) | _outputs(spec)
        tokenizer.save(folder)
        if not static:  # the limit of a static encoder is its tokenizer's
            task = "" if vocabulary is None else "fill-mask"
            write_text_config(folder, TextConfig(max_length, settings.lower_case, changes), task)

    def module(kind: str, write: Callable[[Path], None], what: Any, params: Params) -> Module:
        return Module(kind, (kind, what, *map(id, jax.tree.leaves(params))), write)

    base = settings.base if spec.lora else ""
    texts = (id(tokenizer), max_length, settings.lower_case, base)
    inner = {name: params[name] for name in ("backbone", ADAPTER, VOCABULARY) if name in params}
    kind = "StaticEmbedding" if static else "Transformer"
    module_list = [
        module(kind, write_first, (spec.backbone, spec.lora, _outputs(spec) != {}, texts), inner)
    ]
    if spec.token_head is not None and not static:
        own, token_head = params[TOKEN_HEAD], spec.token_head
        write: Callable[[Path], None]
        if isinstance(token_head, WeightedLayers):
            kind = modules.WEIGHTED
            write = functools.partial(
                module_files.write_weighted_layers, head=token_head, params=own
            )
        else:
            kind = modules.LATENT
            write = functools.partial(
                module_files.write_latent_attention, head=token_head, params=own
            )
        module_list.append(module(kind, write, token_head, own))
    if isinstance(vocabulary, Splade):
        size = spec.backbone.vocab_size
        write = functools.partial(module_files.write_splade, head=vocabulary, dim=size)
        return [*module_list, module(modules.SPLADE, write, vocabulary, {})]
    if not static:
        pooled = (spec.pooling, spec.backbone.hidden_size, settings.include_prompt)
        module_list.append(
            module("Pooling", lambda folder: modules.write_pooling(folder, *pooled), pooled, {})
        )
    for i, head in enumerate(heads):
        own = params["heads"].get(str(i), {})
        write = functools.partial(module_files.write_head, head=head, params=own)
        module_list.append(module(type(head).__name__, write, head, own))
    return module_list


def settings_fields(spec: EncoderSpec, settings: EncodingSettings) -> dict[str, Any]:
    """Returns the fields of a model's config_sentence_transformers.json."""
    last = spec.heads[-1] if spec.heads else None
    sparse: dict[str, Any] = {} if spec.vocabulary is None else {"model_type": "SparseEncoder"}
    sparse |= {"max_active_dims": settings.max_active} if settings.max_active else {}
    dims = list(settings.matryoshka_dims)
    return {
        **sparse,
        "prompts": settings.prompts,
        "default_prompt_name": settings.default_prompt_name,
        "similarity_fn_name": "dot" if spec.branches else settings.similarity,
        **({"similarity_of_heads": settings.similarity} if spec.branches else {}),
        "instruction_template": settings.template,
        **({"truncate_dim": last.out_features} if isinstance(last, Truncate) else {}),
        **({"matryoshka_dims": dims} if dims else {}),
        **({"adaptive_layers": True} if settings.adaptive_layers else {}),
    }


def _write_backbone(
    directory: Path,
    spec: EncoderSpec,
    params: Params,
    shard_bytes: int,
    extra_tensors: Mapping[str, np.ndarray],
) -> None:
    family = lookup("backbone", spec.backbone.family)
    tensors = tensors_from_params(family, dequantize_params(params))
    if family.write_config is not None:
        half = all(value.dtype == jnp.bfloat16 for value in tensors.values() if value.ndim > 1)
        config = {
            "architectures": [family.architecture],
            "model_type": spec.backbone.family,
            "dtype": "bfloat16" if half else "float32",
        }
        write_json(
            directory / "config.json", config | family.write_config(spec.backbone) | _outputs(spec)
        )
    write_tensors(directory, {**tensors, **extra_tensors}, shard_bytes)


def _write_language_model(
    directory: Path, spec: EncoderSpec, params: Params, shard_bytes: int
) -> None:
    """Writes a backbone and its head as transformers' language model."""
    family = lookup("backbone", spec.backbone.family)
    backbone = tensors_from_params(family, dequantize_params(params["backbone"]))
    prefix = "model." if is_decoder(spec.backbone) else family.prefixes[0]
    tensors = {f"{prefix}{name}": value for name, value in backbone.items()}
    kind = "Causal" if is_decoder(spec.backbone) else "Masked"
    config = {
        "architectures": [f"{family.architecture.removesuffix('Model')}For{kind}LM"],
        "model_type": spec.backbone.family,
        "dtype": "float32",
        "tie_word_embeddings": getattr(spec.backbone, "tied", True),
    }
    write_json(directory / "config.json", config | family.write_config(spec.backbone))
    head = head_tensors(spec.backbone, params.get(VOCABULARY, {}))
    write_tensors(directory, {**tensors, **head}, shard_bytes)


def _outputs(spec: EncoderSpec) -> dict[str, bool]:
    """Returns the field of config.json with which sentence-transformers uses weights of layers."""
    return {"output_hidden_states": True} if isinstance(spec.token_head, WeightedLayers) else {}


@contextlib.contextmanager
def replace_directory(directory: Path) -> Iterator[Path]:
    """Yields a temporary directory that replaces `directory` when the block ends without an error.

    Otherwise the temporary directory is removed. An earlier model is moved aside first and removed
    last.

    Raises:
        InputError: the directory cannot be written, or holds files of anything but a model, which
            the new model would not replace.
    """
    directory = Path(directory).absolute()
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: expected a directory, found a file")
    temporary = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        temporary.chmod(0o755)
        yield temporary
        _put_in_place(temporary, directory)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(new: Path, directory: Path) -> None:
    """Renames `new` to `directory`; an earlier model is moved aside first and removed last."""
    present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if not present:
        os.replace(new, directory)  # over an empty directory too
        return
    weights = {
        name
        for name in present
        if re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?", name)
    }
    foreign = sorted(present - weights - {path.name for path in new.iterdir()} - REPLACED)
    if "modules.json" not in present or foreign:
        raise InputError(
            f"{directory}: holds {foreign or sorted(present)}, which this model would not "
            "replace; give a new directory, or remove it"
        )
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
    os.replace(directory, old)
    os.replace(new, directory)
    shutil.rmtree(old)
