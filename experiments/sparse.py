"""Sparse embeddings (SPLADE): weights of the vocabulary's words, for search by an inverted index.

    python -m experiments.sparse --config=configs/sparse/splade_v2_max.py \
        --workdir=runs/splade_v2_max

Trains on pairs with in-batch negatives, negatives from the data or mined (`config.mine`), or on a
teacher's scores; `flops` terms of the loss make the embeddings sparse. With `model.query`
"token_weights" queries need no transformer: their weights are of a table, which starts from the
inverse document frequencies of the corpus. Ends with a search of the test split by BM25 and by the
model, and what such a search costs: `sparse.json` in the work directory.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.atomic import write_whole
from embed_jax.config import Experiment
from embed_jax.data.pairs import SearchTask, sampled_records
from embed_jax.data.record_source import RecordSource
from embed_jax.encoders.vocabulary import VOCABULARY
from embed_jax.errors import InputError, exit_with_one_line, require
from embed_jax.evals.search import evaluate_search
from embed_jax.retrieval.bm25 import bm25_search
from embed_jax.retrieval.sparse import sparse_top_k
from embed_jax.retrieval.topk import as_run
from embed_jax.routed import AnyEncoder, RoutedEncoder, load_routed
from embed_jax.runtime import is_first_host, say
from embed_jax.sparse import SparseEncoder, bias_change, idf_weights, sparse_statistics
from embed_jax.train import loop
from embed_jax.train.evaluation import search_evaluators
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.model import TABLE, TrainingModel, initial_model
from embed_jax.train.objective import training_loss
from embed_jax.train.sources import ONLY

from .cross_encoder import mine_negatives, with_scores
from .retrieval import open_pairs, read_corpus_texts

DEPTH = 100  # documents of a query
SAMPLE = 128  # texts that `config.model.start_words` is counted on


def run(config: Experiment, workdir: Path) -> loop.Result:
    require("bm25s")  # fail early: needed only at the end
    loss = training_loss(config)

    # Data: pairs or scored lists, and search tasks for validation and test.
    source, validation, tasks = open_pairs(config)
    source = with_scores(mine_negatives(config, source, loss, workdir), loss)

    # Evaluation while training, on validation only.
    evaluators: dict[str, Any] = {}
    if "validation" in tasks:
        evaluators |= search_evaluators(config, tasks["validation"])

    # Training.
    result = fit(
        config,
        workdir,
        sources={ONLY: source},
        evaluators=evaluators,
        validation=[] if "scores" in loss.about.needs else validation,
        model=model_by_texts(config, source, tasks),
    )

    # Afterwards, once, on test: BM25, and the model with its costs.
    if result.finished and "test" in tasks:
        report = compare_with_bm25(load_routed(workdir / "model"), tasks["test"], config)
        for name, metrics in report.items():
            say(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in metrics.items()))
        if is_first_host():
            write_whole(workdir / "sparse.json", json.dumps(report, indent=1) + "\n")
    return result


def model_by_texts(
    config: Experiment, source: RecordSource, tasks: Mapping[str, SearchTask]
) -> TrainingModel | None:
    """Returns the model before its first step, or None where it does not depend on texts."""
    if config.model.query != TABLE and not config.model.start_words:
        return None
    model, corpus = initial_model(config), read_corpus_texts(config)
    if config.model.start_words:
        records = sampled_records(source.records)
        texts = corpus or [str(source.texts(row, record)[1]) for row, record in records]
        model = start_with_words(model, texts, config.model.start_words)
    if config.model.query == TABLE:
        texts = corpus or [text for task in tasks.values() for text in task[0].values()]
        model = start_from_idf(model, texts)
    return model


def start_with_words(model: TrainingModel, texts: Sequence[str], words: int) -> TrainingModel:
    """Changes the bias of the documents' head so that a text has this number of weights.

    Raises:
        InputError: for a head without a bias, or a dense model.
    """
    sentence, params = model.sentence, model.params
    if isinstance(sentence, RoutedEncoder):
        sentence, params = sentence.encoder("document"), params["document"]
    if not isinstance(sentence, SparseEncoder):
        raise InputError(
            "config.model.start_words: for sparse models only: set config.model.sparse"
        )
    try:
        change = bias_change(sentence, texts[:: -(-len(texts) // SAMPLE)], words)
    except InputError as error:
        raise InputError(f"config.model.start_words: {error}") from None
    say(f"sparse: {change:+.2f} to the head's bias, for {words} weights of a text")
    head = params[VOCABULARY]
    head["bias"] = head["bias"] + change
    return model


def start_from_idf(model: TrainingModel, texts: list[str]) -> TrainingModel:
    """Sets the queries' table of weights to the inverse document frequencies of texts."""
    if not texts:
        raise InputError(
            "config.data.corpus: the table of a query's weights starts from the frequencies of "
            "words in a corpus, found none"
        )
    table = idf_weights(model.tokenizers["query"], texts)
    model.params["query"]["backbone"]["token"] = table
    return model


def compare_with_bm25(
    model: AnyEncoder, task: SearchTask, config: Experiment
) -> dict[str, dict[str, float]]:
    """Returns the scores of BM25's search and the model's, with what the latter costs."""
    statistics: dict[str, float] = {}

    def search(corpus, queries, k):
        of_queries: Any = model.encode_query(list(queries.values()))
        of_documents: Any = model.encode_document(list(corpus.values()))
        statistics.update(dataclasses.asdict(sparse_statistics(of_queries, of_documents)))
        return as_run(*sparse_top_k(of_queries, of_documents, k), list(queries), list(corpus))

    results = {
        name: evaluate_search(
            function,
            *task,
            ks=(10, DEPTH),
            ignore_identical_ids=config.eval.ignore_identical_ids,
        ).metrics
        for name, function in (("bm25", bm25_search), ("sparse", search))
    }
    shown = ("ndcg@10", "mrr@10", f"recall@{DEPTH}")
    report = {name: {key: metrics[key] for key in shown} for name, metrics in results.items()}
    report["sparse"] |= statistics
    return report


def main() -> None:
    launch(run, "sparse")


if __name__ == "__main__":
    exit_with_one_line(main)
