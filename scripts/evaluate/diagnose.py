"""The usual faults of a search, each with its figure and what to do: evaluate diagnose."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from embed_jax.errors import InputError

from ..commands import OneLineParser, launched_form, load_encoder
from . import embedders
from .data import add_search_arguments

if TYPE_CHECKING:
    from embed_jax.evals.diagnose import Finding
    from embed_jax.evals.ranks import Judged

USED, OWN, FAMILY, NONE = "as used", "the model's own", "its family's", "without any"
STATUS = {"ok": "no fault", "fault": "FAULT"}
DOCUMENTS = 2000  # of which the mean cosine is taken
Prompts = tuple[str, str]  # of queries and of documents
Triplet = tuple[str, str, list[str]]  # anchor, positive, negatives


@dataclasses.dataclass(frozen=True)
class Search:
    """A retrieval task as a model embeds it: each text once with each prompt, whole, in memory.

    Attributes:
        embed: `embed(texts, prompt=...)` returns whole embeddings.
        embedded: embeddings by side and prompt; smaller sizes are cut from them.
    """

    embed: Callable[..., Float[np.ndarray, "N D"]]
    similarity: str
    texts: tuple[Sequence[str], Sequence[str]]
    judged: Judged
    embedded: dict[tuple[int, str], Float[np.ndarray, "N D"]] = dataclasses.field(
        default_factory=dict
    )

    def sides(
        self, prompts: Prompts, size: int
    ) -> tuple[Float[np.ndarray, "Q d"], Float[np.ndarray, "N d"]]:
        """Returns the embeddings of queries and of documents."""
        for side, prompt in enumerate(prompts):
            if (side, prompt) not in self.embedded:
                self.embedded[side, prompt] = self.embed(self.texts[side], prompt=prompt)
        queries, documents = (
            cut(self.embedded[side, prompt], size) for side, prompt in enumerate(prompts)
        )
        return queries, documents

    def ranks(self, prompts: Prompts, size: int) -> Int[np.ndarray, " J"]:
        from embed_jax.evals.ranks import relevant_ranks

        queries, documents = self.sides(prompts, size)
        return relevant_ranks(queries, documents, self.judged, self.similarity)

    def ndcg(self, prompts: Prompts, size: int) -> Float[np.ndarray, " Q"]:
        from embed_jax.evals.ranks import ndcg_of_ranks

        return ndcg_of_ranks(self.ranks(prompts, size), self.judged)


@dataclasses.dataclass(frozen=True)
class Subject:
    """The subject of a diagnosis: names of model, data and training pairs; the size (0: all)."""

    model: str
    data: str
    dim: int
    pairs: str | None


def add_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], None]:
    """Adds the options of the command, and returns a function that checks them."""
    add_search_arguments(parser)
    parser.add_argument(
        "--shortlist", type=int, default=100, help="documents that a reranker gets (default: 100)"
    )
    parser.add_argument(
        "--target", type=float, default=0.95, help="recall that they should have (default: 0.95)"
    )
    parser.add_argument(
        "--pairs", help="training data (anchor, positive, negative ...) whose negatives to judge"
    )
    parser.add_argument(
        "--pairs-limit",
        type=int,
        default=2000,
        help="judge its first N rows, 0: all (default: 2000)",
    )
    embedders.add_arguments(parser)

    def check(args: argparse.Namespace) -> None:
        embedders.check_arguments(args, parser)
        if args.shortlist < 1:
            parser.error(f"--shortlist: expected 1 or more, found {args.shortlist}")
        if not 0 < args.target <= 1:
            parser.error(f"--target: expected a recall above 0, at most 1, found {args.target}")
        if args.pairs_limit < 0:
            parser.error(f"--pairs-limit: expected 0 or more, found {args.pairs_limit}")
        if embedders.provider(args.model):
            raise InputError(
                f"{args.model}: diagnose is for models with files, not for an endpoint"
            )

    return check


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Makes the checks, prints a list of them and returns their results."""
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.evals import diagnose
    from embed_jax.evals.metrics import mean_interval
    from embed_jax.evals.ranks import judged_rows, ndcg_of_ranks
    from embed_jax.evals.suite import named
    from embed_jax.runtime import environment

    corpus, queries, qrels = open_retrieval_task(args.data, args.split)
    if len(qrels) < 2:
        raise InputError(
            f"{args.data}: diagnose expects 2 judged queries or more, found {len(qrels)}"
        )
    judged = judged_rows(corpus, queries, qrels, ignore_identical_ids=args.ignore_identical_ids)
    triplets = read_triplets(args.pairs, args.pairs_limit) if args.pairs else []
    options = embedders.read_options(args)
    model = load_encoder(args.model)
    if args.dim > model.dim:
        raise InputError(
            f"--dim: expected 1 to {model.dim}, the size of the embeddings, found {args.dim}"
        )

    prompts, dim = (
        variants(args.model, model, options, named("retrieval", args.data, args.split)),
        args.dim or model.dim,
    )
    embed = functools.partial(embedders.encoder(options, model, show_progress=True), dim=0)
    texts = [queries[name] for name in qrels], list(corpus.values())
    search = Search(embed, model.similarity_fn_name, texts, judged)
    ranks = search.ranks(prompts[USED], dim)
    score = ndcg_of_ranks(ranks, judged)
    low, high = mean_interval(score)
    counted = f"{len(qrels)} queries, {len(corpus)} documents"
    print(
        f"{args.data}, {args.model}: nDCG@10 {score.mean():.4f} [{low:.3f}, {high:.3f}], {counted}",
        flush=True,
    )

    subject = Subject(args.model, args.data, args.dim, args.pairs)
    findings = [
        check_scores(search, prompts[USED], dim),
        check_prompts(args.model, prompts, search, dim),
        diagnose.truncation(
            {size: search.ndcg(prompts[USED], size) for size in sizes(args.dim, model)},
            full=model.dim,
            used=dim,
            trained=model.matryoshka_dims,
        ),
        diagnose.shortlist(
            ranks, judged, k=args.shortlist, target=args.target, documents=len(corpus)
        ),
        check_negatives(args.pairs, triplets, search, prompts[USED], dim),
    ]
    for finding in findings:
        print(
            f"\n{STATUS.get(finding.status, finding.status)}: {diagnose.NAMES[finding.check]}\n  "
            f"{finding.line}"
        )
        advice = advise(finding, subject, prompts)
        if advice:
            print(f"  what to do: {advice}")
    names = (
        "model",
        "data",
        "split",
        *embedders.OPTIONS,
        "shortlist",
        "target",
        "pairs",
        "pairs_limit",
    )
    return {
        "task": "retrieval",
        **{option: getattr(args, option) for option in names},
        "metrics": {"ndcg@10": float(score.mean())},
        "intervals": {"ndcg@10": (low, high)},
        "n": len(qrels),
        "findings": [
            dataclasses.asdict(finding)
            | {
                "name": diagnose.NAMES[finding.check],
                "what_to_do": advise(finding, subject, prompts),
            }
            for finding in findings
        ],
        "versions": environment(),
    }


def sizes(dim: int, model: Any) -> list[int]:
    """Returns the sizes to compare: the whole, and the size used or those that were trained.

    Without either, half and a quarter show what a cut would cost.
    """
    others = [dim] if dim else model.matryoshka_dims or (model.dim // 2, model.dim // 4)
    return list(dict.fromkeys(size for size in (model.dim, *others) if 0 < size <= model.dim))


def cut(embeddings: Float[np.ndarray, "N D"], size: int) -> Float[np.ndarray, "N d"]:
    """Cuts embeddings like `encode` with `dim`; those of that size are returned unchanged."""
    from embed_jax.scores import truncate

    return embeddings if size == embeddings.shape[1] else truncate(embeddings, size)


def check_scores(search: Search, prompts: Prompts, dim: int) -> Finding:
    from embed_jax.evals import diagnose
    from embed_jax.evals.geometry import average_cosine

    queries, corpus = search.sides(prompts, dim)
    rows = np.random.default_rng(0).choice(len(corpus), min(len(corpus), DOCUMENTS), replace=False)
    mean_cosine = average_cosine(corpus[rows]) if len(rows) > 1 else 1.0
    relevant, random = diagnose.against_random(queries, corpus, search.judged, search.similarity)
    return diagnose.discrimination(relevant, random, search.judged.query, mean_cosine)


def check_prompts(name: str, prompts: dict[str, Prompts], search: Search, dim: int) -> Finding:
    from embed_jax.encoders.hub import resolve
    from embed_jax.encoders.read_settings import SETTINGS
    from embed_jax.encoders.weights import read_json
    from embed_jax.evals import diagnose

    first = {
        pair: prompt for prompt, pair in reversed(prompts.items())
    }  # equal ones count once, under their first name
    settings = embedders.model_directory(resolve(name)) / SETTINGS
    recorded = read_json(settings) if settings.is_file() else {}
    return diagnose.missing_prompt(
        {
            prompt: search.ndcg(pair, dim)
            for prompt, pair in prompts.items()
            if first[pair] == prompt
        },
        expects=OWN in prompts or FAMILY in prompts,
        prompted=any(prompts[USED]),
        recorded=any((recorded.get("prompts") or {}).values())
        or bool(recorded.get("instruction_template")),
    )


def variants(
    name: str, model: Any, options: embedders.ModelOptions, task: str
) -> dict[str, Prompts]:
    """Returns the prompts used, and the possible ones: the model's own, its family's, none."""
    from embed_jax.evals.embedder import prompt_options
    from embed_jax.evals.task import DOCUMENT, QUERY, Use
    from embed_jax.prompts import expected, prompt_for, resolve_prompt

    def resolve(prompts_for: Callable) -> Prompts:
        options_of_sides = (prompts_for(Use(task, "Retrieval", side)) for side in (QUERY, DOCUMENT))
        named_or_default = (
            chosen or {"prompt_name": model.default_prompt_name} for chosen in options_of_sides
        )
        query, document = (
            resolve_prompt(model.prompts, model.template, **chosen) for chosen in named_or_default
        )
        return query, document

    family = expected(name)
    known = family.prompts if family else {}
    query, document = (
        known.get(prompt_for(known, side=side) or "", "") for side in (QUERY, DOCUMENT)
    )
    own = resolve(prompt_options(model))
    prompts = {USED: resolve(embedders.model_options(options, model))}
    prompts |= {kind: pair for kind, pair in ((OWN, own), (FAMILY, (query, document))) if any(pair)}
    if not own[0]:  # perhaps one has a name that does not say that it is for queries
        prompts |= {
            f"{prompt!r} before queries": (text, own[1])
            for prompt, text in model.prompts.items()
            if text
        }
    return {**prompts, NONE: ("", "")}


def read_triplets(pairs: str, limit: int) -> list[Triplet]:
    """Reads the first `limit` rows of training data; 0: all."""
    from embed_jax.data.sources import iter_records, pair_columns

    rows, columns = [], None
    for index, record in enumerate(itertools.islice(iter_records(pairs), limit or None)):
        try:
            columns = columns or pair_columns([record])
        except InputError as error:
            raise InputError(f"{pairs}: {error}") from None
        anchor, positive, *others = columns(record)
        if not isinstance(anchor, str) or not isinstance(positive, str):
            raise InputError(f"{pairs}: row {index}: expected anchor and positive, one is missing")
        rows.append((anchor, positive, [text for text in others if text is not None]))
    return rows


def check_negatives(
    data: str | None, triplets: Sequence[Triplet], search: Search, prompts: Prompts, dim: int
) -> Finding:
    from embed_jax.evals import diagnose
    from embed_jax.scores import pairwise_similarity, similarity_matrix

    hard = [(row, text) for row, (_, _, others) in enumerate(triplets) for text in others]
    if not hard:
        line = (
            f"{data}: none of {len(triplets)} rows has a negative"
            if data
            else "no training data given"
        )
        return diagnose.Finding(
            "negatives", diagnose.NOT_CHECKED, line, "no negatives" if data else ""
        )
    anchors = [anchor for anchor, _, _ in triplets]
    positives = [positive for _, positive, _ in triplets]
    row_of = {
        text: n for n, text in enumerate(dict.fromkeys([*positives, *(text for _, text in hard)]))
    }
    queries, answers = (
        cut(search.embed(texts, prompt=prompt), dim)
        for texts, prompt in zip((anchors, list(row_of)), prompts, strict=True)
    )
    right = np.array([row_of[text] for text in positives])
    rows, wrong = np.array([(row, row_of[text]) for row, text in hard]).T
    others = diagnose.others_positives(anchors, positives)
    random = [
        similarity_matrix(anchor, answers[right[drawn]], search.similarity)[0]
        for anchor, drawn in zip(queries, others, strict=True)
    ]
    return diagnose.negatives(
        pairwise_similarity(queries, answers[right], search.similarity),
        pairwise_similarity(queries[rows], answers[wrong], search.similarity),
        rows,
        np.where(others < 0, np.nan, random),
    )


def advise(finding: Finding, subject: Subject, prompts: dict[str, Prompts]) -> str:
    """Returns what to do, in one line; "" if there is nothing to do."""
    from embed_jax.evals import diagnose

    of = {
        "discrimination": _train,
        "prompt": _prompt,
        "dimension": _size,
        "shortlist": _rerank,
        "negatives": _mine,
    }
    advice = "" if finding.status == diagnose.OK else of[finding.check](finding, subject, prompts)
    return launched_form(advice)


def _train(finding: Finding, subject: Subject, _: Any) -> str:
    if not finding.figures:
        return "give a corpus with more documents"
    why = (
        "embeddings in a narrow cone are those of a model not trained to embed: "
        if finding.cause == "cone"
        else ""
    )
    return (
        f"{why}train it on pairs of this kind: python -m experiments.retrieval "
        "--config=configs/retrieval/own_data.py "
        f"--config.model.name={subject.model} --config.data.train=pairs.jsonl"
    )


def _prompt(finding: Finding, subject: Subject, prompts: dict[str, Prompts]) -> str:
    if finding.cause == "unrecorded":
        return (
            "write it with them in its files: python -m scripts.export --model "
            f"{subject.model} --output DIRECTORY"
        )
    if finding.cause == NONE:
        return 'embed without a prompt: encode(texts, prompt="")'
    best = finding.cause if finding.cause in prompts else OWN if OWN in prompts else FAMILY
    query, document = prompts[best]
    return (
        f"put {query!r} before queries and {document!r} before documents: encode(texts, "
        "prompt=...), or as prompts in "
        "its config_sentence_transformers.json, named query and document"
    )


def _size(_: Finding, subject: Subject, __: Any) -> str:
    return (
        "train it to be cut: python -m experiments.matryoshka --config=configs/matryoshka/nli.py "
        f"--config.model.name={subject.model}; or project it, without training: python -m "
        "scripts.shrink "
        f"--model {subject.model} --dim {subject.dim} --texts TEXTS --output DIRECTORY"
    )


def _rerank(finding: Finding, subject: Subject, _: Any) -> str:
    longer = f"rerank {finding.figures['needed']:.0f} documents, or " if not finding.cause else ""
    return (
        f"{longer}train for these documents: python -m experiments.retrieval "
        f"--config=configs/retrieval/hard_negatives.py --config.model.name={subject.model} "
        f"--config.data.train=beir:{subject.data} --config.mine.corpus={subject.data} "
        f"--config.eval.retrieval={subject.data}"
    )


def _mine(finding: Finding, subject: Subject, _: Any) -> str:
    if not subject.pairs:
        return "give the training data: --pairs FILE"
    if finding.figures or finding.cause:
        return (
            f"mine harder ones: python -m scripts.mine --pairs {subject.pairs} --strategy dense "
            f"--model {subject.model} "
            "--relative-margin 0.05 --output mined.jsonl; then look for false ones: python -m "
            "scripts.audit "
            "--data mined.jsonl"
        )
    return "give more rows"
