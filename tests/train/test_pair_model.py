"""Cross-encoders: gradients on devices and in groups, learning, saving, resuming, refusals."""

import copy
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import embed_jax
from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.cross_encoder import CrossEncoder, load_cross_encoder
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import LogitScore
from embed_jax.encoders.spec import EncoderSpec, random_spec
from embed_jax.errors import InputError
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.mesh import split_groups
from embed_jax.parallel.world import local_world
from embed_jax.registry import REGISTRY, lookup
from embed_jax.train.assembly import assemble
from embed_jax.train.fit import fit
from embed_jax.train.pair_model import initial_cross_encoder, pair_loss, pair_objective
from embed_jax.train.sources import ONLY
from embed_jax.world import make_columns

WORDS = "cat dog house river music guitar red blue city train".split()


def scored_lists(count=32):
    """Returns lists of a query, the passage with its words, and others, of unequal length."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        words = rng.choice(WORDS, size=(4, 3))
        passages = [" ".join(words[0][::-1]), *(" ".join(row) for row in words[1:])]
        passages = passages[: 3 + number % 2]
        scores = [1.0, *[0.0] * (len(passages) - 1)]
        records.append({"query": " ".join(words[0]), "passages": passages, "scores": scores})
    # All lists have as many scores as the first of a data set.
    return records[1::2] + records[1::2]


@pytest.fixture(scope="module")
def config(tiny_tokenizer):
    return override(
        Experiment(),
        model__name="random:tiny",
        model__tokenizer=str(tiny_tokenizer),
        model__dropout=0.0,
        loss__name="binary_cross_entropy",
        data__max_length=32,
        batch__size=8,
        batch__groups=4,
        batch__row_length=64,
        batch__in_batch_negatives=2,
        train__steps=4,
        train__devices=1,
        optim__learning_rate=1e-3,
        tracking__wandb="disabled",
        tracking__experiment="cross_encoder",  # as `train.launch` does
    )


@pytest.fixture(scope="module")
def sources():
    records = scored_lists()
    return {"only": RecordSource(records, record_fields(records))}


def changed(config, **fields):
    return override(copy.deepcopy(config), **fields)


def assembled(config, sources):
    model = initial_cross_encoder(config, pair_loss(config))
    return assemble(config, sources, model=model, objective=pair_objective)


def gradient(config, sources):
    run = assembled(config, sources)
    _, batch = next(iter(run.data.batches(0, run.state)))
    batch = split_groups(batch, run.mesh)
    function = jax.jit(jax.value_and_grad(run.loss, has_aux=True))
    (loss, _), grads = function(run.state.params, batch, None, run.state.frozen, step=0)
    return jax.device_get((loss, grads["encoder"]))


def assert_equal(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.abs(x - y).max() <= tolerance * max(np.abs(x).max(), 1.0)


def test_the_gradient_depends_on_neither_devices_nor_groups(config, sources):
    config = changed(config, loss__name="lambda_rank")
    reference = gradient(config, sources)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(reference[1]["heads"]))
    assert_equal(reference, gradient(changed(config, train__devices=4), sources), 1e-6)
    assert_equal(reference, gradient(changed(config, batch__groups=1), sources), 1e-6)


LIST_LOSSES = [name for name in REGISTRY["loss"] if "scores" in lookup("loss", name).about.needs]


def test_list_losses_of_logits_are_those_of_their_scores():
    """A loss of logits is the loss of one-dimensional embeddings compared by their product."""
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(5, 6, 1)).astype(np.float32)
    logits[0] = 1.0
    columns = make_columns(logits, score=jnp.asarray(rng.integers(3, size=(6, 4)) / 2, jnp.float32))

    def values(name, similarity):
        fields = {"similarity": similarity, "temperature": 1.0}
        loss = build_loss(name, fields)
        return loss.on_world(columns, local_world(columns), {})[0]

    def every(similarity):
        return {name: values(name, similarity) for name in LIST_LOSSES}

    of_logits, of_products = (jax.jit(every, static_argnums=0)(name) for name in ("logit", "dot"))
    assert len(of_logits) >= 9
    for name in of_logits:
        np.testing.assert_allclose(of_logits[name], of_products[name], rtol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def trained(config, sources, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("cross_encoder") / "run"
    config = changed(config, train__steps=40, checkpoint__every=20, checkpoint__keep=5)
    model = initial_cross_encoder(config, pair_loss(config))
    result = fit(
        config, workdir, sources=sources, evaluators={}, model=model, objective=pair_objective
    )
    assert result.finished
    return config, workdir


def test_it_learns_and_sentence_transformers_scores_alike(trained):
    CrossEncoder = pytest.importorskip("sentence_transformers").CrossEncoder

    _, workdir = trained
    losses = [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").open()]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    model = load_cross_encoder(workdir / "model")
    pairs = [(record["query"], record["passages"][0]) for record in scored_lists()[:8]]
    peer = CrossEncoder(str(workdir / "model"), device="cpu")
    np.testing.assert_allclose(
        model.score(*zip(*pairs, strict=True)), peer.predict(pairs), atol=1e-5
    )


def test_a_checkpoint_resumes_to_the_same_bits(trained, sources, tmp_path):
    config, workdir = trained
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "40")
    before = load_cross_encoder(again, 20)
    model = initial_cross_encoder(config, pair_loss(config))
    fit(config, again, sources=sources, evaluators={}, model=model, objective=pair_objective)
    pairs = [["cat dog", "red city"], ["dog cat house", "city red"]]
    for step in (20, 40):
        first, second = load_cross_encoder(workdir, step), load_cross_encoder(again, step)
        for x, y in zip(*map(jax.tree.leaves, (first.params, second.params)), strict=True):
            assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
        # A model made of the trained parameters scores as the run's.
        made = CrossEncoder(model.spec, second.params, model.result.tokenizer)
        np.testing.assert_array_equal(first.score(*pairs), made.score(*pairs))
        assert np.array_equal(before.score(*pairs), made.score(*pairs)) == (step == 20)
    np.testing.assert_array_equal(load_cross_encoder(again).score(*pairs), made.score(*pairs))


def test_a_run_is_loaded_whole_and_at_a_step(trained, tmp_path):
    config, workdir = trained
    copied = shutil.copytree(workdir, tmp_path / "run")
    last, shorter = embed_jax.load_model(copied), embed_jax.load_model(copied, max_length=20)
    assert isinstance(last, CrossEncoder) and shorter.max_length == 20
    pairs = [["cat dog", "red city"], ["dog cat house", "city red"]]
    np.testing.assert_allclose(
        last.score(*pairs), load_cross_encoder(copied / "model").score(*pairs), atol=1e-6
    )
    np.testing.assert_allclose(
        embed_jax.load_model(copied, config.train.steps).logits(*pairs),
        last.logits(*pairs),
        atol=1e-5,
    )
    with pytest.raises(InputError, match="the run of a cross-encoder"):
        embed_jax.load(copied)
    shutil.rmtree(copied / "model")
    with pytest.warns(UserWarning, match="no model is written yet"):
        assert embed_jax.load_model(copied, max_length=20).max_length == 20


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, tiny_tokenizer):
    """Returns a directory with a small random decoder that scores by two tokens."""
    tokenizer = load_tokenizer(tiny_tokenizer, 32)
    backbone = random_spec("decoder-tiny", vocab_size=tokenizer.vocab_size).backbone
    spec = EncoderSpec(backbone, "last_token", (LogitScore(backbone.hidden_size, 7, 9),))
    directory = tmp_path_factory.mktemp("decoder") / "model"
    params = build_encoder(spec).init(jax.random.key(0))
    CrossEncoder(spec, params, tokenizer, activation="identity").save(directory)
    return directory


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_of_an_adapter_only_itself_and_the_head_move(
    kind, config, sources, tiny_cross_encoder, language_model, tmp_path
):
    start = tiny_cross_encoder() if kind == "classifier" else language_model
    config = changed(
        config,
        model__name=str(start),
        model__tokenizer="",
        model__dropout=-1.0 if kind == "classifier" else 0.0,
        lora__rank=2,
        lora__dropout=0.1,
        checkpoint__every=2,
        checkpoint__keep=5,
    )
    base, workdir, again = load_cross_encoder(start), tmp_path / "run", tmp_path / "again"

    def train(directory):
        model = initial_cross_encoder(config, pair_loss(config))
        fit(
            config, directory, sources=sources, evaluators={}, model=model, objective=pair_objective
        )

    train(workdir)
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "model")
    shutil.rmtree(again / "checkpoints" / "4")
    train(again)
    model, resumed = (load_cross_encoder(directory, 4) for directory in (workdir, again))
    assert model.spec == dataclasses.replace(base.spec, lora=model.spec.lora)
    for x, y in zip(*map(jax.tree.leaves, (model.params, resumed.params)), strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()
    jax.tree.map(np.testing.assert_array_equal, model.params["backbone"], base.params["backbone"])
    for x, y in zip(*(jax.tree.leaves(m.params["heads"]) for m in (model, base)), strict=True):
        assert not np.array_equal(x, y)
    changes = flatten_dict(model.params["lora"], sep="/")
    assert all(np.asarray(leaf).any() for leaf in changes.values())
    assert {path.rpartition("/")[2] for path in changes} == {"a", "b"}

    # The model that the run wrote has the adapter merged.
    written, pairs = load_cross_encoder(workdir), [["cat dog"], ["dog cat house"]]
    assert written.spec == base.spec
    np.testing.assert_allclose(written.logits(*pairs), model.logits(*pairs), atol=1e-5)
    if kind == "classifier":
        model.save_adapter(tmp_path / "adapter")
        back = load_cross_encoder(tmp_path / "adapter")
        np.testing.assert_array_equal(back.logits(*pairs), model.logits(*pairs))


def test_a_trained_one_goes_on_with_its_head(trained, config):
    _, workdir = trained
    model = initial_cross_encoder(
        changed(config, model__name=str(workdir / "model")), pair_loss(config)
    )
    saved = load_cross_encoder(workdir / "model")
    assert_equal(jax.device_get(model.params), jax.device_get(saved.params), 0.0)


def test_a_backbone_gives_the_start_and_its_head_is_new(config, tiny_model):
    import embed_jax

    start = initial_cross_encoder(changed(config, model__name=str(tiny_model)), pair_loss(config))
    base = embed_jax.load(str(tiny_model))
    assert_equal(start.params["backbone"], base.params["backbone"], 0.0)
    assert start.encoder.dim == 1


def test_three_classes_are_three_logits(config):
    records = [
        {"sentence1": "a cat", "sentence2": f"a dog {number}", "label": number % 3}
        for number in range(8)
    ]
    sources = {"only": RecordSource(records, record_fields(records))}
    config = changed(config, loss__name="pair_cross_entropy", batch__in_batch_negatives=0)
    loss, grads = gradient(config, sources)
    assert loss == pytest.approx(np.log(3), abs=0.2)
    assert grads["heads"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss__name": "info_nce"}, "a cross-encoder reads each pair"),
        ({"model__pooling": "cls"}, "config.model.pooling: not for a cross-encoder, found 'cls'"),
        ({"model__sparse": "max"}, "config.model.sparse: not for a cross-encoder, found 'max'"),
        ({"queue__size": 8}, "config.queue.size: not for a cross-encoder, found 8"),
        ({"loss__mlm": 0.1}, "config.loss.mlm: not for a cross-encoder, found 0.1"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(config, sources, fields, message):
    config = changed(config, **fields)
    with pytest.raises(InputError, match=message) as error:
        gradient(config, sources)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("loss", "field", "value", "message"),
    [
        (
            "binary_cross_entropy",
            "score",
            5.0,
            "record 3: score 5, config.loss.name='binary_cross_entropy' fits 0 to 1",
        ),
        (
            "pair_cross_entropy(num_labels=2)",
            "label",
            2,
            r"record 3: label 2, config.loss.name='pair_cross_entropy\(.*' accepts 0 to 1",
        ),
    ],
)
def test_a_label_outside_the_range_is_named_with_its_record(config, loss, field, value, message):
    records = [
        {"sentence1": "a cat", "sentence2": f"a dog {number}", field: number % 2}
        for number in range(8)
    ]
    records[3][field] = value
    sources = {ONLY: RecordSource(records, record_fields(records))}
    config = changed(config, loss__name=loss, batch__in_batch_negatives=0)
    with pytest.raises(InputError, match=message) as error:
        assembled(config, sources)
    assert "\n" not in str(error.value)


def test_in_batch_negatives_are_for_cross_encoders_only(config, sources):
    config = changed(config, loss__name="margin_mse")
    with pytest.raises(InputError, match="in_batch_negatives: for cross-encoders only, found 2"):
        assemble(config, sources)
