"""The experiment of several heads as a whole: from pairs to a model, its searches and its run."""

import json
from pathlib import Path

import numpy as np
import pytest

import embed_jax
from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.errors import InputError
from embed_jax.multi_head import MultiHeadEncoder
from embed_jax.train.model import initial_model
from embed_jax.train.multi_head_model import initial_multi_head, multi_head_objective

pytest.importorskip("grain")
pytest.importorskip("bm25s")
ROOT = Path(__file__).parents[2]
SUM = "dense + 0.3 * sparse + multi_vector"


def settings(model, data="x", **changes):
    fields = {
        "model__heads": "sparse, multi_vector",
        "late__dim": 8,
        "data__max_length": 24,
        "loss__name": "self_distillation",
        "loss__temperature": 0.1,
        "train__devices": 1,
        "tracking__wandb": "disabled",
        "tracking__experiment": "multi_head",
    }
    return override(
        Experiment(), model__name=str(model), data__train=str(data), **(fields | changes)
    )


def test_from_pairs_to_a_model_and_its_searches(
    tiny_model, word_pairs, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import multi_head

    data, workdir = word_pairs, tmp_path / "run"
    changes = {"data__holdout": 0.2, "batch__size": 8, "batch__groups": 2, "train__steps": 2}
    changes |= {"eval__every": 1, "eval__metric": "retrieval/ndcg@10", "checkpoint__every": 1}
    assert multi_head.run(settings(tiny_model, data, **changes), workdir).finished
    assert "has no sparse and no multi_vector head, new ones" in capsys.readouterr().out
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    for name in ("loss", "validation/loss", "retrieval/ndcg@10", "loss/sparse", "distill/dense"):
        values = [entry[name] for entry in logged if name in entry]
        assert values and np.isfinite(values).all(), name
    report = json.loads((workdir / "search.json").read_text())
    assert list(report) == ["bm25", "dense", "sparse", "multi_vector", SUM]
    assert all(metrics["recall@100"][0] == 1 for metrics in report.values())

    # The model that was written, and that of a checkpoint; it goes on with its heads.
    models = [embed_jax.load(workdir, step) for step in (0, 2)]
    assert all(isinstance(model, MultiHeadEncoder) for model in models)
    scores = [model.score(["cat dog"], ["the cat and the dog"]) for model in models]
    np.testing.assert_allclose(*scores, rtol=1e-6)
    again = initial_multi_head(settings(workdir / "model", late__dim=16)).result
    np.testing.assert_allclose(
        again.score(["cat"], ["the cat"]), models[0].score(["cat"], ["the cat"])
    )


def test_what_is_refused_names_the_field(tiny_model):
    for changes, message in (
        ({"model__heads": "sparse, colbert"}, "config.model.heads: unknown head 'colbert'"),
        ({"model__heads": "sparse, sparse"}, "config.model.heads: expected each once"),
        ({"model__sparse": "max"}, "config.model.sparse: not for a model of several heads"),
        (
            {"model__heads": "sparse", "loss__similarity": "dense + multi_vector"},
            "config.loss.similarity: unknown head 'multi_vector'",
        ),
        ({"loss__similarity": "cosine"}, "config.loss.similarity: sum of scores: unknown head"),
    ):
        with pytest.raises(InputError, match=message) as error:
            initial_multi_head(settings(tiny_model, **changes))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="config.model.heads: for experiments.multi_head only"):
        initial_model(settings(tiny_model))
    config = settings(tiny_model, queue__size=8)
    with pytest.raises(InputError, match="config.queue.size: not for a model of several heads"):
        multi_head_objective(config, initial_multi_head(config))
