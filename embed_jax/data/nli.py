"""Triplets from natural language inference: an entailed hypothesis against a contradicted one."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from embed_jax.data.pairs import NLI_LABELS, label_number, of_record
from embed_jax.errors import InputError

ENTAILMENT, NEUTRAL, CONTRADICTION = NLI_LABELS.values()
NO_GOLD_LABEL = (
    "-1",
    "-",
)  # the annotators did not agree: as data sets of numbers say it, and as SNLI's own files do


@dataclasses.dataclass(frozen=True)
class TripletReport:
    """Counts of what happened to the records.

    All but the premises count records, and those add up to `records`.

    Attributes:
        records: how many there were.
        triplets: how many came of them, each of two records.
        unlabelled: without a gold label.
        empty: without a text.
        conflicting: of pairs that stand there with different labels.
        duplicates: repetitions of a pair with its label.
        neutral: with that label.
        without_entailment: contradictions of premises that entail nothing, and so on.
        without_contradiction: entailments of premises that nothing contradicts.
        surplus: hypotheses of other premises that had none of the opposite label left.
        premises_without_entailment, premises_without_contradiction: how many premises those are.
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
    """A premise, a hypothesis that it entails, and one that contradicts it.

    Supervised SimCSE's data.

    A premise with e entailed and c contradicted hypotheses gives min(e, c) triplets, each
    hypothesis in at most one of them, paired at random. Texts are equal if they are so without the
    white space around them. Gao, Yao, Chen (EMNLP 2021), Section 4.

    Args:
        records: with "premise", "hypothesis", "label": one of NLI_LABELS by name or number, or -1
            or "-" for none.
        seed: of the pairing and of the triplets' order, neither of which depends on the order of
            the records.

    Returns:
        Records with anchor, positive, negative, in an order without meaning; and what became of the
        rest.

    Raises:
        InputError: for a record without these fields, or with another label; it names the record's
            number.
    """
    labels: dict[tuple[str, str], list[int | None]] = {}
    for number, record in enumerate(records):
        premise, hypothesis, label = of_record(_read, record, number)
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
    for premise in sorted(hypotheses, key=lambda premise: _random(seed, premise)):
        # Sorted by a hash of their texts, which is a random order that the records' order has no
        # part in.
        entailed, contradicted = (
            sorted(texts, key=lambda text: _random(seed, premise, text))
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
    """Premise, hypothesis and label; None for no gold label."""
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
    number = label_number(label)
    if number not in NLI_LABELS.values():
        accepted = ", ".join(f"{name} ({number})" for name, number in NLI_LABELS.items())
        raise InputError(
            f"label: expected one of {accepted}, or -1 or '-' for no gold label; found {label!r}"
        )
    return premise, hypothesis, number


def _random(seed: int, *texts: str) -> bytes:
    """A hash of texts in this order."""
    digest = hashlib.blake2b(str(seed).encode(), digest_size=16)
    for text in texts:
        digest.update(hashlib.blake2b(text.encode(), digest_size=16).digest())
    return digest.digest()
