"""Losses of embeddings, each one object: a function of arrays, and what training runs.

    from embed_jax import losses

    losses.info_nce(anchors, positives, negatives, temperature=0.05)  # [B], one per example
    losses.build_loss("info_nce(temperature=0.05) + 0.1 * uniformity()")(anchors, positives)
    losses.info_nce.on_world(own, world, params, temperature=0.05)  # what training calls

README.md here is the table of losses and says how to add one. All names below are public; what else
the modules hold is their machinery. Each is imported when it is asked for.
"""

from __future__ import annotations

from embed_jax.public import public_names

_MODULES = {
    "base": ("About", "Loss", "Target", "bind", "loss"),
    "candidates": ("ListValues", "on_candidates"),
    "classification": ("pair_features", "softmax", "softmax_loss"),
    "compose": ("masked", "per_dataset", "symmetric", "weighted_sum"),
    "distillation": (
        "embedding_cosine",
        "embedding_mse",
        "kl",
        "kl_loss",
        "margin_mse",
        "margin_mse_loss",
        "normalize_scores",
        "relational",
    ),
    "expression": ("build_loss",),
    "heads": ("self_distillation",),
    "in_batch": ("dcl", "gist", "gte", "info_nce", "mega_batch_margin", "qwen3", "siglip"),
    "listwise": (
        "list_mle",
        "list_mle_loss",
        "list_net",
        "list_net_loss",
        "list_softmax",
        "list_softmax_loss",
        "own_candidates",
        "own_candidates_loss",
    ),
    "nested": ("adaptive_layers", "matryoshka"),
    "pairwise": (
        "angle",
        "angle_combined",
        "contrastive",
        "contrastive_tension",
        "contrastive_tension_in_batch",
        "cosent",
        "cosine_mse",
        "online_contrastive",
    ),
    "pointwise": (
        "binary_cross_entropy",
        "binary_cross_entropy_loss",
        "pair_cross_entropy",
        "score_mse",
        "score_mse_loss",
    ),
    "ranking": (
        "adr_mse",
        "adr_mse_loss",
        "lambda_rank",
        "lambda_rank_loss",
        "rank_net",
        "rank_net_loss",
    ),
    "regularization": ("alignment", "covariance", "global_orthogonal", "uniformity", "variance"),
    "schedule": ("Schedule",),
    "sparsity": ("flops", "l1"),
    "triplets": (
        "batch_all_triplet",
        "batch_hard_soft_margin_triplet",
        "batch_hard_triplet",
        "batch_semi_hard_triplet",
        "triplet",
    ),
}
__all__, __getattr__, __dir__ = public_names(__name__, _MODULES)
