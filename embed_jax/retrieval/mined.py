"""Results of mining: pairs with negatives, counts of the candidates, and training records."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from embed_jax.errors import InputError
from embed_jax.registry import unknown

SHOWN = 10  # lines of the histogram
LACKING = 0.2  # share of the positives that a corpus may lack before it looks like a mistake


@dataclasses.dataclass(frozen=True)
class Mined:
    """A pair with its negatives, hardest first; there may be fewer than requested, or none.

    Attributes:
        scores: the negatives', by `score` where there is one, else by the searcher that found each.
        positive_score: the same for the positive; None where several searchers give the scores,
            which then cannot be compared.
        carried: the pair's id and group.
    """

    anchor: str
    positive: str
    negatives: tuple[str, ...]
    scores: tuple[float, ...]
    positive_score: float | None
    carried: Mapping[str, Any]


@dataclasses.dataclass
class Report:
    """Counts of what happened to the candidates; a candidate counts for each pair of its query.

    Attributes:
        pairs: how many pairs have how many negatives.
        candidates: what became of how many: "kept", or why not, a reason of REASONS.
        lacking: how many positives the given corpus lacked, see `corpus_with`.
        positives: how many different positives there are.
    """

    pairs: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    candidates: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    lacking: int = 0
    positives: int = 0

    REASONS = {
        "positive": "known positive of the query",
        "contained": "contains a known positive, or is part of one",
        "duplicate": "the query's own text, or found twice",
        "score": "outside score_min to score_max",
        "margin": "too close to the positive",
        "rank": "among the first rank_min",
        "surplus": "not needed",
    }

    def __str__(self) -> str:
        """Describes the counts, at most a screen."""
        lines = [f"{self.pairs.total():,} pairs, {self.candidates.total():,} candidates, of which"]
        reasons = {"kept": "negatives", **self.REASONS}
        lines += [
            f"{self.candidates[name]:12,}  {text}"
            for name, text in reasons.items()
            if self.candidates[name]
        ]
        numbers = sorted(self.pairs, reverse=True)
        for number in numbers[:SHOWN]:
            lines.append(
                f"{self.pairs[number]:12,}  pairs with {number} "
                f"negatives{'' if number else ', left out'}"
            )
        if fewer := sum(self.pairs[number] for number in numbers[SHOWN:]):
            lines.append(f"{fewer:12,}  pairs with fewer")
        return "\n".join([*lines, *filter(None, [self.warning()])])

    def warning(self) -> str | None:
        """Returns a line if the corpus lacked many positives, with the likely reason."""
        if self.lacking <= LACKING * self.positives:
            return None
        if self.candidates["contained"]:
            reason = "it has their texts joined with a title or cut otherwise"
        else:
            reason = "nothing like them was found in it: is it the corpus of these pairs?"
        return (
            f"warning: the corpus lacks {self.lacking} of {self.positives} positives, which were "
            f"added to it; {reason}"
        )

    def refuse_nothing(self) -> None:
        """Raises an InputError if no pair has a negative; it says why candidates were dropped."""
        if self.candidates["kept"]:
            return
        total = self.candidates.total()
        taken = [
            f"{self.candidates[name]} {text}"
            for name, text in self.REASONS.items()
            if self.candidates[name]
        ]
        lines = (
            f"all {total} candidates are dropped: {', '.join(taken)}"
            if total
            else "the search finds nothing"
        )
        raise InputError(f"none of {self.pairs.total()} pairs has a negative: {lines}")


def records_of(mined: Sequence[Mined], form: str) -> Iterator[dict[str, Any]]:
    """Makes training records in one of FORMS, which the data sources read.

    Pairs without a negative are left out.

    * "triplets": anchor positive negative, a record a negative
    * "n-tuples": anchor positive negative_1 negative_2 ...; as many as the pair has
    * "labelled-pairs": sentence1 sentence2 label, 1 for a positive and 0 for a negative; a pair of
      texts once
    * "scored-lists": query passages scores, the positive first

    Raises:
        InputError: for another form, or scored lists of several searchers' scores.
    """
    if form not in FORMS:
        raise InputError(unknown("form", form, FORMS))
    return FORMS[form]([pair for pair in mined if pair.negatives])


def _triplets(mined: Sequence[Mined]) -> Iterator[dict[str, Any]]:
    for pair in mined:
        for negative in pair.negatives:
            yield {
                "anchor": pair.anchor,
                "positive": pair.positive,
                "negative": negative,
                **pair.carried,
            }


def n_tuple(pair: Mined) -> dict[str, Any]:
    """Makes a record anchor positive negative_1 negative_2 ..., with id and group."""
    negatives = {f"negative_{number}": text for number, text in enumerate(pair.negatives, 1)}
    return {"anchor": pair.anchor, "positive": pair.positive, **negatives, **pair.carried}


def _labelled_pairs(mined: Sequence[Mined]) -> Iterator[dict[str, Any]]:
    seen = set()
    for pair in mined:
        for text, label in ((pair.positive, 1), *((negative, 0) for negative in pair.negatives)):
            if (texts := (pair.anchor.strip(), text.strip())) not in seen:
                seen.add(texts)
                yield {"sentence1": pair.anchor, "sentence2": text, "label": label}


def scored_list(pair: Mined) -> dict[str, Any]:
    """Makes a record query passages scores, the positive first.

    Raises:
        InputError: for several searchers' scores.
    """
    if pair.positive_score is None:
        raise InputError(
            "scored-lists: several searchers' scores cannot be compared: use one, or a "
            "cross-encoder"
        )
    passages, scores = [pair.positive, *pair.negatives], [pair.positive_score, *pair.scores]
    return {"query": pair.anchor, "passages": passages, "scores": scores}


FORMS: dict[str, Callable[[Sequence[Mined]], Iterator[dict[str, Any]]]] = {
    "triplets": _triplets,
    "n-tuples": functools.partial(map, n_tuple),
    "labelled-pairs": _labelled_pairs,
    "scored-lists": functools.partial(map, scored_list),
}
