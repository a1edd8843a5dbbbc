"""Release gates as plain data, in YAML: cases, forbidden documents, thresholds, a baseline.

    name: help pages
    corpus: corpus.jsonl              # or documents: {id: text}; beside this file
    k: 10                             # documents served for a query
    cases:
      - {query: "how do I descale a kettle?", expected: kettle-care}
      - {query: "which guitars are loud?", expected: {drums: 1, guitars: 3}}   # graded
      - {query: the salaries of the staff, expected: [], allowed: [kettle-care]}  # nothing served
    forbidden: [salaries]             # never served
    thresholds: {recall@2: 1.0, mrr@10: 0.9, p95_ms: 200}
    baseline: {metric: ndcg@10, level: 0.05, loss: 0.01}

`data: scifact` adds the queries of a retrieval task to the cases, and has its corpus. `allowed` and
`where` say what may be served, as in `search`: for all cases, or for one.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError
from embed_jax.evals.metrics import RANKING_METRICS
from embed_jax.evals.search import Qrels
from embed_jax.retrieval.filters import Filter
from embed_jax.retrieval.search import check_queries
from embed_jax.yaml_files import check_keys, make_from_keys, read_yaml

LATENCY = "p95_ms"  # a threshold, in milliseconds


@dataclasses.dataclass(frozen=True)
class GateCase:
    """A query and what a search must serve for it.

    Attributes:
        query: a text.
        expected: grades of the relevant documents; empty: nothing may be served.
        name: for tables.
        allowed: ids that may be served; None: all.
        where: a filter on fields.
        forbidden: ids that must not be served for this query.
    """

    query: str
    expected: Mapping[str, int]
    name: str = ""
    allowed: Sequence[str] | None = None
    where: Filter | None = None
    forbidden: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class BaselineSpec:
    """A paired test against a baseline.

    Attributes:
        metric: that is compared, such as "ndcg@10".
        level: of false alarms.
        loss: of the metric, whose probability to be noticed is reported.
    """

    metric: str = "ndcg@10"
    level: float = 0.05
    loss: float = 0.01


@dataclasses.dataclass(frozen=True)
class GateSpec:
    """A release gate; see the module.

    Attributes:
        name: of the gate.
        cases: with different names.
        forbidden: ids that must never be served.
        thresholds: the least value of a metric, or the most milliseconds (LATENCY).
        baseline: how a baseline is compared.
        k: documents that are served for a query.
        corpus: documents by id; None: those of the indexes.
        fields: of documents, for filters.
    """

    name: str
    cases: Sequence[GateCase]
    forbidden: Sequence[str] = ()
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    baseline: BaselineSpec = BaselineSpec()
    k: int = 10
    corpus: Mapping[str, str] | None = None
    fields: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @property
    def qrels(self) -> Qrels:
        """Returns the relevant documents of the cases that have some, by the cases' names."""
        return {case.name: case.expected for case in self.cases if case.expected}


def read_gate(path: str | Path) -> GateSpec:
    """Reads a gate from a YAML file; paths in it are relative to its folder.

    Raises:
        InputError: with file and key: it can't be read, or is not of this form.
    """
    path = Path(path)
    content = read_yaml(path)
    try:
        return parse_gate(content, path.stem, path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_gate(content: Any, name: str = "gate", folder: str | Path = "") -> GateSpec:
    """Makes a gate of plain data.

    Args:
        content: see the module.
        name: unless it has one.
        folder: of its paths.

    Raises:
        InputError: with the key: for another form or an unknown key, no case, no threshold.

    >>> case = {"query": "a kettle", "expected": "d1"}
    >>> parse_gate({"cases": [case], "thresholds": {"recall@2": 1}}).cases[0].expected
    {'d1': 1}
    """
    own = ["name", "cases", "forbidden", "thresholds", "baseline", "k"]
    sources = ["corpus", "documents", "data", "split", "allowed", "where"]
    content = check_keys("gate", content, own + sources)
    defaults = {key: content[key] for key in ("allowed", "where") if key in content}
    entries = content.get("cases") or []
    if not isinstance(entries, list):
        raise InputError(f"cases: expected a list, found {entries!r}")
    cases = [
        parse_case(f"case {number}", entry, str(number), defaults)
        for number, entry in enumerate(entries, 1)
    ]
    corpus, fields, more_cases = _read_sources(content, cases, Path(folder))
    cases += [dataclasses.replace(case, **_case_defaults(defaults)) for case in more_cases]
    if not cases:
        raise InputError("cases: expected one or more, found none")
    names = [case.name for case in cases]
    for position, case_name in enumerate(names):
        if case_name in names[:position]:
            raise InputError(f"cases: two have the name {case_name!r}")
    thresholds = check_keys("thresholds", content.get("thresholds") or {})
    for key, value in thresholds.items():
        check_threshold(key, value)
    if not thresholds and not content.get("baseline"):
        raise InputError("thresholds: expected one or more, or a baseline")
    baseline = make_from_keys(BaselineSpec, "baseline", content.get("baseline") or {})
    check_baseline(baseline)
    cut_offs = [cut_off(metric) for metric in [*thresholds, baseline.metric] if metric != LATENCY]
    k = content.get("k", max([10, *cut_offs]))
    if type(k) is not int or k < max([1, *cut_offs]):
        raise InputError(f"k: expected {max([1, *cut_offs])} or more, found {k!r}")
    return GateSpec(
        str(content.get("name") or name),
        cases,
        id_list("forbidden", content.get("forbidden") or []),
        thresholds,
        baseline,
        k,
        corpus,
        fields,
    )


def parse_case(where: str, entry: Any, name: str, defaults: Mapping[str, Any]) -> GateCase:
    """Makes a case of plain data.

    Args:
        where: names it in errors.
        entry: a mapping with the fields of `GateCase`; `expected` is an id, a list of ids, or
            grades by id.
        name: unless it has one.
        defaults: `allowed` and `where` of the gate.
    """
    fields = [field.name for field in dataclasses.fields(GateCase)]
    values = {**defaults, **check_keys(where, entry, fields, ["query", "expected"])}
    try:
        check_queries([values["query"]])
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    values["expected"] = _grades(f"{where}.expected", values["expected"])
    values["name"] = str(values.get("name") or name)
    for key in ("allowed", "forbidden"):
        if values.get(key) is not None:
            values[key] = id_list(f"{where}.{key}", values[key])
    if values.get("where") is not None:
        check_keys(f"{where}.where", values["where"])
    return GateCase(**values)


def id_list(where: str, value: Any) -> tuple[str, ...]:
    """Returns ids of a file: numbers become text.

    Raises:
        InputError: for anything except a list of texts and whole numbers.
    """
    if not isinstance(value, list | tuple) or not all(type(name) in (str, int) for name in value):
        raise InputError(f"{where}: expected a list of ids, found {value!r}")
    return tuple(map(str, value))


def cut_off(metric: Any) -> int:
    """Returns K of a metric "NAME@K".

    Raises:
        InputError: for another form or an unknown name.

    >>> cut_off("recall@2")
    2
    """
    match = re.fullmatch(r"(\w+)@([1-9]\d*)", str(metric), re.ASCII)
    if not match or match[1] not in RANKING_METRICS:
        known = ", ".join(f"{name}@K" for name in RANKING_METRICS)
        raise InputError(f"metric: expected {known} or {LATENCY}, found {metric!r}")
    return int(match[2])


def check_threshold(key: str, value: Any) -> None:
    """Raises an InputError for a threshold of an unknown metric, or out of range."""
    is_number = type(value) in (int, float)
    if key == LATENCY:
        if not (is_number and 0 < value < float("inf")):
            raise InputError(f"thresholds.{key}: expected milliseconds above 0, found {value!r}")
        return
    cut_off(key)
    if not (is_number and 0 <= value <= 1):
        raise InputError(f"thresholds.{key}: expected a share from 0 to 1, found {value!r}")


def check_baseline(baseline: BaselineSpec) -> None:
    """Raises an InputError for an unknown metric, or a level or loss out of range."""
    cut_off(baseline.metric)
    for key in ("level", "loss"):
        value = getattr(baseline, key)
        if not (type(value) in (int, float) and 0 < value < 1):
            raise InputError(f"baseline.{key}: expected a number between 0 and 1, found {value!r}")


def _grades(where: str, value: Any) -> dict[str, int]:
    if type(value) in (str, int):
        value = [value]
    if not isinstance(value, Mapping):
        return dict.fromkeys(id_list(where, value), 1)
    for name, grade in value.items():
        if type(grade) is not int or grade < 1 or type(name) not in (str, int):
            raise InputError(
                f"{where}: expected a grade from 1 up by id, found {name!r}: {grade!r}"
            )
    return {str(name): grade for name, grade in value.items()}


def _case_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    options = dict(defaults)
    if options.get("allowed") is not None:
        options["allowed"] = id_list("allowed", options["allowed"])
    return options


def _read_sources(
    content: Mapping[str, Any], cases: Sequence[GateCase], folder: Path
) -> tuple[Mapping[str, str] | None, Mapping[str, Mapping[str, Any]], list[GateCase]]:
    """Returns the corpus, the fields of its documents, and the cases of a retrieval task."""
    sources = [key for key in ("corpus", "documents", "data") if content.get(key)]
    if len(sources) > 1:
        raise InputError(f"expected one of corpus, documents and data, found {', '.join(sources)}")
    if not sources:
        return None, {}, []
    (source,) = sources
    value = content[source]
    if source == "documents":
        texts = {str(key): text for key, text in value.items()} if isinstance(value, dict) else {}
        if not texts or not all(isinstance(text, str) for text in texts.values()):
            raise InputError(f"documents: expected texts by id, found {value!r}")
        return texts, {}, []
    if not isinstance(value, str):
        raise InputError(f"{source}: expected a path, found {value!r}")
    value = str(folder / value) if (folder / value).exists() else value
    if source == "corpus":
        from embed_jax.data.sources.beir import read_documents

        filters = [case.where for case in cases] + [content.get("where")]
        names = dict.fromkeys(name for where in filters for name in where or ())
        corpus, fields = read_documents(value, list(names))
        return corpus, fields, []
    from embed_jax.data.sources import open_retrieval_task

    corpus, queries, qrels = open_retrieval_task(value, str(content.get("split") or "test"))
    judged = {
        query: {name: grade for name, grade in grades.items() if grade > 0}
        for query, grades in qrels.items()
    }
    judged = {query: grades for query, grades in judged.items() if grades}
    return corpus, {}, [GateCase(queries[name], judged[name], name) for name in judged]
