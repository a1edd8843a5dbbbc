"""Sparse models in training: learning, saving, checkpoints, queries by a table, refusals."""

import copy
import json

import numpy as np
import pytest

import embed_jax
from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.errors import InputError
from embed_jax.routed import RoutedEncoder
from embed_jax.sparse import SparseEncoder, idf_weights, sparse_statistics
from embed_jax.train.assembly import assemble
from embed_jax.train.fit import fit
from embed_jax.train.model import initial_model

WORDS = "cat dog house river music guitar red blue city train".split()
TEXTS = ["cat dog", "red city train", "music"]


def pairs(count=64):
    rng = np.random.default_rng(0)
    rows = [rng.choice(WORDS, size=3) for _ in range(count)]
    return [{"anchor": " ".join(row), "positive": " ".join(row[::-1])} for row in rows]


@pytest.fixture(scope="module")
def sources():
    records = pairs()
    return {"only": RecordSource(records, record_fields(records))}


@pytest.fixture(scope="module")
def config(tiny_tokenizer):
    return override(
        Experiment(),
        model__name="random:tiny",
        model__tokenizer=str(tiny_tokenizer),
        model__sparse="max",
        model__dropout=0.0,
        loss__name="info_nce + 0.1 * flops(side='query') + 0.1 * flops(side='document')",
        loss__similarity="dot",
        loss__temperature=1.0,
        data__max_length=32,
        batch__size=16,
        batch__groups=2,
        train__steps=30,
        train__devices=1,
        optim__learning_rate=3e-3,
        checkpoint__every=15,
        checkpoint__keep=5,
        tracking__wandb="disabled",
    )


def changed(config, **fields):
    return override(copy.deepcopy(config), **fields)


def test_it_learns_becomes_sparse_and_sentence_transformers_reads_it(config, sources, tmp_path):
    assert fit(config, tmp_path, sources=sources, evaluators={}).finished
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["flops/active_document"] < 0.9 * lines[0]["flops/active_document"]
    model = embed_jax.load(tmp_path)
    assert isinstance(model, SparseEncoder) and model.similarity_fn_name == "dot"
    assert (embed_jax.load(tmp_path, 30).encode(TEXTS) != model.encode(TEXTS)).nnz == 0
    assert (embed_jax.load(tmp_path, 15).encode(TEXTS) != model.encode(TEXTS)).nnz > 0
    peers = pytest.importorskip("sentence_transformers")
    other = peers.SparseEncoder(str(tmp_path / "model"), device="cpu")
    np.testing.assert_allclose(
        model.encode(TEXTS).toarray(), other.encode(TEXTS).to_dense().numpy(), atol=1e-5
    )
    again = initial_model(changed(config, model__name=str(tmp_path / "model"), model__sparse=""))
    assert (again.result.encode(TEXTS) != model.encode(TEXTS)).nnz == 0


def test_queries_by_a_table_are_trained_from_document_frequencies(config, sources, tmp_path):
    config = changed(
        config, model__query="token_weights", loss__name="info_nce + 0.1 * flops", train__steps=4
    )
    model = initial_model(config)
    texts = [record["positive"] for record in pairs()]
    table = idf_weights(model.tokenizers["query"], texts)
    cat = model.tokenizers["query"].encode(["cat"]).ids[0][0]
    count = sum("cat" in text.split() for text in texts)
    assert table[cat, 0] == pytest.approx(np.log1p((64 - count + 0.5) / (count + 0.5)), rel=1e-5)
    model.params["query"]["backbone"]["token"] = table
    assert fit(config, tmp_path, sources=sources, evaluators={}, model=model).finished
    trained = embed_jax.load(tmp_path)
    assert isinstance(trained, RoutedEncoder)
    (words,) = trained.encoder("query").decode(trained.encode_query("cat"))
    assert words[0][0] == "cat" and 0 < abs(words[0][1] - table[cat, 0]) < 0.1
    statistics = sparse_statistics(trained.encode_query(TEXTS), trained.encode_document(TEXTS))
    assert statistics.active_queries == 2.0 < statistics.active_documents


def test_too_large_a_factor_makes_empty_embeddings_which_are_counted(config, sources, tmp_path):
    config = changed(config, loss__name="info_nce + 1000.0 * l1(side='both')", train__steps=40)
    config = changed(config, optim__learning_rate=0.03, checkpoint__every=0)
    assert fit(config, tmp_path, sources=sources, evaluators={}).finished
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert lines[-1]["l1/active_both"] == 0.0 and np.isfinite(lines[-1]["loss"])
    with pytest.warns(UserWarning, match="3 of 3 texts have no weight above 0"):
        assert embed_jax.load(tmp_path / "model").encode(TEXTS).nnz == 0


def test_a_model_without_the_head_says_what_it_starts_from(config, tiny_model, capsys):
    model = initial_model(changed(config, model__name=str(tiny_model), model__tokenizer=""))
    assert "has no masked language model's head, a new one is trained" in capsys.readouterr().out
    assert isinstance(model.result, SparseEncoder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss__similarity": ""}, "config.loss.similarity: expected 'dot' for sparse embeddings"),
        (
            {"model__sparse": "", "model__query": "token_weights"},
            "config.model.query: 'token_weights' is for sparse models",
        ),
        ({"model__name": "random:nomic-tiny"}, "config.model.sparse: a .* encoder has no"),
        ({"model__mlp": "kept"}, "config.model.mlp: not for a sparse model"),
        (
            {"loss__name": "matryoshka(info_nce, dims='16,8')"},
            "config.loss.name: .* prefixes of embeddings, which those over a vocabulary",
        ),
    ],
    ids=["cosine", "dense documents", "no head", "mlp", "prefixes"],
)
def test_what_has_no_meaning_is_refused_in_one_line(config, sources, fields, message):
    with pytest.raises(InputError, match=message) as error:
        assemble(changed(config, **fields), sources)
    assert "\n" not in str(error.value)
