"""Two towers: queries and documents by their own encoders, trained, saved, resumed, refused."""

import copy
import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import embed_jax
from embed_jax.config import Experiment, Lora, ParamGroup
from embed_jax.config_file import override
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.encoders.towers import two_towers
from embed_jax.errors import InputError
from embed_jax.parallel.mesh import split_groups
from embed_jax.routed import RoutedEncoder
from embed_jax.train.assembly import assemble
from embed_jax.train.fit import fit
from embed_jax.train.model import initial_model
from embed_jax.train.run import load_run


@pytest.fixture(scope="module")
def config(tiny_model, tiny_tokenizer):
    """A static tower for queries, which is projected, and a transformer for documents."""
    return override(
        Experiment(),
        model__name=str(tiny_model),
        model__query="random:static",
        model__tokenizer=str(tiny_tokenizer),
        model__dropout=0.0,
        loss__name="info_nce(terms='qp,pq,qq,pp')",
        data__max_length=40,
        batch__size=8,
        batch__groups=4,
        batch__row_length=40,
        train__steps=4,
        train__devices=1,
        optim__learning_rate=1e-3,
        tracking__wandb="disabled",
    )


@pytest.fixture(scope="module")
def sources(sentences):
    texts = iter(sentences)
    records = [
        {"anchor": next(texts), "positive": next(texts), "negative": next(texts)} for _ in range(32)
    ]
    return {"only": RecordSource(records, record_fields(records))}


def changed(config, **fields):
    """Returns a copy of the config with other fields."""
    return override(copy.deepcopy(config), **fields)


def gradient(config, sources):
    run = assemble(config, sources)
    step, batch = next(iter(run.data.batches(0, run.state)))
    batch = split_groups(batch, run.mesh)
    key = jax.random.key(0)
    function = jax.jit(jax.value_and_grad(run.loss, has_aux=True))
    (loss, _), grads = function(run.state.params, batch, key, run.state.frozen, step=0)
    return jax.device_get((loss, grads["encoder"])), batch


def assert_equal(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.abs(x - y).max() <= tolerance * max(np.abs(x).max(), 1.0)


def test_the_gradient_depends_on_neither_devices_nor_groups(config, sources):
    reference, _ = gradient(config, sources)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(reference[1]["query"]))
    on_four, _ = gradient(changed(config, train__devices=4), sources)
    assert_equal(reference, on_four, 1e-6)
    one_group, _ = gradient(changed(config, batch__groups=1), sources)
    assert_equal(reference, one_group, 1e-5)


def test_each_column_goes_through_its_tower(config, sources):
    run = assemble(config, sources)
    _, batch = next(iter(run.data.batches(0, run.state)))
    group = jax.tree.map(lambda leaf: leaf[0], batch.encoder_tokens)
    assert [group[name].sentences for name in ("query", "encoder")] == [2, 4]
    embeddings = jax.jit(run.model.encoder.apply)(run.state.encoder, group)
    records = [sources["only"].records[index] for index in batch.record[0]]
    sentence = run.model.sentence.with_params(run.state.encoder)
    expected = np.concatenate(
        [
            sentence.encode_query([record["anchor"] for record in records]),
            sentence.encode_document([record["positive"] for record in records]),
            sentence.encode_document([record["negative"] for record in records]),
        ]
    )
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)


@pytest.fixture(scope="module")
def trained(config, sources, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("towers") / "run"
    config = changed(config, checkpoint__every=2, checkpoint__keep=5)
    result = fit(config, workdir, sources=sources, evaluators={})
    assert result.finished
    return config, workdir


def test_a_run_is_saved_as_a_router(trained, sentences):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer

    _, workdir = trained
    model = embed_jax.load(workdir)
    assert isinstance(model, RoutedEncoder)
    assert model.routes == ("query", "document")
    peer = SentenceTransformer(str(workdir / "model"), device="cpu")
    queries, documents = sentences[:5], sentences[5:12]
    np.testing.assert_allclose(
        model.encode_query(queries), peer.encode_query(queries), atol=1e-5, rtol=1e-4
    )
    np.testing.assert_allclose(
        model.encode_document(documents), peer.encode_document(documents), atol=1e-5, rtol=1e-4
    )


def test_a_checkpoint_resumes_to_the_same_bits(trained, sources, tmp_path):
    config, workdir = trained
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "model")
    shutil.rmtree(copy / "checkpoints" / "4")
    fit(config, copy, sources=sources, evaluators={})
    first, second = (embed_jax.load(directory / "model").params for directory in (workdir, copy))
    for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_a_run_is_loaded_at_a_step_and_trained_further(trained, sources, sentences, tmp_path):
    config, workdir = trained
    model = load_run(workdir, 4)
    last = embed_jax.load(workdir / "model")
    np.testing.assert_allclose(
        model.encode_query(sentences[:3]), last.encode_query(sentences[:3]), atol=1e-6
    )
    again = changed(config, model__name=str(workdir / "model"), model__query="")
    start = initial_model(again).sentence
    np.testing.assert_allclose(
        start.encode_document(sentences[:3]), last.encode_document(sentences[:3]), atol=1e-6
    )


def test_a_checkpoint_is_loaded_with_another_limit(trained):
    _, workdir = trained
    model = load_run(workdir, 4, max_length=6)
    assert [encoder.max_length for encoder in model.encoders.values()] == [6, 6]


def test_towers_of_one_model_have_the_same_settings(config, tiny_model):
    settings = {"model__tokenizer": "", "model__pooling": "cls", "model__dropout": 0.2}
    model = initial_model(changed(config, model__query=str(tiny_model), **settings))
    query, document = (model.result.encoder(route).spec for route in ("query", "document"))
    assert query == document and query.pooling == "cls" and query.backbone.hidden_dropout == 0.2
    other = initial_model(changed(config, model__pooling="cls")).result
    assert [other.encoder(route).spec.pooling for route in ("query", "document")] == ["mean", "cls"]


def test_a_frozen_tower_stays_as_it_is(config, sources):
    frozen = copy.deepcopy(config)
    frozen.optim.groups.documents = ParamGroup(pattern="encoder/document", learning_rate_factor=0.0)
    run = assemble(frozen, sources)
    before = jax.device_get(run.state.params)
    _, batch = next(iter(run.data.batches(0, run.state)))
    state, _ = run.step(run.state, split_groups(batch, run.mesh), jax.random.key(0))
    for tower, changes in (("document", False), ("query", True)):
        leaves = zip(
            jax.tree.leaves(before["encoder"][tower]),
            jax.tree.leaves(jax.device_get(state.params["encoder"][tower])),
            strict=True,
        )
        assert any(np.any(x != y) for x, y in leaves) == changes


def test_an_adapter_is_on_documents_and_saved_merged(config, sources, tmp_path):
    config = changed(config, train__steps=1)
    config.lora = Lora(rank=2, targets="query,value")
    fit(config, tmp_path / "run", sources=sources, evaluators={})
    model = embed_jax.load(tmp_path / "run" / "model")
    assert all(encoder.spec.lora is None for encoder in model.encoders.values())


def test_search_measures_each_side_with_its_tower(config):
    from embed_jax.evals.search import evaluate_retrieval, retrieval_evaluator

    run = initial_model(config).sentence
    corpus = {
        str(i): text for i, text in enumerate(["the cat", "a dog", "music plays", "red train"])
    }
    queries, qrels = {"a": "the dog", "b": "a red city"}, {"a": {"1": 1}, "b": {"3": 1}}
    evaluate = retrieval_evaluator(corpus, queries, qrels, ks=(1, 2))
    expected = evaluate_retrieval(
        run.encode_query, run.encode_document, corpus, queries, qrels, ks=(1, 2)
    )
    assert evaluate(embed_jax.embedding_model.TextEncoder(run)) == expected.metrics


def test_towers_of_different_sizes_are_refused(config):
    encoder = initial_model(changed(config, model__query="")).encoder
    with pytest.raises(InputError, match="embeddings of one size, found 7 of queries"):
        two_towers(dataclasses.replace(encoder, dim=7), encoder)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model__mlp": "kept"}, "config.model.mlp: not with two towers"),
        ({"loss__mlm": 0.1}, "config.loss.mlm: not with two towers"),
        ({"loss__name": "adaptive_layers(info_nce())"}, "config.loss.name: .* two towers lack"),
        ({"loss__name": "mlm(rate=0.3)"}, "config.model.query: .* trains on tokens"),
    ],
)
def test_settings_without_a_meaning_are_refused(config, sources, fields, message):
    with pytest.raises(InputError, match=message):
        assemble(changed(config, **fields), sources)


def test_a_batch_of_fixed_rows_packs_both_towers(config, sources):
    run = assemble(changed(config, batch__rows=4), sources)
    _, batch = next(iter(run.data.batches(0, run.state)))
    assert {name: view.token_ids.shape for name, view in batch.tokens.items()} == {
        "encoder": (4, 4, 40),
        "query": (4, 4, 40),
    }
    assert jnp.all(batch.present)


def test_a_run_with_two_towers_is_not_exported_as_one_encoder(trained, tmp_path, capsys):
    from scripts import export

    with pytest.raises(InputError, match="has an encoder for each of query, document"):
        args = export.parse(["--run", str(trained[1]), "--output", str(tmp_path / "exported")])
        export.prepare_sentence_encoder(args, run=object())
