"""Our models under the official harness, mteb 2.x; mteb_tasks.py has local data as its tasks.

    import embed_jax, mteb
    from embed_jax.evals.mteb import mteb_model
    from embed_jax.evals.mteb_tasks import local_task

    model = mteb_model(embed_jax.load("runs/simcse/model"), name="me/simcse")
    local = local_task("retrieval", "data/scifact", name="SciFact-local")
    for result in mteb.evaluate(model, [mteb.get_task("STSBenchmark"), local]).task_results:
        print(result.task_name, result.get_score())

mteb keeps results and does not evaluate again what it knows by name: a model's revision here, and
the subset of a local task, are made of the content, so what has changed is evaluated anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float

from embed_jax.cross_encoder import CrossEncoder
from embed_jax.errors import require
from embed_jax.evals.embedder import Options, prompt_options
from embed_jax.evals.task import DOCUMENT, QUERY, Use
from embed_jax.pair_scores import BoundCrossEncoder, check_ranks
from embed_jax.prompts import prompt_for

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import PromptType
    from torch import Tensor

    from embed_jax.routed import RoutedEncoder
    from embed_jax.sentence import SentenceEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class MtebModel:
    """An encoder with mteb's interface; made by `mteb_model`."""

    model: SentenceEncoder | RoutedEncoder
    mteb_model_meta: ModelMeta
    options: Options

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: PromptType | None = None,
        batch_size: int = 0,
        show_progress_bar: bool = True,
    ) -> Float[np.ndarray, "N D"]:
        """Embeds the texts of all batches, each with the prompt for the task.

        Args:
            inputs: batches of {"text": texts}; torch's DataLoader, as mteb makes it.
            task_metadata: mteb's description of the task; its name, type and prompt are used.
            hf_split: mteb's, not used.
            hf_subset: mteb's, not used.
            prompt_type: the side of a search, if it is one.
            batch_size: mteb's, not used: batches here are as many tokens as suit the device.
            show_progress_bar: whether to show the progress.
        """
        side = prompt_type.value if prompt_type else ""
        instruction = task_instruction(self.model, task_metadata, side)
        options = self.options(Use(task_metadata.name, task_metadata.type, side, instruction))
        texts = [text for batch in inputs for text in batch["text"]]
        return self.model.encode(texts, show_progress=show_progress_bar, **options)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Computes the model's own similarity of each with each, [N, M]."""
        import torch

        return torch.from_numpy(
            self.model.similarity(np.asarray(embeddings1), np.asarray(embeddings2))
        )

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Computes the model's own similarity of embeddings at the same place, [N]."""
        import torch

        return torch.from_numpy(
            self.model.similarity_pairwise(np.asarray(embeddings1), np.asarray(embeddings2))
        )


@dataclasses.dataclass(frozen=True, eq=False)
class MtebCrossEncoder:
    """A cross-encoder with mteb's interface; made by `mteb_cross_encoder`."""

    model: CrossEncoder
    mteb_model_meta: ModelMeta

    def predict(
        self,
        inputs1: Iterable[Mapping[str, Any]],
        inputs2: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: PromptType | None = None,
        batch_size: int = 0,
        show_progress_bar: bool = True,
    ) -> Float[np.ndarray, " N"]:
        """Computes the logits of the pairs of all batches, which rank as the model's scores do.

        Args:
            inputs1: batches of {"text": queries}; torch's DataLoader, as mteb makes it.
            inputs2: batches of {"text": passages}.
            task_metadata: mteb's, not used: the model's prompt stands before each query.
            hf_split: mteb's, not used.
            hf_subset: mteb's, not used.
            prompt_type: mteb's, not used.
            batch_size: mteb's, not used: batches here are as many tokens as suit the device.
            show_progress_bar: mteb's, not used.
        """
        queries, passages = (
            [text for batch in inputs for text in batch["text"]] for inputs in (inputs1, inputs2)
        )
        return BoundCrossEncoder(self.model)(queries, passages)


def mteb_model(model: SentenceEncoder | RoutedEncoder, name: str = "") -> MtebModel:
    """Makes a model that `mteb.evaluate` takes.

    Each text gets the prompt that mteb would choose of the model's: the first there is of
    "TASK-SIDE", "TASK", "TYPE-SIDE", "TYPE" and "SIDE"; documents also one called "passage" or
    "corpus", as in sentence-transformers; else the model's default, if it has one. For models with
    a template see `task_instruction`.

    Args:
        model: an encoder, with or without routes.
        name: "organisation/model", under which mteb keeps results; a name without "/" is put under
            "embed-jax/".

    Raises:
        InputError: if mteb is not installed.
    """
    require("mteb")
    from mteb.models.model_meta import ScoringFunction

    meta = _model_meta(
        model,
        name,
        embed_dim=model.dim,
        similarity_fn_name=ScoringFunction(model.similarity_fn_name),
        use_instructions=bool(model.template or any(model.prompts.values())),
    )
    return MtebModel(model, meta, prompt_options(model))


def mteb_cross_encoder(model: CrossEncoder, name: str = "") -> MtebCrossEncoder:
    """Makes a cross-encoder that `mteb.evaluate` takes, for reranking tasks.

    Args:
        model: a cross-encoder with one label.
        name: see `mteb_model`.

    Raises:
        InputError: if mteb is not installed, or for a model with several labels.
    """
    require("mteb")
    check_ranks(model, name or "model")
    return MtebCrossEncoder(model, _model_meta(model, name, model_type=["cross-encoder"]))


def _model_meta(
    model: SentenceEncoder | RoutedEncoder | CrossEncoder, name: str, **fields: Any
) -> ModelMeta:
    """Returns mteb's description of a model, with fields for its kind."""
    from mteb.models import ModelMeta

    name = name or "model"
    sizes = (leaf.size for part in _parts(model) for leaf in jax.tree.leaves(part.params))
    common = {
        "name": name if "/" in name else f"embed-jax/{name}",
        "revision": revision(model),
        "n_parameters": sum(sizes),
        "max_tokens": model.max_length,
        "framework": ["JAX"],
    }
    return ModelMeta.create_empty(overwrites={**common, **fields})


def task_instruction(model: SentenceEncoder | RoutedEncoder, task: TaskMetadata, side: str) -> str:
    """Returns the instruction for a task of mteb, for a model with a template.

    It is "" where the model's prompts are used instead. A prompt of the model for the task or its
    type counts more than the task's own instruction, which counts more than the model's prompt for
    queries: that one is what its template makes of an instruction for search in general. Without
    any of these, the instruction is mteb's for the type of task. Documents have no instruction.

    Args:
        model: an encoder, with or without routes.
        task: mteb's description of the task.
        side: "query", "document" or "".
    """
    if not model.template or side == DOCUMENT:
        return ""
    prompt_name = prompt_for(model.prompts, task=task.name, kind=task.type, side=side)
    if prompt_name is not None and prompt_name.lower() != QUERY:
        return ""
    stated = task.prompt.get(side or QUERY) if isinstance(task.prompt, Mapping) else task.prompt
    if stated or prompt_name is not None:
        return stated or ""
    from mteb.abstasks.abstask import get_abstask_prompt

    return get_abstask_prompt(task.name)


def revision(model: SentenceEncoder | RoutedEncoder | CrossEncoder) -> str:
    """Computes 16 hex digits of all that a model's embeddings or scores depend on.

    These are parameters, architecture, prompts and the limit of tokens.
    """
    digest = hashlib.sha256()
    for part in _parts(model):
        digest.update(repr([getattr(part, name) for name in _settings(part)]).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(part.params):
            array = np.asarray(leaf)
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _settings(part: SentenceEncoder | CrossEncoder) -> list[str]:
    """Returns the names of the attributes that a model's results depend on, except parameters."""
    names = (
        ["prompt", "chat"]
        if isinstance(part, CrossEncoder)
        else ["prompts", "default_prompt_name", "template", "include_prompt", "similarity_fn_name"]
    )
    return ["spec", "max_length", "lower_case", "compute_dtype", *names]


def _parts(
    model: SentenceEncoder | RoutedEncoder | CrossEncoder,
) -> list[SentenceEncoder | CrossEncoder]:
    """Returns the encoders of a model with routes, or the model itself."""
    return list(getattr(model, "encoders", {"": model}).values())
