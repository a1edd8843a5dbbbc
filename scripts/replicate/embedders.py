"""Embedding models as sentence-transformers trains them."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from embed_jax.errors import InputError

from .training import Peer

# The arguments of our losses that sentence-transformers' losses have too; others must be as they
# are by default.
LOSSES = {
    "info_nce": ("temperature", "similarity", "symmetric", "mask_duplicates"),
    "softmax": ("num_labels", "concatenation"),
    "cosine_mse": (),
    "cosent": ("scale",),
    "angle": ("scale",),
}


def embedder_peer(config: Any, sources: Any) -> Peer:
    """Makes the run of an embedding model: the weights, the loss and the batches are ours.

    Args:
        config: of the run.
        sources: see `training.train`.

    Raises:
        InputError: for what sentence-transformers does not have.
    """
    import jax
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import batch_to_device

    from embed_jax.data.sources.sts import read_sts
    from embed_jax.evals.sts import sts_evaluator
    from embed_jax.train.assembly import assemble
    from embed_jax.train.model import initial_model
    from embed_jax.train.objective import training_loss

    # The model with our weights; the result may lack a head that is for training only, and shares
    # the other modules.
    ours = copy.deepcopy(config)
    ours.model.mlp = config.model.mlp and "kept"
    ours.train.devices = ours.train.fsdp = ours.train.tensor = 1
    start = initial_model(ours)
    with tempfile.TemporaryDirectory() as directory:
        start.result.save(f"{directory}/model")
        model = SentenceTransformer(f"{directory}/model")
    max_length = start.result.max_length
    result = remove_head(model) if config.model.mlp == "training" else model

    run = assemble(ours, sources, model=start)
    assert run.data is not None
    (source,) = run.data.sources.values()
    texts_of, num_texts = source.fields.columns, len(source.fields.columns(source.records[0]))
    for number, record in enumerate(source.records):
        if None in texts_of(record) or len(texts_of(record)) != num_texts:
            raise InputError(
                f"record {number}: sentence-transformers needs the same number of texts in each "
                "record, here "
                f"{num_texts}"
            )
    loss = training_loss(config)
    objective = peer_loss(loss, jax.device_get(run.state.params["loss"]), model)
    scores_of = source.fields.score
    label_of = source.fields.label or (scores_of and (lambda record: scores_of(record)[0]))

    def compute(batch: Sequence[Mapping[str, Any]]) -> tuple[Any, int]:
        model.max_seq_length = config.data.max_length
        features = [
            batch_to_device(
                model.preprocess(list(column), prompt=source.prompts[min(index, 1)] or None),
                model.device,
            )
            for index, column in enumerate(zip(*map(texts_of, batch), strict=True))
        ]
        labels = None
        if label_of:
            labels = torch.tensor([label_of(record) for record in batch], device=model.device)
        num_tokens = sum(int(feature["attention_mask"].sum()) for feature in features)
        return objective(features, labels), num_tokens

    sts = sts_evaluator(*read_sts(config.eval.sts)) if config.eval.sts else None

    def evaluate() -> dict[str, float]:
        assert sts is not None
        result.max_seq_length = max_length
        scores = sts(functools.partial(result.encode, show_progress_bar=False))
        return {f"sts/{name}": value for name, value in scores.items()}

    def save(directory: str) -> None:
        result.max_seq_length = max_length
        result.save_pretrained(directory, create_model_card=False)

    evaluator = evaluate if sts else None
    return Peer(run, source.records, objective, result, compute, evaluator, save)


def remove_head(model: Any) -> Any:
    """Returns the model without its last Dense layer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    last = max(index for index, module in enumerate(model) if isinstance(module, Dense))
    return SentenceTransformer(
        modules=[module for index, module in enumerate(model) if index != last],
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
    )


def peer_loss(loss: Any, params: Any, model: Any) -> Any:
    """Makes sentence-transformers' loss of the same value, a torch module.

    Args:
        loss: a `losses.base.Loss` with its arguments settled.
        params: its own parameters at the start.
        model: sentence-transformers' model.

    Raises:
        InputError: if it has no such loss.
    """
    import numpy as np
    import torch
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer import losses

    from embed_jax.losses.schedule import Schedule
    from embed_jax.registry import lookup

    if loss.name not in LOSSES:
        raise InputError(
            f"config.loss.name: {loss.name!r} is not replicated; accepted: {', '.join(LOSSES)}"
        )
    arguments = loss.compute.keywords
    for name, parameter in lookup("loss", loss.name).parameters.items():
        if isinstance(arguments[name], Schedule) or (
            name not in LOSSES[loss.name] and arguments[name] != parameter.default
        ):
            raise InputError(
                f"config.loss: {name}={arguments[name]!r}: sentence-transformers' {loss.name} "
                "does not have it"
            )
    if arguments.get("mask_duplicates"):
        print(
            "config.loss.mask_duplicates=True: with sentence-transformers duplicates are negatives",
            flush=True,
        )

    if loss.name == "info_nce":
        directions = (
            ("query_to_doc", "doc_to_query") if arguments["symmetric"] else ("query_to_doc",)
        )
        similarity = {"cosine": util.cos_sim, "dot": util.dot_score}[arguments["similarity"]]
        scale = 1 / arguments["temperature"]
        return losses.MultipleNegativesRankingLoss(
            model, scale, similarity, directions=directions, partition_mode="per_direction"
        )
    if loss.name == "softmax":
        parts = arguments["concatenation"].replace(" ", "")
        known = {part: part in parts for part in ("u,v", "|u-v|", "u*v")}
        if parts != ",".join(part for part, there in known.items() if there):
            raise InputError(
                f"config.loss: concatenation={parts!r}: sentence-transformers has "
                f"{', '.join(known)}"
            )
        num_labels = arguments["num_labels"]
        peer = losses.SoftmaxLoss(
            model, model.get_embedding_dimension(), num_labels, *known.values()
        )
        weights = {"weight": np.array(params["kernel"]).T, "bias": np.array(params["bias"])}
        peer.classifier.load_state_dict(
            {name: torch.tensor(value) for name, value in weights.items()}
        )
        return peer
    kind = {"cosine_mse": "CosineSimilarityLoss", "cosent": "CoSENTLoss", "angle": "AnglELoss"}[
        loss.name
    ]
    return getattr(losses, kind)(model, **arguments)
