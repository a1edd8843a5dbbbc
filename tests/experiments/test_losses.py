"""Losses from the command line, by name and arguments, with the data that they need.

Wrong use ends in one line.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from embed_jax.errors import exit_with_one_line

ROOT = Path(__file__).parents[2]
ROWS = [(f"query {n}", f"passage {n} about {'abcdefgh'[n % 8]}") for n in range(24)]
RECORDS = {
    "pairs": [{"anchor": a, "positive": p, "group": str(n // 2)} for n, (a, p) in enumerate(ROWS)],
    "triplets": [{"anchor": a, "positive": p, "negative": f"no {a}"} for a, p in ROWS],
    "scored": [{"sentence1": a, "sentence2": p, "score": n / 24} for n, (a, p) in enumerate(ROWS)],
    "labelled": [{"sentence1": a, "sentence2": p, "label": n % 2} for n, (a, p) in enumerate(ROWS)],
    "nli": [
        {"premise": a, "hypothesis": p, "label": ("entailment", "neutral", "contradiction")[n % 3]}
        for n, (a, p) in enumerate(ROWS)
    ],
    "lists": [
        {"query": a, "passages": [p, "no", "nor this"], "scores": [3.0, 1, 0.5]} for a, p in ROWS
    ],
}


@pytest.fixture
def train(tmp_path, tiny_model, monkeypatch, capsys):
    """`train("pairs", "info_nce", *overrides) -> (status, stderr, metrics)` for two steps.

    The metrics are the lines of metrics.jsonl.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import retrieval

    def run(data, loss, *overrides):
        path, workdir = tmp_path / f"{data}.jsonl", tmp_path / "run"
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS[data]))
        fields = {
            "model.name": tiny_model,
            "data.train": path,
            "data.holdout": 0,
            "data.max_length": 16,
            "batch.size": 8,
            "loss.name": loss,
            "loss.symmetric": False,
            "train.steps": 2,
            "train.devices": 2,
            "eval.every": 0,
            "eval.metric": "",
            "eval.patience": 0,
            "tracking.wandb": "disabled",
        }
        line = [f"--config.{name}={value}" for name, value in fields.items()]
        line += [f"--workdir={workdir}", "--config=configs/retrieval/own_data.py:small", *overrides]
        monkeypatch.setattr(sys, "argv", ["experiments/retrieval.py", *line])
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(retrieval.main)
        metrics = workdir / "metrics.jsonl"
        lines = (
            [json.loads(text) for text in metrics.read_text().splitlines()]
            if metrics.exists()
            else []
        )
        return exit.value.code, capsys.readouterr().err, lines

    return run


@pytest.mark.parametrize(
    "data,loss",
    [
        pytest.param("scored", "cosent(scale=10) + 0.1 * uniformity()", marks=pytest.mark.slow),
        pytest.param("nli", "softmax(concatenation='u,v,|u-v|,u*v')", marks=pytest.mark.slow),
        ("lists", "kl"),
        pytest.param(
            "triplets", "symmetric(info_nce(learn_temperature=True))", marks=pytest.mark.slow
        ),
    ],
)
def test_losses_train_on_the_data_they_need(train, data, loss):
    pytest.importorskip("matplotlib")
    status, err, lines = train(data, loss)
    assert status == 0, err
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)


@pytest.mark.slow
def test_a_guide_of_another_tokenizer(train, tmp_path, tiny_tokenizer):
    """The guide's vocabulary has another order, so its token ids differ."""
    import jax
    from transformers import BertTokenizerFast

    from embed_jax.data.tokenizer_files import load_tokenizer
    from embed_jax.encoders.build import build_encoder
    from embed_jax.encoders.spec import random_spec
    from embed_jax.encoders.write import write_model

    pytest.importorskip("matplotlib")
    first, *words = (tiny_tokenizer / "vocab.txt").read_text().split()
    (tmp_path / "vocab.txt").write_text("\n".join([first, *reversed(words)]) + "\n")
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "other")
    tokenizer = load_tokenizer(tmp_path / "other", 24)
    spec = random_spec("tiny", vocab_size=tokenizer.vocab_size)
    params = build_encoder(spec).init(jax.random.key(7))
    write_model(tmp_path / "guide", spec, params, tokenizer=tokenizer, max_length=24)
    status, err, lines = train(
        "pairs", "gist(mask_margin=0.05)", f"--config.model.guide={tmp_path / 'guide'}"
    )
    assert status == 0, err
    assert len(lines) == 2 and np.isfinite(lines[-1]["loss"])


@pytest.mark.parametrize(
    "data,loss,message",
    [
        (
            "labelled",
            "cosent",
            "'cosent' needs records with a score, found the fields sentence1, sentence2, label",
        ),
        (
            "scored",
            "softmax",
            "'softmax' needs records with a label, found the fields sentence1, sentence2, score",
        ),
        ("pairs", "triplet", "'triplet' needs 3 or more texts a record, found 2"),
        ("triplets", "cosent", "needs records with a score"),
        ("pairs", "gist", "mask_by='guide' needs config.model.guide, a guide model; found none"),
        (
            "pairs",
            "embedding_mse",
            "config.model.teacher: the loss 'embedding_mse' needs a teacher model",
        ),
        ("pairs", "per_dataset(a=info_nce())", "needs a mixture of data sets"),
        ("pairs", "infonce", "unknown loss 'infonce' (did you mean 'info_nce'?)"),
        ("pairs", "info_nce(temprature=1.0)", "did you mean 'temperature'?"),
        ("pairs", "info_nce(temperature=0.0)", "temperature: expected more than 0, found 0.0"),
        ("pairs", "info_nce(", "config.loss.name: 'info_nce('"),
        ("nli", "softmax(num_labels=2)", "label 2"),
    ],
)
def test_wrong_use_is_told_in_one_line(train, data, loss, message):
    status, err, _ = train(data, loss)
    assert status == 2 and err.count("\n") == 1 and message in err, err


@pytest.mark.parametrize(
    "override,message",
    [
        (
            "--config.loss.temperature=0",
            "config.loss.temperature: expected more than 0, or unset (the loss's own), found",
        ),
        ("--config.batch.size=1", "config.batch.size: expected at least 2, found 1"),
        (
            "--config.batch.groups=3",
            "config.batch.groups: expected a multiple of the 2 devices, found 3",
        ),
        (
            "--config.batch.shares=3",
            "config.batch.shares: expected a multiple of the 1 hosts that divides the 2 groups",
        ),
        ("--config.train.fsdp=4", "expected a divisor of the 2 devices, found 4 * 1"),
        (
            "--config.loss.form=sparse",
            "config.loss.form: expected one of 'auto', 'dense', 'tiled', 'ring', found 'sparse'",
        ),
    ],
)
def test_wrong_fields_are_told_in_one_line(train, override, message):
    status, err, _ = train("pairs", "info_nce", override)
    assert status == 2 and err.count("\n") == 1 and message in err, err
