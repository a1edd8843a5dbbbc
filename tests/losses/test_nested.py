"""Losses on prefixes and on earlier layers.

They equal textbook values, sums, and sentence-transformers.
"""

import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.encoders.weights import tensors_from_params
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError
from embed_jax.losses import classification, distillation, in_batch, pairwise, triplets
from embed_jax.losses.base import bind
from embed_jax.losses.compose import per_dataset, symmetric, weighted_sum
from embed_jax.losses.expression import build_loss
from embed_jax.losses.nested import _drawn, matryoshka
from embed_jax.parallel.gather import DRAWN, draw_layers, global_loss
from embed_jax.parallel.mesh import make_mesh, split_groups
from embed_jax.parallel.world import local_world
from embed_jax.registry import lookup
from embed_jax.types import Batch
from embed_jax.world import make_columns

QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
DIM = 8


@pytest.fixture
def columns():
    rng = np.random.default_rng(0)
    return make_columns(
        rng.normal(size=(3, 7, DIM)).astype(np.float32),
        label=rng.integers(2, size=7),
        score=rng.uniform(size=(7, 1)).astype(np.float32),
        teacher=rng.normal(size=(3, 7, DIM)).astype(np.float32),
        guide=rng.normal(size=(3, 7, 5)).astype(np.float32),
        dataset=np.arange(7) % 2,
    )


def mean_and_gradients(loss, columns, params, form="dense"):
    return all_means_and_gradients([(loss, form)], columns, params)[0]


def all_means_and_gradients(cases, columns, params):
    """Returns (value, gradients, metrics) of each (loss, form), computed by one program."""

    def of(loss, form, columns, params):
        def mean(embeddings, params):
            changed = columns.replace(embeddings=embeddings)
            values, weights, metrics = loss.on_world(
                changed, local_world(changed, form, tile=3), params
            )
            return jnp.sum(values * weights) / jnp.sum(weights), metrics

        gradient = jax.value_and_grad(mean, argnums=(0, 1), has_aux=True)
        return gradient(columns.embeddings, params)

    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        compiled = jax.jit(
            lambda *arrays: [of(*case, *arrays) for case in cases], compiler_options=QUICKLY
        )
        results = compiled(columns, params)
    return [(float(value), slopes, metrics) for (value, metrics), slopes in results]


def assert_close(result, expected, tolerance=2e-6):
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest),
        result,
        expected,
    )


# ---- prefixes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["dense", "tiled"])
def test_the_textbook_case(form):
    queries = [[1, 0, 0.9, 0.1, 0.5, 0.2], [0, 1, 0.1, 0.9, 0.2, 0.5]]
    positives = [[0.95, 0.05, 0.85, 0.15, 0.45, 0.25], [0.05, 0.95, 0.15, 0.85, 0.25, 0.45]]
    loss = matryoshka(
        functools.partial(in_batch.info_nce, temperature=0.2), dims="2,4,6", weights="1,1,1"
    )
    value, _, _ = mean_and_gradients(loss, make_columns(jnp.array([queries, positives])), {}, form)
    assert value / 3 == pytest.approx(0.0153, abs=5e-5)


PLAIN = {
    "info_nce": bind(in_batch.info_nce),
    "info_nce, symmetric, dot": bind(
        in_batch.info_nce, symmetric=True, similarity="dot", label_smoothing=0.1
    ),
    "gte": bind(in_batch.gte, temperature=0.1),
    "qwen3": bind(in_batch.qwen3, temperature=0.1),
    "gist": bind(in_batch.gist, temperature=0.1),
    "dcl": bind(in_batch.dcl, sigma=0.5),
    "siglip": bind(in_batch.siglip),
    "mega_batch_margin": bind(in_batch.mega_batch_margin, negative_margin=-1.0),
    "cosent": bind(pairwise.cosent),
    "angle": bind(pairwise.angle),
    "triplet": bind(triplets.triplet),
    "embedding_mse": bind(distillation.embedding_mse),
    "sum": weighted_sum([(1.0, in_batch.info_nce), (0.1, distillation.embedding_cosine)]),
    "swapped": symmetric(in_batch.info_nce),
    "by data set": per_dataset({"a": in_batch.info_nce, "b": pairwise.cosine_mse}),
}
# The others are of every kind.
SLOW = {
    "info_nce, symmetric, dot",
    "info_nce",
    "gte",
    "qwen3",
    "dcl",
    "mega_batch_margin",
    "cosent",
    "triplet",
    "swapped",
    "gist",
}
ONE_PASS = {
    "info_nce",
    "info_nce, symmetric, dot",
    "gte",
    "qwen3",
    "gist",
    "dcl",
    "siglip",
    "swapped",
}


def first(columns, number):
    """Returns the first texts of each example."""
    return columns.select(range(len(columns.embeddings))[:number])


def sliced(columns, size):
    def unit(vectors):
        return vectors[..., :size] / jnp.linalg.norm(vectors[..., :size], axis=-1, keepdims=True)

    return columns.replace(
        embeddings=jax.tree.map(unit, columns.embeddings),
        teacher=jax.tree.map(unit, columns.teacher),
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in PLAIN]
)
def test_it_is_the_weighted_sum_of_the_losses_on_slices(columns, name):
    plain = PLAIN[name]
    columns = first(columns, plain.about.columns[1] or 3)
    params = plain.init(DIM, jax.random.key(0))
    assert plain.about.prefixes == (name in ONE_PASS)

    def by_hand(own, world, params):
        results = [
            plain.on_world(own_slice := sliced(own, size), local_world(own_slice, "dense"), params)
            for size in (2, 4, 8)
        ]
        total = sum(c * values for c, (values, _, _) in zip((3.0, 0.5, 1.0), results, strict=True))
        return total, results[0][1], {}

    result = matryoshka(plain, dims="8,4,2", weights="1,0.5,3")
    forms = ("dense", "tiled") if name in ONE_PASS else ("dense",)
    cases = [(bind(by_hand), "dense"), *((result, form) for form in forms)]
    expected, *results = all_means_and_gradients(cases, columns, params)
    for value, slopes, metrics in results:
        assert value == pytest.approx(expected[0], rel=2e-6)
        assert_close(slopes, expected[1])
        assert {"loss/2", "loss/4", "loss/8"} <= metrics.keys()


def test_a_head_for_each_size_or_one_for_all(columns):
    """MRL has a head per size; MRL-E uses the first rows of each feature's part of one kernel."""
    columns = first(columns, 2)
    plain = bind(classification.softmax, num_labels=2)
    separate = matryoshka(plain, dims="2,8")
    params = separate.init(DIM, jax.random.key(1))
    assert {size: head["kernel"].shape for size, head in params.items()} == {
        "2": (6, 2),
        "8": (24, 2),
    }
    unit = {size: sliced(columns, size) for size in (2, 8)}
    single = [mean_and_gradients(plain, unit[size], params[str(size)])[0] for size in (2, 8)]
    assert mean_and_gradients(separate, columns, params)[0] == pytest.approx(sum(single), rel=1e-6)

    shared = matryoshka(plain, dims="2,8", shared_head=True)
    params = shared.init(DIM, jax.random.key(1))
    rows = [*(0, 1), *(8, 9), *(16, 17)]
    part = {"kernel": params["kernel"][jnp.array(rows)], "bias": params["bias"]}
    single = [
        mean_and_gradients(plain, unit[size], weights)[0]
        for size, weights in ((2, part), (8, params))
    ]
    assert mean_and_gradients(shared, columns, params)[0] == pytest.approx(sum(single), rel=1e-6)


@pytest.mark.slow
def test_a_sample_counts_so_many_prefixes_of_which_each_comes_up(columns):
    loss = matryoshka(in_batch.info_nce, dims="2,4,8", sample=1)
    single = [mean_and_gradients(contrastive_of(size), columns, {})[0] for size in (2, 4, 8)]
    keys = jax.random.split(jax.random.key(0), 20)
    result = np.array(
        [
            float(jnp.mean(loss.on_world(columns.replace(key=key), local_world(columns), {})[0]))
            for key in keys
        ]
    )
    nearest = np.abs(result[:, None] - np.array(single)[None]).argmin(axis=1)
    np.testing.assert_allclose(result, np.array(single)[nearest], rtol=1e-5)
    assert set(nearest) == {0, 1, 2}
    without_key = float(jnp.mean(loss.on_world(columns, local_world(columns), {})[0]))
    assert without_key == pytest.approx(sum(single), rel=1e-5)


def contrastive_of(size):
    return matryoshka(in_batch.info_nce, dims=str(size))


@pytest.mark.parametrize(
    "expression,message",
    [
        (
            "matryoshka(info_nce(), dims='0,8')",
            "dims: expected sizes from 1 with commas between, found '0,8'",
        ),
        ("matryoshka(info_nce(), dims='')", "dims: expected sizes from 1"),
        (
            "matryoshka(info_nce(), dims='2,8,4')",
            "dims: expected sizes in ascending or descending order",
        ),
        ("matryoshka(info_nce(), dims='8,8,4')", "dims: expected each size once, found '8,8,4'"),
        (
            "matryoshka(info_nce(), dims='8,4', weights='1')",
            "weights: expected 2, as many as dims, found 1",
        ),
        (
            "matryoshka(info_nce(), dims='8,4', weights='1,x')",
            "weights: expected numbers of 0 or more",
        ),
        (
            "matryoshka(info_nce(), dims='8,4', sample=3)",
            "sample: expected 0 (all) to 2, the number of dims, found 3",
        ),
        (
            "matryoshka(info_nce(), dims='8,4', shared_head=True)",
            "shared_head: info_nce has no parameters",
        ),
        (
            "matryoshka(matryoshka(info_nce(), dims='4'), dims='8')",
            "expected a loss of whole embeddings",
        ),
        ("matryoshka(info_nce())", "matryoshka needs the argument dims"),
        ("adaptive_layers(info_nce(), weighting='steep')", "unknown weighting of layers 'steep'"),
        ("adaptive_layers(info_nce(), sample=-1)", "sample: expected 0 (all) or more, found -1"),
        (
            "adaptive_layers(info_nce(), kl_temperature=-1)",
            "kl_temperature: expected 0 (none) or more, found -1.0",
        ),
        ("adaptive_layers(adaptive_layers(info_nce()))", "expected a loss of one layer"),
    ],
)
def test_wrong_use_is_one_line(expression, message):
    with pytest.raises(InputError) as error:
        build_loss(expression)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_size_above_the_models_is_refused():
    with pytest.raises(
        InputError, match="dims: expected sizes from 1 to 8, the size of the embeddings, found 16"
    ):
        build_loss("matryoshka(info_nce(), dims='16,8')").init(DIM, jax.random.key(0))


# ---- sentence-transformers -----------------------------------------------------------------------


def test_it_equals_sentence_transformers(torch_model, peers, equals_torch, columns):
    torch_model.get_embedding_dimension = lambda: DIM
    embeddings = np.asarray(columns.embeddings[:2])
    score = np.asarray(columns.score)
    for ours, peer, label in (
        (
            functools.partial(in_batch.info_nce, mask_duplicates=False),
            peers.MultipleNegativesRankingLoss,
            None,
        ),
        (pairwise.cosent, peers.CoSENTLoss, score),
    ):
        torch = pytest.importorskip("torch")

        target = None if label is None else torch.tensor(label[:, 0], dtype=torch.float64)
        reference = peers.MatryoshkaLoss(
            torch_model, peer(torch_model), [DIM, 5, 2], [1.0, 0.5, 3.0]
        )
        fields = {} if label is None else {"score": label}
        equals_torch(
            matryoshka(ours, dims=f"{DIM},5,2", weights="1,0.5,3"),
            lambda features, reference=reference, target=target: reference(features, target),
            embeddings,
            fields,
        )


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory, tiny_tokenizer):
    """A random encoder without dropout, its directory, and its parameters."""
    from embed_jax.data.tokenizer_files import load_tokenizer

    tokenizer = load_tokenizer(tiny_tokenizer, 40)
    spec = random_spec("tiny", vocab_size=tokenizer.vocab_size)
    sure = {
        "num_layers": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.2,
    }
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **sure))
    params = build_encoder(spec).init(jax.random.key(0))
    directory = tmp_path_factory.mktemp("layers") / "model"
    write_model(directory, spec, params, tokenizer=tokenizer, max_length=40)
    return spec, params, tokenizer, directory


PAIRS = [
    ("the cat runs", "a dog plays music"),
    ("red house by the river", "blue train"),
    ("bread", "an apple and bread"),
]
LAYERED = {
    "adaptive": (
        "adaptive_layers(info_nce(), sample={layers}, kl_weight=0.7)",
        "AdaptiveLayerLoss",
        {},
    ),
    "2d": (
        "adaptive_layers(matryoshka(info_nce(), dims='32,16,4', sample=1), sample={layers}, "
        "kl_weight=0.7)",
        "Matryoshka2dLoss",
        {"matryoshka_dims": [32, 16, 4], "n_dims_per_step": 1},
    ),
}


@pytest.mark.parametrize("name", LAYERED)
def test_layers_equal_sentence_transformers(four_layers, peers, monkeypatch, name):
    """Compares value and parameters' gradients, for layers and sizes that we draw."""
    pytest.importorskip("torch")
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer

    spec, params, tokenizer, directory = four_layers
    layers = 2 if name == "adaptive" else 1
    expression, peer, arguments = LAYERED[name]
    loss = build_loss(expression.format(layers=layers))
    key = jax.random.key(7)
    drawn = jax.random.fold_in(key, DRAWN)
    chosen = np.asarray(draw_layers(drawn, 4, layers)).tolist()
    keys = [drawn, *(jax.random.fold_in(drawn, k) for k in range(layers))]
    sizes = [2 - int(jnp.argmax(_drawn(size_key, 3, 1))) for size_key in keys]  # theirs descend

    model = SentenceTransformer(str(directory), device="cpu").double().eval()

    def sample(population, count):
        # Their number 0 is the embedding layer's output, which is no layer.
        return list(chosen) if len(population) == 4 else [sizes.pop(0)]

    monkeypatch.setattr(random, "sample", sample)
    base = peers.MultipleNegativesRankingLoss(model)
    reference = getattr(peers, peer)(
        model, base, n_layers_per_step=layers, kl_div_weight=0.7, **arguments
    )
    features = [model.preprocess(list(column)) for column in zip(*PAIRS, strict=True)]
    expected = reference(features, None)
    expected.backward()
    peer_gradient = {
        name: p.grad.numpy()
        for name, p in model[0].auto_model.named_parameters()
        if p.grad is not None
    }

    ids = [tokenizer.encode(list(column)).ids for column in zip(*PAIRS, strict=True)]
    tokens, order = pack_batch(ids, groups=1, row_length=32)
    text_hash = np.arange(1, 13, dtype=np.uint32).reshape(1, 2, 3, 2)
    batch = Batch({"encoder": tokens}, np.ones((1, 2, 3), bool), text_hash, order)
    mesh = make_mesh(1)
    objective = global_loss(build_encoder(spec, unroll=1), loss, mesh, layers=loss.about.layers)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICKLY)
    (value, (metrics, _)), gradient = step(
        {"encoder": params, "loss": {}}, split_groups(batch, mesh), key
    )
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert {"loss/last", "loss/prior", "loss/kl"} <= metrics.keys()
    ours = tensors_from_params(lookup("backbone", "bert"), gradient["encoder"]["backbone"])
    largest = max(np.abs(slope).max() for slope in peer_gradient.values())
    compared = 0
    for tensor, slope in ours.items():
        if tensor in peer_gradient:
            np.testing.assert_allclose(
                slope, peer_gradient[tensor], rtol=0, atol=1e-5 * largest, err_msg=tensor
            )
            compared += 1
    assert compared == len(ours)
