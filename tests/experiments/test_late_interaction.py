"""The late-interaction experiment as a whole: from pairs to a model, its reports and its run."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import embed_jax
from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.errors import InputError
from embed_jax.late_interaction import LateInteractionEncoder
from embed_jax.losses import info_nce
from embed_jax.losses.base import bind
from embed_jax.train.late_model import initial_late_interaction, late_loss, late_objective
from embed_jax.xtr import xtr

pytest.importorskip("grain")
pytest.importorskip("bm25s")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import late_interaction

    return late_interaction


def settings(model, data, **changes):
    return override(
        Experiment(),
        model__name=str(model),
        data__train=str(data),
        data__max_length=24,
        late__dim=8,
        late__query_length=8,
        late__query_marker="[MASK] ",
        late__document_marker="",
        train__devices=1,
        tracking__wandb="disabled",
        tracking__experiment="late_interaction",
        **changes,
    )


def test_from_pairs_to_mined_negatives_to_a_model_and_its_reports(
    experiment, tiny_model, word_pairs, tmp_path, capsys
):
    data, workdir = word_pairs, tmp_path / "run"
    config = settings(
        tiny_model,
        data,
        data__holdout=0.2,
        mine__strategy="bm25",
        mine__retriever=str(tiny_model),
        mine__number=2,
        mine__rank_max=20,
        batch__size=8,
        batch__groups=2,
        train__steps=2,
        eval__every=1,
        eval__depth=5,
        eval__metric="reranking/ndcg@10",
        checkpoint__every=1,
    )
    result = experiment.run(config, workdir)
    assert result.finished
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    for name in ("loss", "validation/loss", "reranking/ndcg@10"):
        values = [entry[name] for entry in logged if name in entry]
        assert values and np.isfinite(values).all(), name
    assert "exact search" in capsys.readouterr().out
    search = json.loads((workdir / "search.json").read_text())
    assert 0 < search["ndcg@10"][0] <= search["recall@100"][0] == 1
    assert json.loads((workdir / "reranking.json").read_text())["depth"] == 5

    # The model that was written, and that of a checkpoint.
    for step in (0, 2):
        model = embed_jax.load(workdir, step)
        assert isinstance(model, LateInteractionEncoder)
        assert [len(vectors) for vectors in model.encode_query(["cat", "cat dog"])] == [8, 8]
        ranking = model.rank("cat dog", ["red city", "dog cat house"])
        assert {entry["corpus_id"] for entry in ranking} == {0, 1}
    # A late-interaction model goes on with its head.
    again = initial_late_interaction(settings(workdir / "model", data, late__head="residual"))
    assert again.spec.heads == model.spec.heads


def test_xtr_trains_with_the_configs_top_k_and_leaves_a_model_of_maxsim(tiny_model):
    config = settings(tiny_model, "x", loss__similarity="xtr", late__top_k=3)
    rng = np.random.default_rng(0)
    columns = [
        {"tokens": rng.normal(size=(4, 3, 8)).astype(np.float32), "mask": np.ones((4, 3), bool)}
        for _ in range(2)
    ]
    losses = [late_loss(config)]
    losses += [bind(info_nce, similarity=xtr(top_k), temperature=1.0) for top_k in (3, 4)]
    values, same, other = jax.jit(lambda: [loss(*columns) for loss in losses])()
    np.testing.assert_allclose(values, same, rtol=1e-5)
    assert not np.allclose(values, other, rtol=1e-5)
    assert initial_late_interaction(config).result.similarity_fn_name == "maxsim"


def test_what_is_refused_names_the_field(tiny_model):
    with pytest.raises(InputError, match="config.late.query_marker: expected a token .* '.Q. '"):
        initial_late_interaction(override(settings(tiny_model, "x"), late__query_marker="[Q] "))
    with pytest.raises(InputError, match="config.model.pooling: not for late interaction"):
        initial_late_interaction(override(settings(tiny_model, "x"), model__pooling="cls"))
    model = initial_late_interaction(settings(tiny_model, "x"))
    for changes, field in (
        ({"loss__mlm": 0.1}, "config.loss.mlm"),
        ({"queue__size": 8}, "config.queue.size"),
        ({"loss__name": "adaptive_layers(info_nce)"}, "config.loss.name"),
    ):
        with pytest.raises(InputError, match=f"{field}: not for late interaction"):
            late_objective(settings(tiny_model, "x", **changes), model)
