"""Fine-tuning for retrieval: pairs, hard negatives, and the question whether it was worth it.

    python -m experiments.retrieval --config=configs/retrieval/quickstart.py \
        --workdir=runs/quickstart

Trains on pairs with in-batch negatives, and with hard ones from the data or mined by the run itself
(`config.mine`: at the start, and again with the model as it has become). Then searches the held-out
test split with the model before, the model after and BM25, and says whether to adopt the new one.
Everything about the run is in the work
directory: model, metrics.jsonl, mined negatives, comparison.json, curves.png, comparison.png.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from embed_jax import config as configs
from embed_jax.data import pairs
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import open_records, open_retrieval_task, pair_columns, record_fields
from embed_jax.data.sources.beir import read_corpus
from embed_jax.data.stream import RecordStream
from embed_jax.errors import InputError, exit_with_one_line, require
from embed_jax.runtime import is_first_host, say
from embed_jax.train import loop
from embed_jax.train.evaluation import report_search, search_evaluators, sts_evaluators
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.mining import mined_sources
from embed_jax.train.objective import training_loss
from embed_jax.train.sources import ONLY, open_mixture, open_source, read_validation


def run(config: configs.Experiment, workdir: Path) -> loop.Result:
    require("bm25s")  # fail early: needed only at the end
    require("matplotlib")
    # Data: training pairs, validation pairs, and search tasks for validation and test.
    sources, validation, tasks = read_data(config, workdir)

    # Evaluation while training, on validation only.
    evaluators = sts_evaluators(config)
    if "validation" in tasks:
        evaluators |= search_evaluators(config, tasks["validation"])

    # Training.
    began = time.monotonic()
    result = fit(config, workdir, sources=sources, evaluators=evaluators, validation=validation)
    say(f"training took {time.monotonic() - began:.0f} s")

    # Afterwards, once, on test: before, after, BM25.
    if result.finished and "test" in tasks:
        began = time.monotonic()
        comparison = report_search(tasks["test"], config, workdir, result.unchanged)
        if is_first_host():
            comparison.write(workdir)
        say(f"comparison took {time.monotonic() - began:.0f} s")
    return result


def read_data(config: configs.Experiment, workdir: Path):
    """Reads the training data, validation records, and {split: (corpus, queries, qrels)}."""
    if vars(config.mixture.sources):
        for field, value in (
            ("mine.strategy", config.mine.strategy),
            ("data.consistency", config.data.consistency),
        ):
            if value:
                raise InputError(
                    f"config.{field}: not for a mixture; its data sets have their own negatives"
                )
        return open_mixture(config), [], open_tasks(config)

    source, validation, tasks = open_pairs(config)
    if not (config.mine.strategy or config.data.consistency):
        return {ONLY: source}, validation, tasks
    lists = "scores" in training_loss(config).about.needs
    if lists and validation:
        say("no validation loss: nothing scores the held-out pairs")
        validation = []
    if validation:
        validation = pairs.rename_columns(validation, pair_columns(validation), pairs.CARRIED)
    if isinstance(source.records, RecordStream):
        raise InputError(
            "config.mine.strategy: negatives are found for all pairs together, not for "
            f"{source.records.name}"
        )
    texts = read_corpus_texts(config)
    return mined_sources(source.records, texts, config, workdir, lists=lists), validation, tasks


def open_tasks(config: configs.Experiment) -> dict[str, pairs.SearchTask]:
    """Opens the search tasks of `eval.retrieval`, by "validation" and "test"."""
    splits = {"validation": config.eval.retrieval_split, "test": config.eval.test_split}
    if not config.eval.retrieval:
        return {}
    return {
        split: open_retrieval_task(config.eval.retrieval, name)
        for split, name in splits.items()
        if name
    }


def open_pairs(
    config: configs.Experiment,
) -> tuple[RecordSource, Sequence, dict[str, pairs.SearchTask]]:
    """Opens the data set of `config.data`, its validation records and the search tasks.

    With `data.holdout` its own pairs are split, and searched.
    """
    data, tasks = config.data, open_tasks(config)
    source = open_source(data)
    validation: Sequence = []
    if data.holdout:
        sides = pairs.split_pairs(
            pairs.rename_columns(source.records, pair_columns(source.records), pairs.CARRIED),
            data.holdout,
        )
        others = read_texts(data.corpus) if data.corpus else []
        tasks |= {
            split: pairs.retrieval_task(sides[split], others) for split in ("validation", "test")
        }
        records, validation = sides["train"], sides["validation"]
        source = RecordSource(records, record_fields(records))
    elif data.validation_split:
        validation = read_validation(data)
    say(f"data: {len(source.records)} training pairs, {len(validation)} validation pairs")
    return source, validation, tasks


def read_corpus_texts(config: configs.Experiment) -> list[str]:
    """Reads the texts among which negatives are searched for, beside the positives."""
    corpus = config.mine.corpus or config.data.corpus
    if not corpus:
        return []
    return read_corpus(corpus) if Path(corpus).is_dir() else read_texts(corpus)


def read_texts(name: str) -> list[str]:
    """Reads the field `text` of every record, after its `title` if it has one."""
    records = open_records(name, "train")
    if "text" not in records[0]:
        raise InputError(
            f"{name}: expected records with a text, found the fields {', '.join(records[0])}"
        )
    return [pairs.join_title(record.get("title"), record["text"]) for record in records]


def main() -> None:
    launch(run, "retrieval")


if __name__ == "__main__":
    exit_with_one_line(main)
