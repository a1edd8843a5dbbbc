"""Late interaction (ColBERT): a vector for each token, compared by MaxSim.

    python -m experiments.late_interaction --config=configs/late_interaction/python_docs.py \
        --workdir=runs/late_interaction

Trains on pairs with in-batch negatives, with hard ones from the data or from mining
(`config.mine`), or on lists with a teacher's scores (the losses kl and margin_mse). `config.late`
holds the head, markers and query expansion. While it trains it orders the shortlist that a first
stage found (`eval.first_stage`); at the end it also searches the whole corpus of the test split.
"""

import functools
import json
from pathlib import Path

from embed_jax.atomic import write_whole
from embed_jax.config import Experiment
from embed_jax.data.pairs import SearchTask
from embed_jax.errors import exit_with_one_line, require
from embed_jax.evals.search import evaluate_search
from embed_jax.evals.two_stages import METRICS
from embed_jax.late_interaction import BoundLateInteraction, load_late_interaction_encoder
from embed_jax.retrieval.maxsim import maxsim_search
from embed_jax.runtime import is_first_host, say
from embed_jax.train import loop
from embed_jax.train.fit import fit
from embed_jax.train.late_model import initial_late_interaction, late_loss, late_objective
from embed_jax.train.launch import launch
from embed_jax.train.sources import ONLY

from .cross_encoder import mine_negatives, report_stages, shortlist, with_scores
from .retrieval import open_pairs


def run(config: Experiment, workdir: Path) -> loop.Result:
    require("bm25s")  # fail early: needed only for the shortlists
    loss = late_loss(config)

    # Data: pairs with negatives or lists, and search tasks for validation and test.
    source, validation, tasks = open_pairs(config)
    source = with_scores(mine_negatives(config, source, loss, workdir), loss)

    # Evaluation: the order of a fixed shortlist.
    shortlists = {split: shortlist(config, task) for split, task in tasks.items()}
    evaluators = {}
    if "validation" in shortlists:
        evaluators["reranking"] = shortlists["validation"].evaluator()

    # Training.
    result = fit(
        config,
        workdir,
        sources={ONLY: source},
        evaluators=evaluators,
        validation=validation if source.fields.score is None else [],
        model=initial_late_interaction(config),
        objective=late_objective,
    )

    # Afterwards, once, on test: the shortlist, and an exact search of the corpus.
    if result.finished and "test" in shortlists:
        model = BoundLateInteraction(load_late_interaction_encoder(workdir / "model"))
        report_stages(config, workdir, shortlists["test"], model)
        content = search_report(config, model, tasks["test"])
        say("exact search: " + ", ".join(f"{name} {content[name][0]:.4f}" for name in content))
        if is_first_host():
            write_whole(workdir / "search.json", json.dumps(content, indent=1) + "\n")
    return result


def search_report(
    config: Experiment, model: BoundLateInteraction, task: SearchTask
) -> dict[str, list[float]]:
    """Searches a task by MaxSim with every document: {metric: [mean, low, high]}, 95 % interval."""
    mean = model.model.similarity_fn_name == "mean_maxsim"
    result = evaluate_search(
        functools.partial(maxsim_search, model.query, model.document, mean=mean),
        *task,
        ks=(10, 100),
        ignore_identical_ids=config.eval.ignore_identical_ids,
    )
    intervals = result.intervals()
    names = (*METRICS, "recall@100")
    return {name: [result.metrics[name], *intervals[name]] for name in names}


def main() -> None:
    launch(run, "late_interaction")


if __name__ == "__main__":
    exit_with_one_line(main)
