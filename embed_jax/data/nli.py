"""Triplets from natural language inference: an entailed hypothesis against a contradicted one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from embed_jax.data.pairs import NLI_LABELS, apply_to_record, parse_label
from embed_jax.errors import InputError

ENTAILMENT, NEUTRAL, CONTRADICTION = NLI_LABELS.values()
# The annotators did not agree: in data sets with numbers, and in SNLI's own files.
NO_GOLD_LABEL = ("-1", "-")


@dataclasses.dataclass(frozen=True)
class TripletReport:
    """The number of triplets that were made, and of records that were dropped, by reason.

    All fields except the last two count records; without `records` itself, and with each triplet as
    two records, they add up to `records`.

    Attributes:
        records: all records.
        triplets: the triplets made, each of two records.
        unlabelled: records without a gold label.
        empty: records with an empty text.
        conflicting: records of a pair that has different labels.
        duplicates: repetitions of a pair with the same label.
        neutral: records with the label "neutral".
        without_entailment: contradictions of premises without an entailment.
        without_contradiction: entailments of premises without a contradiction.
        surplus: hypotheses of the other premises for which no hypothesis of the opposite label was
            left.
        premises_without_entailment: the number of those premises.
        premises_without_contradiction: the number of those premises.
    """

    records: int
    triplets: int
    unlabelled: int
    empty: int
    conflicting: int
    duplicates: int
    neutral: int
    without_entailment: int
    without_contradiction: int
    surplus: int
    premises_without_entailment: int
    premises_without_contradiction: int

    def __str__(self) -> str:
        return (
            f"{self.records} records: {self.triplets} triplets of {2 * self.triplets}\n"
            f"dropped: {self.neutral} neutral, {self.unlabelled} without a gold label, "
            f"{self.duplicates} duplicates, "
            f"{self.conflicting} with conflicting labels, {self.empty} with an empty text\n"
            f"dropped: {self.without_entailment} of {self.premises_without_entailment} premises "
            "without entailment, "
            f"{self.without_contradiction} of {self.premises_without_contradiction} premises "
            "without contradiction, "
            f"{self.surplus} surplus hypotheses"
        )


def nli_triplets(
    records: Sequence[Mapping[str, Any]], seed: int = 0
) -> tuple[list[dict[str, str]], TripletReport]:
    """Makes triplets of a premise, an entailed hypothesis and a contradicting one.

    These are the training data of supervised SimCSE (Gao, Yao, Chen, EMNLP 2021, Section 4). A
    premise with e entailed and c contradicting hypotheses gives min(e, c) triplets, paired at
    random; each hypothesis is in at most one of them. Texts are compared without the white space
    around them.

    >>> record = {"premise": "A dog runs.", "hypothesis": "An animal moves.", "label": 0}
    >>> other = {"premise": "A dog runs.", "hypothesis": "A dog sleeps.", "label": 2}
    >>> nli_triplets([record, other])[0]
    [{'anchor': 'A dog runs.', 'positive': 'An animal moves.', 'negative': 'A dog sleeps.'}]

    Args:
        records: records with "premise", "hypothesis", "label": one of NLI_LABELS by name or number,
            or -1 or "-" without a gold label.
        seed: the seed of the pairing and of the triplets' order, neither of which depends on the
            order of the records.

    Returns:
        Records with anchor, positive, negative, in random order; and counts of the dropped records.

    Raises:
        InputError: a record lacks one of these fields, or has another label; the message gives the
            record's index.
    """
    labels: dict[tuple[str, str], list[int | None]] = {}
    for index, record in enumerate(records):
        premise, hypothesis, label = apply_to_record(_read, record, index)
        labels.setdefault((premise, hypothesis), []).append(label)

    unlabelled = empty = conflicting = duplicates = neutral = 0
    hypotheses: dict[str, dict[int, list[str]]] = {}
    for (premise, hypothesis), own_labels in labels.items():
        known = [label for label in own_labels if label is not None]
        unlabelled += len(own_labels) - len(known)
        if not premise or not hypothesis:
            empty += len(known)
        elif len(set(known)) > 1:
            conflicting += len(known)
        elif known:
            duplicates += len(known) - 1
            if known[0] == NEUTRAL:
                neutral += 1
            else:
                by_label = hypotheses.setdefault(premise, {ENTAILMENT: [], CONTRADICTION: []})
                by_label[known[0]].append(hypothesis)

    triplets = []
    no_entailment, no_contradiction, surplus = [], [], 0
    for premise in sorted(hypotheses, key=lambda premise: _hash_texts(seed, premise)):
        # Sorted by a hash of the texts: a random order that does not depend on that of the records.
        entailed, contradicted = (
            sorted(texts, key=lambda text: _hash_texts(seed, premise, text))
            for texts in hypotheses[premise].values()
        )
        if not entailed:
            no_entailment.append(len(contradicted))
        elif not contradicted:
            no_contradiction.append(len(entailed))
        else:
            surplus += abs(len(entailed) - len(contradicted))
            for positive, negative in zip(entailed, contradicted, strict=False):
                triplets.append({"anchor": premise, "positive": positive, "negative": negative})
    return triplets, TripletReport(
        records=len(records),
        triplets=len(triplets),
        unlabelled=unlabelled,
        empty=empty,
        conflicting=conflicting,
        duplicates=duplicates,
        neutral=neutral,
        without_entailment=sum(no_entailment),
        without_contradiction=sum(no_contradiction),
        surplus=surplus,
        premises_without_entailment=len(no_entailment),
        premises_without_contradiction=len(no_contradiction),
    )


def _read(record: Mapping[str, Any]) -> tuple[str, str, int | None]:
    """Returns a record's premise, hypothesis and label, which is None without a gold label."""
    for name in ("premise", "hypothesis", "label"):
        if record.get(name) is None:
            raise InputError(
                f"expected premise, hypothesis and label, found no {name} in {', '.join(record)}"
            )
        if name != "label" and not isinstance(record[name], str):
            raise InputError(f"{name}: expected a text, found {record[name]!r}")
    premise, hypothesis, label = (
        record["premise"].strip(),
        record["hypothesis"].strip(),
        record["label"],
    )
    if str(label).strip() in NO_GOLD_LABEL:
        return premise, hypothesis, None
    number = parse_label(label)
    if number not in NLI_LABELS.values():
        accepted = ", ".join(f"{name} ({number})" for name, number in NLI_LABELS.items())
        raise InputError(
            f"label: expected one of {accepted}, or -1 or '-' for no gold label; found {label!r}"
        )
    return premise, hypothesis, number


def _hash_texts(seed: int, *texts: str) -> bytes:
    """Returns a hash of texts in this order."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=16)
    for text in texts:
        digest.update(hashlib.blake2b(text.encode(), digest_size=16).digest())
    return digest.digest()
