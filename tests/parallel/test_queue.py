"""The queue of earlier positives.

Entries have the right age, no false negatives count, and devices do not matter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from embed_jax.errors import InputError
from embed_jax.losses import in_batch
from embed_jax.losses.base import Loss, bind
from embed_jax.losses.compose import masked, symmetric
from embed_jax.losses.in_batch import dcl, gist, gte, info_nce, mega_batch_margin, qwen3, siglip
from embed_jax.losses.nested import matryoshka
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import (
    make_mesh,
    param_specs,
    place_on_mesh,
    split_groups,
    state_shardings,
)
from embed_jax.parallel.queue import init_queue, queue_columns
from embed_jax.parallel.world import local_world
from embed_jax.train.checkpoint import Checkpoints
from embed_jax.train.step import init_state, make_train_step
from embed_jax.types import Batch, Columns, Encoder, TokenBatch
from embed_jax.world import make_columns

EXAMPLES, GROUPS, SIZE, DIM, VOCAB = 16, 8, 37, 6, 50
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time


@pytest.fixture(scope="module")
def encoder():
    """A sentence is one token, embedded as a row of a table times 1 + u, u from the dropout key."""

    def apply(params, tokens, key, read=None):
        noise = 0.0 if key is None else jax.random.uniform(key, (tokens.sentences, 1))
        return params["table"][tokens.token_ids[0]] * (1.0 + noise)

    def init(key):
        return {"table": jax.random.normal(key, (VOCAB, DIM))}

    return Encoder(init, apply, None, DIM, sharding=(("table", ("fsdp", None)),), layers=())


def make_batch(step: int) -> Batch:
    """Makes texts 1 to VOCAB - 1 with their numbers as hashes; some texts repeat.

    One positive is missing.
    """
    rng = np.random.default_rng(step)
    ids = rng.integers(1, VOCAB, (GROUPS, 1, 2 * EXAMPLES // GROUPS)).astype(np.int32)
    sentence = np.broadcast_to(np.arange(ids.shape[-1], dtype=np.int32), ids.shape)
    tokens = TokenBatch(ids, sentence, sentence * 0, sentence >= 0, sentences=ids.shape[-1])
    present = np.ones((GROUPS, 2, EXAMPLES // GROUPS), bool)
    present[3, 1, 0] = False
    text_hash = np.stack([ids, ids], -1).reshape(*present.shape, 2).astype(np.uint32)
    return Batch({"encoder": tokens}, present, text_hash, np.arange(EXAMPLES).reshape(GROUPS, -1))


def positives(batch: Batch) -> np.ndarray:
    """Returns the numbers of a batch's positives in order."""
    return batch.tokens["encoder"].token_ids.reshape(GROUPS, 2, -1)[:, 1].reshape(-1)


@functools.cache
def program(encoder, devices=1, fsdp=1, form="dense", momentum=0.9, dropout=True):
    """Makes a train step, its first state, and the mesh."""
    mesh = make_mesh(devices, fsdp)
    params = {"encoder": encoder.init(jax.random.key(0)), "loss": {}}
    specs = param_specs(
        params, [(f"encoder/{path}", axes) for path, axes in encoder.sharding], mesh
    )
    loss = bind(info_nce, temperature=0.5)
    objective = global_loss(encoder, loss, mesh, form=form, specs=specs, fsdp_gather="once")
    if not dropout:
        objective = functools.partial(
            lambda f, params, batch, key, *arguments: f(params, batch, None, *arguments), objective
        )
    optimizer = optax.sgd(0.5)
    state = init_state(params, optimizer, extra=init_queue(SIZE, DIM, params["encoder"], momentum))
    shardings = state_shardings(state, optimizer, specs, mesh)
    return (
        make_train_step(objective, optimizer, shardings, momentum),
        jax.device_get(state),
        shardings,
        mesh,
    )


def run(steps=5, **options):
    """Returns the states before each step and after the last, and each step's metrics."""
    step, state, shardings, mesh = program(**options)
    states, metrics = [state], []
    state = place_on_mesh(state, shardings)
    for number in range(steps):
        state, result = step(state, split_groups(make_batch(number), mesh), jax.random.key(1))
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(result))
    return states, metrics


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_slot_is_as_old_as_its_number_says(encoder, momentum):
    """Slot i was embedded floor(i / B) + 1 steps earlier, by the encoder of that step.

    Or by its moving average.
    """
    steps = 4
    states, metrics = run(steps, encoder=encoder, momentum=momentum, dropout=False)
    average = states[0].params["encoder"]["table"]
    averages = [average]
    for state in states[1:]:
        average = momentum * average + (1 - momentum) * state.params["encoder"]["table"]
        averages.append(average)
    assert not np.allclose(averages[0], averages[-1], atol=1e-2), "the encoder does not change"
    for now in range(steps + 1):
        queue = states[now].extra["queue"]
        assert queue["filled"] == min(now * EXAMPLES, SIZE)
        for slot in range(int(queue["filled"])):
            then = now - (slot // EXAMPLES + 1)
            text = positives(make_batch(then))[slot % EXAMPLES]
            # Without momentum: the trained encoder's, as it was before that step's update.
            table = averages[then] if momentum else states[then].params["encoder"]["table"]
            np.testing.assert_allclose(queue["embeddings"][slot], table[text], rtol=1e-5, atol=1e-6)
            there = make_batch(then).present[:, 1].reshape(-1)[slot % EXAMPLES]
            np.testing.assert_array_equal(
                queue["text_hash"][slot], [text, text] if there else [0, 0]
            )
        if now < steps:
            ages = [slot // EXAMPLES + 1 for slot in range(int(queue["filled"]))]
            assert metrics[now]["queue/filled"] == len(ages)
            assert metrics[now]["queue/age"] == pytest.approx(np.mean(ages) if ages else 0.0)


@pytest.mark.parametrize(
    "devices,fsdp,form,momentum", [(8, 1, "dense", 0.0), (8, 2, "ring", 0.9), (1, 1, "tiled", 0.9)]
)
def test_devices_and_forms_do_not_matter(encoder, devices, fsdp, form, momentum):
    expected, expected_metrics = run(encoder=encoder, momentum=momentum)
    result, metrics = run(encoder=encoder, devices=devices, fsdp=fsdp, form=form, momentum=momentum)
    for reference, values in ((expected[-1], result[-1]), (expected_metrics, metrics)):
        for a, b in zip(jax.tree.leaves(reference), jax.tree.leaves(values), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=2e-6)


def test_no_gradient_enters_the_queue_and_without_a_state_the_loss_is_of_the_batch_alone(encoder):
    objective = global_loss(encoder, info_nce, make_mesh(1))
    params = {"encoder": encoder.init(jax.random.key(0)), "loss": {}}
    extra = init_queue(SIZE, DIM, params["encoder"], 0.5)
    extra["queue"] |= {
        "embeddings": jnp.ones((SIZE, DIM)),
        "text_hash": jnp.ones((SIZE, 2), jnp.uint32) * 99,
    }
    extra["queue"]["filled"] = jnp.int32(SIZE)

    def value(params, embeddings, steady):
        changed = {"queue": extra["queue"] | {"embeddings": embeddings}, "momentum": steady}
        loss, (_, _, entries) = objective(params, make_batch(0), None, {}, changed)
        return loss + 1e-9 * jnp.sum(entries["embeddings"])

    gradient = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))
    with_queue, gradients = gradient(params, extra["queue"]["embeddings"], extra["momentum"])
    assert [bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradients)] == [True, False, False]
    without_queue, (metrics, finite) = jax.jit(objective)(params, make_batch(0), None)
    assert (
        float(without_queue) < float(with_queue)
        and "queue/age" not in metrics
        and finite.shape == (EXAMPLES,)
    )


# ---- which entries are negatives -----------------------------------------------------------------


def some_columns(batch=5, number=3):
    rng = np.random.default_rng(0)
    return make_columns(jnp.asarray(rng.normal(size=(number, batch, DIM)).astype(np.float32)))


def some_queue(own: Columns, size=7, filled=5):
    rng = np.random.default_rng(1)
    text_hash = rng.integers(1, 2**32, (size, 2), np.uint32)
    text_hash[1] = own.text_hash[1, 2]  # the positive of example 2
    text_hash[2] = own.text_hash[0, 3]  # the anchor of example 3
    text_hash[3] = 0  # no text
    embeddings = jnp.asarray(rng.normal(size=(size, DIM)).astype(np.float32))
    return {
        "embeddings": embeddings,
        "text_hash": jnp.asarray(text_hash),
        "filled": jnp.int32(filled),
    }


@pytest.mark.parametrize("mask_duplicates", [True, False])
def test_negatives_are_those_there_that_are_not_the_examples_own_texts(mask_duplicates):
    own = some_columns(number=2)
    queue = some_queue(own)
    own_queue = own.replace(queue=queue_columns(queue, own))
    arguments = {"temperature": 0.5, "mask_duplicates": mask_duplicates}
    loss = jax.jit(
        lambda own: info_nce.on_world(own, local_world(own.replace(queue=None)), {}, **arguments)
    )
    result, _, metrics = loss(own_queue)

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    anchors, passages = unit(np.asarray(own.embeddings, np.float64))
    inside, earlier = (
        anchors @ passages.T,
        anchors @ unit(np.asarray(queue["embeddings"], np.float64)).T,
    )
    for i in range(len(anchors)):
        taken = {0, 1, 2, 4} - (
            {1: set(), 2: {1}, 3: {2}}.get(i, set()) if mask_duplicates else set()
        )
        entries = [*inside[i], *(earlier[i, k] for k in taken)]
        expected = np.log(np.sum(np.exp(np.array(entries) / 0.5))) - inside[i, i] / 0.5
        assert result[i] == pytest.approx(expected, rel=1e-5)
        hardest = max(similarity for j, similarity in enumerate(entries) if j != i)
        assert metrics["hardest_negative_similarity"][i] == pytest.approx(hardest, abs=1e-5)


USING = {
    "info_nce": matryoshka(functools.partial(info_nce, label_smoothing=0.1), dims="3,6"),
    "dcl": functools.partial(dcl, sigma=0.5),
    "siglip": siglip,
    "mega_batch_margin": functools.partial(mega_batch_margin, negative_margin=-1.0),
}


@pytest.mark.parametrize("name", USING)
@pytest.mark.parametrize("form", ["dense", "tiled"])
def test_a_queue_is_as_positives_of_other_examples_of_the_batch(name, form):
    """Entries count like positives of examples without anchors and negatives.

    Values and gradients are compared.
    """
    own = some_columns()
    queue = queue_columns(some_queue(own), own)
    joined = jax.tree.map(
        lambda mine, reference: jnp.concatenate([mine, reference], axis=mine.shape[0] == 3),
        own,
        with_absent_column(queue),
    )
    params = {"log_scale": jnp.float32(2.0), "bias": jnp.float32(-1.0)} if name == "siglip" else {}

    def value(embeddings, with_queue):
        mine = own.replace(embeddings=embeddings)
        if with_queue:
            world, mine = local_world(mine, form, tile=2), mine.replace(queue=queue)
        else:
            changed = jax.tree.map(
                lambda whole, part: whole.at[: len(part)].set(part), joined.embeddings, embeddings
            )
            world = local_world(joined.replace(embeddings=changed), "dense")
        return jnp.sum(bind(USING[name]).on_world(mine, world, params)[0])

    gradient = jax.jit(jax.value_and_grad(value), static_argnums=1, compiler_options=QUICKLY)
    for ours, reference in zip(
        gradient(own.embeddings, True), gradient(own.embeddings, False), strict=True
    ):
        ours, reference = (np.stack(jax.tree.leaves(tree)) for tree in (ours, reference))
        assert np.linalg.norm(ours - reference) <= 1e-6 * np.linalg.norm(reference)


def with_absent_column(columns: Columns) -> Columns:
    """Adds a column of hard negatives that are all absent."""
    extended = columns.select([0, 1, 0])
    return extended.replace(present=extended.present.at[2].set(False))


@pytest.mark.parametrize("loss", [gte, qwen3, functools.partial(gist, mask_by="model")])
def test_other_losses_take_the_queue_as_negatives_of_the_anchors(loss):
    """n entries as near as the positive cost log(1 + n) or more; an empty queue costs nothing."""
    own = some_columns(batch=3, number=2)
    queue = some_queue(own) | {"embeddings": jnp.broadcast_to(own.embeddings[1][0], (7, DIM)) * 0.5}
    value = jax.jit(
        lambda own: bind(loss).on_world(own, local_world(own.replace(queue=None)), {})[0],
        compiler_options=QUICKLY,
    )
    empty = value(own.replace(queue=queue_columns(queue | {"filled": jnp.int32(0)}, own)))
    full = value(own.replace(queue=queue_columns(queue, own)))
    np.testing.assert_allclose(empty, value(own), rtol=1e-6)
    assert float(full[0]) > max(np.log(4), float(empty[0]) + 0.1)
    assert all(each.about.queue for each in vars(in_batch).values() if isinstance(each, Loss))


@pytest.mark.slow
def test_losses_that_cannot_use_it():
    own = some_columns(number=2).replace(guide=tuple(jnp.ones((2, 5, 3))), score=jnp.ones((5, 1)))
    full = own.replace(queue=queue_columns(some_queue(own), own))
    with pytest.raises(InputError, match="does not go with a queue"):
        gist.on_world(full, local_world(own), {})
    # The swapped direction compares positives with anchors, of which there is no queue.
    anchors, positives = (info_nce.on_world(each, local_world(own), {})[0] for each in (full, own))
    swapped, _, _ = symmetric(info_nce).on_world(own, local_world(own), {})
    result, _, _ = symmetric(info_nce).on_world(full, local_world(own), {})
    np.testing.assert_allclose(result - swapped, (anchors - positives) / 2, atol=1e-5)
    scored = masked(info_nce, min_score=0.5)
    np.testing.assert_allclose(scored.on_world(full, local_world(own), {})[0], positives, rtol=1e-6)
    assert bind(info_nce).about.queue and symmetric(info_nce).about.queue and not scored.about.queue


# ---- the state -----------------------------------------------------------------------------------


def test_a_queue_is_saved_and_one_of_another_size_is_refused(encoder, tmp_path):
    params = {"encoder": encoder.init(jax.random.key(0)), "loss": {}}

    def state(size, momentum=0.5):
        extra = init_queue(size, DIM, params["encoder"], momentum)
        return init_state(
            params, optax.sgd(0.1), extra=jax.tree.map(lambda leaf: leaf + size, extra)
        )

    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state(4), {})
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        restored, _ = checkpoints.restore(
            state(4).replace(extra=jax.tree.map(jnp.zeros_like, state(4).extra))
        )
        jax.tree.map(np.testing.assert_array_equal, restored.extra, state(4).extra)
        with pytest.raises(
            InputError,
            match=r"extra/queue/embeddings has shape \[4, 6\], this model's has \[5, 6\]",
        ):
            checkpoints.restore(state(5))
        with pytest.raises(InputError, match="extra/momentum/table"):
            checkpoints.restore(state(4, momentum=0.0))


@pytest.mark.parametrize("size,momentum", [(0, 0.0), (4, 1.0), (4, -0.1)])
def test_sizes_and_momenta_that_make_no_sense(size, momentum):
    with pytest.raises(InputError, match="queue (size: expected 1|momentum: expected 0)"):
        init_queue(size, DIM, {}, momentum)
