"""The five usual faults of a search by embeddings, each found by a figure.

Scores that do not discriminate, a missing prompt, truncation to a dimension that was not trained, a
shortlist that lacks what reranking is to find, negatives that are too easy. The functions take
arrays and know no model. A finding speaks of these queries and this corpus: where a fault is not
found, other data may still have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from embed_jax.evals import metrics
from embed_jax.evals.ranks import Judged, recall_of_ranks
from embed_jax.evals.significance import PairedDifference, paired_difference
from embed_jax.scores import pairwise_similarity, similarity_matrix

OK, FAULT, NOT_CHECKED = "ok", "fault", "not checked"
NAMES = {
    "discrimination": "scores that do not discriminate",
    "prompt": "a missing prompt",
    "dimension": "truncation to an untrained dimension",
    "shortlist": "recall of the shortlist below the target",
    "negatives": "negatives too easy",
}

RANDOM = 1000  # random documents of a query: this many tell what is above 99 % of them
FEWEST = 10
# Below, one random document in ten stands above the right one: before any search that is 10 % of it
LEAST_AUC = 0.9
PERCENTILE = 0.99
LEAST_ABOVE = (
    0.5  # else, of a million documents ten thousand stand above the right one, for most queries
)
NARROW = 0.5  # mean cosine of random documents above which scores lie in a narrow band
LOSS = 0.01  # of nDCG@10: what neighbours on leaderboards differ by
MARGIN = (
    0.05  # NV-Retriever (Moreira et al. 2024) takes negatives up to 95 % of their positive's score
)
# A batch's 63 other positives are negatives at no cost: easier ones teach nothing new
BATCH = 64
MOST_EASY = 0.5


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: one of NAMES.
        status: OK, FAULT or NOT_CHECKED.
        line: the figures, in one line.
        cause: which of its faults it is, for a check that knows several.
        figures: by name.
    """

    check: str
    status: str
    line: str
    cause: str = ""
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)


def against_random(
    queries: Float[np.ndarray, "Q D"],
    corpus: Float[np.ndarray, "N D"],
    judged: Judged,
    similarity: str = "cosine",
    *,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " J"], Float[np.ndarray, "Q R"]]:
    """Compares each query with its relevant documents, and with R random others.

    R is 1000, or the number of other documents if that is smaller.
    """
    relevant = pairwise_similarity(queries[judged.query], corpus[judged.document], similarity)
    rng, others = np.random.default_rng(seed), []
    for row, own in enumerate(judged.own):
        excluded = np.append(judged.document[judged.query == row], own)
        drawn = rng.choice(len(corpus), min(len(corpus), RANDOM + len(excluded)), replace=False)
        others.append(drawn[~np.isin(drawn, excluded)][:RANDOM])
    number = min(map(len, others))
    similarities = [
        similarity_matrix(query, corpus[rows[:number]], similarity)[0]
        for query, rows in zip(queries, others, strict=True)
    ]
    return relevant, np.array(similarities).reshape(len(queries), number)


def discrimination(
    relevant: Float[np.ndarray, " J"],
    random: Float[np.ndarray, "Q R"],
    query: Int[np.ndarray, " J"],
    mean_cosine: float,
) -> Finding:
    """Checks whether the scores tell relevant documents from random ones.

    The AUC is the probability that a relevant document scores above a random one of the same query,
    ties counting one half, mean over judgements. It is a fault below 0.9, or if for less than half
    of the judgements the relevant document is above the 99th percentile of the query's random ones.
    High cosines of all pairs are not a fault by themselves: E5's are high, because of its low
    temperature, and rank well.

    Args:
        relevant: similarity of each query with its relevant documents, see `against_random`.
        random: similarity of each query with R random documents.
        query: the row of `random` that each of `relevant` compares with.
        mean_cosine: of two random documents, see `geometry.average_cosine`.
    """
    if random.shape[1] < FEWEST:
        return Finding(
            "discrimination",
            NOT_CHECKED,
            f"{random.shape[1]} documents besides the relevant ones: too few",
        )
    below = np.array(
        [
            np.mean(random[row] < value) + np.mean(random[row] == value) / 2
            for value, row in zip(relevant, query, strict=True)
        ]
    )
    spread = np.sqrt((relevant.var() + random.var()) / 2)
    gap = relevant.mean() - random.mean()
    figures = {
        "auc": float(below.mean()),
        "separation": float(gap / spread) if spread > 0 else 0.0,
        "above_99th_percentile": float(np.mean(below >= PERCENTILE)),
        "mean_relevant": float(relevant.mean()),
        "mean_random": float(random.mean()),
        "mean_cosine_of_documents": mean_cosine,
    }
    narrow = mean_cosine > NARROW
    line = (
        f"a relevant document scores above a random one in {figures['auc']:.1%} of cases (fault "
        f"below {LEAST_AUC:.0%}) "
        f"and above 99% of them in {figures['above_99th_percentile']:.1%} (below "
        f"{LEAST_ABOVE:.0%}); "
        f"{relevant.mean():.3f} against {random.mean():.3f}, {figures['separation']:.1f} standard "
        "deviations apart; "
        f"mean cosine of two documents {mean_cosine:.2f}{': a narrow cone' if narrow else ''}"
    )
    fault = figures["auc"] < LEAST_AUC or figures["above_99th_percentile"] < LEAST_ABOVE
    return Finding(
        "discrimination", FAULT if fault else OK, line, "cone" if fault and narrow else "", figures
    )


def missing_prompt(
    scores: Mapping[str, Float[np.ndarray, " Q"]],
    *,
    expects: bool,
    prompted: bool,
    recorded: bool = True,
) -> Finding:
    """Checks whether the model gets the prompts that it was trained with.

    It is a fault if it expects some and none is used ("unused"); if other prompts, or no prompt,
    are better by 0.01 and by an interval above 0 (the cause is their name); if it expects some that
    its files do not record ("unrecorded"), so that others who load it will miss them.

    Args:
        scores: nDCG@10 of each query; first with the prompts used, then with others, by name.
        expects: whether the model's files or its family have prompts for queries or documents.
        prompted: whether one is used.
        recorded: whether the model's files have them.
    """
    (name, used), *others = scores.items()
    figures = {f"ndcg@10 {other}": float(values.mean()) for other, values in scores.items()}
    if not (expects or prompted or others):
        line = f"nDCG@10 {used.mean():.4f} without any; none is recorded, nor known of its family"
        return Finding("prompt", OK, line, "", figures)
    compared = {other: paired_difference(values, used) for other, values in others}
    line = f"nDCG@10 {used.mean():.4f} {name}" + "".join(
        f"; {other} {scores[other].mean():.4f}: {_signed(difference)}"
        for other, difference in compared.items()
    )
    better = [other for other, difference in compared.items() if _matters(difference)]
    if expects and not prompted:
        return Finding(
            "prompt", FAULT, f"prompts are expected, none is used: {line}", "unused", figures
        )
    if better:
        best = max(better, key=lambda other: compared[other].difference)
        return Finding("prompt", FAULT, line, best, figures)
    if expects and not recorded:
        return Finding(
            "prompt",
            FAULT,
            f"its files record none, its family has some: {line}",
            "unrecorded",
            figures,
        )
    return Finding("prompt", OK, line, "", figures)


def truncation(
    scores: Mapping[int, Float[np.ndarray, " Q"]],
    *,
    full: int,
    used: int,
    trained: Sequence[int] = (),
) -> Finding:
    """Checks whether embeddings are cut to a size that they were not trained for, and at what cost.

    It is a fault if the size used is neither whole nor trained, and costs 0.01 nDCG@10 by an
    interval above 0. The cost of a trained size is a trade that was made on purpose. Without a cut,
    other sizes only show what one would cost.

    Args:
        scores: nDCG@10 of each query, by size; of `full` and `used` at least.
        full: the whole size.
        used: the size that is used.
        trained: sizes that the model was trained to be cut to.
    """
    figures = {f"ndcg@10 {size}": float(values.mean()) for size, values in scores.items()}
    lost = {
        size: paired_difference(scores[full], values)
        for size, values in scores.items()
        if size != full
    }
    known = ", ".join(str(size) for size in trained if size != full)
    recorded = (
        f"trained to be cut to {known}"
        if known
        else "no size recorded to which it was trained to be cut"
    )
    costs = "; ".join(f"lost at {size} {_signed(difference)}" for size, difference in lost.items())
    if used == full:
        line = f"not cut, nDCG@10 {scores[full].mean():.4f} with all {full} numbers" + (
            f"; {costs}" if costs else ""
        )
        return Finding("dimension", OK, f"{line}; {recorded}", "", figures)
    line = f"nDCG@10 {scores[used].mean():.4f} cut to {used} of {full} numbers; {costs}; {recorded}"
    fault = used not in trained and _matters(lost[used])
    return Finding("dimension", FAULT if fault else OK, line, "", figures)


def shortlist(
    ranks: Int[np.ndarray, " J"], judged: Judged, *, k: int, target: float, documents: int
) -> Finding:
    """Checks whether the shortlist of k documents contains enough for a reranker to find.

    It is a fault if its recall is below the target. "needed" is the smallest k whose recall reaches
    the target, nan if none does.

    Args:
        ranks: see `relevant_ranks`.
        judged: the relevant documents of each query.
        k: how many documents a reranker gets.
        target: the recall that is expected, from 0 to 1.
        documents: N, the number of documents.
    """
    values = recall_of_ranks(ranks, judged, k)
    low, high = metrics.mean_interval(values)
    needed = _needed(ranks, judged, target, documents)
    figures = {"recall": float(values.mean()), "low": low, "high": high, "needed": needed}
    line = f"recall@{k} {values.mean():.4f} [{low:.3f}, {high:.3f}], target {target:g}"
    reached = (
        f"{needed:.0f} of {documents} documents reach it"
        if np.isfinite(needed)
        else "no number reaches it"
    )
    if values.mean() >= target:
        return Finding("shortlist", OK, f"{line}: {reached}", "", figures)
    line += f": {1 - values.mean():.1%} of what is relevant no reranker sees; {reached}"
    line += "; the interval holds the target" if high >= target else ""
    return Finding("shortlist", FAULT, line, "" if np.isfinite(needed) else "never", figures)


def negatives(
    positive: Float[np.ndarray, " n"],
    negative: Float[np.ndarray, " m"],
    row: Int[np.ndarray, " m"],
    random: Float[np.ndarray, "n R"],
) -> Finding:
    """Checks whether hard negatives teach more than the other positives of a batch.

    A negative is easy if the nearest of 63 random positives, the others of a batch of 64, is at
    least as near to its anchor: below the quantile 1 - 1/64 of them. It is a fault if more than
    half are easy. The finding also gives the share that is below its positive by a margin, negative
    <= positive - 0.05 |positive|, and the share above its positive, which is hard or false: only
    the labels can tell.

    Args:
        positive: similarity of each row's anchor with its positive.
        negative: similarity of an anchor with a negative.
        row: the row of each negative.
        random: similarity of each anchor with positives of other rows; nan without a positive.
    """
    comparable = np.isfinite(random).sum(axis=1)[row] >= FEWEST
    if not comparable.any():
        return Finding(
            "negatives",
            NOT_CHECKED,
            f"{len(positive)} rows: too few others to compare negatives with",
        )
    own, others = positive[row], random[row[comparable]]
    nearer = np.sum(others >= negative[comparable, None], axis=1) / np.isfinite(others).sum(axis=1)
    figures = {
        "easy": float(np.mean(nearer >= 1 / BATCH)),
        "below_margin": float(np.mean(negative <= own - MARGIN * np.abs(own))),
        "above_positive": float(np.mean(negative > own)),
        "gap": float(np.mean(own - negative)),
    }
    line = (
        f"{figures['easy']:.1%} of {len(negative)} negatives are at most as hard as the hardest of "
        f"{BATCH - 1} random passages (fault above {MOST_EASY:.0%}); "
        f"{figures['below_margin']:.1%} are {MARGIN:.0%} or more below their positive, on average "
        f"{figures['gap']:.3f}; {figures['above_positive']:.1%} are above it: hard, or false"
    )
    return Finding("negatives", FAULT if figures["easy"] > MOST_EASY else OK, line, "", figures)


def others_positives(
    anchors: Sequence[str], positives: Sequence[str], number: int = RANDOM, *, seed: int = 0
) -> Int[np.ndarray, "n R"]:
    """Draws `number` other rows for each row, or takes all where there are no more than that.

    Returns:
        Row numbers; -1 in place of a row that shares a text with the row it was drawn for.
    """
    texts: dict[str, int] = {}
    code = [
        np.array([texts.setdefault(text.strip(), len(texts)) for text in side])
        for side in (anchors, positives)
    ]
    rows = np.tile(np.arange(len(anchors)), (len(anchors), 1))
    if len(anchors) > number:
        rows = np.random.default_rng(seed).integers(len(anchors), size=(len(anchors), number))
    shared = np.zeros(rows.shape, bool)
    for own_texts in code:
        for other_texts in code:
            shared |= own_texts[:, None] == other_texts[rows]
    return np.where(shared, -1, rows)


def _needed(ranks: Int[np.ndarray, " J"], judged: Judged, target: float, documents: int) -> float:
    """Finds the smallest k at which the mean recall over queries reaches the target; else nan."""
    order = np.argsort(ranks, kind="stable")
    share = 1 / (
        np.bincount(judged.query, minlength=len(judged.ideal))[judged.query] * len(judged.ideal)
    )
    enough = (np.cumsum(share[order]) >= target - 1e-9) & (ranks[order] <= documents)
    return float(ranks[order][np.argmax(enough)]) if enough.any() else float("nan")


def _matters(difference: PairedDifference) -> bool:
    return difference.difference >= LOSS and difference.interval[0] > 0


def _signed(difference: PairedDifference) -> str:
    low, high = difference.interval
    return f"{difference.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
