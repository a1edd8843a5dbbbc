"""Evaluation: metrics with intervals, paired tests, and evaluators of functions that embed texts.

    from embed_jax import evals

    evals.spearman(similarities, scores)
    evals.paired_difference(before, after)

The names below are public; each is imported when it is asked for. Kinds of tasks are opened by
name, see `read_suite`.
"""

from __future__ import annotations

from embed_jax.public import public_names

_MODULES = {
    "comparison": ("Comparison", "compare"),
    "geometry": ("geometry_evaluator", "geometry_metrics"),
    "head_to_head": ("HeadToHead", "compare_results"),
    "metrics": (
        "average_precision",
        "bootstrap_interval",
        "calibration_error",
        "metric_intervals",
        "mrr",
        "ndcg",
        "pearson",
        "recall",
        "spearman",
    ),
    "mteb": ("MtebModel", "mteb_model"),
    "overlap": ("CleanScore", "Overlap", "clean_score", "find_overlap"),
    "results": ("TaskResult", "read_result", "read_results"),
    "search": ("RetrievalResult", "evaluate_retrieval", "retrieval_evaluator", "score_run"),
    "significance": (
        "PairedDifference",
        "SeedSummary",
        "holm",
        "paired_average_precision",
        "paired_difference",
        "paired_spearman",
        "seed_summary",
    ),
    "sts": ("sts_evaluator", "sts_metrics"),
    "suite": ("Entry", "evaluate", "read_suite"),
    "task": ("Items", "Outcome", "Task"),
}
__all__, __getattr__, __dir__ = public_names(__name__, _MODULES)
