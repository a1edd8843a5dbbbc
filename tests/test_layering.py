"""Rules of imports, checked on the source.

They keep a part usable without the parts above it.
"""

import ast
import collections
import copy
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module imports from its own part and from parts on lower steps; parts on one step do not know
# each other.
STEPS = (
    ("errors", "atomic", "journal", "snapshots", "types")
    + ("config", "config_fields", "config_rules", "config_file")
    + ("registry", "remembered", "runtime", "vectors", "public", "packaged", "yaml_files")
    + ("pictures",),
    ("remote", "scores", "pair_scores", "world"),
    ("maxsim", "token_pooling"),
    ("head_scores", "xtr"),
    ("encoders", "losses", "parallel", "data", "prompts"),
    (
        "pretrained",
        "encode_options",
        "embedding_model",
        "token_sides",
        "token_vectors",
        "late_chunking",
    ),
    ("text_model",),
    ("sentence", "cross_encoder", "late_interaction", "catalogue"),
    ("sparse", "multi_head", "matches"),
    ("routed", "static"),
    ("loading",),
    ("retrieval", "export"),
    ("corpus_index",),
    ("evals", "pipelines"),
    ("train", "serve"),
    ("experiments",),
    ("scripts",),
    ("__main__",),  # the console command starts what is above it
)
STEP = {part: number for number, parts in enumerate(STEPS) for part in parts}
COLLECTIVES = {
    "psum",
    "pmean",
    "pmax",
    "pmin",
    "all_gather",
    "all_to_all",
    "ppermute",
    "pshuffle",
    "psum_scatter",
}
# Present only with an extra, or slow to import: imported inside the functions that use them.
HEAVY = {
    "lancedb",
    "absl",
    "bm25s",
    "datasets",
    "faiss",
    "grain",
    "matplotlib",
    "mteb",
    "onnx",
    "onnxruntime",
}
HEAVY |= {
    "orbax",
    "pandas",
    "rich",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "tensorflow_datasets",
    "torch",
}
HEAVY |= {"tqdm", "wandb"}
HEAVY |= {"jinja2", "starlette", "uvicorn"}
WEB = "embed_jax/serve/"  # nothing but what answers requests, in starlette's terms
TFDS_BUILDER = "embed_jax/data/sources/python_docs_builder.py"  # a subclass needs its base class
ONLY_IN = {"orbax": "embed_jax/train/checkpoint.py", "wandb": "embed_jax/train/tracking.py"}
# Subpackages that need only jax, flax, optax, transformers, jaxtyping and numpy. They must work
# without HEAVY, except for the packages that those libraries themselves depend on.
LIGHT = ["encoders", "losses", "parallel"]
LIGHT_MODULES = [
    "sentence",
    "cross_encoder",
    "train.step",
    "train.optim",
    "data.pack",
    "data.tokenize",
]
# What loading a model of BERT's family has no need of.
NOT_FOR_A_MODEL = ["train", "losses", "evals", "retrieval", "export", "remote", "runtime"]
NOT_FOR_A_MODEL += [
    f"encoders.{name}"
    for name in ("deberta", "decoder", "gte", "modernbert", "nomic", "t5", "static")
]
ABSENT = HEAVY - {"absl", "jinja2", "orbax", "rich", "scipy", "tqdm"}

PACKAGES = ("embed_jax", "experiments", "scripts")
FILES = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES
}


def part(dotted: str) -> str:
    """Returns embed_jax.data.pack -> data; scripts.bench -> scripts; embed_jax only -> ""."""
    names = dotted.split(".")
    return names[0] if names[0] != "embed_jax" else "".join(names[1:2])


def package_of(path: str, level: int) -> str:
    """Returns the package that `level` dots mean in a file, or ""."""
    return ".".join(path.split("/")[:-level]) if level else ""


def imports(tree: ast.AST, path: str):
    """Yields (dotted name, line) of every import.

    `from a import b` counts as a.b, and so does `from .a import b`.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, [package_of(path, node.level), node.module]))
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def at_import_time(tree: ast.Module) -> ast.Module:
    """Returns the tree without the bodies of functions and of `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node):
            return None

        visit_AsyncFunctionDef = visit_FunctionDef

        def visit_If(self, node):
            return None if "TYPE_CHECKING" in ast.dump(node.test) else self.generic_visit(node)

    return Strip().visit(copy.deepcopy(tree))


def test_imports_go_down_the_layers():
    wrong = []
    for path, tree in TREES.items():
        if path == "embed_jax/__init__.py":  # the public names, from whichever part
            continue
        importer = part(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for name, line in imports(tree, path):
            imported = part(name)
            if name.split(".")[0] not in PACKAGES or imported in (importer, "__version__"):
                continue
            step = STEP.get(
                imported, STEP["train"]
            )  # the public names of embed_jax itself, such as embed_jax.load
            if step > STEP[importer] or step == STEP[importer] > 0:
                wrong.append(f"{path}:{line}: {importer} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_imports_are_relative_where_packages_are_renamed():
    """Installed scripts and experiments are embed_jax.scripts and embed_jax.experiments."""
    wrong = [
        f"{path}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for names in [[alias.name for alias in node.names]]
        for level in [getattr(node, "level", 0)]
        for tops in [{(getattr(node, "module", None) or name).split(".")[0] for name in names}]
        if (
            level
            if path.startswith("embed_jax/")
            else tops & {"scripts", "experiments"} and not level
        )
    ]
    assert not wrong, "\n".join(wrong)


def test_no_import_circles():
    """Imports inside functions and of types count, too.

    Two files of a circle can't be understood separately.
    """
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path
        for path in TREES
        if path != "embed_jax/__init__.py"  # its public names are imported when asked for
    }
    sorter = graphlib.TopologicalSorter()
    for module, path in modules.items():
        for name, _ in imports(TREES[path], path):
            imported = name if name in modules else name.rpartition(".")[0]
            if imported in modules and imported != module:
                sorter.add(module, imported)
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        pytest.fail("import circle: " + " <- ".join(error.args[1]))


def test_retrieval_and_evals_receive_functions_not_models():
    wrong = [
        f"{path}:{line}: {name}"
        for path, tree in TREES.items()
        if path.startswith(("embed_jax/retrieval/", "embed_jax/evals/"))
        and path != "embed_jax/evals/mteb.py"
        for name, line in imports(tree, path)
        if name.startswith(("embed_jax.sentence", "embed_jax.cross_encoder", "embed_jax.encoders"))
    ]
    assert not wrong, "\n".join(wrong)


def test_configs_import_only_config():
    for path in (ROOT / "configs").rglob("*.py"):
        names = [name for name, _ in imports(ast.parse(path.read_text(encoding="utf-8")), "")]
        assert all(part(name) == "config" for name in names if name.startswith("embed_jax")), (
            f"{path}: {names}"
        )


def test_only_parallel_names_a_collective():
    named = [
        f"{path}:{node.lineno}: {name}"
        for path, tree in TREES.items()
        if not path.startswith("embed_jax/parallel/")
        for node in ast.walk(tree)
        for name in [getattr(node, "attr", None) or getattr(node, "id", None)]
        if name in COLLECTIVES
    ]
    imported = [
        f"{path}:{line}: {name}"
        for path, tree in TREES.items()
        if not path.startswith("embed_jax/parallel/")
        for name, line in imports(tree, path)
        if name.startswith("jax.") and name.split(".")[-1] in COLLECTIVES
    ]
    assert not named + imported, "\n".join(named + imported)


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_one_file_imports(library):
    importers = {
        path
        for path, tree in TREES.items()
        for name, _ in imports(tree, path)
        if name.split(".")[0] == library
    }
    assert importers == {ONLY_IN[library]}


def test_heavy_libraries_are_imported_where_they_are_used():
    wrong = [
        f"{path}:{line}: {name}"
        for path, tree in TREES.items()
        if path.startswith("embed_jax/") and path != TFDS_BUILDER and not path.startswith(WEB)
        for name, line in imports(at_import_time(tree), path)
        if name.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_light_modules_work_without_the_heavy_libraries():
    light = [f"embed_jax.{name}" for name in LIGHT_MODULES]
    for path in TREES:
        if path.startswith(tuple(f"embed_jax/{name}/" for name in LIGHT)):
            light.append(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    program = f"""
import importlib, sys
sys.modules |= dict.fromkeys({sorted(ABSENT)!r})  # fails as if not installed
import embed_jax
assert "jax" not in sys.modules, "`import embed_jax` only imports jax"
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
import embed_jax.routed  # what loads a model
build_encoder(random_spec("tiny"))
for name in {NOT_FOR_A_MODEL!r}:
    assert "embed_jax." + name not in sys.modules, f"a model of BERT's family imports {{name}}"
for name in {light!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


# What every file of its kind defines: a backbone, a data source, a task.
ENTRY_POINTS = {"Embeddings", "Layer", "open_source", "open_task", "read_config", "write_config"}


def test_a_public_name_is_defined_once():
    """Counts classes, functions, and type aliases (capitalised names that are assigned)."""
    homes = collections.defaultdict(list)
    for path, tree in TREES.items():
        for node in tree.body if path.startswith("embed_jax/") else ():
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                names = [node.name]
            elif isinstance(node, ast.Assign) and "TypeVar" not in ast.unparse(node.value):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                names = [name for name in names if name[0].isupper() and not name.isupper()]
            else:
                continue
            for name in names:
                if name[0] != "_":
                    homes[name].append(path)
    repeated = {name: paths for name, paths in homes.items() if len(paths) > 1}
    wrong = [f"{name}: {', '.join(repeated[name])}" for name in repeated.keys() - ENTRY_POINTS]
    assert not wrong, "\n".join(wrong)
    assert ENTRY_POINTS <= repeated.keys(), "an exemption that nothing needs"


# The reader of options that several subcommands of evaluate share.
READERS = {"scripts.evaluate.embedders.check_arguments", "scripts.evaluate.embedders.read_options"}


def test_a_parsed_command_line_stays_in_the_file_of_its_command():
    """Only `__main__` starts a subcommand with it; everything else takes real arguments."""
    takers, used = set(), []
    for path, tree in TREES.items():
        module = path.removesuffix(".py").replace("/", ".")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                annotations = [
                    ast.unparse(arg.annotation) for arg in node.args.args if arg.annotation
                ]
                if any("argparse.Namespace" in annotation for annotation in annotations):
                    takers.add(f"{module}.{node.name}")
        if path.endswith("__main__.py"):
            continue
        names = {name.rpartition(".")[2]: name for name, _ in imports(tree, path)}
        used += [(path, name) for name in names.values()]
        used += [
            (path, f"{names[node.value.id]}.{node.attr}")
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if node.value.id in names
        ]
    assert READERS < takers and not any(
        name.startswith(("embed_jax", "experiments")) for name in takers
    )
    wrong = [f"{path}: {name}" for path, name in used if name in takers - READERS]
    assert not wrong, "\n".join(wrong)
