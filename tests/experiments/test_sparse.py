"""The sparse experiment as a whole: from pairs to a model, and what its search costs."""

import json
from pathlib import Path

import numpy as np
import pytest

import embed_jax
from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.routed import RoutedEncoder

pytest.importorskip("grain")
pytest.importorskip("bm25s")
ROOT = Path(__file__).parents[2]


def test_from_pairs_to_a_table_of_queries_and_a_report(
    tiny_model, word_pairs, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import sparse

    data, workdir = word_pairs, tmp_path / "run"
    config = override(
        Experiment(),
        model__name=str(tiny_model),
        model__sparse="max",
        model__start_words=3,
        model__query="token_weights",
        data__train=str(data),
        data__max_length=24,
        data__holdout=0.2,
        loss__name="info_nce + 'quadratic(0, 0.01, 2)' * flops(side='document')",
        loss__similarity="dot",
        loss__temperature=1.0,
        batch__size=8,
        batch__groups=2,
        train__devices=1,
        train__steps=2,
        eval__every=1,
        eval__metric="retrieval/ndcg@10",
        tracking__wandb="disabled",
        tracking__experiment="sparse",
    )
    assert sparse.run(config, workdir).finished
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    for name in ("loss", "validation/loss", "retrieval/ndcg@10", "flops/active_document"):
        values = [entry[name] for entry in logged if name in entry]
        assert values and np.isfinite(values).all(), name
    printed, report = capsys.readouterr().out, json.loads((workdir / "sparse.json").read_text())
    assert "to the head's bias, for 3 weights of a text" in printed
    assert "has no masked language model's head" in printed and "sparse: ndcg@10" in printed
    # The holdout's texts: a query's words stand in its document.
    assert 0.3 < report["bm25"]["ndcg@10"] <= 1 == report["bm25"]["recall@100"]
    costs = report["sparse"]
    assert costs["active_queries"] == 2 and costs["flops"] <= 2 < costs["active_documents"]
    model = embed_jax.load(workdir)
    assert isinstance(model, RoutedEncoder)
    # The table started from the inverse frequencies of words: rarer words weigh more.
    weights = dict(model.encoder("query").decode(model.encode_query("cat the"))[0])
    assert weights["the"] > weights["cat"] > 0
