"""Chooses shortlist, probes and candidates that fit into the time of a query."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from ..commands import print_table

TIMED = 20  # queries that are timed, and reranked with wider shortlists
WIDTHS = {"probes": (1, 2, 4, 8, 16, 32, 64), "candidates": (16, 32, 64, 128, 256, 512)}


def print_plan(costs: Any, budget_ms: float, shortlist: int, documents: int) -> None:
    """Prints what declared costs allow; refuses a shortlist that does not fit."""
    if shortlist:
        costs.check(shortlist, budget_ms)
    most = costs.shortlist(budget_ms)
    costs.check(max(most, 1), budget_ms)
    print(f"shortlist: {shortlist or most}, {costs.total(shortlist or most):g} of {budget_ms:g} ms")
    for wider in (2 * most, 10 * most):
        print(f"a shortlist of {wider:,} would take {costs.total(wider):,.0f} ms")
    if documents:
        print(f"reranking all {documents:,} documents: {costs.hours(documents):.1f} hours a query")


def plan(
    pipeline: Any,
    indexes: Mapping[str, Any],
    queries: Sequence[str],
    budget_ms: float,
    *,
    costs: Any = None,
    shortlist: int = 0,
    documents: int = 0,
    k: int = 10,
) -> Any:
    """Measures, prints what fits and what it misses, and returns the pipeline that fits.

    Args:
        pipeline: all stages; its shortlist is the one to measure with.
        indexes: by the retrievers' names.
        queries: to measure with.
        budget_ms: milliseconds of a query.
        costs: declared ones, in place of measured ones.
        shortlist: the one that must fit; 0: the largest that does.
        documents: how many the reranker would have to score instead of a shortlist.
        k: how many final results.

    Raises:
        InputError: nothing fits, or not the shortlist that was asked for.
    """
    from embed_jax.evals.budget import choose_setting, measure_settings, wider_shortlists

    settings = measure_settings(
        variants_of(pipeline, indexes),
        with_options(pipeline, indexes, {}, exact=True),
        queries,
        budget_ms=budget_ms,
        declared=costs,
        timed_queries=TIMED,
    )
    setting = choose_setting(settings, budget_ms)
    if shortlist:
        setting.costs.check(shortlist, budget_ms)
    shortlist = shortlist or setting.shortlist
    if setting.times is not None:
        stages = setting.times.percentiles().items()
        print_table(
            ["stage", "p50 ms", "p95 ms", "p99 ms"],
            [[stage, *(f"{value:.1f}" for value in values)] for stage, values in stages],
        )
    print_table(
        ["setting", "shortlist", "ms", "recall of exact", "95 % interval"],
        [
            [
                each.name,
                f"{each.shortlist:,}",
                f"{each.costs.total(each.shortlist):,.1f}",
                f"{each.recall:.3f}",
                f"{each.interval[0]:.3f} to {each.interval[1]:.3f}",
            ]
            for each in settings
        ],
    )
    print(f"chosen: {setting.name}, a shortlist of {shortlist:,} in {budget_ms:g} ms")
    chosen = dataclasses.replace(variants_of(pipeline, indexes)[setting.name], shortlist=shortlist)
    if pipeline.reranker is not None:
        sizes = [shortlist, 2 * shortlist, 4 * shortlist]
        rows = wider_shortlists(chosen, setting.costs, queries[:TIMED], sizes, k)
        print_table(
            ["shortlist", "ms", f"of the final {k} of {sizes[-1]:,}", "95 % interval"],
            [
                [
                    f"{row.shortlist:,}",
                    f"{row.milliseconds:,.0f}",
                    f"{row.gained:.3f}",
                    f"{row.interval[0]:.3f} to {row.interval[1]:.3f}",
                ]
                for row in rows
            ],
        )
    if documents:
        hours = setting.costs.hours(documents)
        print(f"reranking all {documents:,} documents: {hours:,.1f} hours a query")
    return chosen


def variants_of(pipeline: Any, indexes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the pipeline with each width of its approximate searches; as it is without any."""
    names = {name for index in indexes.values() for name in widths_of(index)}
    if not names:
        return {"exact": pipeline}
    (name, *_) = sorted(names, reverse=True)  # probes before candidates
    return {
        f"{name} {width}": with_options(pipeline, indexes, {name: width}) for width in WIDTHS[name]
    }


def widths_of(index: Any) -> tuple[str, ...]:
    """Returns the options of an index' search that trade time for recall."""
    if index.kind == "multi-vector":
        return ("probes", "candidates")
    factory = getattr(index, "factory", "")
    return (("probes",) if "IVF" in factory else ("candidates",)) if factory else ()


def with_options(
    pipeline: Any, indexes: Mapping[str, Any], options: Mapping[str, int], exact: bool = False
) -> Any:
    """Returns the pipeline with options of its indexes' searches that have them."""
    retrievers = {}
    for name, retriever in pipeline.retrievers.items():
        own = widths_of(indexes[name])
        some = {key: value for key, value in options.items() if key in own}
        if exact and own:
            some = dict.fromkeys(own, max(len(indexes[name]), 1))
        find = functools.partial(retriever.find, **some) if some else retriever.find
        retrievers[name] = dataclasses.replace(retriever, find=find)
    return dataclasses.replace(pipeline, retrievers=retrievers)
