"""The page: a query, two rankings side by side, and why each document is where it is."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from embed_jax.registry import unknown
from embed_jax.retrieval.fusion import Ranking
from embed_jax.retrieval.search import FUSED, RERANKED
from embed_jax.serve.batching import Batcher
from embed_jax.serve.explanations import Explanation, Piece, highlight
from embed_jax.serve.fields import SHOWN_NAME, Refused
from embed_jax.serve.searches import MOST_RESULTS, ServedSearch

FOLDER = Path(__file__).parent
MOST_QUERY = 2000  # characters of a query
# What an index is, for people.
KINDS_OF_INDEXES = {
    "bm25": "BM25",
    "vectors": "one vector of each document",
    "sparse": "weighted words",
    "multi-vector": "a vector of each token",
}
RESULTS = (5, 10, 20, 50)  # that a visitor may choose
EXCERPT = 360  # characters of a text in a list


@dataclasses.dataclass(frozen=True)
class RankingView:
    """A ranking that can be shown: a stage of a pipeline.

    Attributes:
        name: in the address and on the page.
        pipeline: its pipeline.
        stage: of the pipeline.
    """

    name: str
    pipeline: str
    stage: str


@dataclasses.dataclass(frozen=True)
class Standing:
    """A document's place in a ranking.

    Attributes:
        stage: of the ranking.
        rank: from 1 on; 0: it is not there.
        score: its score there.
    """

    stage: str
    rank: int
    score: float


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """A document in a list of results.

    Attributes:
        id: of the document.
        here: its place in this list.
        there: its place in the other list; None: there is only one list.
        standings: its place in every stage of the pipeline that found it.
        reason: why it stands above the document that has its rank in the other list.
        pieces: its text with highlights; None: no text is stored.
        explanations: of its scores.
        fields: of the document.
    """

    id: str
    here: Standing
    there: Standing | None
    standings: Sequence[Standing]
    reason: str
    pieces: Sequence[Piece] | None
    explanations: Sequence[Explanation]
    fields: Mapping[str, Any]

    @property
    def moved(self) -> int:
        """Returns by how many ranks it is higher here than in the other list."""
        return self.there.rank - self.here.rank if self.there and self.there.rank else 0


@dataclasses.dataclass(frozen=True)
class ResultList:
    """A ranking with what is shown of it.

    Attributes:
        view: the ranking.
        rows: its first documents.
        total: how many documents it has.
        words: words and weights of the query by sparse stage.
        highlights: the stage that the highlights come from; "": there are no highlights.
    """

    view: RankingView
    rows: Sequence[ResultRow]
    total: int
    words: Mapping[str, Sequence[tuple[str, float]]]
    highlights: str


class Page:
    """The page over one pipeline or several.

    Attributes:
        searches: by the pipelines' names.
        views: the rankings that can be shown, by name.
        routes: of the application.
    """

    def __init__(
        self,
        searches: Mapping[str, ServedSearch],
        batcher: Batcher,
        models: Mapping[str, Sequence[str]],
    ):
        """Prepares templates.

        Args:
            searches: by the pipelines' names.
            batcher: makes the calls.
            models: names of the models behind the endpoints, by what they do.
        """
        self.searches, self._batcher, self._models = searches, batcher, models
        several = len(searches) > 1
        views = [
            RankingView(f"{name}: {stage}" if several else stage, name, stage)
            for name, each in searches.items()
            for stage in each.stages
        ]
        self.views = {view.name: view for view in views}
        loader = jinja2.FileSystemLoader(FOLDER / "templates")
        self._templates = jinja2.Environment(
            loader=loader, autoescape=True, undefined=jinja2.StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self.routes = [
            Route("/", self.show_results),
            Route("/document", self.show_document),
            Mount("/static", StaticFiles(directory=FOLDER / "static")),
        ]

    @property
    def default_views(self) -> tuple[str, str]:
        """Returns the two rankings that are shown first: those that differ by the last step."""
        ends = [
            next(v.name for v in reversed(self.views.values()) if v.pipeline == name)
            for name in self.searches
        ]
        if len(ends) > 1:
            return ends[0], ends[1]
        ((_, only),) = self.searches.items()
        before = FUSED if FUSED in only.stages and ends != [FUSED] else only.stages[0]
        return (before, ends[0]) if before != ends[0] else (ends[0], "")

    def render(self, template: str, status: int = 200, **values: Any) -> Response:
        """Returns a page of a template."""
        html = self._templates.get_template(template).render(
            searches=self.searches,
            views=self.views,
            models=self._models,
            sizes=RESULTS,
            kinds=KINDS_OF_INDEXES,
            **values,
        )
        return HTMLResponse(html, status)

    def refuse(self, message: str, status: int, values: Mapping[str, str]) -> Response:
        """Returns a page with a message, and the form as it was filled in."""
        return self.render("error.html", status, message=message, form=self._form(values))

    def _form(self, values: Mapping[str, str]) -> dict[str, Any]:
        """Returns what the form shows: what was sent, so far as it can be used."""
        form: dict[str, Any] = {"query": values.get("q", "")[:MOST_QUERY], "results": 10}
        form["left"], form["right"] = self.default_views if self.searches else ("", "")
        for side in ("left", "right"):
            if values.get(side) in self.views or (side, values.get(side)) == ("right", ""):
                form[side] = values[side]
        if values.get("k", "") in map(str, range(1, MOST_RESULTS + 1)):
            form["results"] = int(values["k"])
        return form

    async def show_results(self, request: Request) -> Response:
        """Answers with the form, and for a query with the results."""
        values = request.query_params
        self._check(values)
        form = self._form(values)
        query = form["query"].strip()
        if not query or not self.searches:
            return self.render("home.html", form=form)
        began = time.perf_counter()
        names = [form["left"], form["right"]] if form["right"] else [form["left"]]
        views = [self.views[name] for name in names]
        rankings = await self._rankings(views, query)
        shown = [list(rankings[view.pipeline][view.stage])[: form["results"]] for view in views]
        parts = await self._explain(views, shown, query)
        lists = []
        for number, view in enumerate(views):
            beside = None
            if views[1:]:
                other = views[1 - number]
                beside = other.name, rankings[other.pipeline][other.stage]
            rows = self._rows(view, rankings[view.pipeline], beside, shown[number], parts)
            served = self.searches[view.pipeline]
            (words,) = await self._batcher.submit(
                ("words", view.pipeline), functools.partial(_query_words, served), [query]
            )
            stages = served.explainers_of(view.stage)
            lists.append(
                ResultList(
                    view,
                    rows,
                    len(rankings[view.pipeline][view.stage]),
                    {stage: words[stage] for stage in stages if stage in words},
                    next((s for s in stages if any(parts[view.pipeline, s].values())), ""),
                )
            )
        milliseconds = 1000 * (time.perf_counter() - began)
        return self.render("results.html", form=form, lists=lists, milliseconds=milliseconds)

    def _check(self, values: Mapping[str, str]) -> None:
        """Raises a Refused for parameters that cannot be used."""
        query = values.get("q", "")
        if len(query) > MOST_QUERY:
            raise Refused(f"The query has {len(query):,} characters, at most {MOST_QUERY:,} are "
                          "accepted.", 413)  # fmt: skip
        if "\0" in query:
            raise Refused("The query contains a NUL character.")
        for side in ("left", "right"):
            name = values.get(side, "")
            if name and name not in self.views:
                raise Refused(unknown("ranking", name[:SHOWN_NAME], self.views))
        if values.get("k", "1") not in map(str, range(1, MOST_RESULTS + 1)):
            raise Refused(f"k: expected a number from 1 to {MOST_RESULTS}")

    async def _rankings(
        self, views: Sequence[RankingView], query: str
    ) -> dict[str, dict[str, Ranking]]:
        """Returns the rankings of a query by pipeline and stage; rerankers run where needed."""
        names = list(dict.fromkeys(view.pipeline for view in views))
        calls = []
        for name in names:
            rerank = any(view.pipeline == name and view.stage == RERANKED for view in views)
            call = functools.partial(self.searches[name].search, rerank)
            calls.append(self._batcher.submit(("search", name, rerank), call, [query]))
        results = await asyncio.gather(*calls)
        return {name: result for name, (result,) in zip(names, results, strict=True)}

    async def _explain(
        self, views: Sequence[RankingView], shown: Sequence[Sequence[str]], query: str
    ) -> dict[tuple[str, str], dict[str, Explanation]]:
        """Returns explanations by id, by pipeline and stage; each document is encoded once.

        Args:
            views: the rankings that are shown.
            shown: the ids of each.
            query: the query.
        """
        requests: dict[tuple[str, str], dict[str, None]] = {}
        for view, ids in zip(views, shown, strict=True):
            for stage in self.searches[view.pipeline].explainers_of(view.stage):
                requests.setdefault((view.pipeline, stage), {}).update(dict.fromkeys(ids))
        calls = [
            self._batcher.submit(
                ("explain", name, stage),
                functools.partial(self.searches[name].explain, stage),
                [(query, list(ids))],
            )
            for (name, stage), ids in requests.items()
        ]
        results = await asyncio.gather(*calls)
        return {key: result for key, (result,) in zip(requests, results, strict=True)}

    def _rows(
        self,
        view: RankingView,
        stages: Mapping[str, Ranking],
        beside: tuple[str, Ranking] | None,
        ids: Sequence[str],
        parts: Mapping[tuple[str, str], Mapping[str, Explanation]],
    ) -> list[ResultRow]:
        """Returns the rows of a list.

        Args:
            view: the ranking that is shown.
            stages: all rankings of its pipeline.
            beside: name and ranking of the other list; None: this is the only one.
            ids: of the rows.
            parts: see `_explain`.
        """
        served, ranking = self.searches[view.pipeline], stages[view.stage]
        positions = {stage: _ranks(each) for stage, each in stages.items()}
        there = {} if beside is None else _ranks(beside[1])
        explainers = served.explainers_of(view.stage)
        texts = served.texts(ids)
        rows = []
        for rank, document in enumerate(ids, 1):
            sources = [parts[view.pipeline, stage] for stage in explainers]
            explanations = [each[document] for each in sources if document in each]
            spans = next((each.spans for each in explanations if each.spans), {})
            text = texts[document]
            rows.append(
                ResultRow(
                    document,
                    Standing(view.stage, rank, ranking[document]),
                    beside and _standing(beside[0], there, beside[1], document),
                    [
                        _standing(stage, positions[stage], stages[stage], document)
                        for stage in stages
                        if document in stages[stage]
                    ],
                    _reason(view.name, ranking, beside and beside[1], document, rank),
                    None if text is None else highlight(text, spans, EXCERPT),
                    explanations,
                    served.fields(document),
                )
            )
        return rows

    async def show_document(self, request: Request) -> Response:
        """Answers with a whole document; one that may not be shown is as one that is not there."""
        document = request.query_params.get("id", "")
        self._check(request.query_params)
        form = self._form(request.query_params)
        for served in self.searches.values():
            if document in served.allowed:
                served.check_current()
                texts, fields = served.texts([document]), served.fields(document)
                return self.render("document.html", form=form, document=document,
                                   text=texts[document], fields=fields)  # fmt: skip
        raise Refused("There is no such document.", 404)


def _query_words(served: ServedSearch, queries: Sequence[str]) -> list[dict[str, Any]]:
    return [served.query_words(query) for query in queries]


def _ranks(ranking: Ranking) -> dict[str, int]:
    return {document: rank for rank, document in enumerate(ranking, 1)}


def _standing(
    name: str, ranks: Mapping[str, int], ranking: Mapping[str, float], document: str
) -> Standing:
    return Standing(name, ranks.get(document, 0), ranking.get(document, 0.0))


def _reason(name: str, ranking: Ranking, other: Ranking | None, document: str, rank: int) -> str:
    """Returns what this ranking says of the document that has this rank in the other one."""
    if other is None or rank > len(other):
        return ""
    rival = list(other)[rank - 1]
    if rival == document:
        return ""
    if rival not in ranking:
        return f"Rank {rank} there is {rival}, which is not in {name}."
    place = list(ranking).index(rival) + 1
    return (
        f"Rank {rank} there is {rival}: {name} scores it {ranking[rival]:.4g} (rank {place}), "
        f"and this document {ranking[document]:.4g}."
    )
