"""Models on disk: Hugging Face and sentence-transformers directories, read and written."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from embed_jax.encoders import modules
from embed_jax.encoders.adapter import WEIGHTS as ADAPTER_WEIGHTS
from embed_jax.encoders.adapter import read_adapter, write_adapter
from embed_jax.encoders.base import ADAPTER_CONFIG, backbone_shapes, base_name, find_base, is_adapter, read_backbone
from embed_jax.encoders.build import TOKEN_HEAD, EncoderSpec
from embed_jax.encoders.classifier import ClassifierSpec, build_classifier, classifier_family, classifier_spec
from embed_jax.encoders.heads import Head, Normalize
from embed_jax.encoders.int8 import dequantize
from embed_jax.encoders.stack import ADAPTER
from embed_jax.encoders.static import read_static
from embed_jax.encoders.weights import (
    SHARD_BYTES,
    open_tensors,
    params_from_tensors,
    read_json,
    tensors_from_params,
    write_json,
    write_tensors,
)
from embed_jax.errors import InputError
from embed_jax.registry import lookup
from embed_jax.types import Params, Put, Rules


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A model as it lies on disk.

    Attributes:
        spec: what it computes.
        params: tree for `build_encoder(spec)`, of NumPy arrays in float32, or bfloat16 where the file is.
        max_length: tokens, special ones included, after which a text is cut.
        prompts: text put before an input, by name. default_prompt_name: the one used when none is asked for.
        include_prompt: whether a prompt's tokens count towards pooling.
        similarity: "cosine", "dot", "euclidean" or "manhattan".
        lower_case: whether texts are put into lower case before the tokenizer sees them.
        matryoshka_dims: sizes to which its embeddings were trained to be cut. adaptive_layers: whether every layer was
            trained to be the last.
        tokenizer_directory: where the tokenizer's files are.
        base: what the model is called as the base of an adapter, or the name of its base if it has an adapter: an
            absolute directory, or a name on the hub.
        special_tokens: whether the tokenizer puts its special tokens around a text.
        template: what makes a prompt of an instruction, "" for a model that takes none; None: nothing is recorded.
        origin: what config.json calls the model that this one was made of, in transformers' older files; or "".
        plain: whether it is a plain Hugging Face directory. append_eos: whether the tokenizer is yet to be told to end
            texts with its end-of-text token.
    """

    spec: EncoderSpec
    params: Params
    max_length: int
    prompts: dict[str, str]
    default_prompt_name: str | None
    include_prompt: bool
    similarity: str
    lower_case: bool
    tokenizer_directory: Path
    special_tokens: bool = True
    matryoshka_dims: tuple[int, ...] = ()
    adaptive_layers: bool = False
    base: str = ""
    template: str | None = None
    origin: str = ""
    plain: bool = False
    append_eos: bool = False

    def recorded(self) -> dict[str, Any]:
        """What an encoder keeps of it beside what it computes, by the names of SentenceEncoder's arguments."""
        names = ("prompts", "default_prompt_name", "include_prompt", "similarity", "lower_case", "base")
        return {name: getattr(self, name) for name in names} | {"template": self.template or ""}


@dataclasses.dataclass(frozen=True)
class SavedClassifier:
    """A cross-encoder, or another sequence classification model, as it lies on disk.

    Attributes:
        spec: what it computes.
        params: tree for `build_classifier(spec)`; dtypes as of SavedModel.
        max_length: tokens, special ones included, after which a pair is cut.
        activation: what makes scores of logits, "sigmoid" or "identity".
        prompt: text put before the first text of each pair.
        lower_case, tokenizer_directory: see SavedModel.
    """

    spec: ClassifierSpec
    params: Params
    max_length: int
    activation: str
    prompt: str
    lower_case: bool
    tokenizer_directory: Path


class SavesItself(Protocol):
    """A tokenizer, as far as writing a model is concerned."""

    def save(self, directory: Path) -> None: ...


REPLACED = {"README.md", ".gitattributes", "config.json", ADAPTER_CONFIG, ADAPTER_WEIGHTS}  # of a model there before


# ---- reading ------------------------------------------------------------------------------------------------


def read_model(directory: Path, *, put: Put | None = None) -> SavedModel:
    """A sentence-transformers directory, or a plain Hugging Face one (mean pooling, as sentence-transformers does).

    A StaticEmbedding is one of the former. Where the Transformer is an adapter in PEFT's format, its base is read too.

    Args:
        put: makes each of the backbone's leaves, whose paths start with "backbone/", as of `params_from_tensors`; heads
            are NumPy arrays always.

    Raises:
        InputError: a file is missing or damaged, an architecture, pooling or module is not supported, a tensor
            is missing, extra, there twice or of another shape; or an adapter's base is not found or another.
    """
    directory = Path(directory)
    folders = modules.read_modules(directory)
    first, static = directory / folders[0][1], folders[0][0] == "StaticEmbedding"
    texts = {} if static else _read_optional(first / "sentence_bert_config.json")
    below = None if put is None else lambda path, *rest: put(f"backbone/{path}", *rest)
    base, transformer = find_base(first) if not static and is_adapter(first) else (base_name(first), first)
    backbone, params = read_static(first, below) if static else _read_transformer(transformer, below, texts)
    lora, adapter = None, {}
    if transformer != first:
        lora, adapter[ADAPTER] = read_adapter(first, backbone, base, transformer)
    pooling, include_prompt = "mean", True
    token_head, token_head_params = None, {}
    heads: list[Head] = []
    head_params: dict[str, Params] = {}
    for kind, folder in folders[1:]:
        if kind == "Pooling":
            pooling, include_prompt = modules.read_pooling(directory / folder / "config.json")
        elif kind == modules.LATENT:
            token_head, token_head_params[TOKEN_HEAD] = modules.read_latent_attention(directory / folder)
        elif kind == "Normalize":
            heads.append(Normalize())
        else:
            read = modules.read_dense if kind == "Dense" else modules.read_layer_norm
            head, head_params[str(len(heads))] = read(directory / folder)
            heads.append(head)
    settings = _read_optional(directory / "config_sentence_transformers.json")
    tokenizer = first if static or (first / "tokenizer_config.json").is_file() else transformer
    limits = {} if static else _read_optional(tokenizer / "tokenizer_config.json")
    return SavedModel(
        spec=EncoderSpec(backbone, pooling, tuple(heads), lora=lora, token_head=token_head),
        params={"backbone": params, "heads": head_params, **adapter, **token_head_params},
        max_length=_max_length(texts, limits, backbone.max_length),
        prompts=dict(settings.get("prompts") or {}),
        default_prompt_name=settings.get("default_prompt_name"),
        include_prompt=include_prompt,
        similarity=settings.get("similarity_fn_name") or "cosine",
        lower_case=bool(texts.get("do_lower_case")),
        tokenizer_directory=tokenizer,
        special_tokens=not static,
        matryoshka_dims=_sizes(settings, directory),
        adaptive_layers=bool(settings.get("adaptive_layers")),
        base=base,
        template=settings.get("instruction_template"),
        origin="" if static else str(_read_optional(first / "config.json").get("_name_or_path") or ""),
        plain=not (directory / "modules.json").is_file(),
    )


def sharding_rules(directory: Path) -> Rules:
    """How the parameters that `read_model` makes of a directory may be split over a mesh.

    Raises:
        InputError: as `read_model`, as far as it can be seen without weights.
    """
    kind, folder = modules.read_modules(directory)[0]
    if kind == "StaticEmbedding":
        family = lookup("backbone", "static")
    else:
        first = directory / folder
        _, family, _ = read_backbone(find_base(first)[1] if is_adapter(first) else first)
    return tuple((f"backbone/{path}", axes) for path, axes in family.sharding)


def read_classifier(directory: Path) -> SavedClassifier:
    """A cross-encoder's directory of sentence-transformers, or transformers' *ForSequenceClassification.

    Raises:
        InputError: as `read_model`, or there are no weights of a classifier, or the activation is not supported.
    """
    directory = Path(directory)
    folders = modules.read_modules(directory)
    if len(folders) > 1:
        found = ", ".join(kind for kind, _ in folders)
        raise InputError(f"{directory / 'modules.json'}: found {found}; a cross-encoder is a Transformer alone")
    transformer = directory / folders[0][1]
    backbone, _, config = read_backbone(transformer)
    family = classifier_family(backbone.family)
    spec = classifier_spec(backbone, config)
    tensors = open_tensors(transformer)
    out = f"{family.tensors['classifier/out']}.weight"
    if out not in tensors:
        raise InputError(f"{transformer}: no weights of a classifier ({out}): it is no sequence classification model "
                         f"such as {family.architecture}")  # fmt: skip
    shapes = jax.eval_shape(build_classifier(spec).init, jax.random.key(0))
    shapes = {**shapes["backbone"], "classifier": shapes["classifier"]}
    backbone_params = params_from_tensors(family, shapes, tensors, transformer)
    head_params = backbone_params.pop("classifier")
    settings = _read_optional(directory / "config_sentence_transformers.json")
    texts = _read_optional(transformer / "sentence_bert_config.json")
    prompts = settings.get("prompts") or {}
    return SavedClassifier(
        spec=spec,
        params={"backbone": backbone_params, "classifier": head_params},
        max_length=_max_length(texts, _read_optional(transformer / "tokenizer_config.json"), backbone.max_length),
        activation=modules.read_score_activation(directory, settings, config, spec.num_labels),
        prompt=prompts.get(settings.get("default_prompt_name")) or "",
        lower_case=bool(texts.get("do_lower_case")),
        tokenizer_directory=transformer,
    )


def _read_transformer(directory: Path, put: Put | None, texts: Mapping[str, Any]) -> tuple[Any, Params]:
    changes = texts.get("config_kwargs") or texts.get("config_args") or {}  # what sentence-transformers lets differ
    backbone, family, _ = read_backbone(directory, changes)
    return backbone, params_from_tensors(family, backbone_shapes(backbone), open_tensors(directory), directory, put=put)


def _read_optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _sizes(settings: Mapping[str, Any], directory: Path) -> tuple[int, ...]:
    """The trained sizes, ascending."""
    found = settings.get("matryoshka_dims") or []
    if not isinstance(found, list) or not all(type(size) is int and size > 0 for size in found):
        raise InputError(
            f"{directory / 'config_sentence_transformers.json'}: matryoshka_dims: expected a list of sizes, "
            f"found {found!r}"
        )
    return tuple(sorted(found))


def _max_length(texts: Mapping[str, Any], tokenizer: Mapping[str, Any], positions: int) -> int:
    length = texts.get("max_seq_length") or tokenizer.get("model_max_length") or positions
    return int(min(length, positions))


# ---- writing ------------------------------------------------------------------------------------------------


def write_model(
    directory: Path,
    spec: EncoderSpec,
    params: Params,
    *,
    tokenizer: SavesItself,
    max_length: int,
    prompts: Mapping[str, str] | None = None,
    default_prompt_name: str | None = None,
    include_prompt: bool = True,
    similarity: str = "cosine",
    lower_case: bool = False,
    matryoshka_dims: Sequence[int] = (),
    adaptive_layers: bool = False,
    base: str = "",
    template: str = "",
    shard_bytes: int = SHARD_BYTES,
    further: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes a directory that sentence-transformers, `read_model` and (without the pooling) transformers read.

    Tensors have the parameters' dtypes. It is made beside and renamed, so `directory` holds a whole model or what it
    held before. A model there before is replaced; a directory with anything else in it is not touched. The
    "first_last_mean" pooling and a LatentAttention are ours alone: sentence-transformers refuses such a model. A static
    encoder is written as a StaticEmbedding. Of an encoder with an adapter only the adapter is written, as
    sentence-transformers does, in PEFT's format; the backbone must be that of `base`. Kernels in eight bits are written
    in float32.

    Args:
        spec, params: as of `build_encoder`; parameters of heads that the spec does not name are left out.
        tokenizer: what writes the tokenizer's files.
        max_length, prompts, default_prompt_name, include_prompt, similarity, lower_case, matryoshka_dims,
            adaptive_layers, base, template: see SavedModel.
        shard_bytes: a larger backbone is written as shards of at most so many bytes.
        further: tensors to write beside the backbone's, under Hugging Face's names, such as those of a language model's
            head; not beside an adapter.

    Raises:
        InputError: the directory cannot be written, or holds something that is no model; or prompts of a static
            encoder are to be left out of pooling; or an adapter's base is not found, or of another size.
    """
    directory = Path(directory).absolute()
    static = lookup("backbone", spec.backbone.family).write_config is None
    if static and not include_prompt:
        raise InputError(f"{directory}: prompts count towards pooling in a StaticEmbedding: include_prompt False "
                         "cannot be written")  # fmt: skip
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; a directory is wanted")
    temporary = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        temporary.chmod(0o755)
        changes = {}
        if spec.lora is None:
            _write_backbone(temporary, spec, params["backbone"], shard_bytes, further or {})
        else:
            changes = write_adapter(temporary, spec, params[ADAPTER], base)
        tokenizer.save(temporary)
        folders = [("StaticEmbedding" if static else "Transformer", "")]
        if not static:  # whose limit is its tokenizer's
            if spec.token_head is not None:
                folders.append((modules.LATENT, f"1_{modules.LATENT}"))
                modules.write_latent_attention(temporary / folders[-1][1], spec.token_head, params[TOKEN_HEAD])
            folders.append(("Pooling", f"{len(folders)}_Pooling"))
            modules.write_pooling(temporary / folders[-1][1], spec.pooling, spec.backbone.hidden_size, include_prompt)
            texts = {"max_seq_length": max_length, "do_lower_case": lower_case}
            texts |= {"config_kwargs": changes} if changes else {}
            write_json(temporary / "sentence_bert_config.json", texts)
        for i, head in enumerate(spec.heads):
            kind = type(head).__name__
            folders.append((kind, f"{len(folders)}_{kind}"))
            modules.write_head(temporary / folders[-1][1], head, params["heads"].get(str(i), {}))
        modules.write_modules(temporary, folders)
        settings = {
            "prompts": dict(prompts or {}),
            "default_prompt_name": default_prompt_name,
            "similarity_fn_name": similarity,
            "instruction_template": template,
        }
        settings |= {"matryoshka_dims": list(matryoshka_dims)} if matryoshka_dims else {}
        settings |= {"adaptive_layers": True} if adaptive_layers else {}
        write_json(temporary / "config_sentence_transformers.json", settings)
        _put_in_place(temporary, directory)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _write_backbone(
    directory: Path, spec: EncoderSpec, params: Params, shard_bytes: int, further: Mapping[str, np.ndarray]
) -> None:
    family = lookup("backbone", spec.backbone.family)
    tensors = tensors_from_params(family, dequantize(params))
    if family.write_config is not None:
        half = all(value.dtype == jnp.bfloat16 for value in tensors.values() if value.ndim > 1)
        config = {"architectures": [family.architecture], "model_type": spec.backbone.family,
                  "dtype": "bfloat16" if half else "float32"}  # fmt: skip
        write_json(directory / "config.json", config | family.write_config(spec.backbone))
    write_tensors(directory, {**tensors, **further}, shard_bytes)


def _put_in_place(new: Path, directory: Path) -> None:
    """Renames `new` to `directory`; a model that stood there is moved aside first and removed last."""
    present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if not present:
        os.replace(new, directory)  # over an empty directory too
        return
    weights = {name for name in present if re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?", name)}
    foreign = sorted(present - weights - {path.name for path in new.iterdir()} - REPLACED)
    if "modules.json" not in present or foreign:
        raise InputError(f"{directory}: holds {foreign or sorted(present)}, which this model would not replace; "
                         "give a new directory, or remove it")  # fmt: skip
    old = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old.", dir=directory.parent))
    os.replace(directory, old)
    os.replace(new, directory)
    shutil.rmtree(old)
