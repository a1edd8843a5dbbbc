"""Cross-encoders as sentence-transformers trains them."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from embed_jax.errors import InputError

from .training import Peer

LOSS = "binary_cross_entropy"


def pair_peer(config: Any, sources: Any) -> Peer:
    """Makes the run of a cross-encoder: the weights, the loss and the batches are ours.

    Args:
        config: of the run; its loss is binary cross entropy.
        sources: see `training.train`.

    Raises:
        InputError: for another loss, in-batch negatives, or what the run itself refuses.
    """
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    from embed_jax.train.assembly import assemble
    from embed_jax.train.pair_model import initial_cross_encoder, pair_loss, pair_objective

    ours = copy.deepcopy(config)
    ours.train.devices = ours.train.fsdp = ours.train.tensor = 1
    loss = pair_loss(ours)
    if loss.name != LOSS:
        raise InputError(f"config.loss.name: {loss.name!r} is not replicated; accepted: {LOSS}")
    if config.batch.in_batch_negatives:
        raise InputError(
            f"config.batch.in_batch_negatives={config.batch.in_batch_negatives}: not trained with "
            "sentence-transformers here"
        )
    start = initial_cross_encoder(ours, loss)
    with tempfile.TemporaryDirectory() as directory:
        start.result.save(f"{directory}/model")
        model = CrossEncoder(f"{directory}/model", max_length=config.data.max_length)
    run = assemble(ours, sources, model=start, objective=pair_objective)
    assert run.data is not None
    (source,) = run.data.sources.values()
    columns_of, scores_of = source.fields.columns, source.fields.score
    assert scores_of is not None, "the experiment gives lists without scores 1 and 0"
    arguments: Any = loss.compute
    weight = torch.tensor(float(arguments.keywords["pos_weight"]))
    objective = BinaryCrossEntropyLoss(model, pos_weight=weight)

    def compute(batch: Sequence[Mapping[str, Any]]) -> tuple[Any, int]:
        queries, passages, labels = [], [], []
        for record in batch:
            query, *texts = columns_of(record)
            for text, score in zip(texts, scores_of(record), strict=True):
                if text is not None:
                    queries.append(query)
                    passages.append(text)
                    labels.append(float(score))
        features = model.preprocess(list(zip(queries, passages, strict=True)))
        num_tokens = int(features["attention_mask"].sum())
        return objective([queries, passages], torch.tensor(labels)), num_tokens

    def save(directory: str) -> None:
        model.save_pretrained(directory)

    return Peer(run, source.records, objective, model, compute, None, save)
