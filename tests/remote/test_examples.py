"""Every public function of `embed_jax.remote` has an example in its docstring that runs."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

from embed_jax import remote

MODULES = [f"{remote.__name__}.{module.name}" for module in pkgutil.iter_modules(remote.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_an_example(name):
    module = importlib.import_module(name)
    functions = {
        function_name: function
        for function_name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == name and not function_name.startswith("_")
    }
    assert [name for name, function in functions.items() if ">>>" not in function.__doc__] == []
