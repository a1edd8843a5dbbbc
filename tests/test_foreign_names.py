"""Names of other libraries that may move: every one of JAX and its kin, and every private one.

When an upgrade breaks a test here, the message names what has moved and which files use it. A
private name that is new in the source goes into PRIVATE, with the reason why no public one serves.
"""

import ast
import collections
import functools
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = [
    file for part in ("embed_jax", "experiments", "scripts") for file in (ROOT / part).rglob("*.py")
]
# Young libraries, of which every name that we use is looked up.
YOUNG = ("jax", "flax", "optax", "orbax", "grain", "jaxtyping")
PRIVATE = {
    # The key-value store of several hosts, for signs of life: JAX ends a process without a word.
    "jax._src.distributed.global_state.client",
    # Of a jitted function: how many programs it has compiled, for the log. No public counter.
    "._cache_size",
}
# What the objects behind those names must be able to do.
CLIENT = ("key_value_set", "key_value_try_get")


def test_every_name_of_a_young_library_is_there():
    missing = []
    for name, files in sorted(foreign_names().items()):
        if name.startswith(tuple(f"{library}." for library in YOUNG)):
            try:
                look_up(name)
            except (ImportError, AttributeError):
                missing.append(f"{name} ({', '.join(files)})")
    assert not missing, f"not in the installed version: {'; '.join(missing)}"


def test_private_names_are_these_and_are_there():
    private = [name for name in foreign_names() if any(map(is_private, name.split(".")))]
    private = {
        name for name in private if not any(other.startswith(f"{name}.") for other in private)
    }
    assert private | private_attributes() == PRIVATE

    import jax
    from jax._src.lib import _jax

    look_up("jax._src.distributed.global_state.client")
    assert all(hasattr(_jax.DistributedRuntimeClient, name) for name in CLIENT)
    assert jax.jit(lambda x: x)._cache_size() == 0


@pytest.mark.parametrize(
    "source, names",
    [
        ("from jax import lax\nlax.no_such(1)", {"jax.lax", "jax.lax.no_such"}),
        ("import jax.numpy as jnp\njnp.a.b", {"jax.numpy", "jax.numpy.a", "jax.numpy.a.b"}),
        ("def f():\n    import jax\n    jax.x()", {"jax", "jax.x"}),
        ("import os, embed_jax\nos.x, embed_jax.y, z.w", set()),
    ],
)
def test_names_are_read_from_the_source(source, names):
    assert names_of(source) == names


@functools.cache
def foreign_names() -> dict[str, list[str]]:
    """Dotted names of other libraries in the source, each with the files that use it."""
    users = collections.defaultdict(list)
    for file in FILES:
        for name in names_of(file.read_text(encoding="utf-8")):
            users[name].append(str(file.relative_to(ROOT)))
    return users


def names_of(source: str) -> set[str]:
    """The dotted names of other libraries that a file imports, or reaches from what it imports."""
    tree = ast.parse(source)
    names, meanings = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.add(alias.name)
                top = alias.name.split(".")[0]
                meanings[alias.asname or top] = alias.name if alias.asname else top
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names.add(f"{node.module}.{alias.name}")
                meanings[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def dotted(node: ast.AST) -> str:
        if isinstance(node, ast.Name):
            return meanings.get(node.id, "")
        base = dotted(node.value) if isinstance(node, ast.Attribute) else ""
        return base and f"{base}.{node.attr}"

    names |= {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    ours = {"", "embed_jax", "experiments", "scripts", *sys.stdlib_module_names}
    return {name for name in names if name.split(".")[0] not in ours}


def private_attributes() -> set[str]:
    """Returns private attributes that the source uses but does not define.

    They belong to other libraries' objects.
    """
    used, defined = set(), set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=ast.Name(id=module)) if module in sys.stdlib_module_names:
                    pass  # os._exit and sys._getframe are documented
                case ast.Attribute(attr=name, ctx=ast.Load()) if is_private(name):
                    used.add(name)
                case ast.Attribute(attr=name) | ast.Name(id=name, ctx=ast.Store()):
                    defined.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    defined.add(name)
                case ast.AsyncFunctionDef(name=name):
                    defined.add(name)
    in_dotted_names = {part for name in foreign_names() for part in name.split(".")}
    return {f".{name}" for name in used - defined - in_dotted_names}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def look_up(name: str) -> object:
    """Looks up a dotted name: modules as long as they can be imported, then attributes."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            result = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(getattr, parts[length:], result)
    raise ModuleNotFoundError(name)
