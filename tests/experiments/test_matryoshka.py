"""Matryoshka end to end: compared with its baseline at each size and depth, and saved."""

import json
import sys

import numpy as np
import pytest

from embed_jax.errors import exit_with_one_line
from embed_jax.evals.by_size import (
    by_size_metrics,
    read_by_size,
    spearman_by_size,
    write_by_size,
)
from embed_jax.evals.sts import sts_evaluator
from embed_jax.sentence import load_sentence_encoder
from experiments import matryoshka

pytest.importorskip("grain")
CONFIG = """
from embed_jax.config import Experiment


def get_config(cut=""):
    config = Experiment()
    config.model.name = "{model}"
    config.data.train = "{data}/pairs.jsonl"
    config.data.max_length = 24
    config.batch.size = 8
    config.batch.rows = 8
    config.loss.name = "adaptive_layers(matryoshka(info_nce(), dims='32,16,8'))"
    config.optim.learning_rate = 1e-3
    config.train.steps = 3
    config.train.devices = 1
    config.train.log_every = 1
    config.eval.test_sts = "{data}/sts.tsv"
    config.eval.dims = "8,12,16,32"
    config.eval.layers = "1,2"
    config.eval.baseline = "info_nce"
    config.tracking.wandb = "disabled"
    return config
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences, tiny_model):
    directory = tmp_path_factory.mktemp("matryoshka")
    pairs = [{"anchor": sentences[n], "positive": sentences[n + 1]} for n in range(0, 60, 2)]
    (directory / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    rows = [f"{n % 6}\t{sentences[n]}\t{sentences[n + 1 + n % 3]}" for n in range(80, 110)]
    (directory / "sts.tsv").write_text("\n".join(["score\tsentence1\tsentence2", *rows]) + "\n")
    (directory / "config.py").write_text(CONFIG.format(data=directory, model=tiny_model))
    return directory


@pytest.fixture
def run(data, monkeypatch, capsys):
    """The experiment's command in this process: `(workdir, overrides ...) -> (status, output)`."""

    def run(workdir, *overrides):
        line = ["x", f"--config={data / 'config.py'}", f"--workdir={workdir}"]
        monkeypatch.setattr(
            sys, "argv", [*line, *(f"--config.{override}" for override in overrides)]
        )
        with pytest.raises(SystemExit) as end:
            exit_with_one_line(matryoshka.main)
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out + printed.err

    return run


@pytest.mark.slow
def test_it_measures_each_size_and_depth_beside_the_baseline(run, data, tmp_path, sentences):
    status, output = run(tmp_path / "run")
    assert status == 0, output
    content = json.loads((tmp_path / "run" / "by_size.json").read_text())
    assert content["trained"] == [8, 16, 32]
    scores = content["layers -> size -> score"]
    assert set(scores) == {"trained", "baseline", "before"}
    for of in scores.values():
        assert {layers: list(by_size) for layers, by_size in of.items()} == dict.fromkeys(
            "21", ["32", "16", "12", "8"]
        )
    model = load_sentence_encoder(str(tmp_path / "run" / "model"))
    assert model.matryoshka_dims == (8, 16, 32) and model.adaptive_layers
    plain = load_sentence_encoder(str(tmp_path / "run" / "baseline" / "model"))
    assert plain.matryoshka_dims == () and not plain.adaptive_layers
    rows = [line.split("\t") for line in (data / "sts.tsv").read_text().splitlines()[1:]]
    gold, first, second = zip(*rows, strict=True)
    by_hand = sts_evaluator(first, second, [float(score) for score in gold])
    result = by_hand(lambda texts: model.encode(list(texts), dim=16, layers=1))["spearman"]
    assert scores["trained"]["1"]["16"] == pytest.approx(result, abs=1e-6)
    assert "12" in output and "(size not trained)" in output
    assert (tmp_path / "run" / "by_size.png").stat().st_size > 10_000
    losses = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert all(
        {"loss/last", "loss/prior", "loss/kl", "loss/8", "loss/32"} <= line.keys()
        for line in losses[:3]
    )


def test_texts_are_encoded_once_for_all_sizes(tiny_model, sentences):
    model = load_sentence_encoder(str(tiny_model))
    counts, encode = [], model.encode
    model.encode = lambda texts, **options: (counts.append(len(texts)), encode(texts, **options))[1]
    test = sts_evaluator(sentences[:20], sentences[20:40], list(np.arange(20.0)))
    result = spearman_by_size(model.encode, {"a": test}, [32, 8], [2])
    assert counts == [40] and result[2].keys() == {32, 8}
    assert result[2][32] == pytest.approx(test(encode)["spearman"])


@pytest.mark.parametrize(
    "override,message",
    [
        (
            "loss.name=matryoshka(info_nce(), dims='64,8')",
            "dims: expected sizes from 1 to 32, the size",
        ),
        ("eval.dims=64", "config.eval.dims: expected different numbers from 1 to 32, found '64'"),
        ("eval.dims=8,8", "config.eval.dims: expected different numbers from 1 to 32, found '8,8'"),
        (
            "eval.layers=0,1",
            "config.eval.layers: expected different numbers from 1 to 2, found '0,1'",
        ),
        ("eval.baseline=info", "unknown loss 'info'"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(run, tmp_path, override, message):
    status, output = run(tmp_path / "run", override)
    assert status == 2 and message in output and "Traceback" not in output
    assert not (tmp_path / "run" / "model").exists()


def test_a_loss_without_sizes_needs_some_to_measure(run, tmp_path):
    status, output = run(tmp_path / "run", "loss.name=info_nce", "eval.dims=", "eval.layers=")
    assert status == 2 and "or sizes to measure in config.eval.dims, found info_nce" in output


def test_scores_by_size_are_read_back_with_their_shares_of_the_whole(tmp_path):
    scores = {2: {8: 0.5, 4: 0.4}, 1: {8: 0.25, 4: float("nan")}}
    write_by_size({"trained": scores}, [8], tmp_path / "by_size.json")
    result = read_by_size(tmp_path / "by_size.json")["trained"]
    assert result[2] == scores[2] and np.isnan(result[1][4])
    metrics = by_size_metrics(result)
    assert (metrics["by_size/2/4"], metrics["kept/2/4"], metrics["kept/1/8"]) == (0.4, 0.8, 0.5)
