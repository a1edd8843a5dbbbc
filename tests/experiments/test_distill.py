"""A student made of some of its teacher's layers: its start, its loss, and bad configs."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from embed_jax.config import Experiment, Source
from embed_jax.config_file import override
from embed_jax.encoders.read import read_model
from embed_jax.encoders.shrink import keep_layers
from embed_jax.errors import exit_with_one_line
from embed_jax.evals.sts import sts_evaluator
from embed_jax.runtime import prepare_jax
from embed_jax.sentence import load_sentence_encoder
from embed_jax.train.model import initial_model, model_before

pytest.importorskip("grain")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences):
    """Sentences, pairs of them, graded pairs."""
    directory = tmp_path_factory.mktemp("distill")
    (directory / "sentences.txt").write_text("\n".join(sentences[:120]) + "\n")
    pairs = [{"anchor": sentences[n], "positive": sentences[n + 1]} for n in range(0, 40, 2)]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (directory / "sts").mkdir()
    rows = [f"{n % 6}\t{sentences[n]}\t{sentences[n + 1 + n % 3]}" for n in range(120, 140)]
    (directory / "sts" / "test.tsv").write_text(
        "\n".join(["score\tsentence1\tsentence2", *rows]) + "\n"
    )
    return directory


@pytest.fixture(scope="module")
def teacher_model(tmp_path_factory, tiny_model):
    """`tiny_model` with weights so large that each layer changes much."""
    model = load_sentence_encoder(str(tiny_model))
    layers = jax.tree.map(
        lambda leaf: 8 * leaf if leaf.ndim == 3 else leaf, model.params["backbone"]["layers"]
    )
    model.params = {**model.params, "backbone": {**model.params["backbone"], "layers": layers}}
    directory = tmp_path_factory.mktemp("teacher") / "model"
    model.save(directory)
    return directory


@pytest.fixture
def distill(monkeypatch, data):
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import distill

    return distill


@pytest.fixture
def config(data, teacher_model):
    """`config(**fields)`: a student with the second of two layers; "__" in a field is a dot."""

    def make(**fields):
        usual = {
            "model__name": str(teacher_model),
            "model__layers": "1",
            "model__teacher": str(teacher_model),
            "model__dropout": 0.0,
            "data__train": str(data / "sentences.txt"),
            "data__max_length": 40,
            "batch__size": 16,
            "batch__rows": 8,
            "loss__name": "embedding_mse",
            "optim__learning_rate": 3e-3,
            "train__steps": 12,
            "train__devices": 1,
            "train__log_every": 1,
            "tracking__wandb": "disabled",
        }
        return override(Experiment(), **usual | fields)

    return make


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_the_student_starts_with_the_layers_named(config, teacher_model, sentences):
    start = initial_model(config())
    saved = read_model(teacher_model)
    spec, params = keep_layers(saved.spec, saved.params, [1])
    assert start.sentence.spec.backbone.num_layers == spec.backbone.num_layers == 1
    jax.tree.map(np.testing.assert_array_equal, start.params, params)
    assert model_before(config(model__layers="")).spec.backbone.num_layers == 2


@pytest.mark.slow
def test_it_becomes_like_its_teacher(
    distill, config, data, teacher_model, sentences, tmp_path, capsys
):
    """The student approaches its teacher, also on texts that it was not trained on.

    The first loss equals the mean computed by numpy.
    """
    settings = config(eval__test_sts=str(data / "sts"))
    prepare_jax(deterministic=settings.train.deterministic)
    result = distill.run(settings, tmp_path / "run")
    assert result.finished

    teacher, student = (
        load_sentence_encoder(str(teacher_model)),
        load_sentence_encoder(str(tmp_path / "run" / "model")),
    )
    untrained = model_before(settings)
    targets = teacher.encode(sentences[160:])
    errors = [
        np.mean((model.encode(sentences[160:]) - targets) ** 2) for model in (untrained, student)
    ]
    assert errors[1] < 0.7 * errors[0]

    first = next(line for line in lines_of(tmp_path / "run") if line["step"] == 1)
    whole = np.mean(
        (untrained.encode(sentences[:120]) - teacher.encode(sentences[:120])) ** 2, axis=1
    )
    assert whole.min() < first["loss"] < whole.max()

    out = capsys.readouterr().out
    assert "before" in out and "after" in out and "teacher" in out
    rows = [line.split("\t") for line in (data / "sts/test.tsv").read_text().splitlines()[1:]]
    scores, *texts = zip(*rows, strict=True)
    expected = sts_evaluator(*texts, list(map(float, scores)))(teacher.encode)["spearman"]
    metrics = json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]
    assert metrics["teacher/sts"] == pytest.approx(expected, abs=1e-6)
    assert len({metrics[f"{name}/sts"] for name in ("before", "after", "teacher")}) == 3


def test_of_pairs_every_text_is_imitated_and_of_a_text_it_alone(distill, config, data, sentences):
    ((_, texts_only),) = distill.read_data(config()).items()
    assert [texts_only.fields.columns(record) for record in texts_only.records] == [
        (text,) for text in sentences[:120]
    ]
    ((_, pairs),) = distill.read_data(config(data__train=str(data / "pairs.jsonl"))).items()
    assert [pairs.fields.columns(record) for record in pairs.records] == [
        (sentences[n], sentences[n + 1]) for n in range(0, 40, 2)
    ]
    settings = config()
    settings.mixture.sources.a = Source(str(data / "sentences.txt"), columns="text")
    settings.mixture.sources.b = Source(str(data / "pairs.jsonl"))
    assert {name: len(source.records) for name, source in distill.read_data(settings).items()} == {
        "a": 120,
        "b": 20,
    }
    left = distill.read_data(config(data__exclude=str(data / "pairs.jsonl")))
    assert [record["text"] for record in left["train"].records] == sentences[40:120]


@pytest.fixture
def refused(distill, config, capsys, tmp_path):
    """`refused(**fields)`: the one line that a run with these fields ends with, status 2."""

    def run(**fields):
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(lambda: distill.run(config(**fields), tmp_path / "run"))
        err = capsys.readouterr().err
        assert exit.value.code == 2 and err.count("\n") == 1, err
        assert not (tmp_path / "run" / "model").exists()
        return err

    return run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model__layers": "0,2"},
            "config.model.layers 0,2: expected numbers from 0 to 1, found 2",
        ),
        (
            {"model__layers": "1,1"},
            "config.model.layers 1,1: expected ascending numbers, each once, found 1 after 1",
        ),
        (
            {"model__layers": "last"},
            "config.model.layers: expected numbers with commas between, such as 0,2,4, found",
        ),
        (
            {"model__teacher": ""},
            "config.model.teacher: the loss 'embedding_mse' needs a teacher model, found ''",
        ),
        (
            {"loss__name": "info_nce"},
            "config.loss.name: 'info_nce' needs 2 or more texts a record, found 1 (text)",
        ),
        ({"eval__test_sts": "gone.tsv"}, "gone.tsv: no such file"),
    ],
)
def test_what_cannot_be_is_one_line(refused, fields, message):
    assert message in refused(**fields)


@pytest.mark.slow
def test_a_student_of_another_size_may_learn_similarities_only(
    refused, distill, config, tiny_tokenizer, tmp_path
):
    """The student has 32 dimensions, its teacher 8."""
    from embed_jax.encoders.shrink import add_pca
    from embed_jax.sentence import SentenceEncoder

    settings = config()
    model = load_sentence_encoder(settings.model.teacher)
    made = np.random.default_rng(0).normal(size=(40, 32))
    spec, params = add_pca(model.spec, jax.device_get(model.params), made, 8)
    SentenceEncoder(spec, params, model.tokenizer).save(tmp_path / "small")
    fields = {"model__teacher": str(tmp_path / "small"), "train__steps": 2}
    err = refused(**fields)
    assert "the teacher of the loss embedding_mse: expected embeddings of size 32, found 8" in err
    assert distill.run(config(**fields, loss__name="relational"), tmp_path / "run").finished
