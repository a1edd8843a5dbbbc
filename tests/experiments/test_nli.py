"""Supervised sentence embeddings.

One file as pairs and as triplets, several stages, comparison with the start.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.nli import nli_triplets
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.evals.sts import sts_evaluator
from embed_jax.sentence import load_sentence_encoder

pytest.importorskip("grain")
ROOT = Path(__file__).parents[2]
LABELS = ("entailment", "neutral", "contradiction")
CONFIG = """
from embed_jax.config import Experiment


def get_config(cut=""):
    config, stage = Experiment(), Experiment()
    config.model.name = "{model}"
    config.data.train = "{data}/nli.jsonl"
    config.loss.name = "softmax"
    config.stages.sts = stage
    stage.model.name = ""
    stage.data.train = "{data}/sts/train.tsv"
    stage.data.score_max = 5.0
    stage.loss.name = "cosine_mse"
    for part in (config, stage):
        part.data.max_length = 24
        part.batch.size = 8
        part.batch.rows = 6
        part.optim.learning_rate = 1e-3
        part.train.steps = 4
        part.train.devices = 1
        part.train.log_every = 1
        part.eval.sts = "{data}/sts/dev.tsv"
        part.eval.test_sts = "{data}/sts, {data}/sick/test.tsv"
        part.eval.every = 2
        part.checkpoint.every = 2
        part.checkpoint.keep = 9
        part.tracking.wandb = "disabled"
    return config
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences, tiny_model):
    """Premises with a hypothesis of each label; graded pairs; the config of two stages."""
    directory = tmp_path_factory.mktemp("nli")
    records = [
        {"premise": sentences[n], "hypothesis": f"{label} {sentences[n + 1]}", "label": label}
        for n in range(12)
        for label in LABELS
    ]
    write(directory / "nli.jsonl", records)
    for name, start in (("sts/train", 40), ("sts/dev", 80), ("sts/test", 120), ("sick/test", 150)):
        (directory / name).parent.mkdir(exist_ok=True)
        rows = [
            f"{n % 6}\t{sentences[n]}\t{sentences[n + 1 + n % 3]}" for n in range(start, start + 20)
        ]
        (directory / f"{name}.tsv").write_text(
            "\n".join(["score\tsentence1\tsentence2", *rows]) + "\n"
        )
    (directory / "stages.py").write_text(CONFIG.format(data=directory, model=tiny_model))
    return directory


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def nli(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import nli

    return nli


@pytest.fixture
def config(data):
    """`config(**fields)`: a config that trains on the pairs; "__" in a field is a dot."""
    return lambda **fields: override(
        Experiment(), **{"data__train": str(data / "nli.jsonl")} | fields
    )


def numbered(records):
    """The records with their labels as numbers."""
    names = ("entailment", "neutral", "contradiction")
    return [record | {"label": names.index(record["label"])} for record in records]


def only(sources):
    ((name, source),) = sources.items()
    return source


def test_a_loss_of_labels_gets_pairs_and_one_without_gets_triplets(nli, config, data):
    records = read(data / "nli.jsonl")
    pairs = only(nli.read_data(config(loss__name="softmax"))[0])
    assert pairs.records == numbered(records)
    assert [pairs.fields.label(record) for record in records] == [n % 3 for n in range(36)]
    assert pairs.fields.columns(records[0]) == (records[0]["premise"], records[0]["hypothesis"])

    triplets = only(nli.read_data(config())[0])
    assert triplets.records == nli_triplets(records, 0)[0] and len(triplets.records) == 12
    for record in triplets.records:
        anchor, positive, negative = triplets.fields.columns(record)
        assert (positive.split()[0], negative.split()[0]) == ("entailment", "contradiction")
        assert {anchor} == {
            result["premise"] for result in records if result["hypothesis"] in (positive, negative)
        }
    assert triplets.fields.label is None
    assert only(nli.read_data(config(train__seed=1))[0]).records != triplets.records


def test_a_mixture_takes_the_same_file_as_pairs_and_as_triplets(nli, config, data):
    from embed_jax.config import Source

    both = config()
    both.mixture.sources.labels = Source(str(data / "nli.jsonl"), loss="softmax")
    both.mixture.sources.triplets = Source(str(data / "nli.jsonl"), loss="info_nce")
    sources, _ = nli.read_data(both)
    assert {name: len(source.records) for name, source in sources.items()} == {
        "labels": 36,
        "triplets": 12,
    }


def test_held_out_pairs_are_what_the_loss_wants_too(nli, config, data, tmp_path):
    for split, records in (
        ("train", read(data / "nli.jsonl")),
        ("dev", read(data / "nli.jsonl")[:6]),
    ):
        write(tmp_path / f"{split}.jsonl", records)
    fields = {"data__train": str(tmp_path), "data__validation_split": "dev"}
    assert len(nli.read_data(config(**fields))[1]) == 2
    assert nli.read_data(config(**fields, loss__name="softmax"))[1] == numbered(
        read(tmp_path / "dev.jsonl")
    )


def test_pairs_without_a_gold_label_make_no_triplets(nli, config, data, tmp_path):
    records = read(data / "nli.jsonl")
    for n, record in enumerate(records[:6]):
        record["label"] = ("-", "-1", -1)[n % 3]
    train = str(write(tmp_path / "snli.jsonl", records))
    with pytest.warns(UserWarning, match="6 of 36 records are left out: 6 with no gold label"):
        triplets = only(nli.read_data(config(data__train=train))[0])
    assert len(triplets.records) == 10


def test_excluded_texts_drop_their_records(nli, config, data, tmp_path, capsys):
    """Texts are compared without case and outer white space; a label is not a text."""
    records = read(data / "nli.jsonl")
    known = [
        {"sentence1": f" {records[0]['premise'].upper()} ", "sentence2": "entailment", "score": 1.0}
    ]
    excluded = write(tmp_path / "more.jsonl", [{"text": records[10]["hypothesis"]}])
    files = f"{write(tmp_path / 'test.jsonl', known)}, {excluded}"
    records_left = only(nli.read_data(config(loss__name="softmax", data__exclude=files))[0]).records
    assert records_left == numbered(
        [record for n, record in enumerate(records) if n not in (0, 1, 2, 10)]
    )
    assert f"train: 4 of 36 records left out for a text of {files}" in capsys.readouterr().out
    with pytest.raises(InputError, match="exclude: all 36 records have a text of"):
        nli.read_data(config(data__exclude=str(data / "nli.jsonl")))
    with pytest.raises(InputError, match="gone.tsv: no such file"):
        nli.read_data(config(data__exclude=str(tmp_path / "gone.tsv")))


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (
            {"label": "maybe"},
            {"loss__name": "softmax"},
            r"bad.jsonl:36: label: expected an integer or one of",
        ),
        ({"label": "maybe"}, {}, r"bad.jsonl:36: label: expected an integer or one of entailment"),
        ({"label": 7}, {}, r"record 35: label: expected one of entailment \(0\), .*found 7"),
        ({"label": None}, {}, r"bad.jsonl:36: no label, which others have"),
        ({"hypothesis": 3}, {}, r"bad.jsonl:36: field 'hypothesis' must be a string, found int"),
    ],
)
def test_a_bad_line_is_named(nli, config, data, tmp_path, change, fields, message):
    records = read(data / "nli.jsonl")
    records[-1] |= change
    with pytest.raises(InputError, match=message):
        nli.read_data(config(data__train=str(write(tmp_path / "bad.jsonl", records)), **fields))


def test_pairs_that_make_no_triplet(nli, config, data, tmp_path):
    neutral = write(
        tmp_path / "n.jsonl",
        [record for record in read(data / "nli.jsonl") if record["label"] == "neutral"],
    )
    with pytest.raises(
        InputError, match="no premise has both an entailed and a contradicted hypothesis"
    ):
        nli.read_data(config(data__train=str(neutral)))
    with pytest.raises(InputError, match="triplets need all records together, found a stream"):
        nli.read_data(config(data__train=f"stream:{data}/nli.jsonl"))


# ---- stages --------------------------------------------------------------------------------------


@pytest.fixture
def command(nli, data, tmp_path_factory, monkeypatch, capsys):
    """`command(workdir, *overrides) -> (status, stdout, stderr)` of a config of two stages."""
    monkeypatch.chdir(ROOT)

    def run(workdir, *overrides):
        arguments = [f"--config={data}/stages.py", f"--workdir={workdir}", *overrides]
        monkeypatch.setattr(sys, "argv", ["experiments/nli.py", *arguments])
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(nli.main)
        return exit.value.code, *capsys.readouterr()

    return run


def evaluations(workdir):
    return {
        line["step"]: line["sts/spearman"]
        for line in read(workdir / "metrics.jsonl")
        if "sts/spearman" in line
    }


@pytest.mark.slow
def test_stages_results_and_going_on(command, data, tmp_path):
    first, second = tmp_path / "run", tmp_path / "run" / "sts"
    status, out, err = command(first)
    assert status == 0, err
    assert f"stage sts: from {first}/model" in out

    # The second stage begins where the first one ended.
    assert set(evaluations(first)) == set(evaluations(second)) == {0, 2, 4}
    assert evaluations(second)[0] == evaluations(first)[4] != evaluations(first)[0]

    # Test data, before against after, in each stage.
    models = {
        "before": load_sentence_encoder(str(first / "model")),
        "after": load_sentence_encoder(str(second / "model")),
    }
    metrics = json.loads((second / "results.json").read_text())["metrics"]
    assert len(metrics) == 6
    for when, model in models.items():
        for name, file in (("sts", "sts/test.tsv"), ("sick", "sick/test.tsv")):
            rows = [line.split("\t") for line in (data / file).read_text().splitlines()[1:]]
            scores, *texts = zip(*rows, strict=True)
            expected = sts_evaluator(*texts, list(map(float, scores)))(model.encode)["spearman"]
            assert metrics[f"{when}/{name}"] == pytest.approx(expected, abs=1e-6)
        both = [metrics[f"{when}/{name}"] for name in ("sts", "sick")]
        assert metrics[f"{when}/average"] == pytest.approx(np.mean(both))
    of_first = json.loads((first / "results.json").read_text())["metrics"]
    assert of_first["after/sts"] == pytest.approx(metrics["before/sts"], abs=1e-6)

    # As it was when the second stage had taken two of its steps: the same command takes the others.
    half = tmp_path / "half"
    shutil.copytree(first, half)
    for name in ("checkpoints/4", "model"):
        shutil.rmtree(half / "sts" / name)
    for directory in (half, half / "sts"):  # which knew the first one as its start
        settings = (directory / "config.json").read_text()
        (directory / "config.json").write_text(settings.replace(str(first), str(half)))
    before = (half / "metrics.jsonl").read_bytes()
    status, out, err = command(half)
    assert status == 0, err
    assert f"resuming {half} at step 4/4" in out and f"resuming {half}/sts at step 2/4" in out
    assert (half / "metrics.jsonl").read_bytes() == before
    ours, reference = (
        load_file(path / "sts" / "model" / "model.safetensors") for path in (half, first)
    )
    assert all(ours[name].tobytes() == reference[name].tobytes() for name in reference)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "--config.stages.sts.loss.name=softmax",
            "config.loss.name: 'softmax' needs records with a label",
        ),
        (
            "--config.stages.sts.optim.schedule=flat",
            "config.stages.sts.optim.schedule: expected one of 'linear'",
        ),
        ("--config.stages.sst.train.steps=1", "unknown config field 'stages.sst.train.steps'"),
        ("--config.eval.test_sts=gone.tsv", "gone.tsv: no such file"),
        (
            "--config.eval.test_sts={0}/sts,{0}/sts/test.tsv",
            "test.tsv is the second one called 'sts'",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    command, data, tmp_path, override, message
):
    steps = (
        [] if "loss.name" not in override else ["--config.train.steps=1", "--config.eval.test_sts="]
    )
    status, _, err = command(tmp_path / "run", *steps, override.format(data))
    assert status == 2 and message in err and err.count("\n") == 1, err
    assert bool(steps) == (tmp_path / "run" / "model").exists()
