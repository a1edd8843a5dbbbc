"""Triplets from NLI: as many as possible, without repetitions, in any order of the records.

Every record is counted as used or dropped.
"""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from embed_jax.data.nli import TripletReport, nli_triplets
from embed_jax.errors import InputError

NAMES = ("entailment", "neutral", "contradiction")


def rows(premise, **hypotheses):
    return [
        {"premise": premise, "hypothesis": text, "label": name}
        for name, texts in hypotheses.items()
        for text in texts
    ]


def made(seed, count=600):
    """Returns records of few texts, so that every special case occurs."""
    rng = np.random.default_rng(seed)
    labels = [*NAMES, 0, 1, 2, "0", " Contradiction ", -1, "-", "-1"]
    texts = ["a", "b ", "b", " c", "d", "e", "f", "g", " "]
    return [
        {
            "premise": f"p{rng.integers(count // 6)}" if rng.random() > 0.02 else " ",
            "hypothesis": texts[rng.integers(len(texts))],
            "label": labels[rng.integers(len(labels))],
        }
        for _ in range(count)
    ]


def test_a_premise_gives_as_many_triplets_as_it_can():
    entailed, contradicted = [f"yes {n}" for n in range(5)], [f"no {n}" for n in range(3)]
    triplets, report = nli_triplets(
        rows("p", entailment=entailed, neutral=["maybe"], contradiction=contradicted)
    )
    assert len(triplets) == 3 and {t["anchor"] for t in triplets} == {"p"}
    assert {t["negative"] for t in triplets} == set(contradicted)
    assert len({t["positive"] for t in triplets}) == 3 and {t["positive"] for t in triplets} <= set(
        entailed
    )
    assert (report.triplets, report.neutral, report.surplus) == (3, 1, 2)


@pytest.mark.parametrize("seed", range(8))
def test_the_report_accounts_for_every_record(seed):
    records = made(seed)
    triplets, report = nli_triplets(records)
    counts = dataclasses.asdict(report)
    dropped = [
        name
        for name in counts
        if name not in ("records", "triplets") and not name.startswith("premises")
    ]
    assert all(counts[name] > 0 for name in dropped), "the made records show every reason"
    assert (
        sum(counts[name] for name in dropped) + 2 * len(triplets) == len(records) == report.records
    )
    assert report.triplets == len(triplets)

    # The same again, from the definitions.
    number = {"entailment": 0, "0": 0, "neutral": 1, "1": 1, "contradiction": 2, "2": 2}
    result = collections.defaultdict(set)
    for record in records:
        premise, hypothesis = record["premise"].strip(), record["hypothesis"].strip()
        if premise and hypothesis and str(record["label"]).strip().lower() in number:
            result[premise, hypothesis].add(number[str(record["label"]).strip().lower()])
    sides = collections.defaultdict(lambda: {0: set(), 1: set(), 2: set()})
    for (premise, hypothesis), labels in result.items():
        if len(labels) == 1:
            sides[premise][labels.pop()].add(hypothesis)
    assert len(triplets) == sum(min(len(side[0]), len(side[2])) for side in sides.values())
    for premise, group in itertools.groupby(triplets, key=lambda triplet: triplet["anchor"]):
        positives, negatives = zip(*((t["positive"], t["negative"]) for t in group), strict=True)
        assert len(set(positives)) == len(positives) == len(set(negatives))
        assert set(positives) <= sides[premise][0] and set(negatives) <= sides[premise][2]
    assert report.premises_without_entailment == sum(
        not side[0] and bool(side[2]) for side in sides.values()
    )
    assert report.premises_without_contradiction == sum(
        bool(side[0]) and not side[2] for side in sides.values()
    )


def test_the_order_of_the_records_does_not_matter_and_the_seed_does():
    records = made(0)
    expected = nli_triplets(records)
    for seed in range(3):
        shuffled = [records[n] for n in np.random.default_rng(seed).permutation(len(records))]
        assert nli_triplets(shuffled) == expected
    assert nli_triplets(records, seed=1)[0] != expected[0]
    assert nli_triplets(records, seed=1)[1] == expected[1]


def test_pairing_is_a_function_of_the_premise_and_its_hypotheses():
    texts = {
        "entailment": [f"yes {n}" for n in range(6)],
        "contradiction": [f"no {n}" for n in range(6)],
    }
    expected = nli_triplets(rows("p", **texts))[0]
    among = nli_triplets(rows("q", **texts) + rows("p", **texts) + rows("r", **texts))[0]
    assert [triplet for triplet in among if triplet["anchor"] == "p"] == expected
    pairings = {
        tuple((t["positive"], t["negative"]) for t in nli_triplets(rows(f"{n}", **texts))[0])
        for n in range(20)
    }
    assert len(pairings) == 20, "premises are paired each in their own way"


def test_pairs_are_uniformly_random():
    texts = {"entailment": ["a", "b"], "contradiction": ["c", "d"]}
    triplets, _ = nli_triplets([row for n in range(2000) for row in rows(f"p{n}", **texts)])
    together = sum((t["positive"], t["negative"]) == ("a", "c") for t in triplets)
    assert abs(together - 1000) < 4 * np.sqrt(2000 / 4)


@pytest.mark.parametrize(
    "labels", [NAMES, (0, 1, 2), ("0", "1.0", " 2 "), (0.0, np.int64(1), "CONTRADICTION")]
)
def test_labels_are_names_or_numbers(labels):
    records = [
        {"premise": " p", "hypothesis": f"{n} ", "label": label} for n, label in enumerate(labels)
    ]
    triplets, report = nli_triplets(records)
    assert triplets == [{"anchor": "p", "positive": "0", "negative": "2"}] and report.neutral == 1


def test_conflicting_labels_drop_the_pair_and_a_repetition_is_one():
    good = rows("p", entailment=["yes"], contradiction=["no"])
    triplets, report = nli_triplets(
        [*good, *rows(" p ", entailment=["yes ", "so"], neutral=["so"])]
    )
    assert len(triplets) == 1 and (report.duplicates, report.conflicting) == (1, 2)
    # A row without a gold label says nothing against the others.
    triplets, report = nli_triplets([*good, {"premise": "p", "hypothesis": "yes", "label": "-"}])
    assert len(triplets) == 1 and (report.unlabelled, report.conflicting) == (1, 0)


def test_the_report_is_a_few_lines():
    report = TripletReport(100, 10, 1, 2, 3, 4, 40, 5, 6, 19, 7, 8)
    assert str(report).count("\n") == 2
    assert "100 records: 10 triplets" in str(
        report
    ) and "5 of 7 premises without entailment" in str(report)


@pytest.mark.parametrize("label", ["entails", 3, "0.5", "", 1.5, -2])
def test_an_unknown_label_names_the_record(label):
    records = [*rows("p", entailment=["yes"]), {"premise": "p", "hypothesis": "no", "label": label}]
    message = (
        r"^record 1: label: expected one of entailment \(0\), neutral \(1\), "
        r"contradiction \(2\), or -1 .*found "
    )
    with pytest.raises(InputError, match=message):
        nli_triplets(records)


@pytest.mark.parametrize("name", ["premise", "hypothesis", "label"])
def test_a_missing_field_names_the_record(name):
    records = rows("p", entailment=["yes", "so"])
    del records[1][name]
    with pytest.raises(
        InputError, match=f"record 1: expected premise, hypothesis and label, found no {name}"
    ):
        nli_triplets(records)


def test_a_text_that_is_none_names_the_record():
    with pytest.raises(InputError, match="record 0: hypothesis: expected a text, found 7"):
        nli_triplets(rows("p", entailment=[7]))
