"""Suites: lists of tasks in a file, run one after the other; what was done is not done again."""

from __future__ import annotations

import dataclasses
import inspect
import runpy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, one_line
from embed_jax.evals.embedder import TokenEmbedder
from embed_jax.evals.reranker import Reranker
from embed_jax.evals.results import TaskResult, fingerprint, read_result, seen_in_training
from embed_jax.evals.task import Embed, Outcome, Task, Use
from embed_jax.packaged import config_path
from embed_jax.registry import lookup, unknown

FIELDS = ("task", "data", "split", "name", "instruction")
REMOTE = ("hf:", "tfds:")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A task of a suite.

    Attributes:
        task: its kind, one of the registry's.
        data: the file, directory or data set that `open_task` of that kind reads.
        split: the part of it.
        name: in tables and of the file.
        instruction: what its texts, except for documents, are embedded for: for models with a
            template.
        options: further arguments of `open_task`.
        where: the suite's file and the task's number, for errors.
        root: where paths of the suite were looked for first.
    """

    task: str
    data: str
    split: str = "test"
    name: str = ""
    instruction: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    where: str = dataclasses.field(default="", compare=False)
    root: Path | None = dataclasses.field(default=None, compare=False)

    def open(self) -> Task:
        """Reads the data.

        Raises:
            InputError: for an unknown kind or option, an option of the wrong type, or data that
                cannot be read.
        """
        open_task = lookup("task", self.task)
        accepted = {
            name: parameter
            for name, parameter in inspect.signature(open_task).parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and name != "name"
        }
        for option, value in self.options.items():
            if option not in accepted:
                raise InputError(f"{self.task} {self.name}: {unknown('option', option, accepted)}")
            if not _fits(value, accepted[option]):
                expected = accepted[option].annotation
                raise InputError(
                    f"{self.task} {self.name}: {option}: expected {expected}, found {value!r}"
                )
        try:
            return open_task(self.data, self.split, name=self.name, **self.options)
        except InputError as error:
            if not self.where:
                raise
            tried = ""
            if self.root and not Path(self.data).exists() and not self.data.startswith(REMOTE):
                paths = dict.fromkeys([self.root.absolute() / self.data, Path.cwd() / self.data])
                tried = f"; looked for {' and '.join(map(str, paths))}"
            raise InputError(f"{self.where}: {error}{tried}") from None

    def fingerprint(self) -> str:
        """Computes a fingerprint of all that a score depends on besides the model."""
        path = Path(self.data)
        content = [path] if not self.data.startswith(REMOTE) and path.exists() else []
        settings = dataclasses.asdict(self) | {"data": path.name if content else self.data}
        for name in ("where", "root"):
            del settings[name]
        return fingerprint(settings, *content)


def read_suite(path: Path, root: Path | None = None) -> list[Entry]:
    """Reads the tasks of a YAML file or of a Python file.

    A YAML file is a list of mappings; a Python file sets `TASKS` to such a list. A mapping has
    `task` and `data`, may have `split`, `name` and `instruction`; its other fields are options of
    the task. Paths, also in options, are relative to `root` where they exist there, else to the
    working directory.

    Args:
        path: the file, or the name of a packaged suite.
        root: the file's own directory if not given.

    Raises:
        InputError: for a file that cannot be read, and the first entry that is not a task, with
            its number.
    """
    path = config_path(path)
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; a suite is a YAML or Python file with a list of tasks"
        )
    try:
        tasks = runpy.run_path(str(path)).get("TASKS") if path.suffix == ".py" else _yaml(path)
    except Exception as error:  # whatever a Python file does
        raise InputError(f"{path}: cannot be read as a suite: {one_line(error)}") from None
    if not isinstance(tasks, list) or not tasks:
        what = "TASKS to a list" if path.suffix == ".py" else "a list"
        raise InputError(f"{path}: expected {what} of tasks, found {type(tasks).__name__}")
    entries = [
        _entry(f"{path}: task {number}", mapping, root or path.parent)
        for number, mapping in enumerate(tasks, 1)
    ]
    names = [entry.name for entry in entries]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(
                f"{path}: task {number + 1}: {name!r} is the second one of this name; give it a "
                "name"
            )
    return entries


def named(task: str, data: str, split: str) -> str:
    """Returns the name of a task without one: scifact, stsb-dev, banking77."""
    path, known = Path(data), known_split(data, split)
    name = path.name.split(".")[0]
    if known == name and path.suffix:
        return path.parent.name or name if name == "test" else f"{path.parent.name}-{name}"
    return name if known in ("test", None) else f"{name}-{known}"


def known_split(data: str, split: str) -> str | None:
    """Returns the part of a data set that is evaluated: the requested split, or a file's name.

    None: it isn't known.

    Args:
        data: a directory or a data set that has splits, or one file, which has none whatever is
            requested.
        split: the requested split.
    """
    path = Path(data)
    if path.is_dir() or data.startswith(REMOTE) or not path.suffix:
        return split
    name = path.name.split(".")[0]
    return name if name in ("train", "dev", "validation", "test") else None


def evaluate(
    entry: Entry,
    model: str,
    system: Embed | Reranker,
    *,
    task: Task | None = None,
    training: Callable[[], Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> TaskResult:
    """Evaluates a model on a task of a suite.

    Args:
        entry: the task.
        model: the model's name.
        system: the model: see `embedder.Embedder`, `embedder.TokenEmbedder` for late interaction,
            `reranker.Reranker` for a cross-encoder.
        task: what `entry.open()` returns, if it was read before.
        training: returns training texts, which the task's texts are then compared with.
        details: more fields of the result.

    Raises:
        InputError: for a cross-encoder on a kind of task that needs embeddings, or late interaction
            on one that needs a vector for each text.
    """
    task = task or entry.open()
    began = time.perf_counter()
    if isinstance(system, TokenEmbedder) and task.kind != "Retrieval":
        raise InputError(
            f"{model}: a late-interaction model, whose texts have a vector for each token; a task "
            f"of the kind {entry.task} needs a vector for each text"
        )
    if not isinstance(system, Reranker):
        outcome = task.evaluate(_instructed(system, entry.instruction))
    elif task.evaluate_pairs is not None:
        outcome = task.evaluate_pairs(system)
    else:
        raise InputError(
            f"{model}: a cross-encoder, which scores pairs; a task of the kind {entry.task} needs "
            "an embedding model"
        )
    seconds = time.perf_counter() - began
    return make_result(
        entry, task, model, outcome, seconds=seconds, training=training, details=details
    )


def make_result(
    entry: Entry,
    task: Task,
    model: str,
    outcome: Outcome,
    *,
    seconds: float,
    training: Callable[[], Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> TaskResult:
    """Makes the result of an evaluation of a task of a suite; see `evaluate`.

    Args:
        entry: the task.
        task: what `entry.open()` returns.
        model: the model's name.
        outcome: the model's scores.
        seconds: how long the evaluation took.
        training: see `evaluate`.
        details: see `evaluate`.
    """
    recorded = {
        "data": entry.data,
        "split": known_split(entry.data, entry.split),
        "options": dict(entry.options),
        "seconds": round(seconds, 3),
    }
    recorded |= {"instruction": entry.instruction} if entry.instruction else {}
    if training is not None:
        recorded["overlap"] = seen_in_training(task, outcome, training())
    return TaskResult(
        model, entry.name, entry.task, task.unit, outcome, recorded | dict(details or {})
    )


def unfinished(entries: Sequence[Entry], directory: Path, model_fingerprint: str) -> list[Entry]:
    """Returns the tasks without a result of this very model and data in a directory."""
    left = []
    for entry in entries:
        file = result_file(directory, entry.name)
        if not file.is_file() or read_result(file).details.get("fingerprint") != [
            model_fingerprint,
            entry.fingerprint(),
        ]:
            left.append(entry)
    return left


def result_file(directory: Path, name: str) -> Path:
    """Returns the path of a task's result."""
    return directory / f"{file_name(name)}.json"


def file_name(name: str) -> str:
    """Replaces characters that file names cannot have: org/model -> org_model."""
    return (
        "".join(char if char.isalnum() or char in "-_.+=" else "_" for char in name).strip("._")
        or "_"
    )


class _instructed:  # noqa: N801  a function with an attribute
    """A model that embeds texts with the task's instruction."""

    def __init__(self, embed: Embed, instruction: str):
        self._embed, self._instruction, self.similarity = embed, instruction, embed.similarity

    def __call__(self, texts: Sequence[str], use: Use) -> Any:
        return self._embed(
            texts, dataclasses.replace(use, instruction=use.instruction or self._instruction)
        )


def _fits(value: Any, parameter: inspect.Parameter) -> bool:
    """Tells whether a value from a file fits a parameter with a default of a plain type."""
    expected_type = type(parameter.default)
    if expected_type is tuple:
        return isinstance(value, list | tuple)
    if isinstance(value, bool) or expected_type is bool:
        return type(value) is expected_type
    return isinstance(value, int | float if "float" in str(parameter.annotation) else expected_type)


def _yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _entry(where: str, mapping: Any, root: Path) -> Entry:
    if not isinstance(mapping, Mapping):
        raise InputError(f"{where}: expected a mapping with task and data, found {mapping!r}")
    for field in ("task", "data"):
        if field not in mapping:
            raise InputError(
                f"{where}: no field {field!r}; found {', '.join(map(str, mapping)) or 'none'}"
            )
    for field in FIELDS:
        if not isinstance(mapping.get(field, ""), str):
            raise InputError(f"{where}: {field}: expected text, found {mapping[field]!r}")
    try:
        lookup("task", mapping["task"])
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    data, split = _rooted(mapping["data"], root), mapping.get("split", "test")
    options = {name: _rooted(value, root) for name, value in mapping.items() if name not in FIELDS}
    name = mapping.get("name") or named(mapping["task"], data, split)
    instruction = mapping.get("instruction", "")
    return Entry(mapping["task"], data, split, name, instruction, options, where, root)


def _rooted(value: Any, root: Path) -> Any:
    """Returns the path below `root` that a text names, if it exists; else the value."""
    there = (
        isinstance(value, str)
        and value
        and not value.startswith(REMOTE)
        and (root / value).exists()
    )
    return str(root / value) if there else value
