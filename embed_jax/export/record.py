"""Reads the parts of a run's directory that a model card reports: config, data sets and log."""

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
NLI = (
    "SNLI: CC BY-SA 4.0; MultiNLI: for the most part the Open American National Corpus's, "
    "and the terms of its parts"
)
LICENCES = {  # of data sets whose recipe does not name one, or that have no recipe
    "allnli": NLI,
    "allnli_triplets": NLI,
    "multinli": NLI.partition("MultiNLI: ")[2],
    "python_docs": "Python Software Foundation License, as the Python whose documentation it is",
    "scifact": "claims CC BY 4.0; abstracts ODC-By 1.0",
    "stsb": "scores CC BY-SA 4.0; texts under their own terms, some of them for research only",
}
HUB_DATASETS = {"snli": "stanfordnlp/snli"}  # those that embed-jax fetches from elsewhere


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set that a model was trained on.

    Attributes:
        name: its common name; for a file the last parts of its path.
        split: the part that was used, or "".
        hub: its name among the hub's data sets, or "".
        licence: its licence, or UNKNOWN.
        records: the number of records used; 0: not recorded.
        loss: the loss that it was used with.
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
        start: the step after which the session started.
        seconds: the time from its start to its last step, evaluations included.
        devices, hosts: the number of devices and of hosts.
        versions: see `train.tracking.environment`; the device's kind is among them.
    """

    start: int
    seconds: float
    devices: int
    hosts: int
    versions: Mapping[str, str]

    @property
    def machine(self) -> str:
        """The machine that computed the session, for readers."""
        kind = self.versions.get("device", "unknown")
        if kind == "cpu":
            kind = f"CPU of {self.versions.get('cpus', '?')} cores"
            kind += f" as {self.devices} devices" if self.devices > 1 else ""
        elif self.devices > 1:
            kind = f"{self.devices} x {kind}"
        return kind + (f", {self.hosts} hosts" if self.hosts > 1 else "")

    @property
    def software(self) -> str:
        """The versions of the software, for readers."""
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
        results: results.json, the final measurements, or {}.
        log: the lines of metrics.jsonl.
        earlier: the run whose model this one started from, or None.
        experiment: the module of `experiments` that was launched; "": started from Python; None:
            not recorded.
        sessions: each start and resumption, if they are recorded.
        reranking: reranking.json, the test of a cross-encoder on a shortlist, or {}.
    """

    config: dict[str, Any]
    data: dict[str, Any]
    results: dict[str, Any]
    log: tuple[dict[str, Any], ...]
    earlier: TrainingRun | None
    experiment: str | None
    sessions: tuple[Session, ...]
    reranking: dict[str, Any] = dataclasses.field(default_factory=dict)

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

    def find_best(self) -> tuple[int, float] | None:
        """Returns the step at which `eval.metric` was best, and its value there.

        It is None if the metric was not measured.
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
        """Tells whether the run chose the model that it started from, since none was better."""
        chosen = self.find_best()
        return chosen is not None and chosen[0] == 0 and self.steps > 0

    @property
    def seconds(self) -> float:
        """The time of all sessions, in seconds."""
        return sum(session.seconds for session in self.sessions)

    def join_sessions(self, what: str) -> str:
        """Returns the sessions' values of "machine" or "software", different ones in order."""
        return "; then ".join(dict.fromkeys(getattr(session, what) for session in self.sessions))

    def median(self, name: str) -> float | None:
        """Returns the median of a metric over the steps of the log; None if it is not logged."""
        values = sorted(line[name] for line in self.log if line.get(name) is not None)
        return values[len(values) // 2] if values else None


def read_run(directory: Path) -> TrainingRun:
    """Reads the directory of a run, without its model and checkpoints.

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
        _read(directory / "reranking.json"),
    )


def hub_model(name: str) -> str:
    """Returns the name if it may be that of a model on the hub, else "".

    >>> hub_model("intfloat/e5-small"), hub_model("/runs/model")
    ('intfloat/e5-small', '')
    """
    return name if re.fullmatch(rf"{HUB_NAME}|[\w.-]+", name) and not Path(name).exists() else ""


def config_source(config: Mapping[str, Any]) -> str:
    """Returns a Python file that makes a config, by the fields that differ from their defaults.

    >>> print(config_source({"batch": {"size": 7}}), end="")
    from embed_jax.config import Experiment
    <BLANKLINE>
    <BLANKLINE>
    def get_config(cut: str = "") -> Experiment:
        config = Experiment()
        config.batch.size = 7
        return config

    Args:
        config: the result of `config.as_dict`, or the content of config.json.
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
    """Returns a data set's facts, as far as its name in `data.train` tells them."""
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
    elif source != "python_docs":  # a file, whose name does not say where it is from
        path = Path(rest if rest and kind in ("parquet", "array_record", "stream") else source)
        return Dataset("/".join(path.parts[-2:]).lstrip("/"), split, "", UNKNOWN, records, loss)
    return Dataset(name, split, hub, LICENCES.get(name, licence), records, loss)


def _read(path: Path) -> dict[str, Any]:
    """Reads a JSON object; {} if there is no such file."""
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
    """Reads the experiment and the sessions; (None, ()) for a run that has no run.json."""
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
    """Reads the lines of metrics.jsonl, without the half line of a process that was stopped."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            yield entry
