"""Fine-tuning from Python, with every form of pairs."""

import json
import os
import signal
import tempfile

import numpy as np
import pytest

import embed_jax
from embed_jax.config import Experiment, flatten
from embed_jax.data.sources import python_records
from embed_jax.errors import InputError, RunError
from embed_jax.export.card import CardContent, model_card
from embed_jax.export.record import read_run
from embed_jax.train.finetune import REFUSED
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
    assert [tuple(record.values()) for record in python_records(pairs())] == ROWS


def test_negatives_are_numbered():
    assert python_records([("a", "b", "c", "d")] * 2)[0] == {
        "anchor": "a",
        "positive": "b",
        "negative_1": "c",
        "negative_2": "d",
    }


def test_columns_are_found_by_place_or_name():
    rows = [{"id": 3, "prompt": "a", "completion": "b", "score": None}]
    expected = [{"anchor": "a", "positive": "b", "id": "3"}]
    assert python_records(rows) == expected
    assert python_records(rows, ["Completion", "Prompt"]) == [
        {"anchor": "b", "positive": "a", "id": "3"}
    ]
    with pytest.raises(InputError, match=r"pairs\[0\]: no field 'answer': found id, prompt"):
        python_records(rows, ["prompt", "answer"])


@pytest.mark.parametrize(
    "pairs, message",
    [
        (["ab", "cd"], r"pairs\[0\]: expected an anchor, a positive and negatives, or a dict"),
        ([("a", "b"), ("only",)], r"pairs\[1\]: expected an anchor, a positive and negatives"),
        ([("a", "b"), 3], r"pairs\[1\]: expected an anchor"),
        ([{"anchor": "a", "positive": "b"}, {"anchor": "c"}], r"pairs\[1\]: no field 'positive'"),
        ([("a", "b"), ("c", 4)], r"pairs\[1\]: field 'positive' must be a string, found int 4"),
        ([("a", "b"), ("\ud800", "c")], r"pairs\[1\]: field 'anchor': character 1 is half of a"),
        ([("", " ")] * 3, "pairs: no record is left, 3 of 3 records are left out"),
        ([], "pairs: empty"),
    ],
)
def test_what_is_no_pair_is_refused_by_its_number(pairs, message):
    with pytest.raises(InputError, match=message):
        python_records(pairs)


def test_one_pair_is_too_few(tiny_model):
    with pytest.raises(InputError, match="pairs: expected at least 2, found 1"):
        embed_jax.finetune([("a", "b")], str(tiny_model))


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
    with pytest.raises(InputError, match="'optim__lr'; did you mean optim__learning_rate\\?$"):
        embed_jax.finetune(ROWS, str(tiny_model), optim__lr=1.0)


HELD_OUT = {"data__holdout": 0.25, "train__steps": 2, "train__devices": 1, "batch__size": 4}


def test_holdout_ends_with_the_comparison_and_nothing_is_left_behind(
    tiny_model, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("bm25s")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fields = HELD_OUT | {"eval__every": 1, "eval__metric": "retrieval/ndcg@10"}
    model = embed_jax.finetune(ROWS * 2, str(tiny_model), **fields)
    assert not list(tmp_path.iterdir())
    assert set(model.comparison.results) == {"bm25", "before", "after"}
    gain, low, high = model.comparison.gain()
    assert low <= gain <= high
    assert model.comparison.verdict() in capsys.readouterr().out
    assert model.encode(["the cat"]).shape == (1, model.dim)


def test_a_result_that_is_the_start_is_told_as_that(tiny_model, tmp_path):
    pytest.importorskip("bm25s")
    pytest.importorskip("matplotlib")
    seen = []

    def worse(encode):
        seen.append(None)
        return {"score": 1.0 / len(seen)}

    fields = HELD_OUT | {"eval__metric": "own/score"}
    model = embed_jax.finetune(
        ROWS * 2, str(tiny_model), workdir=tmp_path, evaluators={"own": worse}, **fields
    )
    assert model.comparison.gain()[0] == 0
    assert model.comparison.verdict().startswith(
        "Do not adopt it: the best step is 0: no later evaluation reached its 1.0000 (0.3333 at "
        "the "
        "last step, 2), so the result is the model that the run started from, unchanged."
    )
    assert json.loads((tmp_path / "comparison.json").read_text())["unchanged"] is True
    card = model_card(model, CardContent("x", run=read_run(tmp_path)))
    assert "of step 0: the model that the run started from, since no later evaluation" in card
    assert "It was trained" not in card and "unchanged" in card


def test_every_refused_field_is_a_field(tiny_model):
    fields = flatten(Experiment())
    for refused in REFUSED:
        assert any(field == refused or field.startswith(refused) for field in fields), refused
    for name, value in (("data__train", "x.tsv"), ("mixture__sampling", "weights")):
        with pytest.raises(InputError, match=f"^{name}: finetune has no use for it: "):
            embed_jax.finetune(ROWS, str(tiny_model), **{name: value})


def test_a_stopped_run_says_so(tiny_model, tmp_path):
    seen = []

    def stop(encode):
        if not seen:
            os.kill(os.getpid(), signal.SIGINT)
        seen.append(None)
        return {"score": 0.0}

    fields = {"train__steps": 3, "train__devices": 1, "batch__size": 4}
    with pytest.raises(RunError, match="stopped at step 1; the same call goes on"):
        embed_jax.finetune(
            ROWS, str(tiny_model), workdir=tmp_path, evaluators={"x": stop}, **fields
        )
    embed_jax.finetune(ROWS, str(tiny_model), workdir=tmp_path, **fields)
