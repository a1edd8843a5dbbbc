"""Fine-tuning from Python, in every form that pairs come in."""

import numpy as np
import pytest

import embed_jax
from embed_jax.errors import InputError
from embed_jax.train.finetune import pair_records
from tests.conftest import WORDS

ROWS = [
    (f"{WORDS[n]} {WORDS[n + 1]}", f"{WORDS[n + 70]} {WORDS[n + 71]}") for n in range(0, 32, 2)
]  # no word shared


def as_frame():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(ROWS, columns=["anchor", "positive"])


def as_dataset():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict(
        {"anchor": [a for a, _ in ROWS], "positive": [p for _, p in ROWS]}
    )


@pytest.mark.parametrize(
    "pairs",
    [
        lambda: ROWS,
        lambda: [{"anchor": a, "positive": p} for a, p in ROWS],
        lambda: [{"question": a, "answer": p} for a, p in ROWS],
        as_frame,
        as_dataset,
    ],
    ids=["tuples", "dicts", "other names", "DataFrame", "Dataset"],
)
def test_every_form_of_pairs_gives_the_same_records(pairs):
    assert [tuple(record.values()) for record in pair_records(pairs())] == ROWS
    assert all(list(record) == ["anchor", "positive"] for record in pair_records(pairs()))


def test_negatives_are_numbered():
    assert pair_records([("a", "b", "c", "d")] * 2)[0] == {
        "anchor": "a",
        "positive": "b",
        "negative_1": "c",
        "negative_2": "d",
    }


def test_what_a_row_lacks_or_has_besides_is_no_text():
    wanted = [{"anchor": "a", "positive": "p", "negative_1": "n"}, {"anchor": "b", "positive": "q"}]
    rows = [
        {"anchor": "a", "positive": "p", "negative": "n"},
        {"anchor": "b", "positive": "q", "negative": None},
    ]
    assert pair_records(rows) == wanted
    numbered = [{"id": number, **row, "score": 0.5} for number, row in enumerate(rows)]
    assert pair_records(numbered) == wanted
    lists = [
        {"anchor": "a", "positive": "p", "negatives": ["n"]},
        {"anchor": "b", "positive": "q", "negatives": []},
    ]
    assert pair_records(lists) == wanted
    pandas, datasets = pytest.importorskip("pandas"), pytest.importorskip("datasets")
    for same in (numbered, lists):
        assert pair_records(pandas.DataFrame(same)) == wanted
        assert pair_records(datasets.Dataset.from_list(same)) == wanted
    assert pair_records([{"sentence1": "a", "sentence2": "b", "score": "3"}] * 2)[0] == {
        "anchor": "a",
        "positive": "b",
    }


@pytest.mark.parametrize(
    "pairs", [["ab", "cd"], [{"anchor": "a", "positive": "b"}, {"anchor": "c"}], [("a", "b"), 3]]
)
def test_a_row_that_is_no_pair_is_refused_by_its_number(pairs):
    with pytest.raises(
        InputError,
        match=r"pairs\[[01]\]: expected an anchor, a positive and negatives, all strings",
    ):
        pair_records(pairs)


def test_pairs_without_any_text_are_refused():
    with pytest.raises(InputError, match="pairs: all texts are empty, in 3 pairs"):
        pair_records([("", " ")] * 3)


@pytest.mark.parametrize(
    "pairs", [[], [("a", "b")], [("a", "b"), ("only",)], [("a", "b"), ("c", 4)]]
)
def test_what_is_no_pair_is_refused_by_its_number(pairs):
    with pytest.raises(InputError, match="pairs"):
        pair_records(pairs)


def test_finetune_brings_pairs_together_and_returns_the_model(tiny_model, tmp_path):
    before = embed_jax.load(str(tiny_model))
    fields = {
        "batch__size": 16,
        "train__epochs": 12,
        "train__devices": 2,
        "optim__learning_rate": 3e-3,
    }
    after = embed_jax.finetune(ROWS, str(tiny_model), workdir=tmp_path, **fields)

    def accuracy(model):
        anchors, positives = (model.encode([row[side] for row in ROWS]) for side in (0, 1))
        return float(np.mean(np.argmax(anchors @ positives.T, axis=1) == np.arange(len(ROWS))))

    assert isinstance(after, embed_jax.SentenceEncoder)
    assert accuracy(after) > accuracy(before) + 0.2
    with pytest.raises(InputError, match="unknown config field 'optim.lr'"):
        embed_jax.finetune(ROWS, str(tiny_model), optim__lr=1.0)
