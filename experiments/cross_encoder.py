"""Cross-encoders: a model that reads a query together with a passage, to rerank or to classify.

    python -m experiments.cross_encoder --config=configs/cross_encoder/python_docs.py \
        --workdir=runs/cross_encoder

Trains on labelled pairs, scored lists, or pairs whose negatives come from the data, from mining by
an embedding model (`config.mine`) or from the rest of the batch (`batch.in_batch_negatives`). While
it trains, and at the end, it reranks the shortlist that a first stage found (`eval.first_stage`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

from embed_jax.config import Experiment
from embed_jax.cross_encoder import load_cross_encoder
from embed_jax.data.pairs import SearchTask
from embed_jax.data.record_source import RecordSource, count_columns
from embed_jax.embedding_model import TextEncoder
from embed_jax.errors import InputError, exit_with_one_line, require
from embed_jax.evals.report import format_table, systems_table
from embed_jax.evals.retrieval import make_retrieval_task
from embed_jax.evals.suite import Entry, named
from embed_jax.evals.two_stages import Shortlist, compare_stages, make_shortlist
from embed_jax.losses.base import Loss
from embed_jax.pair_scores import BoundCrossEncoder, PairScorer
from embed_jax.retrieval.bm25 import bm25_search
from embed_jax.retrieval.topk import dense_search
from embed_jax.runtime import is_first_host, say
from embed_jax.sentence import load_sentence_encoder
from embed_jax.train import loop
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.mining import mined_sources
from embed_jax.train.pair_model import initial_cross_encoder, pair_loss, pair_objective
from embed_jax.train.sources import ONLY

from .retrieval import open_pairs, read_corpus_texts


def run(config: Experiment, workdir: Path) -> loop.Result:
    require("bm25s")  # fail early: needed only for the shortlists
    loss = pair_loss(config)
    if loss.about.classes and config.eval.retrieval:
        raise InputError(
            f"config.eval.retrieval: the loss {config.loss.name!r} trains {loss.about.classes} "
            f"logits a pair, which rank no passages; expected '', found {config.eval.retrieval!r}"
        )

    # Data: a query and its candidates, and search tasks for validation and test.
    sources, validation, tasks = read_data(config, workdir)

    # Evaluation: the order of a fixed shortlist.
    tasks = {} if loss.about.classes else tasks  # classes rank no passages
    shortlists = {split: shortlist(config, task) for split, task in tasks.items()}
    evaluators = {}
    if "validation" in shortlists:
        evaluators["reranking"] = shortlists["validation"].evaluator()

    # Training.
    result = fit(
        config,
        workdir,
        sources=sources,
        evaluators=evaluators,
        validation=validation,
        model=initial_cross_encoder(config, loss),
        objective=pair_objective,
    )

    # Afterwards, once, on test: the first stage, and the reranker over it.
    if result.finished and "test" in shortlists:
        model = BoundCrossEncoder(load_cross_encoder(workdir / "model"))
        report_stages(config, workdir, shortlists["test"], model)
    return result


def read_data(
    config: Experiment, workdir: Path
) -> tuple[dict[str, RecordSource], Sequence, dict[str, SearchTask]]:
    """Reads the training data, validation records, and the search tasks by their split."""
    loss = pair_loss(config)
    source, validation, tasks = open_pairs(config)
    source = with_scores(mine_negatives(config, source, loss, workdir), loss)
    return {ONLY: source}, validation if source.fields.score is None else [], tasks


def mine_negatives(
    config: Experiment, source: RecordSource, loss: Loss, workdir: Path
) -> RecordSource:
    """Returns the pairs with negatives that a search finds, if the config asks for them.

    With `mine.cross_encoder` and a loss of scores the candidates have that teacher's scores.
    """
    if not config.mine.strategy:
        return source
    retriever = TextEncoder(load_sentence_encoder(config.mine.retriever))
    lists = "scores" in loss.about.needs and bool(config.mine.cross_encoder)
    mined = mined_sources(source.records, read_corpus_texts(config), config, workdir, lists=lists)
    return dataclasses.replace(mined(0, retriever)[ONLY], max_length=source.max_length)


def with_scores(source: RecordSource, loss: Loss) -> RecordSource:
    """Returns the source with scores if the loss needs them: 1 for the positive, 0 for others."""
    if "scores" not in loss.about.needs or source.fields.score is not None:
        return source
    negatives = count_columns(source) - 2
    fields = dataclasses.replace(source.fields, score=lambda record: (1.0, *[0.0] * negatives))
    return dataclasses.replace(source, fields=fields)


def shortlist(config: Experiment, task: SearchTask) -> Shortlist:
    """Returns the shortlist of `eval.first_stage` for a search task."""
    name, search = config.eval.first_stage or "bm25", bm25_search
    if name != "bm25":
        model = load_sentence_encoder(name)
        search = functools.partial(dense_search, model.encode_query, model.encode_document)
    retrieval_task = make_retrieval_task(
        task, ignore_identical_ids=config.eval.ignore_identical_ids
    )
    return make_shortlist(
        retrieval_task,
        search,
        name,
        depth=config.eval.depth,
        with_positives=config.eval.with_positives,
    )


def report_stages(
    config: Experiment, workdir: Path, shortlist: Shortlist, model: PairScorer
) -> None:
    """Prints the scores of a first stage and of a model over it, and writes `reranking.json`."""
    data = config.eval.retrieval or config.data.train
    split = config.eval.test_split or "test"
    entry = Entry("retrieval", data, split, named("retrieval", data, split))
    stages = compare_stages(entry, shortlist, model, workdir.resolve().name)
    say(format_table(*systems_table([stages.first, stages.reranked])), stages.summary())
    if is_first_host():
        stages.write(workdir / "reranking.json")


def main() -> None:
    launch(run, "cross_encoder")


if __name__ == "__main__":
    exit_with_one_line(main)
