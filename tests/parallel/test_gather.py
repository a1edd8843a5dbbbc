"""Collectives of the compiled step, dropout, and other ways to gather."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from embed_jax.config import Optim
from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.losses.in_batch import info_nce
from embed_jax.parallel.gather import global_loss, sharded_encode
from embed_jax.parallel.mesh import (
    make_mesh,
    num_groups,
    param_specs,
    place_on_mesh,
    replicate,
    split_groups,
    state_shardings,
)
from embed_jax.train.optim import make_optimizer
from embed_jax.train.step import init_state
from embed_jax.types import Batch, TokenBatch

GROUPS, EXAMPLES, VOCAB = 8, 32, 64


@pytest.fixture(scope="module")
def encoder():
    spec = random_spec("tiny", vocab_size=VOCAB)
    small = {"hidden_size": 32, "embedding_size": 32, "intermediate_size": 64, "num_heads": 4}
    return build_encoder(
        dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **small))
    )


@pytest.fixture(scope="module")
def params(encoder):
    return {"encoder": encoder.init(jax.random.key(0)), "loss": {}}


def make_batch(groups: int) -> Batch:
    rng = np.random.default_rng(0)
    ids = [
        [rng.integers(1, VOCAB, rng.integers(2, 12)).astype(np.int32) for _ in range(EXAMPLES)]
        for _ in range(3)
    ]
    tokens, order = pack_batch(ids, groups=groups, row_length=16)
    present = np.ones((groups, 3, EXAMPLES // groups), bool)
    text_hash = rng.integers(1, 2**32, (*present.shape, 2), np.uint32)
    return Batch({"encoder": tokens}, present, text_hash, order)


@pytest.mark.slow
def test_dropout_is_on_and_differs_between_groups(encoder, params):
    """Dropout is on and differs by group, so that the invariance to devices is not trivial."""
    tokens = make_batch(1).tokens["encoder"]
    group = jax.tree.map(lambda leaf: leaf[0], tokens)
    keys = [jax.random.fold_in(jax.random.key(1), number) for number in (0, 0, 1)]
    first, same, other = (np.asarray(encoder.apply(params["encoder"], group, key)) for key in keys)
    still = np.asarray(encoder.apply(params["encoder"], group, None))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - still).max() > 1e-3


COLLECTIVE = (
    r"= (.*?) (all-reduce|reduce-scatter|all-gather|collective-permute|all-to-all)(?:-start)?\("
)


def compiled_step(encoder, params, mesh, groups, **options):
    """Returns the compiled gradient's collectives as (kind, floats).

    Those that run once, and those of each loop's body.
    """
    specs = param_specs(
        params, [(f"encoder/{pattern}", axes) for pattern, axes in encoder.sharding], mesh
    )
    shardings = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs,
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    objective = global_loss(encoder, info_nce, mesh, specs=specs, **options)
    step = jax.jit(jax.value_and_grad(objective, has_aux=True), out_shardings=(None, shardings))
    arguments = (
        place_on_mesh(params, shardings),
        split_groups(make_batch(groups), mesh),
        jax.random.key(1),
    )
    text = step.lower(*arguments).compile().as_text()
    bodies = [
        re.findall(COLLECTIVE, computation) for computation in re.split(r"\n(?=%|ENTRY)", text)
    ]
    result = [[(kind, floats(shape)) for shape, kind in body] for body in bodies if body]
    return result[-1], result[:-1]  # the entry computation comes last


def floats(shape: str) -> int:
    """Counts the float32 numbers of an instruction's result."""
    return sum(
        int(np.prod([int(n) for n in dims.split(",") if n]))
        for dims in re.findall(r"f32\[([\d,]*)\]", shape)
    )


@pytest.mark.parametrize("groups", [pytest.param(8, marks=pytest.mark.slow), 16])
def test_replicated_parameters_gradients_are_reduced_once(encoder, params, groups):
    """A step reduces the parameters' gradients once, for any number of groups per device."""
    once, loops = compiled_step(encoder, params, make_mesh(4), groups)
    assert not loops, "a collective in the body of a loop runs once a group"
    num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert [size for kind, size in once if kind == "all-reduce" and size > GROUPS] == [num_params]
    embeddings = [kind for kind, size in once if kind in ("all-gather", "reduce-scatter") and size]
    assert embeddings == ["all-gather", "reduce-scatter"], (
        "one gather of embeddings, and one scatter of their gradients"
    )


@pytest.mark.slow
@pytest.mark.parametrize("tensor", [1, 2])
def test_a_layer_is_gathered_once_a_pass_and_scattered_once(encoder, params, tensor):
    """FSDP gathers a layer at most once in the body of each loop, and scatters once.

    Forwards a layer is gathered, backwards it is gathered again and its gradient scattered.
    """
    layer = sum(
        leaf[0].size
        for leaf in jax.tree.leaves(params["encoder"]["backbone"]["layers"])
        if leaf.ndim == 3
    )
    once, loops = compiled_step(
        encoder, params, make_mesh(8 if tensor == 1 else 4 * tensor, 4 // tensor, tensor), 8
    )
    of_layers = [[(kind, size) for kind, size in body if kind != "all-reduce"] for body in loops]
    gathers = [[size for kind, size in body if kind == "all-gather"] for body in of_layers]
    scatters = [[size for kind, size in body if kind == "reduce-scatter"] for body in of_layers]
    assert all(len(sizes) <= 1 for sizes in gathers + scatters)
    assert sum(gathers, []) and set(sum(gathers, [])) == {layer // tensor}
    assert sum(scatters, []) == [layer // 4]
    # What is no layer's is gathered once, and so are the embeddings.
    kinds = [kind for kind, size in once if size]
    assert kinds.count("all-gather") == 2 and kinds.count("reduce-scatter") == 2
    # Whole, nothing is left in a loop.
    once, loops = compiled_step(encoder, params, make_mesh(8, 4), 8, fsdp_gather="once")
    assert not loops


@pytest.mark.parametrize(
    "scheme,factor",
    [
        ("gradient gathered, local loss", 1.0),
        ("detached, times W", 1.0),
        ("detached", 0.25),
        ("gradient gathered, times W", 4.0),
        ("ours", 1.0),
    ],
)
def test_schemes_of_gathering(scheme, factor):
    """Compares other schemes of gathering on W = 4 devices with the gradient of one device.

    In each scheme a device computes the loss of the anchors that it holds, and the parameters'
    gradients are averaged over the devices. A detached gather keeps the gradient of the device's
    own candidates only; with the loss of *all* anchors on each device that is a W-th of the
    gradient.
    """
    devices = 4
    mesh = make_mesh(devices)
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(2, 16, 8)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(8, 8)), jnp.float32)

    def nce(anchors, candidates, first=0):
        anchors, candidates = (
            x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (anchors, candidates)
        )
        logits = anchors @ candidates.T / 0.2
        return -jnp.mean(
            jax.nn.log_softmax(logits)[jnp.arange(len(anchors)), first + jnp.arange(len(anchors))]
        )

    expected = jax.grad(lambda weights: nce(*(inputs @ weights)))(weights)

    def on_device(weights, inputs):
        rank = lax.axis_index("data")
        first = rank * inputs.shape[1]

        def detached(x):
            everything = lax.all_gather(lax.stop_gradient(x), "data", tiled=True)
            return lax.dynamic_update_slice_in_dim(everything, x, first, 0)

        def local_loss(weights):
            anchors, candidates = inputs @ weights
            if scheme.startswith(
                "detached"
            ):  # every device the loss of all anchors, its own part with gradient
                return nce(detached(anchors), detached(candidates)) * (
                    devices if "times W" in scheme else 1
                )
            loss = nce(anchors, lax.all_gather(candidates, "data", tiled=True), first)
            return loss * (devices if "times W" in scheme else 1)

        gradient = jax.grad(local_loss)(lax.pcast(weights, "data", to="varying"))
        return lax.pmean(gradient, "data")

    def global_mean(weights):
        def on_device(weights, inputs):
            anchors, candidates = inputs @ lax.pcast(weights, "data", to="varying")
            first = lax.axis_index("data") * inputs.shape[1]
            return lax.pmean(
                nce(anchors, lax.all_gather(candidates, "data", tiled=True), first), "data"
            )

        specs = (PartitionSpec(), PartitionSpec(None, "data"))
        return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())(
            weights, inputs
        )

    if scheme == "ours":
        result = jax.jit(jax.grad(global_mean))(weights)
    else:
        specs = (PartitionSpec(), PartitionSpec(None, "data"))
        result = jax.jit(
            jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
        )(weights, inputs)
    np.testing.assert_allclose(
        result, factor * expected, atol=1e-6 * np.abs(expected).max() * factor + 1e-7
    )


@pytest.mark.slow
def test_sharded_encoding_is_encoding(encoder, params):
    tokens: TokenBatch = make_batch(8).tokens["encoder"]
    mesh = make_mesh(4)
    sharded = sharded_encode(encoder, mesh)(
        replicate(params["encoder"], mesh), split_groups(tokens, mesh)
    )
    expected = [
        encoder.apply(params["encoder"], jax.tree.map(lambda leaf: leaf[g], tokens), None)  # noqa: B023
        for g in range(8)
    ]
    np.testing.assert_allclose(sharded, np.stack(expected), atol=2e-6)


def test_counts_that_do_not_divide_are_refused():
    from embed_jax.errors import InputError

    mesh = make_mesh(4)
    assert num_groups(0, 8, mesh) == 4
    for groups, size in ((6, 12), (8, 12), (0, 6)):
        with pytest.raises(InputError, match="expected a multiple"):
            num_groups(groups, size, mesh)
    with pytest.raises(InputError, match="expected at most 8"):
        make_mesh(9)
    with pytest.raises(InputError, match="expected a divisor of the 8 devices, found 3"):
        make_mesh(8, 3)
    assert num_groups(0, 8, make_mesh(8, 2, 2)) == 4  # "tensor" takes no groups


def test_the_optimisers_state_lies_as_the_parameters_do(encoder, params):
    """The state is sharded by the rules of the model's parameters.

    Small leaves, and leaves that no axis divides, are replicated.
    """
    optimizer = make_optimizer(Optim(accumulate=2), 10)
    mesh = make_mesh(8, 2, 2)
    specs = param_specs(
        params, [(f"encoder/{pattern}", axes) for pattern, axes in encoder.sharding], mesh
    )
    state = init_state(params, optimizer)
    shardings = state_shardings(state, optimizer, specs, mesh)
    split = 0
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        share = np.prod(sharding.shard_shape(leaf.shape)) / leaf.size
        if name.endswith(("query/kernel", "down/kernel")):
            assert share == 1 / 4, name
            split += 1
        elif name.endswith("query/bias"):
            assert share == 1 / 2, name
        elif name.endswith(("embeddings/token", "embeddings/position")):
            assert share == 1 / 2, name
        elif name.endswith(("down/bias", "norm/scale", "step")):
            assert share == 1, name
    assert split == 2 * 4, "parameters, two moments and the accumulated gradient"
