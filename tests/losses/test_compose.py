"""Losses written as expressions, and losses made of losses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from embed_jax.errors import InputError
from embed_jax.losses.base import bind, loss
from embed_jax.losses.compose import masked, per_dataset, symmetric, weighted_sum
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.world import device_world, local_world
from embed_jax.registry import REGISTRY
from embed_jax.types import BY_COLUMN, TREES
from embed_jax.world import make_columns

BATCH, DIM, DEVICES = 12, 5, 4


# ---- losses --------------------------------------------------------------------------------------


def weights_of(own):
    return jnp.all(own.present[:2], axis=0).astype(jnp.float32)


@loss(columns=(1, 0), tiled=True)
def size(
    own,
    world,
    params,
    *,
    scale: float = 1.0,
    power: int = 2,
    negate: bool = False,
    of: str = "anchor",
):
    """Returns an anchor's size; examples weigh differently, and one in four has no weight."""
    values = scale * jnp.sum(jnp.abs(own.embeddings[0 if of == "anchor" else 1]) ** power, axis=-1)
    weights = own.present[0] * (own.example % 4).astype(jnp.float32)
    return (
        -values if negate else values,
        weights,
        {"size": values, "number": own.example.astype(jnp.float32)},
    )


def contrast_init(dim, key, temperature, learn):
    return {"scale": 1 / temperature + jax.random.uniform(key, (dim,))} if learn else {}


@loss(needs=("guide",), columns=(2, 0), init=contrast_init, tiled=True)
def contrast(own, world, params, *, temperature: float = 0.5, learn: bool = True):
    """Compares an anchor's positive with all other positives and all negatives.

    Its gradient crosses devices.
    """

    def block(rows, candidates, scale):
        (anchors, example), (others, examples, present) = rows, candidates
        allowed = present[None, :] & (example[:, None] != examples[None, :])
        return jnp.where(allowed, (anchors * scale[None]) @ others.T, -jnp.inf)[None]

    def candidates(columns):
        number = len(columns.embeddings) - 1
        others = jnp.concatenate(columns.embeddings[1:]), jnp.tile(columns.example, number)
        return *others, columns.present[1:].reshape(-1)

    scale = params["scale"] if learn else jnp.full(DIM, 1 / temperature)
    against, _ = world.logsumexp(block, (own.embeddings[0], own.example), candidates, scale)
    values = jax.nn.softplus(
        against[0] - jnp.sum(own.embeddings[0] * scale[None] * own.embeddings[1], axis=-1)
    )
    return values, weights_of(own), {"against": jnp.where(against[0] == -jnp.inf, 0.0, against[0])}


def spread_init(dim, key):
    return {"center": jax.random.normal(key, (dim,))}


@loss(needs=("score",), columns=(2, 2), init=spread_init)
def spread(own, world, params):
    """Returns one number of all pairs of the world as the value of every pair."""
    first, second = own.embeddings
    weights = weights_of(own)
    distances = jnp.sum((first - second - params["center"][None]) ** 2, axis=-1)
    total = world.total(jnp.sum(weights * own.score[:, 0] * distances))
    return jnp.full(weights.shape, jnp.log1p(total)), weights, {}


@loss(columns=(3, 0), tiled=True)
def triple(own, world, params, *, margin: float = 1.0):
    near, far = (
        jnp.sum((own.embeddings[0] - other) ** 2, axis=-1) for other in own.embeddings[1:3]
    )
    return (
        jax.nn.softplus(near - far + margin),
        jnp.all(own.present[:3], axis=0).astype(jnp.float32),
        {},
    )


@loss(needs=("scores",), columns=(2, 0))
def scored(own, world, params):
    return own.score[:, 0], weights_of(own), {}


@loss(columns=(1, 1))
def unpaired(own, world, params):
    return own.embeddings[0][:, 0], own.present[0].astype(jnp.float32), {}


LOSSES = {
    function.__name__: function for function in (size, contrast, spread, triple, scored, unpaired)
}


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    for name in LOSSES:
        monkeypatch.setitem(REGISTRY["loss"], name, f"{__name__}:{name}")


# ---- examples ------------------------------------------------------------------------------------


def some_columns(number=3, batch=BATCH):
    """Random columns with missing negatives and one missing example, of three data sets."""
    rng = np.random.default_rng(0)
    present = np.ones((number, batch), bool)
    present[:, 5] = False
    present[2:, ::3] = False
    return make_columns(
        jnp.asarray(rng.normal(size=(number, batch, DIM)).astype(np.float32)),
        present=jnp.asarray(present),
        score=jnp.asarray(rng.uniform(size=(batch, 1)).astype(np.float32)),
        dataset=jnp.asarray(rng.integers(3, size=batch)),
        guide=jnp.asarray(rng.normal(size=(number, batch, 2)).astype(np.float32)),
        example=jnp.arange(batch) + 1,
    )


def subset(columns, chosen):
    return columns.map_examples(lambda leaf, axis: jnp.take(leaf, chosen, axis))


def means(loss, columns, params, world=None, total=lambda value: value):
    """Returns (loss, metrics) over the world, like training."""
    values, weights, metrics = loss.on_world(
        columns, world or local_world(columns, "dense"), params
    )
    all_weights = jnp.maximum(total(jnp.sum(weights)), 1e-12)
    return jax.tree.map(
        lambda numbers: total(jnp.sum(numbers * weights)) / all_weights, (values, metrics)
    )


def value(loss, columns, params=None):
    return float(
        means(loss, columns, loss.init(DIM, jax.random.key(0)) if params is None else params)[0]
    )


def total_weight(loss, columns, params):
    return float(jnp.sum(loss.on_world(columns, local_world(columns, "dense"), params)[1]))


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "arguments"),
    [
        ("size", {}),
        ("  size()\n", {}),
        ("size(scale=2)", {"scale": 2.0}),
        ("size(scale=-2.5, power=3, negate=True, of='positive')",)
        + ({"scale": -2.5, "power": 3, "negate": True, "of": "positive"},),
        ("1 * size(power=4)", {"power": 4}),
    ],
)
def test_an_expression_is_the_loss_with_its_arguments(expression, arguments):
    columns = some_columns()
    built, world = build_loss(expression), local_world(columns)
    for result, expected in zip(
        built.on_world(columns, world, {}),
        size.on_world(columns, world, {}, **arguments),
        strict=True,
    ):
        jax.tree.map(np.testing.assert_array_equal, result, expected)
    assert (
        built.init(DIM, jax.random.key(0)) == {} and built.datasets == () and built.name == "size"
    )
    assert (built.about.columns, built.about.needs, built.about.tiled) == ((1, 0), (), True)


def test_fields_go_to_the_losses_that_take_them_and_what_is_written_wins():
    columns = some_columns()
    fields = {"scale": 3, "power": 1, "temperature": 0.1}
    built = build_loss("size(power=3) + size() + contrast(learn=False)", fields)
    expected = (
        value(bind(size, scale=3.0, power=3), columns)
        + value(bind(size, scale=3.0, power=1), columns)
        + value(bind(contrast, temperature=0.1, learn=False), columns)
    )
    assert value(built, columns) == pytest.approx(expected, rel=1e-6)


def test_whole_numbers_become_floats_where_the_default_is_one():
    seen = {}

    def record(own, world, params, *, scale: float = 1.0, number: int = 1):
        seen.update(scale=scale, number=number)
        return jnp.zeros(1), jnp.ones(1), {}

    columns = make_columns(np.ones((2, 1, 3), np.float32))
    nothing = columns, local_world(columns)
    bind(record, scale=2, number=2).on_world(*nothing, {})
    assert (
        seen == {"scale": 2.0, "number": 2}
        and type(seen["scale"]) is float
        and type(seen["number"]) is int
    )


def test_a_partial_of_a_loss_is_the_loss():
    built = bind(functools.partial(contrast, temperature=0.25), learn=False)
    assert built.about.needs == ("guide",) and built.name == "contrast"
    assert value(built, some_columns()) == value(
        bind(contrast, temperature=0.25, learn=False), some_columns()
    )


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("sizes()", "sizes(): unknown loss 'sizes' (did you mean 'size'?); known: "),
        (
            "symetric(size())",
            "symetric(size()): unknown loss 'symetric' (did you mean 'symmetric'?); known: ",
        ),
        (
            "size() + contrasts",
            "contrasts: unknown loss 'contrasts' (did you mean 'contrast'?); known: ",
        ),
        (
            "size(scal=2)",
            "size(scal=2): unknown argument of size 'scal' (did you mean 'scale'?); known: negate, "
            "of, power, scale",
        ),
        ("spread(x=1)", "spread(x=1): spread takes no arguments by name, found 'x'"),
        ("size(scale='2')", "size(scale='2'): scale: expected a number, found '2'"),
        ("size(scale=True)", "size(scale=True): scale: expected a number, found True"),
        ("size(power=2.5)", "size(power=2.5): power: expected a whole number, found 2.5"),
        ("size(power=False)", "size(power=False): power: expected a whole number, found False"),
        ("size(negate=1)", "size(negate=1): negate: expected True or False, found 1"),
        ("size(of=1)", "size(of=1): of: expected a string, found 1"),
        (
            "2 * size(scale=1 + 1)",
            "size(scale=1 + 1): scale: expected a number, True, False or a string in quotes, found "
            "1 + 1",
        ),
        (
            "size(of=anchor)",
            "size(of=anchor): of: expected a number, True, False or a string in quotes, found "
            "anchor",
        ),
        (
            "size(of=None)",
            "size(of=None): of: expected a number, True, False or a string in quotes, found None",
        ),
        (
            "size(2)",
            "size(2): expected arguments by name, found 2; known: scale, power, negate, of",
        ),
        (
            "size(*x)",
            "size(*x): expected arguments by name, found *x; known: scale, power, negate, of",
        ),
        ("size(**x)", "size(**x): expected names for what is given by name"),
        ("size(scale=1, scale=2)", "size(scale=1, scale=2): expected scale once, found it twice"),
        (
            "2 * 3 * size()",
            "2 * 3 * size(): expected a number on one side of * and a loss on the other",
        ),
        (
            "size() * size()",
            "size() * size(): expected a number on one side of * and a loss on the other",
        ),
        (
            "True * size()",
            "True * size(): expected a number on one side of * and a loss on the other",
        ),
        ("size() + 1", "1: expected a loss such as "),
        ("size() / 2", "size() / 2: expected a loss such as "),
        ("-size()", "-size(): expected a loss such as "),
        ("[size]", "[size]: expected a loss such as "),
        ("os.system('ls')", "os.system('ls'): expected a loss such as "),
        ("(lambda: size)()", "(lambda: size)(): expected a loss such as "),
        ("", "'': "),
        ("size(scale=", "'size(scale=': "),
        ("size(), size() +", "'size(), size() +': "),
        ("symmetric", "symmetric: expected one loss inside, as in symmetric(info_nce()), found 0"),
        ("symmetric(size, size)", "expected one loss inside, as in symmetric(info_nce()), found 2"),
        (
            "symmetric(size, on=1)",
            "symmetric(size, on=1): symmetric takes no arguments by name, found 'on'",
        ),
        ("symmetric(2)", "2: expected a loss such as "),
        (
            "symmetric(scored)",
            "expected a loss without scores of an anchor's candidates, found scored",
        ),
        (
            "symmetric(unpaired)",
            "expected a loss of two or more texts an example, found unpaired of one",
        ),
        ("masked(size)", "masked(size): masked needs the argument min_score"),
        ("masked(size, min_score='a')", "min_score: expected a number, found 'a'"),
        (
            "masked(size, min_scores=1)",
            "unknown argument of masked 'min_scores' (did you mean 'min_score'?)",
        ),
        (
            "per_dataset(size())",
            "expected losses by data set, as in per_dataset(nli=info_nce(), sts=cosent())",
        ),
        ("per_dataset()", "per_dataset(): expected a loss for each data set, found none"),
        ("per_dataset(a=size(), a=size())", "expected a once, found it twice"),
        ("per_dataset({1: size()})", "expected names for what is given by name"),
        (
            "per_dataset(a=per_dataset(b=size))",
            "expected one loss for the data set 'a', found losses by data set",
        ),
        (
            "per_dataset(a=size) + per_dataset(b=size)",
            "expected the same data sets in the same order in each per_dataset, found a; b",
        ),
        (
            "0.5 * spread() + triple()",
            "0.5 * spread() + triple(): expected losses for equally many texts an example, "
            "found triple for 3 or more and spread for at most 2",
        ),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line_with_its_place(expression, message):
    with pytest.raises(InputError) as raised:
        build_loss(expression)
    error = str(raised.value)
    assert error.startswith("config.loss.name: ") and "\n" not in error
    assert message in error
    if not message.startswith(("expected", "unknown", "min_score")):
        assert error.removeprefix("config.loss.name: ").startswith(message)


def test_a_field_of_the_wrong_type_is_refused():
    with pytest.raises(
        InputError, match=r"^config.loss.name: size\(\): scale: expected a number, found 'a'$"
    ):
        build_loss("size()", {"scale": "a"})


def test_examples_without_what_a_combinator_looks_at_are_refused():
    columns = some_columns().replace(score=None, dataset=None)
    for built in (masked(size, min_score=0.5), per_dataset({"a": size})):
        with pytest.raises(
            InputError, match="^config.loss.name: .* needs examples with .*, found none$"
        ):
            built.on_world(columns, local_world(columns), {})


# ---- values --------------------------------------------------------------------------------------


def test_a_sum_is_the_sum_of_the_losses_means():
    columns = some_columns()
    built = build_loss("0.1 * size(power=1) - 2 * contrast() + (size() + size()) * -0.5 + triple")
    params = built.init(DIM, jax.random.key(3))
    total, metrics = means(built, columns, params)
    power_1, plain, triples = bind(size, power=1), bind(size), bind(triple)
    parts = {
        "loss/size": (0.1, value(power_1, columns)),
        "loss/contrast": (-2.0, value(bind(contrast), columns, params["1"])),
        "loss/size_2": (-0.5, value(plain, columns)),
        "loss/size_3": (-0.5, value(plain, columns)),
        "loss/triple": (1.0, value(triples, columns)),
    }
    assert len({total_weight(part, columns, {}) for part in (plain, triples)}) == 2, (
        "else any weights would do"
    )
    assert float(total) == pytest.approx(sum(c * part for c, part in parts.values()), rel=1e-6)
    expected = {name: part for name, (_, part) in parts.items()}
    expected |= {name: float(metric) for name, metric in means(power_1, columns, {})[1].items()}
    for term, name, own in (
        (bind(contrast), "contrast/{}", params["1"]),
        (plain, "size/{}", {}),
        (plain, "size/{}_2", {}),
        (triples, "triple/{}", {}),
    ):
        own_metrics = means(term, columns, own)[1]
        expected |= {name.format(key): float(metric) for key, metric in own_metrics.items()}
    assert {name: float(metric) for name, metric in metrics.items()} == pytest.approx(
        expected, rel=1e-6
    )


def test_a_sum_of_a_loss_with_itself_is_the_loss():
    """The sum keeps the loss's weights, and so its examples' counts in `per_dataset`."""
    columns = some_columns()
    values, weights, metrics = build_loss("0.5 * size + 0.5 * size").on_world(
        columns, local_world(columns), {}
    )
    expected, expected_weights, expected_metrics = size.on_world(columns, local_world(columns), {})
    np.testing.assert_array_equal(weights, expected_weights)
    np.testing.assert_allclose(values * weights, expected * expected_weights, rtol=1e-6)
    np.testing.assert_allclose(
        metrics["size"] * weights, expected_metrics["size"] * expected_weights, rtol=1e-6
    )


def test_a_loss_of_no_example_adds_nothing_to_a_sum():
    columns = some_columns()
    nothing = columns.replace(present=columns.present.at[2].set(False))
    assert value(build_loss("size + triple"), nothing) == pytest.approx(
        value(bind(size), nothing), rel=1e-6
    )


def test_symmetric_is_the_mean_over_both_directions():
    columns = some_columns()
    swapped = columns.select([1, 0, 2])
    for loss_ in (size, contrast, triple):
        built, plain = symmetric(loss_), bind(loss_)
        params = built.init(DIM, jax.random.key(0))
        there, back = value(plain, columns, params), value(plain, swapped, params)
        assert abs(there - back) > 1e-3
        assert value(built, columns, params) == pytest.approx((there + back) / 2, rel=1e-6)
        expected = {
            name: float(metric) for name, metric in means(plain, columns, params)[1].items()
        }
        metrics = {name: float(metric) for name, metric in means(built, columns, params)[1].items()}
        assert metrics == pytest.approx(expected, rel=1e-6)
    assert symmetric(size).about.columns == (2, 0)


def test_every_leaf_by_column_is_swapped():
    columns = some_columns().replace(teacher=tuple(jnp.ones((3, BATCH, 1)).at[0].set(0.0)))
    columns = columns.replace(layers=tuple(jnp.ones((3, BATCH, 2, 1)).at[1].set(0.0)))
    seen = []

    @loss()
    def look(own, world, params):
        seen.extend([own, world.columns])
        return own.score[:, 0], weights_of(own), {}

    symmetric(look).on_world(columns, local_world(columns), {})
    for result in seen[2:]:
        for name in (*TREES, *BY_COLUMN):
            np.testing.assert_array_equal(
                np.stack(getattr(result, name)), np.stack(getattr(columns, name))[[1, 0, 2]]
            )
        np.testing.assert_array_equal(result.example, columns.example)


def test_a_data_set_s_loss_sees_its_own_examples_and_columns_only():
    columns = some_columns()
    built = build_loss("per_dataset(nli=contrast(), sts=spread())")
    assert built.datasets == ("nli", "sts")
    assert (
        built.about.columns == (2, 0)
        and set(built.about.needs) == {"guide", "score"}
        and not built.about.tiled
    )
    assert built.of_dataset["sts"].columns == (2, 2)
    params = built.init(DIM, jax.random.key(1))
    nli, sts = (subset(columns, np.flatnonzero(columns.dataset == number)) for number in range(2))
    sts = sts.select([0, 1])
    parts = [(bind(contrast), nli, params["0"]), (bind(spread), sts, params["1"])]
    values, weights = ([f(*part) for part in parts] for f in (value, total_weight))
    assert min(weights) > 1.0 and weights[0] != weights[1] and sum(weights) < BATCH - 1, (
        "two data sets, and a third"
    )
    total, metrics = means(built, columns, params)
    assert float(total) == pytest.approx(np.average(values, weights=weights), rel=1e-6)
    against = float(means(*parts[0])[1]["against"])
    expected = {"loss/nli": values[0], "loss/sts": values[1], "nli/against": against}
    assert {name: float(metric) for name, metric in metrics.items()} == pytest.approx(
        expected, rel=1e-6
    )


def test_a_data_set_that_a_batch_lacks_has_no_metrics():
    columns = some_columns()
    columns = columns.replace(dataset=jnp.zeros(BATCH, int))
    total, metrics = means(
        build_loss("per_dataset({'all-nli': size(), 'sts-b': size()})"), columns, {}
    )
    assert float(total) == pytest.approx(value(bind(size), columns), rel=1e-6)
    assert (
        np.isfinite(metrics["all-nli/size"])
        and np.isnan(metrics["sts-b/size"])
        and np.isnan(metrics["loss/sts-b"])
    )


def test_masked_leaves_low_scores_out():
    columns = some_columns()
    chosen = np.flatnonzero(columns.score[:, 0] >= 0.4)
    assert 3 < len(chosen) < BATCH - 2
    for loss_ in (size, contrast):
        built = masked(loss_, min_score=0.4)
        params = built.init(DIM, jax.random.key(0))
        assert value(built, columns, params) == pytest.approx(
            value(bind(loss_), subset(columns, chosen), params), rel=1e-6
        )
        assert "score" in built.about.needs


# ---- parameters ----------------------------------------------------------------------------------


def test_parameters_are_named_by_place_and_those_of_one_loss_are_its_own():
    key = jax.random.key(7)
    single = build_loss("contrast(temperature=0.25)").init(DIM, key)
    jax.tree.map(np.testing.assert_array_equal, single, contrast_init(DIM, key, 0.25, True))
    for expression in (
        "symmetric(contrast(temperature=0.25))",
        "masked(contrast(temperature=0.25), min_score=0)",
    ):
        jax.tree.map(np.testing.assert_array_equal, build_loss(expression).init(DIM, key), single)
    for expression in (
        "size() + contrast() + 0.5 * (contrast(learn=False) + contrast())",
        "per_dataset(a=size(), b=contrast(), c=contrast(learn=False), d=contrast())",
    ):
        params = build_loss(expression).init(DIM, key)
        assert list(params) == ["1", "3"], expression
        assert not np.array_equal(params["1"]["scale"], params["3"]["scale"]), (
            "entries have their own keys"
        )
    assert build_loss("size() + triple()").init(DIM, key) == {}
    nested = build_loss("size() + per_dataset(a=size(), b=contrast(temperature=0.25))")
    assert jax.tree.map(jnp.shape, nested.init(DIM, key)) == {"1": {"1": {"scale": (DIM,)}}}
    assert nested.datasets == ("a", "b")


def test_a_sum_needs_what_its_losses_need():
    about = weighted_sum([(1.0, size), (0.5, spread), (0.5, contrast)]).about
    assert (about.needs, about.columns, about.tiled) == (("score", "guide"), (2, 2), False)
    assert build_loss("triple() + contrast(learn=True)").about.tiled
    assert build_loss("triple() + contrast()").about.columns == (3, 0)


# ---- devices -------------------------------------------------------------------------------------


def split(built, columns, form):
    """Returns `means` with the batch split over devices."""

    def on_device(embeddings, params, columns):
        own = columns.replace(embeddings=embeddings)
        params = lax.pcast(params, "data", to="varying")
        world = dataclasses.replace(device_world(own, form, ("data",)), tile=2)
        return means(
            built, own, world=world, params=params, total=lambda value: lax.psum(value, "data")
        )

    mesh = jax.make_mesh(
        (DEVICES,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES]
    )
    whole = PartitionSpec()
    specs = columns.map_examples(lambda leaf, axis: PartitionSpec(*[None] * axis, "data"))
    arguments = specs.embeddings, whole, specs
    return jax.shard_map(on_device, mesh=mesh, in_specs=arguments, out_specs=whole)


@pytest.mark.parametrize(
    ("expression", "number", "forms"),
    [
        ("size(scale=0.3) + 0.7 * contrast() - 0.2 * spread()", 2, ("dense",)),
        ("symmetric(contrast() + 0.5 * triple())", 3, ("dense", "ring")),
        (
            "masked(per_dataset(a=contrast(), b=size() + contrast(), c=spread()), min_score=0.2)",
            3,
            ("dense", "ring"),
        ),
    ],
)
def test_the_same_on_one_device_and_split_over_four(expression, number, forms):
    columns, built = some_columns(number), build_loss(expression)
    params = built.init(DIM, jax.random.key(1))

    def gradient(function):
        return jax.value_and_grad(function, argnums=(0, 1), has_aux=True)

    @jax.jit
    def each(params, columns):
        def on_one(embeddings, params):
            return means(built, columns.replace(embeddings=embeddings), params)

        result = [gradient(on_one)(columns.embeddings, params)]
        return result + [
            gradient(split(built, columns, form))(columns.embeddings, params, columns)
            for form in forms
        ]

    with jax.numpy_rank_promotion("raise"):
        (first, *others) = each(params, columns)
    assert norm(first[1][0]) > 1e-2 and norm(first[1][1]) > 1e-3
    for (value_there, metrics_there), gradients_there in others:
        (value_here, metrics_here), gradients_here = first
        assert float(value_there) == pytest.approx(float(value_here), rel=1e-6)
        assert jax.tree.map(float, metrics_there) == pytest.approx(
            jax.tree.map(float, metrics_here), rel=1e-6
        )
        difference = jax.tree.map(jnp.subtract, gradients_there, gradients_here)
        assert norm(difference) <= 1e-6 * norm(gradients_here)


def norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))
