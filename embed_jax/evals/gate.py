"""Runs a release gate: cases, forbidden documents, thresholds, and a paired test of a baseline.

    report = run_gate(pipeline, read_gate("gate.yaml"), ids=corpus)
    report.passed, report.checks, report.to_json()

See `gate_spec` for the file. The test alarms at its level where nothing was lost; the report says
how often it would notice a loss.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import InputError
from embed_jax.evals.alarms import detection_power, is_alarm, loss_p_value
from embed_jax.evals.budget import StageTimes, time_stages
from embed_jax.evals.gate_spec import LATENCY, BaselineSpec, GateCase, GateSpec, cut_off
from embed_jax.evals.metrics import bootstrap, mean_interval, percentile_interval
from embed_jax.evals.search import RetrievalResult, score_run
from embed_jax.evals.significance import PairedDifference, compare_items
from embed_jax.evals.task import Items
from embed_jax.retrieval.fusion import Ranking, Run
from embed_jax.retrieval.search import Pipeline, search

FORMAT_OF_GATES = "embed-jax gate 1"
PASSED, FAILED = "passed", "failed"


@dataclasses.dataclass(frozen=True)
class GateCheck:
    """One of the conditions of a gate.

    Attributes:
        name: such as "recall@2".
        value: what was measured, with its interval, as text.
        accepted: as text.
        passed: whether the value is accepted.
        problems: what failed, case by case.
        number: what was measured.
    """

    name: str
    value: str
    accepted: str
    passed: bool
    problems: Sequence[str] = ()
    number: float | None = None


@dataclasses.dataclass(frozen=True)
class BaselineLoss:
    """The comparison with a baseline.

    Attributes:
        spec: metric, level and loss.
        test: new system minus baseline.
        power: how often a loss of `spec.loss` would raise an alarm; None: the scores are below it.
    """

    spec: BaselineSpec
    test: PairedDifference
    power: float | None

    @property
    def p_value(self) -> float:
        """Returns the one-sided p-value of "the new system is worse"."""
        return loss_p_value(self.test.difference, self.test.p_value)


@dataclasses.dataclass(frozen=True)
class GateReport:
    """The outcome of a gate.

    Attributes:
        spec: the gate.
        checks: its conditions.
        served: what was served for each case, by name, best first.
        baseline: the comparison; None without one.
        times: of the stages; None if latency is not limited.
        searched: what was searched, such as each index' identity and the hash of its texts.
    """

    spec: GateSpec
    checks: Sequence[GateCheck]
    served: Run
    baseline: BaselineLoss | None
    times: StageTimes | None
    searched: Mapping[str, Mapping[str, Any]]

    @property
    def passed(self) -> bool:
        """Tells whether all checks passed."""
        return all(check.passed for check in self.checks)

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """Returns header and rows of a table of the checks."""
        return ["check", "found", "accepted", "result"], [
            [check.name, check.value, check.accepted, PASSED if check.passed else FAILED]
            for check in self.checks
        ]

    def to_json(self) -> dict[str, Any]:
        """Returns what a results file has, which serves as a baseline of later runs."""
        test = self.baseline and self.baseline.test
        return {
            "format": FORMAT_OF_GATES,
            "gate": self.spec.name,
            "passed": self.passed,
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "baseline": self.baseline
            and test
            and {
                **dataclasses.asdict(self.baseline.spec),
                "difference": test.difference,
                "interval": list(test.interval),
                "p": self.baseline.p_value,
                "queries": test.n,
                "power": self.baseline.power,
            },
            "milliseconds": self.times and self.times.percentiles(),
            "searched": dict(self.searched),
            "cases": [
                {
                    "name": case.name,
                    "query": case.query,
                    "expected": dict(case.expected),
                    "served": dict(self.served[case.name]),
                }
                for case in self.spec.cases
            ],
        }


def run_gate(
    pipeline: Pipeline,
    spec: GateSpec,
    *,
    ids: Collection[str],
    baseline: Run | None = None,
    timed_queries: int = 50,
    searched: Mapping[str, Mapping[str, Any]] | None = None,
) -> GateReport:
    """Searches for the cases, and checks what is served.

    Args:
        pipeline: the search.
        spec: the gate.
        ids: of all documents that can be searched.
        baseline: what an earlier system served, by the cases' names; see `read_baseline`.
        timed_queries: how many queries are timed, where the latency is limited.
        searched: what the search depends on, for the report.

    Raises:
        InputError: an expected or allowed document is not there, so the index is stale or of
            another corpus; see `search`.
    """
    check_ids(spec, ids)
    served = serve_cases(pipeline, spec)
    checks = [*_forbidden(spec, served), *_nothing_served(spec, served)]
    scored = _scores(spec, served) if spec.qrels else None
    times = None
    for metric, limit in spec.thresholds.items():
        if metric == LATENCY:
            queries = [case.query for case in spec.cases][:timed_queries]
            times = time_stages(pipeline, queries, spec.k)
            checks.append(_latency(times, limit))
        else:
            checks.append(_threshold(spec, scored, served, metric, limit))
    compared = None
    if baseline is not None:
        compared = compare_baseline(spec, served, baseline)
        checks.append(_loss(compared))
    return GateReport(spec, checks, served, compared, times, searched or {})


def check_ids(spec: GateSpec, ids: Collection[str]) -> None:
    """Raises an InputError if an expected or allowed document cannot be searched at all."""
    known = ids if isinstance(ids, set | frozenset | Mapping) else frozenset(ids)
    for case in spec.cases:
        for what, names in (("expected", case.expected), ("allowed", case.allowed or ())):
            if missing := [name for name in names if name not in known]:
                raise InputError(
                    f"case {case.name!r}: the {what} document {missing[0]!r} is not among the "
                    f"{len(known)} that are searched: a stale index, or one of another corpus"
                )


def serve_cases(pipeline: Pipeline, spec: GateSpec) -> dict[str, Ranking]:
    """Returns what is served for each case, by name; cases that may be served the same at once."""
    groups: dict[str, list[GateCase]] = {}
    for case in spec.cases:
        groups.setdefault(json.dumps([case.allowed, case.where], sort_keys=True), []).append(case)
    served: dict[str, Ranking] = {}
    for group in groups.values():
        queries = [case.query for case in group]
        results = search(
            pipeline, queries, spec.k, allowed=group[0].allowed, where=group[0].where
        ).results
        served |= {case.name: ranking for case, ranking in zip(group, results, strict=True)}
    return {case.name: served[case.name] for case in spec.cases}


def read_baseline(path: str | Path, spec: GateSpec) -> Run:
    """Reads what an earlier system served: the JSON of a gate, or a run in TREC's form.

    Raises:
        InputError: it can't be read, or has other cases than the gate.
    """
    from embed_jax.data.sources.trec import read_trec_run

    path = Path(path)
    if path.suffix != ".json":
        run = read_trec_run(path)
        _check_same_cases(path, {name: None for name in run}, dict.fromkeys(_names(spec)))
        return run
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cases: Any = content["cases"] if content["format"] == FORMAT_OF_GATES else None
        before = {case["name"]: [case["query"], case["expected"]] for case in cases}
        run = {
            case["name"]: {str(name): float(score) for name, score in case["served"].items()}
            for case in cases
        }
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: not the JSON of a gate ({FORMAT_OF_GATES!r})") from None
    now = {case.name: [case.query, dict(case.expected)] for case in spec.cases}
    _check_same_cases(path, before, now)
    return run


def _names(spec: GateSpec) -> list[str]:
    return [case.name for case in spec.cases if case.expected]


def _check_same_cases(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    different = [name for name in now if name not in before or before[name] != now[name]]
    if different:
        raise InputError(
            f"{path}: a baseline of other cases: {len(different)} of {len(now)} are not there or "
            f"differ, such as {different[0]!r}; run the gate anew on the baseline"
        )


def compare_baseline(spec: GateSpec, served: Run, baseline: Run) -> BaselineLoss:
    """Compares the scores of the same cases, and computes the power for a planted loss.

    Raises:
        InputError: fewer than two cases have relevant documents.
    """
    metric, cut = spec.baseline.metric, [cut_off(spec.baseline.metric)]
    if len(spec.qrels) < 2:
        raise InputError("baseline: expected two cases or more with expected documents")
    new, before = (
        np.asarray(score_run(run, spec.qrels, ks=cut).per_query[metric], np.float64)
        for run in (served, baseline)
    )
    # One-sided at the level: the interval leaves out the level on either side.
    test = compare_items(Items(new), Items(before), confidence=1 - 2 * spec.baseline.level)
    try:
        power = detection_power(new, before, spec.baseline.loss, spec.baseline.level)
    except InputError:  # the scores are too low to lose as much
        power = None
    return BaselineLoss(spec.baseline, test, power)


def _scores(spec: GateSpec, served: Run) -> RetrievalResult:
    cuts = sorted({cut_off(metric) for metric in spec.thresholds if metric != LATENCY} | {spec.k})
    return score_run(served, spec.qrels, ks=cuts)


def _forbidden(spec: GateSpec, served: Run) -> list[GateCheck]:
    if not spec.forbidden and not any(case.forbidden for case in spec.cases):
        return []
    problems = []
    for case in spec.cases:
        barred = {*spec.forbidden, *case.forbidden}
        problems += [
            f"case {case.name!r}: {name!r} is served at rank {rank}"
            for rank, name in enumerate(served[case.name], 1)
            if name in barred
        ]
    value = f"{len(problems)} served"
    return [GateCheck("forbidden documents", value, "0", not problems, problems, len(problems))]


def _nothing_served(spec: GateSpec, served: Run) -> list[GateCheck]:
    empty = [case for case in spec.cases if not case.expected]
    if not empty:
        return []
    problems = []
    for case in empty:
        if names := list(served[case.name]):
            problems.append(f"case {case.name!r}: {len(names)} served, first {names[0]!r}")
    value = f"{len(problems)} of {len(empty)} cases"
    return [GateCheck("served where nothing may be", value, "0", not problems, problems,
                      len(problems))]  # fmt: skip


def _threshold(
    spec: GateSpec, scored: RetrievalResult | None, served: Run, metric: str, least: float
) -> GateCheck:
    if scored is None:
        raise InputError(f"thresholds.{metric}: no case has an expected document")
    values = np.asarray(scored.per_query[metric])
    mean, (low, high) = float(values.mean()), mean_interval(values)
    passed = mean >= least - 1e-9
    problems = [] if passed else _worst(spec, scored, served, metric)
    value = f"{mean:.4f} [{low:.3f}, {high:.3f}]"
    return GateCheck(metric, value, f"at least {least:g}", passed, problems, mean)


def _worst(spec: GateSpec, scored: RetrievalResult, served: Run, metric: str) -> list[str]:
    """Describes the cases that lower a mean, up to ten of them."""
    by_name = dict(zip(scored.query_ids, scored.per_query[metric], strict=True))
    lower = sorted((float(value), name) for name, value in by_name.items() if value < 1)[:10]
    lines = []
    for value, name in lower:
        ranks = {document: rank for rank, document in enumerate(served[name], 1)}
        places = ", ".join(
            f"{document!r} {f'at rank {ranks[document]}' if document in ranks else 'not served'}"
            for document in list(spec.qrels[name])[:3]
        )
        lines.append(f"case {name!r}: {value:.3f}: {places}")
    return lines


def _latency(times: StageTimes, limit: float) -> GateCheck:
    totals = np.asarray(times.totals)
    p95: Callable[[Any], float] = lambda rows: float(np.percentile(totals[rows], 95))  # noqa: E731
    low, high = percentile_interval(bootstrap(len(totals), p95))
    value = float(np.percentile(totals, 95))
    described = f"{value:.1f} ms [{low:.1f}, {high:.1f}] of {len(totals)} queries"
    problems = []
    if value > limit:
        stages = times.percentiles()
        problems = [f"{stage}: p95 {each[1]:.1f} ms" for stage, each in stages.items()]
    return GateCheck("p95", described, f"at most {limit:g} ms", value <= limit, problems, value)


def _loss(compared: BaselineLoss) -> GateCheck:
    test, spec = compared.test, compared.spec
    low, high = test.interval
    interval = f"[{low:+.3f}, {high:+.3f}] ({100 * (1 - 2 * spec.level):g} %)"
    value = f"{test.difference:+.4f} {interval}, p {compared.p_value:.3f}"
    passed = not is_alarm(test, spec.level)
    problems = [] if passed else [f"{spec.metric} is lower than the baseline's: {value}"]
    return GateCheck(f"{spec.metric} - baseline", value, f"p above {spec.level:g}", passed,
                     problems, test.difference)  # fmt: skip
