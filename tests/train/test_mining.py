"""Hard negatives that a run mines itself, what it records, and a resume that reads it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from embed_jax.config import Experiment, flatten
from embed_jax.config_file import override
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.runtime import prepare_jax
from embed_jax.train import loop, mining, workdir
from embed_jax.train.fit import fit
from embed_jax.train.mining import mined_sources
from embed_jax.train.workdir import settings_digest

pytest.importorskip("grain")
ROOT = Path(__file__).parents[2]
STEPS, EVERY = 10, 4


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- what is found, with an encoder that counts words --------------------------------------------

CORPUS = [
    f"{colour} {thing}"
    for colour in ("red", "blue", "black")
    for thing in ("cat", "dog", "house", "road")
]
PAIRS = [
    {"anchor": "a red cat", "positive": "red cat", "id": "7"},
    {"anchor": "a red cat", "positive": "black cat"},
    {"anchor": "the blue dog", "positive": "blue dog", "negative_1": "what the data had before"},
    {"anchor": "black house", "positive": "black house"},
    {"anchor": "nothing of it", "positive": "red road"},
]
WORDS = sorted({word for text in [*CORPUS, "a the nothing of it"] for word in text.split()})


def encode(texts, prompt=None):
    texts = [text.removeprefix(prompt or "") for text in texts]
    counts = np.array([[text.split().count(word) for word in WORDS] for text in texts], np.float32)
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def mined_records(tmp_path):
    """`mined_records(lists=False, step=0, encode=encode, **fields)`: the records trained on."""

    def find(*, lists=False, step=0, encode=encode, pairs=PAIRS, corpus=CORPUS, **fields):
        config = override(Experiment(), **{"mine__strategy": "dense", "mine__number": 2} | fields)
        ((name, source),) = mined_sources(pairs, corpus, config, tmp_path, lists=lists)(
            step, encode
        ).items()
        assert name == "train"
        return source.records

    return find


@pytest.mark.parametrize("strategy", ["dense", "bm25", "bm25,dense"])
def test_no_known_positive_of_the_query_and_no_text_of_its_own_is_a_negative(
    mined_records, strategy
):
    if "bm25" in strategy:
        pytest.importorskip("bm25s")
    records = mined_records(mine__strategy=strategy, mine__number=3, mine__rank_max=9)
    assert sorted(record["anchor"] for record in records) == sorted(
        pair["anchor"] for pair in PAIRS
    )
    for record in records:
        known = {pair["positive"] for pair in PAIRS if pair["anchor"] == record["anchor"]} | {
            record["anchor"]
        }
        negatives = [text for name, text in record.items() if name.startswith("negative")]
        assert (
            len(set(negatives)) == len(negatives)
            and known.isdisjoint(negatives)
            and set(negatives) <= set(CORPUS)
        )
        assert len(negatives) == 3 or record["anchor"] == "nothing of it"
    assert [record["id"] for record in records if "id" in record] == ["7"]


def test_hard_ones_are_hard(mined_records):
    by_positive = {record["positive"]: record for record in mined_records()}
    assert {by_positive["blue dog"][f"negative_{n}"] for n in (1, 2)} <= {
        text for text in CORPUS if "blue" in text or "dog" in text
    }


def test_scored_lists_have_the_searchers_similarities_the_positive_first(mined_records):
    for record in mined_records(lists=True):
        queries, passages = encode([record["query"]]), encode(record["passages"])
        assert len(record["passages"]) == len(record["scores"]) == 3
        np.testing.assert_allclose(record["scores"], (queries @ passages.T)[0], atol=1e-6)
        assert (record["query"], record["passages"][0]) in {
            (pair["anchor"], pair["positive"]) for pair in PAIRS
        }


def test_an_inconsistent_pair_is_dropped(mined_records, tmp_path, capsys):
    consistent = mined_records(mine__strategy="", data__consistency=2)
    assert [record["positive"] for record in consistent] == ["red cat", "blue dog", "black house"]
    assert consistent[1]["negative_1"] == "what the data had before", "without a strategy they stay"
    assert "consistent: 3 of 5 pairs have their positive among 2" in capsys.readouterr().out
    mined = mined_records(data__consistency=2)
    assert {record["positive"] for record in mined} == {"red cat", "blue dog", "black house"}
    assert "what the data had before" not in json.dumps(mined)


def test_what_was_found_is_read_again_whatever_the_model_is_then(mined_records, tmp_path):
    """Equal settings and data at the same step give the same file, others another file."""

    def none(texts, prompt=None):
        raise AssertionError("it was found already")

    first = mined_records(data__consistency=2)
    (pairs_file, step_file) = sorted(
        (tmp_path / "mined").iterdir(), key=lambda file: file.name.startswith("0")
    )
    assert step_file.name.startswith("0-") and pairs_file.name.startswith("pairs-")
    assert read(step_file) == first and mined_records(data__consistency=2, encode=none) == first
    assert (
        mined_records(data__consistency=2, encode=none, train__devices=8, checkpoint__every=3)
        == first
    )
    for changes in (
        {"step": 4},
        {"mine__number": 1},
        {"pairs": PAIRS[1:]},
        {"corpus": CORPUS[1:]},
        {"train__seed": 1},
    ):
        with pytest.raises(AssertionError, match="it was found already"):
            mined_records(**{"data__consistency": 2, "encode": none} | changes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mine__relative_margin": 1.0, "mine__score_max": -0.5},
            "none of 5 pairs has a negative: all .* dropped",
        ),
        ({"lists": True, "mine__number": 12}, "config.mine.number: no pair has 12 negatives"),
        ({"mine__strategy": "desne"}, "unknown config.mine.strategy 'desne' .did you mean 'dense'"),
        (
            {"mine__rank_min": 99, "mine__rank_max": 100},
            "config.mine: rank_min=99 and rank_max=100 leave no room",
        ),
        (
            {"lists": True, "mine__strategy": "bm25,dense"},
            "config.mine.cross_encoder: scores of several strategies",
        ),
        (
            {"data__consistency": 1, "pairs": PAIRS[4:]},
            "config.data.consistency: none of 1 pairs has its positive",
        ),
        ({"corpus": [*CORPUS, " "]}, "passage 12.*empty|empty"),
    ],
)
def test_nothing_is_left(mined_records, tmp_path, fields, message):
    with pytest.raises(InputError, match=message) as error:
        mined_records(**fields)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("mined/*.jsonl"))


# ---- runs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences):
    directory = tmp_path_factory.mktemp("pairs")
    rows = [{"anchor": " ".join(text.split()[::2]), "positive": text} for text in sentences[:24]]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "corpus.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in sentences[24:60])
    )
    return directory


@pytest.fixture(scope="module")
def experiment(data, tiny_model):
    """`experiment(**fields)`: negatives by BM25 and the model, every few steps.

    Checkpoints are written between.
    """

    def make(**fields):
        return override(
            Experiment(),
            **{
                "model__name": str(tiny_model),
                "data__train": str(data / "pairs.jsonl"),
                "data__max_length": 24,
                "mine__strategy": "bm25,dense",
                "mine__corpus": str(data / "corpus.jsonl"),
                "mine__every": EVERY,
                "mine__number": 2,
                "mine__rank_max": 6,
                "batch__size": 8,
                "batch__rows": 12,
                "optim__learning_rate": 1e-2,
                "train__steps": STEPS,
                "train__devices": 1,
                "checkpoint__every": 3,
                "checkpoint__keep": 9,
                "tracking__wandb": "disabled",
            }
            | fields,
        )

    return make


@pytest.fixture(scope="module")
def retrieval():
    pytest.importorskip("bm25s")
    pytest.importorskip("matplotlib")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from experiments import retrieval

        yield retrieval


@pytest.fixture(scope="module")
def finished(retrieval, experiment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    prepare_jax(deterministic=experiment().train.deterministic)
    return retrieval.run(experiment(), workdir), workdir


def mined_steps(workdir):
    return sorted(int(file.name.split("-")[0]) for file in (workdir / "mined").glob("[0-9]*.jsonl"))


def test_it_is_mined_at_the_start_and_every_so_many_steps_with_the_model_as_it_is(finished):
    _, workdir = finished
    assert mined_steps(workdir) == [0, 4, 8]
    first, second, third = (read(next(workdir.glob(f"mined/{step}-*"))) for step in (0, 4, 8))
    assert first != second != third, "the model has changed, and what it finds hard with it"
    assert all(record["anchor"] != record["negative_1"] != record["positive"] for record in third)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "mined_again"), [(6, [8]), (9, []), pytest.param(3, [4, 8], marks=pytest.mark.slow)]
)
def test_a_resumed_run_reads_what_was_mined_and_ends_with_the_same_bits(
    retrieval, experiment, finished, tmp_path, monkeypatch, saved, mined_again
):
    """The run is interrupted after a checkpoint, before the next mining."""
    result, workdir = finished
    there = tmp_path / "run"
    shutil.copytree(workdir, there)
    shutil.rmtree(there / "model")
    for step in (3, 6, 9, 10):
        if step > saved:
            shutil.rmtree(there / "checkpoints" / str(step))
    for step in mined_again:
        next(there.glob(f"mined/{step}-*")).unlink()
    steps, mine = [], mining.mine_negatives
    monkeypatch.setattr(
        mining, "mine_negatives", lambda *a, **k: steps.append(len(steps)) or mine(*a, **k)
    )
    resumed = retrieval.run(experiment(), there)
    assert len(steps) == len(mined_again)
    for file in workdir.glob("mined/*"):
        assert (there / "mined" / file.name).read_bytes() == file.read_bytes()
    for ours, reference in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(result.state), strict=True
    ):
        assert np.asarray(ours).tobytes() == np.asarray(reference).tobytes()


@pytest.mark.slow
def test_a_resumed_run_does_not_mine_with_a_later_model_what_an_earlier_one_had_found(
    retrieval, experiment, finished, tmp_path
):
    there = tmp_path / "run"
    shutil.copytree(finished[1], there)
    shutil.rmtree(there / "model")
    for step in (9, 10):
        shutil.rmtree(there / "checkpoints" / str(step))
    next(there.glob("mined/4-*")).unlink()  # and the checkpoint is of step 6
    with pytest.raises(InputError, match="lacks what the model of step 4 mined"):
        retrieval.run(experiment(), there)


def test_where_what_was_mined_is_looked_for_depends_on_settings_that_are_not_default(
    experiment, monkeypatch
):
    def digest(data=("a",), **fields):
        return settings_digest(experiment(**fields), data)

    assert digest(train__log_every=3, train__steps=99) == digest(), "these may change"
    assert len({digest(), digest(train__seed=3), digest(data=("b",))}) == 3
    before = digest()
    monkeypatch.setattr(
        workdir, "flatten", lambda config: flatten(config) | {"batch.of_a_later_version": 0}
    )
    assert digest() == before, "the file of a version with fewer fields is found"


@pytest.mark.unchecked
def test_losses_of_scores_get_lists_and_held_out_pairs_have_none(
    retrieval, experiment, tmp_path, monkeypatch, capsys
):
    run_arguments = {}
    monkeypatch.setattr(
        loop, "run", lambda config, workdir, **arguments: run_arguments.update(arguments)
    )
    config = experiment(
        loss__name="kl", mine__strategy="dense", data__holdout=0.2, batch__size=4, train__steps=2
    )
    sources, validation, _ = retrieval.read_data(config, tmp_path)
    assert (
        not validation
        and "no validation loss: nothing scores the held-out pairs" in capsys.readouterr().out
    )
    fit(config, tmp_path, sources=sources, evaluators={}, validation=validation)
    records = read(next((tmp_path / "mined").iterdir()))
    for _, batch in run_arguments["batches"](0, run_arguments["state"]):
        assert batch.score[0].tolist() == [
            pytest.approx(records[number]["scores"]) for number in batch.record[0]
        ]


def test_held_out_pairs_may_have_names_of_their_own(retrieval, experiment, data, tmp_path):
    for split in ("train", "dev"):
        rows = [
            {"query": row["anchor"], "positive": row["positive"]}
            for row in read(data / "pairs.jsonl")
        ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = experiment(data__train=str(tmp_path), data__validation_split="dev")
    validation = retrieval.read_data(config, tmp_path)[1]
    assert [set(row) for row in validation] == [{"anchor", "positive"}] * 24


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mine__score_max": -0.99, "mine__strategy": "dense"},
            "none of 24 pairs has a negative: all",
        ),
        (
            {"data__train": "stream:{}/pairs.jsonl"},
            "config.mine.strategy: negatives are found for all pairs together",
        ),
        (
            {"data__train": "stream:{}/pairs.jsonl", "data__holdout": 0.1},
            "config.data.holdout: not for a stream",
        ),
        ({"mine__corpus": "{}/gone.jsonl"}, "gone.jsonl: no such file"),
        ({"mine__corpus": "{}/pairs.jsonl"}, "pairs.jsonl: expected records with a text"),
        ({"mine__cross_encoder": "{}/gone"}, "gone"),
        ({"mine__corpus": "{}/blank.jsonl"}, "blank.jsonl: no record is left, 2 of 2 records"),
        ({"mine__corpus": "{}/beir"}, "beir/corpus.jsonl: the document 'd1' is empty"),
    ],
)
def test_what_cannot_be_mined_is_one_line(
    retrieval, experiment, data, tmp_path, capsys, fields, message
):
    (data / "blank.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
    (data / "beir").mkdir(exist_ok=True)
    (data / "beir" / "corpus.jsonl").write_text(
        '{"_id": "d0", "text": "x"}\n{"_id": "d1", "text": " "}\n'
    )
    fields = {
        name: value.format(data) if isinstance(value, str) else value
        for name, value in fields.items()
    }
    with pytest.raises(SystemExit) as exit:
        exit_with_one_line(lambda: retrieval.run(experiment(**fields), tmp_path / "run"))
    err = capsys.readouterr().err
    assert exit.value.code == 2 and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()
