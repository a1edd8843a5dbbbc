"""Groups of parameters: factors and freezing equal torch's parameter groups.

Layers are a leading axis.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from embed_jax.config import Experiment, Optim, ParamGroup
from embed_jax.config_rules import validate
from embed_jax.errors import InputError
from embed_jax.train.groups import learning_rate_factors, path_name, stop_frozen_gradients
from embed_jax.train.optim import complete_optimizer, make_optimizer

LAYERS = 3


def make_params(seed=0):
    rng = np.random.default_rng(seed)

    def leaf(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return {
        "encoder": {
            "backbone": {
                "embeddings": {"token": leaf(5, 4), "norm": {"scale": leaf(4)}},
                "layers": {"query": {"kernel": leaf(LAYERS, 4, 4), "bias": leaf(LAYERS, 4)}},
                "norm": {"scale": leaf(4)},
            },
            "heads": {"0": {"kernel": leaf(4, 2), "bias": leaf(2)}},
        },
        "loss": {"temperature": leaf()},
    }


def make_optim(groups, **fields):
    optim = Optim(**{"learning_rate": 1e-2, "schedule": "constant", "weight_decay": 0.1, **fields})
    for name, group in groups.items():
        setattr(optim.groups, name, group)
    return optim


def train(optim, steps=3):
    """Returns parameters and optimiser state after a few updates with made gradients."""
    params = make_params()
    optimizer = make_optimizer(optim, steps)
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(make_params(step + 1), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def flat(tree):
    return {
        path_name(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def torch_train(factor_of, optim, steps=3):
    """Runs torch's AdamW with a parameter group for every layer of every leaf.

    Frozen ones require no gradient.
    """
    torch = pytest.importorskip("torch")
    params, groups = {}, []
    for path, value in flat(make_params()).items():
        stacked = "/layers/" in path
        for layer in range(LAYERS) if stacked else [None]:
            tensor = torch.nn.Parameter(torch.tensor(value if layer is None else value[layer]))
            factor = factor_of(path, layer)
            tensor.requires_grad_(factor > 0)
            decays = not path.startswith("loss") and path.split("/")[-1] not in ("bias", "scale")
            params[path, layer] = tensor
            groups.append({"params": [tensor], "lr": optim.learning_rate * factor,
                           "weight_decay": optim.weight_decay * decays})  # fmt: skip
    optimizer = torch.optim.AdamW(groups, betas=(optim.b1, optim.b2), eps=optim.eps)
    for step in range(steps):
        gradients = flat(make_params(step + 1))
        for (path, layer), tensor in params.items():
            if tensor.requires_grad:
                gradient = gradients[path] if layer is None else gradients[path][layer]
                tensor.grad = torch.tensor(gradient)
        if optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(params.values(), optim.clip_norm)
        optimizer.step()
    return {key: tensor.detach().numpy() for key, tensor in params.items()}


def test_factors_frozen_layers_and_layer_decay_are_torchs_parameter_groups():
    optim = make_optim(
        {
            "heads": ParamGroup("heads", learning_rate_factor=100.0),
            "trunk": ParamGroup("backbone", learning_rate_factor=0.5, layer_decay=0.8),
            "bottom": ParamGroup("layers", learning_rate_factor=0.0, layers="0"),
            "table": ParamGroup("embeddings/token$", learning_rate_factor=0.0),
        },
        b2=0.9,  # optax's 1 - b2^t is float32, torch's float64: at 0.999 they differ by 1e-5
    )

    def factor_of(path, layer):
        if "/heads/" in path:
            return 100.0
        if path.startswith("loss"):
            return 1.0
        if layer == 0 or path.endswith("token"):
            return 0.0
        if layer is not None:
            return 0.5 * 0.8 ** (LAYERS - 1 - layer)
        return 0.5 * (0.8**LAYERS if "embeddings" in path else 1.0)

    expected = torch_train(factor_of, optim)
    trained, state = train(optim)
    start = flat(make_params())
    for path, value in flat(trained).items():
        for layer in range(LAYERS) if "/layers/" in path else [None]:
            own = value if layer is None else value[layer]
            np.testing.assert_allclose(own, expected[path, layer], rtol=2e-6, atol=1e-6)
            if factor_of(path, layer) == 0:  # not even by weight decay
                before = start[path] if layer is None else start[path][layer]
                assert own.tobytes() == before.tobytes()
    moments = {path: leaf for path, leaf in flat(state).items() if leaf.ndim}
    assert not any("token" in path for path in moments), "a frozen leaf needs no moments"
    kernels = [leaf for path, leaf in moments.items() if path.endswith("query/kernel")]
    assert len(kernels) == 2 and all(not leaf[0].any() and leaf[1:].all() for leaf in kernels)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "muon"])
def test_a_factor_is_a_run_with_that_learning_rate(name):
    """Leaves in the group move as with ten times the rate, all others as without groups."""
    optim = make_optim({"heads": ParamGroup("heads", 10.0)}, name=name, clip_norm=0.0)
    with_groups = flat(train(optim, steps=1)[0])
    slow = flat(train(make_optim({}, name=name, clip_norm=0.0), steps=1)[0])
    fast = flat(train(make_optim({}, name=name, clip_norm=0.0, learning_rate=0.1), steps=1)[0])
    for path, value in with_groups.items():
        expected = (fast if "/heads/" in path else slow)[path]
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-7)


def test_accumulated_gradients_make_one_update_and_frozen_leaves_need_no_room_for_them():
    groups = {"trunk": ParamGroup("backbone", learning_rate_factor=0.0)}
    trained, state = train(make_optim(groups, accumulate=2), steps=2)
    optimizer = make_optimizer(make_optim(groups), 1)
    params = make_params()
    mean = jax.tree.map(lambda a, b: (a + b) / 2, make_params(1), make_params(2))
    updates, _ = jax.jit(optimizer.update)(mean, jax.jit(optimizer.init)(params), params)
    for path, value in flat(optax.apply_updates(params, updates)).items():
        np.testing.assert_allclose(flat(trained)[path], value, rtol=1e-6, atol=1e-7)
    assert not any("backbone" in path for path in flat(state))


def test_an_optimiser_of_ones_own_has_the_groups_too():
    params = make_params()
    optim = make_optim({"heads": ParamGroup("heads", 0.5), "table": ParamGroup("embeddings", 0.0)})
    optimizer = complete_optimizer(optax.sgd(1.0), optim)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    for path, update in flat(updates).items():
        factor = 0.5 if "heads" in path else 0.0 if "embeddings" in path else 1.0
        np.testing.assert_array_equal(update, -factor * flat(params)[path])


def test_frozen_parameters_have_no_gradient_and_the_objective_is_the_same():
    groups = {"trunk": ParamGroup("embeddings", 0.0), "low": ParamGroup("layers", 0.0, "0,1")}

    def objective(params, scale):
        return scale * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))

    params = make_params()
    value, gradients = jax.value_and_grad(stop_frozen_gradients(objective, groups))(params, 2.0)
    plain, plain_gradients = jax.value_and_grad(objective)(params, 2.0)
    assert value == plain
    for path, gradient in flat(gradients).items():
        expected = flat(plain_gradients)[path].copy()
        expected[(slice(0, 2) if "/layers/" in path else ...)] *= (
            "/layers/" not in path and "embeddings" not in path
        )
        np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize(
    "group, message",
    [
        (ParamGroup("hed"), "heads.pattern: no parameter's path matches 'hed'; near: "
                            "encoder/heads/0/bias"),
        (ParamGroup("xyz"), "no parameter's path matches 'xyz'; near: encoder/backbone"),
        (ParamGroup("layers", layers="1,3"), "heads.layers: expected layers from 0 to 2, found "
                                             "'1,3'"),
        (ParamGroup("embed", layer_decay=0.9), "heads.layer_decay: needs layers, but the pattern "
                                               "'embed' matches none"),
        (ParamGroup(".", 0.0), "config.optim.groups: all parameters are frozen"),
    ],
)  # fmt: skip
def test_a_group_that_means_nothing_is_refused_in_one_line(group, message):
    with pytest.raises(InputError) as error:
        make_optimizer(make_optim({"heads": group}), 1).init(make_params())
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "group, message",
    [
        (ParamGroup("(heads"), "config.optim.groups.heads.pattern: not a regular expression"),
        (ParamGroup(), "config.optim.groups.heads.pattern: expected a part of parameters' paths"),
        (ParamGroup("heads", -1.0), "learning_rate_factor: expected at least 0, found -1.0"),
        (ParamGroup("heads", layers="0-2"), "layers: expected numbers with commas between"),
        (ParamGroup("heads", layer_decay=0.0), "layer_decay: expected more than 0 and at most 1"),
        ("heads", "config.optim.groups.heads: expected embed_jax.config.ParamGroup, found str"),
    ],
)
def test_a_groups_fields_are_checked(group, message):
    config = Experiment()
    config.optim.groups.heads = group
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        validate(config)


def test_factors_of_several_groups_multiply_in_any_order():
    groups = {"a": ParamGroup("backbone", 0.5), "b": ParamGroup("kernel", 4.0, "", 0.5),
              "c": ParamGroup("layers", 0.0, "2")}  # fmt: skip
    for order in (groups, dict(reversed(groups.items()))):
        factors = flat(learning_rate_factors(make_params(), order))
        np.testing.assert_array_equal(
            factors["encoder/backbone/layers/query/kernel"], [0.5, 1.0, 0.0]
        )
        np.testing.assert_array_equal(
            factors["encoder/backbone/layers/query/bias"], [0.5, 0.5, 0.0]
        )
        assert factors["encoder/heads/0/kernel"] == 4.0 and factors["loss/temperature"] == 1.0
        assert factors["encoder/backbone/embeddings/token"] == 0.5
