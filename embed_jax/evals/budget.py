"""Searches within a time: what a stage costs, which shortlist fits, what it misses.

    costs = Costs(encode=10, search=40, rerank=15)      # milliseconds; rerank of each pair
    costs.shortlist(200)                                # 10 documents fit into 200 ms
    settings = measure_settings(variants, exact, queries, budget_ms=200)
    best = choose_setting(settings)

Every function takes functions: a pipeline is one of `retrieval.search`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError
from embed_jax.evals.metrics import mean_interval
from embed_jax.retrieval.fusion import Ranking
from embed_jax.retrieval.search import RERANKED, Pipeline, search

PERCENTILES = (50, 95, 99)
PLANNED = 95  # the percentile of measured times that must fit
LARGEST = 10_000  # shortlist, where reranking costs nothing


@dataclasses.dataclass(frozen=True)
class Costs:
    """Milliseconds of a query by stage.

    Attributes:
        encode: of embedding the query.
        search: of all retrievers and everything else that does not grow with the shortlist.
        rerank: of scoring one document of the shortlist.
    """

    encode: float = 0.0
    search: float = 0.0
    rerank: float = 0.0

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not (value >= 0 and np.isfinite(value)):
                raise InputError(f"{name}: expected milliseconds from 0 up, found {value}")

    def total(self, shortlist: int) -> float:
        """Computes the milliseconds of a query: encode + search + shortlist x rerank.

        >>> Costs(encode=10, search=40, rerank=15).total(100)
        1550
        """
        return self.encode + self.search + shortlist * self.rerank

    def shortlist(self, budget_ms: float) -> int:
        """Returns the largest shortlist that fits, at most LARGEST; 0: none does.

        >>> Costs(encode=10, search=40, rerank=15).shortlist(200)
        10
        """
        left = budget_ms - self.encode - self.search
        if left < 0:
            return 0
        # A part of 1e-9 forgives the rounding of costs such as 0.1 + 0.2.
        return LARGEST if not self.rerank else min(int(left / self.rerank + 1e-9), LARGEST)

    def check(self, shortlist: int, budget_ms: float) -> None:
        """Raises an InputError for a shortlist that does not fit; it names the largest that does.

        >>> Costs(encode=10, search=40, rerank=15).check(10, 200)
        """
        if self.total(shortlist) <= budget_ms * (1 + 1e-9):
            return
        most = self.shortlist(budget_ms)
        accepted = f"at most {most} fit" if most else "not even one document fits"
        raise InputError(
            f"a shortlist of {shortlist:,} takes {self.total(shortlist):,.0f} ms ({self.encode:g} "
            f"to encode, {self.search:g} to search, {shortlist:,} x {self.rerank:g} to rerank), "
            f"the budget is {budget_ms:g} ms: {accepted}"
        )

    def hours(self, documents: int) -> float:
        """Computes the hours in which the reranker would score all documents for one query.

        >>> round(Costs(rerank=15).hours(2_000_000), 1)
        8.3
        """
        return documents * self.rerank / 3_600_000


def parse_costs(text: str) -> Costs:
    """Reads "encode=10,search=40,rerank=15"; a stage that is not named costs nothing.

    Raises:
        InputError: for another form, a stage that is unknown or stands twice.
    """
    names = [field.name for field in dataclasses.fields(Costs)]
    values: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        try:
            milliseconds = float(value)
        except ValueError:
            equals = ""
        if not equals or name not in names or name in values:
            raise InputError(f"costs: expected STAGE=MILLISECONDS with {', '.join(names)}, each "
                             f"once, found {part!r}")  # fmt: skip
        values[name] = milliseconds
    return Costs(**values)


@dataclasses.dataclass(frozen=True)
class StageTimes:
    """Times of searches, one query after the other.

    Attributes:
        milliseconds: of each query, by stage; see `SearchResults.seconds`.
        results: of each query.
        shortlist: of the pipeline.
    """

    milliseconds: Mapping[str, Float[np.ndarray, " Q"]]
    results: Sequence[Ranking]
    shortlist: int

    @property
    def totals(self) -> Float[np.ndarray, " Q"]:
        """Returns the milliseconds of each query."""
        return np.sum(list(self.milliseconds.values()), axis=0)

    def percentiles(self) -> dict[str, list[float]]:
        """Computes p50, p95 and p99 of each stage, and of the "total"."""
        stages = {**self.milliseconds, "total": self.totals}
        return {name: np.percentile(each, PERCENTILES).tolist() for name, each in stages.items()}

    def costs(self) -> Costs:
        """Computes what is to be planned with: the p95 of the stages."""

        def planned(names: Sequence[str]) -> float:
            zero = np.zeros_like(self.totals)
            return float(np.percentile(sum((self.milliseconds[n] for n in names), zero), PLANNED))

        encode = [name for name in self.milliseconds if name.startswith("encode ")]
        rerank = [name for name in self.milliseconds if name == RERANKED]
        others = [name for name in self.milliseconds if name not in (*encode, *rerank)]
        return Costs(planned(encode), planned(others), planned(rerank) / self.shortlist)


def time_stages(pipeline: Pipeline, queries: Sequence[str], k: int = 10) -> StageTimes:
    """Searches with one query after the other, and takes the time of each stage.

    All queries are searched once before, so that what is compiled and cached does not count.

    Raises:
        InputError: for no query; see `search`.
    """
    if not queries:
        raise InputError("queries: expected one or more to measure with, found none")
    for query in queries:
        search(pipeline, [query], k)
    searched = [search(pipeline, [query], k) for query in queries]
    stages = searched[0].seconds
    milliseconds = {
        name: 1000 * np.array([each.seconds[name] for each in searched]) for name in stages
    }
    return StageTimes(milliseconds, [each.results[0] for each in searched], pipeline.shortlist)


@dataclasses.dataclass(frozen=True)
class SearchSetting:
    """A way to search, measured.

    Attributes:
        name: such as "probes 16".
        costs: in milliseconds.
        shortlist: the largest that fits into the budget; 0: none.
        recall: of the exact search's documents, the share that the shortlist contains.
        interval: of the recall, 95 %.
        times: as they were measured; None for declared costs.
    """

    name: str
    costs: Costs
    shortlist: int
    recall: float
    interval: tuple[float, float]
    times: StageTimes | None = None


def measure_settings(
    variants: Mapping[str, Pipeline],
    exact: Pipeline,
    queries: Sequence[str],
    *,
    budget_ms: float,
    declared: Costs | None = None,
    timed_queries: int = 20,
) -> list[SearchSetting]:
    """Measures several ways to search, such as different numbers of probes.

    Args:
        variants: pipelines by name, with the shortlist and reranker to measure with. Reranking is
            timed with the first one only, as it is the same for all.
        exact: the pipeline whose results count as right; of it and of the variants for recall only
            the search is used.
        queries: to measure with.
        budget_ms: milliseconds of a query.
        declared: costs to plan with instead of measured ones.
        timed_queries: the first ones are timed; recall is that of all.
    """
    timed = list(queries)[:timed_queries]
    reranked: dict[str, Float[np.ndarray, " Q"]] = {}
    settings = []
    for name, pipeline in variants.items():
        times = None
        if declared is None:
            only_search = reranked or pipeline.reranker is None
            part = retrieval_only(pipeline, pipeline.shortlist) if only_search else pipeline
            times = time_stages(part, timed)
            if RERANKED in times.milliseconds:
                reranked = {RERANKED: times.milliseconds[RERANKED]}
            times = dataclasses.replace(times, milliseconds={**times.milliseconds, **reranked})
        costs = times.costs() if times is not None else declared or Costs()
        shortlist = costs.shortlist(budget_ms)
        if not costs.rerank:
            shortlist = min(shortlist, pipeline.shortlist)
        recall = recall_of_exact(pipeline, exact, queries, max(shortlist, 1))
        interval = mean_interval(recall)
        settings.append(
            SearchSetting(name, costs, shortlist, float(recall.mean()), interval, times)
        )
    return settings


def choose_setting(settings: Sequence[SearchSetting], budget_ms: float) -> SearchSetting:
    """Returns the setting by which most of the exact search's documents reach the reranker.

    Of equal ones, the cheapest.

    Raises:
        InputError: no setting fits into the budget.
    """
    fitting = [setting for setting in settings if setting.shortlist]
    if not fitting:
        cheapest = min(settings, key=lambda setting: setting.costs.total(1))
        raise InputError(
            f"budget: {budget_ms:g} ms are not enough for any setting: the cheapest, "
            f"{cheapest.name}, takes {cheapest.costs.total(1):,.1f} ms with a shortlist of 1"
        )
    return max(fitting, key=lambda each: (each.recall * each.shortlist, -each.costs.total(1)))


def recall_of_exact(
    pipeline: Pipeline, exact: Pipeline, queries: Sequence[str], shortlist: int
) -> Float[np.ndarray, " Q"]:
    """Computes for each query the share of the exact search's best that another one finds.

    Args:
        pipeline: the search; its reranker is not used.
        exact: the search that is right.
        queries: texts.
        shortlist: how many documents.
    """
    results, expected = (
        search(retrieval_only(each, shortlist), list(queries), shortlist).results
        for each in (pipeline, exact)
    )
    shares = [
        len(few.keys() & right.keys()) / len(right) if right else 1.0
        for few, right in zip(results, expected, strict=True)
    ]
    return np.array(shares)


def retrieval_only(pipeline: Pipeline, shortlist: int) -> Pipeline:
    """Returns the pipeline without its reranker, with another shortlist."""
    return dataclasses.replace(pipeline, reranker=None, shortlist=shortlist)


@dataclasses.dataclass(frozen=True)
class WiderShortlist:
    """The gain of a wider shortlist.

    Attributes:
        shortlist: its size.
        milliseconds: of a query.
        gained: the share of the final results of the widest shortlist that this one has.
        interval: of it, 95 %.
    """

    shortlist: int
    milliseconds: float
    gained: float
    interval: tuple[float, float]


def wider_shortlists(
    pipeline: Pipeline, costs: Costs, queries: Sequence[str], shortlists: Sequence[int], k: int = 10
) -> list[WiderShortlist]:
    """Compares shortlists by the final results: those of the widest count as right.

    Args:
        pipeline: all stages.
        costs: in milliseconds.
        queries: to compare with.
        shortlists: sizes.
        k: how many final results.
    """
    finals = {
        size: search(dataclasses.replace(pipeline, shortlist=size), list(queries), k).results
        for size in sorted(set(shortlists))
    }
    widest = finals[max(finals)]
    rows = []
    for size, results in finals.items():
        shares = np.array(
            [
                len(own.keys() & best.keys()) / len(best) if best else 1.0
                for own, best in zip(results, widest, strict=True)
            ]
        )
        rows.append(
            WiderShortlist(size, costs.total(size), float(shares.mean()), mean_interval(shares))
        )
    return rows
