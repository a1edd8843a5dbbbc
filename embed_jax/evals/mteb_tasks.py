"""Local data as tasks of the official harness, mteb 2.x; see mteb.py for our models under it.

Local tasks need no network, and score what `python -m scripts.evaluate` scores of the same data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embed_jax.data.sources import open_retrieval_task
from embed_jax.data.sources import tasks as readers
from embed_jax.data.sources.sts import open_sts
from embed_jax.errors import InputError, require, warn
from embed_jax.evals.task import QUERY
from embed_jax.registry import unknown

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

Splits = dict[str, dict[str, Any]]  # by split, the values of each column


def local_task(
    kind: str,
    data: str,
    *,
    name: str,
    split: str = "test",
    instruction: str = "",
    language: str = "und-Zyyy",
    ignore_identical_ids: bool = False,
) -> AbsTask:
    """Makes a task of mteb from local data, which is read at once.

    Args:
        kind: "sts", "retrieval", "reranking", "classification", "clustering", "pairs", "bitext" or
            "summarization".
        data: see `scripts.evaluate`: a file, a directory with a file for each split, "hf:NAME" and
            so on. Classification needs a split "train" beside the other. Clustering is by the
            protocol "legacy" of `clustering.open_task`, or where texts have labels on several
            levels by "fast", of all texts.
        name: the name under which results are kept, and of a prompt made for this task.
        split: the split to evaluate on.
        instruction: for models with a template for instructions; of queries, where there are
            queries.
        language: ISO 639-3 and the script's ISO 15924 code, such as "eng-Latn"; only written beside
            the results.
        ignore_identical_ids: for retrieval, see `search.evaluate_retrieval`.

    Raises:
        InputError: for an unknown kind, an option of another kind, or data that cannot be read.
    """
    require("mteb")
    from mteb import abstasks
    from mteb.abstasks.task_metadata import TaskMetadata

    if kind not in KINDS:
        raise InputError(unknown("kind of task that mteb has", kind, KINDS))
    if ignore_identical_ids and kind != "retrieval":
        raise InputError(f"ignore_identical_ids: is for retrieval, found {kind}")
    known = KINDS[kind]
    local = known.read(data, split)
    content = hashlib.sha256(
        json.dumps([local.splits, instruction], sort_keys=True).encode()
    ).hexdigest()[:16]
    metadata = TaskMetadata(
        name=name,
        description=f"{kind} on local data",
        prompt={QUERY: instruction} if instruction and known.has_queries else instruction or None,
        dataset={"path": data, "revision": content},
        type=known.type,
        category="t2t",
        eval_splits=[split],
        eval_langs={content: [language]},
        main_score=known.main_score,
    )
    attributes = {"metadata": metadata, **local.attributes}
    if ignore_identical_ids:
        attributes["ignore_identical_ids"] = True
    task = type("LocalTask", (getattr(abstasks, local.base or known.base),), attributes)()
    # The subset is named by the content: mteb takes the kept results of a subset it knows whatever
    # its revision.
    task.dataset, task.data_loaded = {content: _dataset(local.splits, known.has_queries)}, True
    return task


@dataclasses.dataclass(frozen=True)
class _Read:
    """The data of a task in mteb's layout.

    Attributes:
        splits: of tasks with queries {"corpus": {id: text}, "queries": {id: text}, "relevant_docs",
            "top_ranked"}.
        attributes: of the task's class.
        base: the class, if it is not the kind's usual one.
    """

    splits: Splits
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str = ""


AS_THEY_ARE = {
    "min_score": 0,
    "max_score": 1,
}  # the scale of scores, which correlations do not depend on


def _sts(data: str, split: str) -> _Read:
    first, second, scores, _ = open_sts(data, split, scale=(-np.inf, np.inf))
    return _Read({split: {"sentence1": first, "sentence2": second, "score": scores}}, AS_THEY_ARE)


def _retrieval(data: str, split: str) -> _Read:
    corpus, queries, qrels = open_retrieval_task(data, split)
    task = {"corpus": corpus, "queries": queries, "relevant_docs": qrels, "top_ranked": None}
    return _Read({split: task})


def _reranking(data: str, split: str) -> _Read:
    """Reads each record's first query.

    mteb ranks equal scores by name, the last first, so negatives come first, as in
    evals/reranking.py.
    """
    corpus: dict[str, str] = {}
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}
    records = list(zip(*readers.read_reranking(data, split), strict=True))
    for number, (record_queries, positives, negatives) in enumerate(records):
        if len(record_queries) > 1:
            raise InputError(
                f"{data}: record {number}: mteb takes one query a record, found "
                f"{len(record_queries)}"
            )
        if positives and negatives:
            relevant = {
                f"{number}-a-positive-{place}": text for place, text in enumerate(positives)
            }
            other = {f"{number}-b-negative-{place}": text for place, text in enumerate(negatives)}
            corpus |= relevant | other
            queries[f"query-{number}"] = record_queries[0]
            qrels[f"query-{number}"] = dict.fromkeys(relevant, 1) | dict.fromkeys(other, 0)
    if not queries:
        raise InputError(
            f"{data}: expected a record with positives and negatives, found none among "
            f"{len(records)}"
        )
    if len(queries) < len(records):
        left_out = len(records) - len(queries)
        warn(f"{data}: {left_out} of {len(records)} records left out: no positive or no negative")
    ranked = {query: list(judged) for query, judged in qrels.items()}
    return _Read(
        {
            split: {
                "corpus": corpus,
                "queries": queries,
                "relevant_docs": qrels,
                "top_ranked": ranked,
            }
        }
    )


def _classification(data: str, split: str) -> _Read:
    if Path(data).is_file() or split == "train":
        raise InputError(
            f"{data}: classification: expected a directory with a file 'train' and one to test on"
        )
    columns = {name: readers.read_labelled_texts(data, name) for name in ("train", split)}
    numbers = _numbers(label for _, labels in columns.values() for label in labels)
    return _Read(
        {
            name: {"text": texts, "label": [numbers[x] for x in labels]}
            for name, (texts, labels) in columns.items()
        }
    )


def _clustering(data: str, split: str) -> _Read:
    sets, labels = readers.read_text_sets(data, split)
    depth = max(len(path) for paths in labels for path in paths)
    numbers = [
        _numbers(path[level] for paths in labels for path in paths if len(path) > level)
        for level in range(depth)
    ]
    if depth == 1:
        columns = {
            "sentences": sets,
            "labels": [[numbers[0][label] for (label,) in paths] for paths in labels],
        }
        return _Read({split: columns}, base="AbsTaskClusteringLegacy")
    if len(sets) > 1:
        raise InputError(
            f"{data}: mteb takes one label a text where there are several sets, found {depth}"
        )
    paths = [
        [number[label] for number, label in zip(numbers, path, strict=False)] for path in labels[0]
    ]
    return _Read(
        {split: {"sentences": sets[0], "labels": paths}},
        {"max_fraction_of_documents_to_embed": None},
    )


def _pairs(data: str, split: str) -> _Read:
    first, second, labels = readers.read_labelled_pairs(data, split)
    return _Read({split: {"sentence1": first, "sentence2": second, "labels": labels}})


def _bitext(data: str, split: str) -> _Read:
    first, second = readers.read_bitext(data, split)
    return _Read({split: {"sentence1": first, "sentence2": second}})


def _summarization(data: str, split: str) -> _Read:
    columns = dict(zip(("text", "human_summaries", "machine_summaries", "relevance"),
                       readers.read_summaries(data, split), strict=True))  # fmt: skip
    return _Read({split: columns}, AS_THEY_ARE)


class _Kind(NamedTuple):
    """A kind of task in mteb's words, and the function that reads our data of it."""

    base: str
    type: str
    main_score: str
    read: Callable[[str, str], _Read]
    has_queries: bool = False


KINDS = {
    "sts": _Kind("AbsTaskSTS", "STS", "cosine_spearman", _sts),
    "retrieval": _Kind("AbsTaskRetrieval", "Retrieval", "ndcg_at_10", _retrieval, has_queries=True),
    "reranking": _Kind(
        "AbsTaskRetrieval", "Reranking", "map_at_1000", _reranking, has_queries=True
    ),
    "classification": _Kind("AbsTaskClassification", "Classification", "accuracy", _classification),
    "clustering": _Kind("AbsTaskClustering", "Clustering", "v_measure", _clustering),
    "pairs": _Kind("AbsTaskPairClassification", "PairClassification", "max_ap", _pairs),
    "bitext": _Kind("AbsTaskBitextMining", "BitextMining", "f1", _bitext),
    "summarization": _Kind(
        "AbsTaskSummarization", "Summarization", "cosine_spearman", _summarization
    ),
}


def _numbers(labels: Iterable[str]) -> dict[str, int]:
    """Gives each label a number, in the labels' order."""
    return {label: number for number, label in enumerate(sorted(set(labels)))}


def _dataset(splits: Splits, has_queries: bool) -> Any:
    from datasets import Dataset, DatasetDict

    def rows(texts: Mapping[str, str]) -> Dataset:
        return Dataset.from_dict({"id": list(texts), "text": list(texts.values())})

    if not has_queries:
        return DatasetDict({name: Dataset.from_dict(columns) for name, columns in splits.items()})
    return {
        name: {**task, "corpus": rows(task["corpus"]), "queries": rows(task["queries"])}
        for name, task in splits.items()
    }
