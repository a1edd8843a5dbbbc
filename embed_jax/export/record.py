"""The record of a run on disk: its config, its data sets, its log.

As far as a model card tells it.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embed_jax.config import NAMED, Experiment, as_dict, flatten
from embed_jax.data.sources.recipes import CARD, recipes
from embed_jax.errors import InputError

UNKNOWN = "unknown: check before publishing"
HUB_NAME = r"[\w.-]+/[\w.-]+"
NLI = "SNLI: CC BY-SA 4.0; MultiNLI: for the most part the Open American National Corpus's, and the terms of its parts"
LICENCES = {  # where a recipe says nothing, or a data set has none
    "allnli": NLI,
    "allnli_triplets": NLI,
    "multinli": NLI.partition("MultiNLI: ")[2],
    "python_docs": "Python Software Foundation License, as the Python whose documentation it is",
    "scifact": "claims CC BY 4.0; abstracts ODC-By 1.0",
    "stsb": "scores CC BY-SA 4.0; texts under their own terms, some of them for research only",
}
HUB_DATASETS = {"snli": "stanfordnlp/snli"}  # that are fetched from elsewhere here


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set that a model was trained on.

    Attributes:
        name: as people know it; of a file the last parts of its path.
        split: which part of it; "" where there is none.
        hub: its name among the hub's data sets, or "".
        licence: what is known, or UNKNOWN.
        records: how many were used; 0: not recorded.
        loss: what it was trained with.
    """

    name: str
    split: str
    hub: str
    licence: str
    records: int
    loss: str


@dataclasses.dataclass(frozen=True)
class Session:
    """A start of a run, or a resumption.

    Attributes:
        start: after which step.
        seconds: from its start to the last step that it came to, evaluations and all.
        devices, hosts: how many.
        versions: of `train.tracking.environment`, the device's kind among them.
    """

    start: int
    seconds: float
    devices: int
    hosts: int
    versions: Mapping[str, str]

    @property
    def machine(self) -> str:
        """The machine that computed it, for people."""
        kind = self.versions.get("device", "unknown")
        if kind == "cpu":
            kind = f"CPU of {self.versions.get('cpus', '?')} cores"
            kind += f" as {self.devices} devices" if self.devices > 1 else ""
        elif self.devices > 1:
            kind = f"{self.devices} x {kind}"
        return kind + (f", {self.hosts} hosts" if self.hosts > 1 else "")

    @property
    def software(self) -> str:
        """The versions, for people."""
        files = {
            name: version
            for name, version in self.versions.items()
            if name not in ("device", "cpus")
        }
        return ", ".join(f"{name} {version}" for name, version in files.items())


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run's directory.

    Attributes:
        config: config.json, nested.
        data: data.json, or {}.
        results: results.json, what was measured at the end, or {}.
        log: the lines of metrics.jsonl.
        earlier: the run whose model this one started from, if it is one of ours.
        experiment: the module of `experiments` that was launched; "": none, as from Python; None:
            not recorded.
        sessions: each start and resumption, if they are recorded.
    """

    config: dict[str, Any]
    data: dict[str, Any]
    results: dict[str, Any]
    log: tuple[dict[str, Any], ...]
    earlier: TrainingRun | None
    experiment: str | None
    sessions: tuple[Session, ...]

    def stages(self) -> list[TrainingRun]:
        """The runs one after the other, this one last."""
        return [*(self.earlier.stages() if self.earlier else []), self]

    @property
    def base(self) -> str:
        """The model at the start of training: its name, or "random:SHAPE"."""
        return self.stages()[0].config["model"]["name"]

    @property
    def datasets(self) -> list[Dataset]:
        """The data sets that this run was trained on."""
        return list(_datasets(self.config, self.data))

    @property
    def steps(self) -> int:
        """The last step in the log."""
        return max((line["step"] for line in self.log), default=0)

    def chosen(self) -> tuple[int, float] | None:
        """The step at which `eval.metric` was best, and its value there.

        None where nothing chose the model.
        """
        about, best = self.config["eval"], None
        for line in self.log:  # as the training loop does
            value = line.get(about["metric"])
            if value is not None and (
                best is None
                or value == best[1]
                or value > best[1]
                and value >= best[1] + about.get("min_gain", 0)
            ):
                best = line["step"], value
        return best

    @property
    def unchanged(self) -> bool:
        """Tells whether the run chose the model that it started from, as no later one was better."""
        chosen = self.chosen()
        return chosen is not None and chosen[0] == 0 and self.steps > 0

    @property
    def seconds(self) -> float:
        """Of all sessions."""
        return sum(session.seconds for session in self.sessions)

    def each(self, what: str) -> str:
        """Returns the sessions' values of "machine" or "software".

        Where that changed, one after the other.
        """
        return "; then ".join(dict.fromkeys(getattr(session, what) for session in self.sessions))

    def median(self, name: str) -> float | None:
        """The median of a metric over the steps of the log; None where it is not logged."""
        values = sorted(line[name] for line in self.log if line.get(name) is not None)
        return values[len(values) // 2] if values else None


def read_run(directory: Path) -> TrainingRun:
    """Reads what the directory of a run holds beside its model and checkpoints.

    Raises:
        InputError: no config.json there, or a file that is damaged.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file():
        raise InputError(f"{directory}: no config.json, so it is not a run's directory")
    config = _read(directory / "config.json")
    for part in ("model", "data", "eval", "loss", "optim", "train", "batch"):
        if not isinstance(config.get(part), dict):
            raise InputError(
                f"{directory / 'config.json'}: no {part!r}, so it is not a run's config"
            )
    start = Path(config["model"].get("name", ""))
    stage = start.name == "model" and start.parent.resolve() != directory.resolve()
    stage = stage and (start.parent / "config.json").is_file()
    experiment, sessions = _read_sessions(directory / "run.json")
    return TrainingRun(
        config,
        _read(directory / "data.json"),
        _read(directory / "results.json"),
        tuple(_read_lines(directory / "metrics.jsonl")),
        read_run(start.parent) if stage else None,
        experiment,
        sessions,
    )


def hub_model(name: str) -> str:
    """The name, if it is one of a model on the hub and not of a directory here; or ""."""
    return name if re.fullmatch(rf"{HUB_NAME}|[\w.-]+", name) and not Path(name).exists() else ""


def config_source(config: Mapping[str, Any]) -> str:
    """A config as the Python file that gives it: the fields that are not what they are by default.

    Args:
        config: of `config.as_dict`, or config.json.
    """
    defaults = flatten(Experiment())
    named = tuple(f"{part}." for part in NAMED)
    fields = {name: value for name, value in _flatten(config) if not name.startswith(named)}
    lines = [
        f"    config.{name} = {value!r}"
        for name, value in fields.items()
        if defaults.get(name) != value and name != "tracking.experiment"  # set by the command
    ]
    imported = {"Experiment"}
    for part, kind in NAMED.items():
        plain, values = as_dict(kind()), config
        for name in part.split("."):
            values = values.get(name) or {}
        for name, value in values.items():
            imported.add(kind.__name__)
            arguments = ", ".join(
                f"{field}={setting!r}"
                for field, setting in value.items()
                if plain.get(field) != setting
            )
            lines.append(f"    config.{part}.{name} = {kind.__name__}({arguments})")
    return "\n".join(
        [
            f"from embed_jax.config import {', '.join(sorted(imported))}",
            "",
            "",
            'def get_config(cut: str = "") -> Experiment:',
            "    config = Experiment()",
            *lines,
            "    return config",
            "",
        ]
    )


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _datasets(config: Mapping[str, Any], data: Mapping[str, Any]) -> Iterator[Dataset]:
    counts = {
        name: about["records"]
        for name, about in data.items()
        if isinstance(about, dict) and "records" in about
    }
    mixed = (config.get("mixture") or {}).get("sources") or {}
    for name, source in mixed.items():
        loss = source.get("loss") or config["loss"]["name"]
        yield _dataset(source["train"], source.get("split", ""), counts.get(name, 0), loss)
    if not mixed:
        only, loss = next(iter(counts.values()), 0), config["loss"]["name"]
        if config["data"].get("train"):
            yield _dataset(config["data"]["train"], config["data"].get("split", ""), only, loss)
        elif only:
            yield Dataset("pairs given in Python", "", "", UNKNOWN, only, loss)


def _dataset(source: str, split: str, records: int, loss: str) -> Dataset:
    """Returns what is known of a data set by its name in `data.train`."""
    kind, _, rest = source.partition(":")
    name, hub, licence = source, "", UNKNOWN
    if source in recipes():
        recipe = recipes()[source]
        named = re.match(rf"hf:({HUB_NAME})", recipe.source)
        hub = HUB_DATASETS.get(source, named.group(1) if named else "")
        licence = UNKNOWN if recipe.licence == CARD else recipe.licence
    elif kind == "hf" and not Path(rest.partition(":")[0]).exists():
        named = re.match(HUB_NAME, rest)
        name = hub = named.group() if named else rest.partition(":")[0].partition("@")[0]
    elif kind == "tfds":
        name = rest.partition("/")[0].partition(":")[0]
        hub = HUB_DATASETS.get(name, "")
        licence = (
            recipes()[name].licence
            if name in recipes() and "tfds" in recipes()[name].source
            else UNKNOWN
        )
    elif kind == "beir":
        name = Path(rest).name
    elif source != "python_docs":  # a file: its name by itself says nothing about where it is from
        path = Path(rest if rest and kind in ("parquet", "array_record", "stream") else source)
        return Dataset("/".join(path.parts[-2:]).lstrip("/"), split, "", UNKNOWN, records, loss)
    return Dataset(name, split, hub, LICENCES.get(name, licence), records, loss)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found a {type(content).__name__}")
    return content


def _read_sessions(path: Path) -> tuple[str | None, tuple[Session, ...]]:
    """The experiment and the sessions; None and none of a run that is older than run.json."""
    content = _read(path)
    if not content:
        return None, ()
    try:
        sessions = [
            Session(
                int(session["start"]),
                float(session["seconds"]),
                int(session["devices"]),
                int(session["hosts"]),
                {**session["versions"]},
            )
            for session in content["sessions"]
        ]
        return str(content["experiment"]), tuple(sessions)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no record of a run's sessions ({error!r})") from None


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of metrics.jsonl; a half line, as an ended process leaves it, is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield entry
