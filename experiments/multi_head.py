"""Several heads on one encoder (BGE-M3): dense, sparse and multi-vector embeddings from one pass.

    python -m experiments.multi_head --config=configs/multi_head/bge_m3.py --workdir=runs/bge_m3

Trains on pairs with in-batch negatives and hard ones from the data or from mining by BM25
(`config.mine`). With the loss self_distillation each head also learns from the sum of all scores;
any other loss trains that sum, or one head that `config.loss.similarity` names. Ends with a search
of the test split by BM25, by each head and by their sum: `search.json` in the work directory.
"""

import functools
import json
from pathlib import Path
from typing import Any

from embed_jax.atomic import write_whole
from embed_jax.config import Experiment
from embed_jax.data.pairs import SearchTask
from embed_jax.errors import exit_with_one_line, require
from embed_jax.evals.search import evaluate_search, retrieval_evaluator
from embed_jax.head_scores import sum_matrix
from embed_jax.multi_head import MultiHeadEncoder, load_multi_head_encoder
from embed_jax.retrieval.bm25 import bm25_search
from embed_jax.retrieval.topk import search_by_matrices
from embed_jax.runtime import is_first_host, say
from embed_jax.train import loop
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.multi_head_model import (
    initial_multi_head,
    multi_head_loss,
    multi_head_objective,
    similarity_of_run,
)
from embed_jax.train.prompts import given_prompts
from embed_jax.train.sources import ONLY

from .cross_encoder import mine_negatives, with_scores
from .retrieval import open_pairs


def run(config: Experiment, workdir: Path) -> loop.Result:
    require("bm25s")  # fail early: needed only at the end
    loss = multi_head_loss(config)

    # Data: pairs or scored lists, and search tasks for validation and test.
    source, validation, tasks = open_pairs(config)
    source = with_scores(mine_negatives(config, source, loss, workdir), loss)

    # Evaluation while training, on validation only: search by the sum of the scores.
    evaluators = {}
    if "validation" in tasks:
        query_prompt, corpus_prompt = given_prompts(config)
        evaluators["retrieval"] = retrieval_evaluator(
            *tasks["validation"],
            similarity=similarity_of_run(config),
            query_prompt=query_prompt,
            corpus_prompt=corpus_prompt,
            ignore_identical_ids=config.eval.ignore_identical_ids,
        )

    # Training.
    result = fit(
        config,
        workdir,
        sources={ONLY: source},
        evaluators=evaluators,
        validation=[] if "scores" in loss.about.needs else validation,
        model=initial_multi_head(config),
        objective=multi_head_objective,
    )

    # Afterwards, once, on test: BM25, each head, and their sum.
    if result.finished and "test" in tasks:
        report = search_report(load_multi_head_encoder(workdir / "model"), tasks["test"], config)
        for name, metrics in report.items():
            shown = (f"{metric} {value[0]:.4f}" for metric, value in metrics.items())
            say(f"{name}: " + ", ".join(shown))
        if is_first_host():
            write_whole(workdir / "search.json", json.dumps(report, indent=1) + "\n")
    return result


def search_report(
    model: MultiHeadEncoder, task: SearchTask, config: Experiment
) -> dict[str, dict[str, list[float]]]:
    """Searches a task by BM25, each head and their sum: {metric: [mean, low, high]}, 95 %."""
    sums = dict.fromkeys([*model.heads, model.similarity_fn_name])
    matrices = {name: functools.partial(sum_matrix, text=name) for name in sums}
    runs: dict[str, Any] = {}

    def search(name: str, corpus: Any, queries: Any, k: int) -> Any:
        if not runs:  # one pass for all
            sides = model.encode_query, model.encode_document
            runs.update(search_by_matrices(*sides, matrices, corpus, queries, k))
        return runs[name]

    searches = {"bm25": bm25_search} | {name: functools.partial(search, name) for name in sums}
    report = {}
    for name, function in searches.items():
        result = evaluate_search(
            function, *task, ks=(10, 100), ignore_identical_ids=config.eval.ignore_identical_ids
        )
        intervals = result.intervals()
        report[name] = {
            metric: [result.metrics[metric], *intervals[metric]]
            for metric in ("ndcg@10", "mrr@10", "recall@100")
        }
    return report


def main() -> None:
    launch(run, "multi_head")


if __name__ == "__main__":
    exit_with_one_line(main)
