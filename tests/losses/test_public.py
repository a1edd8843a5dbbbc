"""The losses as a library: the list of names, calls on plain arrays, examples in docstrings."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax import evals, losses, retrieval, scores
from embed_jax.data.sources import open_records
from embed_jax.errors import InputError
from embed_jax.evals.suite import Entry
from embed_jax.losses.base import Loss, bind
from embed_jax.losses.expression import build_loss
from embed_jax.losses.schedule import read_schedule
from embed_jax.parallel.world import local_world
from embed_jax.registry import REGISTRY, called, lookup
from embed_jax.world import make_columns


@pytest.fixture
def texts():
    """Anchors, positives, negatives."""
    return [
        jnp.asarray(column, jnp.float32)
        for column in np.random.default_rng(0).normal(size=(3, 4, 6))
    ]


# ---- the list ------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [losses, evals, retrieval], ids=lambda each: each.__name__)
def test_public_names_are_there_and_none_is_a_module(package):
    for name in package.__all__:
        assert not isinstance(getattr(package, name), types.ModuleType), name
    # A module of the same name would take the other's place once it is imported.
    assert not {module.name for module in pkgutil.iter_modules(package.__path__)} & set(
        dir(package)
    )
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        package.no_such_name  # noqa: B018


def test_the_public_list_has_every_registered_loss():
    assert set(REGISTRY["loss"]) <= set(losses.__all__)


def test_importing_the_lists_imports_nothing_else():
    names = "embed_jax.losses, embed_jax.evals, embed_jax.retrieval"
    program = f"import sys, {names}; assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


MODULES = [
    *(f"embed_jax.losses.{m.name}" for m in pkgutil.iter_modules(losses.__path__)),
    "embed_jax.scores",
]


def call_compiled(loss, *embeddings, plain=Loss.__call__, **keywords):
    """Calls a loss in one program, which takes less time than a program for each operation."""
    arrays = {
        name: value
        for name, value in keywords.items()
        if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))
    }
    others = {name: value for name, value in keywords.items() if name not in arrays}

    def call(embeddings, arrays):
        return plain(loss, *embeddings, **arrays, **others)

    quickly = {"xla_backend_optimization_level": 0}
    return jax.jit(call, compiler_options=quickly)(embeddings, arrays)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.setattr(Loss, "__call__", call_compiled)
    with np.printoptions(precision=4, suppress=True):
        failed, _ = doctest.testmod(module, extraglobs={"jnp": jnp, "np": np})
    assert not failed


@pytest.mark.parametrize("name", sorted(REGISTRY["loss"]))
def test_every_loss_has_an_example(name):
    result = doctest.DocTestFinder().find(lookup("loss", name), name)
    assert result[0].examples, f"{name} has no example in its docstring"


@pytest.mark.parametrize("name", sorted(REGISTRY["loss"]))
def test_every_loss_begins_with_one_line_and_describes_its_arguments(name):
    loss = lookup("loss", name)
    summary, _, rest = inspect.getdoc(loss).partition("\n\n")
    assert "\n" not in summary and summary.endswith(".")
    described = set(re.findall(r"^    (\w+): ", rest, re.MULTILINE))
    assert set(loss.parameters) <= described


# ---- on arrays -----------------------------------------------------------------------------------


def test_a_call_on_arrays_is_the_loss_of_these_examples(texts):
    columns = make_columns(texts)
    expected, _, _ = losses.info_nce.on_world(columns, local_world(columns), {}, temperature=0.1)
    np.testing.assert_array_equal(losses.info_nce(*texts, temperature=0.1), expected)
    np.testing.assert_array_equal(build_loss("info_nce(temperature=0.1)")(*texts), expected)
    np.testing.assert_allclose(
        jax.jit(lambda *x: losses.info_nce(*x, temperature=0.1))(*texts), expected, rtol=1e-5
    )


def test_an_example_that_does_not_count_is_0(texts):
    present = jnp.ones((3, 4), bool).at[1, 2].set(False)
    values = losses.info_nce(*texts, present=present)
    assert float(values[2]) == 0.0 and all(
        float(value) > 0 for value in values[jnp.array([0, 1, 3])]
    )


def test_learnt_parameters_are_given_or_as_they_start(texts):
    start = losses.siglip.init(6, jax.random.key(0))
    np.testing.assert_array_equal(losses.siglip(*texts), losses.siglip(*texts, params=start))
    start = {"log_scale": jnp.float32(0.0), "bias": jnp.float32(0.0)}
    assert not np.array_equal(losses.siglip(*texts), losses.siglip(*texts, params=start))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda t: losses.info_nce(t[0]), "info_nce: expected 2 or more columns, found 1"),
        (lambda t: losses.cosent(*t, score=jnp.ones(4)), "cosent: expected 2 columns, found 3"),
        (lambda t: losses.cosent(*t[:2]), "cosent: needs score="),
        (lambda t: losses.kl(*t), "kl: needs score="),
        (lambda t: losses.info_nce(*t, temprature=1.0), "did you mean 'temperature'"),
        (lambda t: losses.info_nce(make_columns(t)), "columns go to .on_world"),
        (lambda t: losses.info_nce(*t, similarity=3), "similarity: expected the name of a score"),
    ],
)
def test_wrong_calls_are_one_line(texts, call, message):
    with pytest.raises(InputError, match=message) as refused:
        call(texts)
    assert "\n" not in str(refused.value)


# ---- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        ("linear(1, 0, 10)", [1.0, 0.75, 0.5, 0.0, 0.0]),
        ("cosine(0.1, 0.02, "
         "10)", [0.1, 0.1 - 0.08 * (0.5 - 0.5 * np.cos(0.25 * np.pi)), 0.06, 0.02, 0.02]),
        ("quadratic(0, 2, 10)", [0.0, 0.125, 0.5, 2.0, 2.0]),
        ("switch(1, 0, 10)", [1.0, 1.0, 1.0, 0.0, 0.0]),
    ],
)  # fmt: skip
def test_schedules(text, expected):
    schedule = read_schedule(text)
    steps = jnp.array([0.0, 2.5, 5.0, 10.0, 99.0])
    np.testing.assert_allclose([schedule(step) for step in steps], expected, atol=1e-6)
    assert float(schedule(None)) == pytest.approx(expected[0])


def test_a_loss_reads_its_arguments_at_the_step(texts):
    built = build_loss(
        "info_nce(temperature='linear(0.1, 0.5, 10)') + 'linear(0, 2, 10)' * alignment()"
    )

    @jax.jit
    def at(step):
        columns = make_columns(texts, step=step)
        return built.on_world(columns, local_world(columns), {})[0]

    for step, temperature, weight in ((0, 0.1, 0.0), (5, 0.3, 1.0), (20, 0.5, 2.0)):
        expected = losses.info_nce(*texts, temperature=temperature)
        expected += weight * losses.alignment(*texts)
        np.testing.assert_allclose(at(jnp.int32(step)), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "expression, message",
    [
        (
            "info_nce(temperature='cosin(1, 2, 3)')",
            "unknown schedule 'cosin' .did you mean 'cosine'",
        ),
        (
            "info_nce(temperature='cosine(0.1, 0, 3)')",
            "temperature: expected more than 0, found 0.0",
        ),
        ("info_nce(temperature='cosine(0.1, 0.2)')", "expected a number, or a schedule such as"),
        ("info_nce(temperature='cosine(0.1, 0.2, 0)')", "expected 1 or more steps, found 0"),
        ("siglip(temperature='cosine(0.1, 0.2, 9)')", "temperature: it is learnt"),
        ("info_nce(mask_by='cosine(0.1, 0.2, 9)')", None),  # a string stays a string
    ],
)
def test_what_is_no_schedule(expression, message):
    if message is None:
        assert build_loss(expression).compute.keywords["mask_by"] == "cosine(0.1, 0.2, 9)"
        return
    with pytest.raises(InputError, match=message) as refused:
        build_loss(expression)
    assert "\n" not in str(refused.value)


# ---- names of one's own --------------------------------------------------------------------------


@losses.loss()
def pull(own, world, params, *, power: float = 2.0):
    anchors, positives = own.embeddings[:2]
    values = jnp.linalg.norm(anchors - positives, axis=-1) ** power
    weights = jnp.all(own.present[:2], axis=0).astype(jnp.float32)
    return values, weights, {}


def plain(own, world, params):
    return own.embeddings[0][:, 0], own.present[0].astype(jnp.float32), {}


def test_module_and_function_name_a_loss(texts):
    expected = jnp.linalg.norm(texts[0] - texts[1], axis=-1)
    np.testing.assert_allclose(pull(*texts[:2], power=1.0), expected, rtol=1e-6)
    for expression in (f"{__name__}:pull(power=1)", f"symmetric({__name__}:pull(power=1))"):
        np.testing.assert_allclose(build_loss(expression)(*texts[:2]), expected, rtol=1e-6)
    np.testing.assert_array_equal(build_loss(f"{__name__}:plain")(*texts[:2]), texts[0][:, 0])
    total = build_loss(f"2 * {__name__}:pull(power=1) + info_nce()")(*texts[:2])
    np.testing.assert_allclose(total, 2 * expected + losses.info_nce(*texts[:2]), rtol=1e-5)


def make(*, size: int = 1):
    return size


@pytest.mark.parametrize("kind", ["augmentation", "token_head"])
def test_module_and_function_name_what_is_called(kind):
    assert called(kind, f"{__name__}:make(size=3)") == 3
    assert called(kind, f"{__name__}:make") == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("no_such_module:f", "can't import no_such_module: .*; known without a module: .*info_nce"),
        ("embed_jax.scores:COSIN", "unknown attribute 'COSIN' .did you mean 'COSINE'"),
        ("info_nse", "unknown loss 'info_nse' .did you mean 'info_nce'"),
    ],
)
def test_names_that_lead_nowhere_are_one_line(name, message):
    with pytest.raises(InputError, match=message) as refused:
        lookup("loss", name)
    assert "\n" not in str(refused.value)


def test_a_file_has_no_module_imported():
    """A config.json may come from anybody, so its model_type never imports a module.

    It names a class that the program has imported, or is refused.
    """
    with pytest.raises(InputError, match="import the module this first"):
        lookup("backbone", "this:d", imported_only=True)
    assert "this" not in sys.modules
    assert lookup("backbone", "embed_jax.scores:COSINE", imported_only=True) is scores.COSINE


def test_targets_that_a_loss_fits():
    assert [(fit.least, fit.largest) for fit in bind(losses.cosine_mse).about.fits] == [(-1.0, 1.0)]
    assert not build_loss("score_mse(similarity='dot')").about.fits
    (margin,) = build_loss("matryoshka(margin_mse(similarity='cosine'), dims='4')").about.fits
    assert margin.of_margins and (margin.least, margin.largest) == (-2.0, 2.0)
    assert len(build_loss("cosine_mse() + angle_combined()").about.fits) == 2
    assert not build_loss("angle_combined(in_batch_weight=0)").about.fits


def open_pairs(rest, split):
    return [{"anchor": f"{rest} {split} {i}", "positive": f"answer {i}"} for i in range(3)]


def test_module_and_function_name_a_source():
    records = open_records(f"{__name__}:open_pairs:tea time", "test")
    assert records[1] == {"anchor": "tea time test 1", "positive": "answer 1"}
    assert open_records(f"{__name__}:open_pairs")[0]["anchor"] == " train 0"
    with pytest.raises(InputError, match="source 'no_such:f': can't import no_such: .*python_docs"):
        open_records("no_such:f")


def open_own_task(data, split, *, name, size: int = 1):
    return (data, split, name, size)


@pytest.mark.unchecked
def test_module_and_function_name_a_task():
    entry = Entry(f"{__name__}:open_own_task", "data", "test", "mine", options={"size": 2})
    assert entry.open() == ("data", "test", "mine", 2)
