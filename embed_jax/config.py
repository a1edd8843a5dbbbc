"""Experiment settings: plain mutable dataclasses, filled by a Python file and overridden on the command line.

A config file defines `get_config(cut: str = "") -> Experiment`; `file.py:small` asks for the cut "small". There are
no list or optional fields: an empty string or 0 means "not set", and each field's comment says what happens then.

Two parts hold others by names of your own: `config.mixture.sources.NAME = Source(...)`, the data sets of a mixture, and
`config.stages.NAME = Experiment()`, what to train afterwards.
"""

# No `from __future__ import annotations` here: ml_collections reads the fields' types at run time.
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from embed_jax.errors import InputError
from embed_jax.registry import unknown


@dataclasses.dataclass
class Model:
    name: str = "sentence-transformers/all-MiniLM-L6-v2"  # directory, hub name, or "random:SHAPE" with `tokenizer`
    tokenizer: str = ""  # directory with tokenizer files; "": the model's own
    pooling: str = ""  # "": the model's own
    mlp: str = ""  # "": none; "kept": SimCSE's tanh layer; "training": only in training, dropped from the result
    dropout: float = -1.0  # of hidden states and attention; -1: the model's own
    compute_dtype: str = "auto"  # "auto": bfloat16 on GPU and TPU, float32 on CPU
    same_mask_columns: int = 0  # texts of an example that share a dropout mask: 2 is SimCSE's "fixed 0.1"; 0: none
    remat: str = "none"  # "none" or "layer": recompute each layer in the backward pass
    guide: str = ""  # a model that losses ask which negatives are false (gist); "": none
    teacher: str = ""  # a model whose embeddings are to be imitated (distillation); "": none


@dataclasses.dataclass
class Data:
    # python_docs, a recipe's name, tfds:NAME, hf:NAME, beir:DIRECTORY, parquet:FILES, array_record:FILES, stream:FILE,
    # or a path to .jsonl, .tsv, .csv, .txt (.gz)
    train: str = ""
    split: str = "train"
    validation_split: str = ""  # split of `train` whose loss is logged beside the training loss; "": none
    holdout: float = 0.0  # share of the pairs for validation, and again for test, split by us; 0: the source has splits
    corpus: str = ""  # with `holdout`: further texts to search among
    limit: int = 0  # the first so many records; 0: all
    exclude: str = ""  # files with commas between: records with a text that stands in one of them are left out
    score_max: float = 1.0  # scores are divided by it: 5 for STS-B
    window: int = 10_000  # of a source that is read one by one ("stream:FILE"): records shuffled together
    consistency: int = 0  # retrieval: a pair stays if its positive is among so many found for its anchor; 0: all stay
    max_length: int = 128  # tokens a text is cut to, special tokens included
    anchor_prompt: str = ""
    candidate_prompt: str = ""
    augment: str = ""  # how the positive of SimCSE is changed: "delete_words(rate=0.1)"; "": not


@dataclasses.dataclass
class Source:
    """One data set of a mixture."""

    train: str = ""  # as `data.train`
    split: str = "train"
    limit: int = 0  # the first so many records; 0: all
    exclude: str = ""
    score_max: float = 1.0
    columns: str = ""  # the fields that are anchor, positive, negatives, with commas; "": by their usual names
    max_length: int = 0  # tokens a text is cut to; 0: `data.max_length`
    anchor_prompt: str = ""  # "": `data.anchor_prompt`, and so on
    candidate_prompt: str = ""
    loss: str = ""  # "": `loss.name`
    loss_weight: float = 1.0
    weight: float = 1.0  # with `mixture.sampling="weights"`: its share of the batches, in relation to the others


@dataclasses.dataclass
class Mixture:
    sources: SimpleNamespace = dataclasses.field(default_factory=SimpleNamespace)  # NAME = Source(...); none: `data`
    sampling: str = "proportional"  # to the sizes; "round_robin", "temperature", "weights"
    temperature: float = 1.0  # of "temperature": shares are size^(1 / temperature); 1: proportional
    batches: str = "single"  # "single": each batch from one data set; "mixed": from all of them


@dataclasses.dataclass
class BatchShape:
    size: int = 64  # examples, over all devices
    no_duplicates: bool = False  # no two examples of a batch share a text, an id or a group
    groups: int = 0  # groups the batch is dealt to, encoded one after the other on a device; 0: one a device
    shares: int = 0  # parts of the batch that are read and dealt to groups by themselves; 0: one a host
    row_length: int = 0  # slots of a packed row; 0: a length that suits `max_length`
    rows: int = 0  # rows of a group; 0: as many as the batch needs


@dataclasses.dataclass
class Loss:
    name: str = "info_nce"  # of the registry, or an expression: "info_nce(terms='qp,qq') + 0.1 * uniformity(t=2)"
    form: str = "auto"  # "dense", "tiled" (never holds all pairs), "ring" (nor all candidates); "auto": by size
    # What follows goes to every loss that takes an argument of that name; one written in the expression wins.
    temperature: float = -1.0  # -1: the loss's own
    similarity: str = ""  # "cosine" or "dot"; "": the loss's own
    margin: float = -1.0  # -1: the loss's own
    symmetric: bool = False  # both directions: anchors to positives and positives to anchors
    hard_negative_weight: float = 1.0  # SimCSE's alpha on an example's own hard negatives
    mask_duplicates: bool = True  # examples that share a text, an id or a group are not each other's negatives
    mlm: float = 0.0  # weight of masked language modelling on the batch's texts, beside the loss; 0: none


@dataclasses.dataclass
class Queue:
    size: int = 0  # positives of past batches that are negatives too (MoCo); 0: none
    momentum: float = 0.995  # of the averaged encoder that embeds them; 0: the encoder itself


@dataclasses.dataclass
class Mining:
    """Hard negatives that the training itself looks for."""

    strategy: str = ""  # "bm25", "dense" (by the model as trained so far) or "bm25,dense"; "": none
    corpus: str = ""  # where to look: a file with texts, a directory in BEIR layout; "": among the positives
    every: int = 0  # steps after which it is done again with the model as it is then; 0: only at the start
    number: int = 1  # negatives a pair
    rank_min: int = 0  # candidates of these ranks, known positives not counted
    rank_max: int = 100
    score_max: float = -1.0  # highest similarity to the query; -1: any
    absolute_margin: float = -1.0  # a negative's similarity stays so far below its positive's; -1: any
    relative_margin: float = -1.0  # the same as a share of the positive's; -1: any
    sampling: str = "top"  # the best of the candidates, or "random" ones
    cross_encoder: str = ""  # a model that scores the candidates for margins and for losses that need scores; "": none


@dataclasses.dataclass
class Optim:
    learning_rate: float = 3e-5
    schedule: str = "linear"  # "linear", "cosine" (both down to 0) or "constant", after the warm-up
    warmup: float = 0.0  # share of the steps
    weight_decay: float = 0.0  # AdamW's; never on biases and norms
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0  # of the whole gradient; 0: none
    accumulate: int = 1  # batches whose gradients are averaged for one update


@dataclasses.dataclass
class Train:
    seed: int = 0
    steps: int = 0  # 0: by `epochs`
    epochs: float = 1.0
    devices: int = 0  # 0: all
    fsdp: int = 1  # devices over which parameters and optimiser state are split, and the batch as well
    tensor: int = 1  # devices over which each matrix product is split
    fsdp_gather: str = "layer"  # "layer": parameters are gathered a layer at a time; "once": all at the step's start
    log_every: int = 10  # steps between lines on the terminal; every step goes to metrics.jsonl
    profile: str = ""  # "START:STOP": trace these steps
    deterministic: bool = False  # GPU: XLA's deterministic kernels, for bitwise repetition


@dataclasses.dataclass
class Hosts:
    coordinator: str = (
        ""  # "": this host alone; "auto": SLURM, TPU pod, Open MPI, Kubernetes; or ADDRESS:PORT of host 0
    )
    count: int = 0  # with an address: how many hosts there are
    index: int = 0  # with an address: which of them this is, from 0
    heartbeat_timeout: int = 30  # seconds without a sign of life after which a host is lost, and the run ends
    join_timeout: int = 300  # seconds to wait for all hosts at the start


@dataclasses.dataclass
class Evaluation:
    sts: str = ""  # STS file: score sentence1 sentence2
    test_sts: str = ""  # STS files with commas between, for the end: the model before against after
    retrieval: str = ""  # "python_docs" or a directory in BEIR layout
    retrieval_split: str = "validation"  # searched while training
    test_split: str = ""  # searched once, at the end, before against after; "": not
    every: int = 0  # steps; 0: only at the end
    metric: str = ""  # e.g. "sts/spearman": picks the best checkpoint; "": the last one
    patience: int = 0  # evaluations without gain before stopping; 0: never
    min_gain: float = 0.0


@dataclasses.dataclass
class Checkpoint:
    every: int = 0  # steps; 0: only at the end and on SIGTERM
    keep: int = 2  # newest checkpoints kept


@dataclasses.dataclass
class Tracking:
    wandb: str = "auto"  # "auto" (online when logged in, else offline), "online", "offline", "disabled"
    project: str = "embed-jax"
    name: str = ""  # "": the work directory's


@dataclasses.dataclass
class Experiment:
    """All settings of one run; see each part's fields."""

    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    mixture: Mixture = dataclasses.field(default_factory=Mixture)
    batch: BatchShape = dataclasses.field(default_factory=BatchShape)
    loss: Loss = dataclasses.field(default_factory=Loss)
    queue: Queue = dataclasses.field(default_factory=Queue)
    mine: Mining = dataclasses.field(default_factory=Mining)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    eval: Evaluation = dataclasses.field(default_factory=Evaluation)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    tracking: Tracking = dataclasses.field(default_factory=Tracking)
    stages: SimpleNamespace = dataclasses.field(default_factory=SimpleNamespace)  # NAME = Experiment(...), one by one


CHOICES = {
    "model.mlp": ("", "kept", "training"),
    "model.compute_dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("none", "layer"),
    "mixture.sampling": ("proportional", "round_robin", "temperature", "weights"),
    "mixture.batches": ("single", "mixed"),
    "mine.sampling": ("top", "random"),
    "loss.form": ("auto", "dense", "tiled", "ring"),
    "loss.similarity": ("", "cosine", "dot"),
    "optim.schedule": ("linear", "cosine", "constant"),
    "train.fsdp_gather": ("layer", "once"),
    "tracking.wandb": ("auto", "online", "offline", "disabled"),
}

# field -> (lowest, highest, whether the lowest itself is refused)
RANGES = {
    "model.dropout": (-1.0, 0.99, False),
    "data.holdout": (0, 0.4, False),
    "data.limit": (0, math.inf, False),
    "data.window": (1, math.inf, False),
    "model.same_mask_columns": (0, math.inf, False),
    "data.consistency": (0, math.inf, False),
    "data.max_length": (2, math.inf, False),
    "mixture.temperature": (0, math.inf, True),
    "data.score_max": (0, math.inf, True),
    "source.limit": (0, math.inf, False),
    "source.score_max": (0, math.inf, True),
    "source.max_length": (0, math.inf, False),
    "source.loss_weight": (0, math.inf, True),
    "source.weight": (0, math.inf, True),
    "batch.size": (2, math.inf, False),
    "batch.groups": (0, math.inf, False),
    "batch.shares": (0, math.inf, False),
    "batch.row_length": (0, math.inf, False),
    "batch.rows": (0, math.inf, False),
    "loss.temperature": (0, math.inf, True),
    "loss.margin": (0, math.inf, False),
    "loss.hard_negative_weight": (0, math.inf, True),
    "loss.mlm": (0, math.inf, False),
    "queue.size": (0, math.inf, False),
    "queue.momentum": (0, 1, False),
    "mine.every": (0, math.inf, False),
    "mine.number": (1, math.inf, False),
    "mine.rank_min": (0, math.inf, False),
    "mine.rank_max": (1, math.inf, False),
    "mine.absolute_margin": (0, math.inf, False),
    "mine.relative_margin": (0, 1, False),
    "optim.learning_rate": (0, math.inf, True),
    "optim.warmup": (0, 1, False),
    "optim.weight_decay": (0, math.inf, False),
    "optim.b1": (0, 1, False),
    "optim.b2": (0, 1, False),
    "optim.eps": (0, math.inf, True),
    "optim.clip_norm": (0, math.inf, False),
    "optim.accumulate": (1, math.inf, False),
    "train.seed": (0, 2**32 - 1, False),
    "train.steps": (0, math.inf, False),
    "train.epochs": (0, math.inf, True),
    "train.devices": (0, math.inf, False),
    "train.fsdp": (1, math.inf, False),
    "train.tensor": (1, math.inf, False),
    "train.log_every": (1, math.inf, False),
    "hosts.count": (0, math.inf, False),
    "hosts.index": (0, math.inf, False),
    "hosts.heartbeat_timeout": (2, math.inf, False),
    "hosts.join_timeout": (1, math.inf, False),
    "eval.every": (0, math.inf, False),
    "eval.patience": (0, math.inf, False),
    "eval.min_gain": (0, math.inf, False),
    "checkpoint.every": (0, math.inf, False),
    "checkpoint.keep": (1, math.inf, False),
}

# These may also be -1, in words:
OPTIONAL = {"loss.temperature": "for the loss's own", "loss.margin": "for the loss's own"}
OPTIONAL |= {"mine.absolute_margin": "for none", "mine.relative_margin": "for none"}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"optim.learning_rate": 3e-05, ...}: the leaves of a config's parts, in order."""
    flat = {}
    for name, value in vars(config).items():
        parts = dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace)
        flat |= flatten(value, f"{prefix}{name}.") if parts else {prefix + name: value}
    return flat


def _unknown_field(name: str, known: Any) -> str:
    """Names the fields of the part that was meant, or the parts."""
    part = name.split(".")[0]
    siblings = [field for field in known if field.startswith(part + ".")]
    if siblings:
        return unknown("config field", name, siblings)
    return unknown("config field", part, {field.split(".")[0] for field in known})


def validate(config: Experiment) -> None:
    """Checks types, choices and ranges, also of the sources of a mixture and of later stages.

    Raises:
        InputError: naming the field, its value and what is accepted.
    """
    _validate(config, "config.")


def _validate(config: Experiment, prefix: str) -> None:
    for place, held, kind in (
        ("mixture.sources", config.mixture.sources, Source),
        ("stages", config.stages, Experiment),
    ):
        for name, part in vars(held).items():
            if not isinstance(part, kind):
                expected, found = f"embed_jax.config.{kind.__name__}", type(part).__name__
                raise InputError(f"{prefix}{place}.{name}: expected {expected}, found {found}")
            if kind is Source:
                _check_fields(flatten(part), flatten(Source()), f"{prefix}{place}.{name}.", "source.")
                if not part.train:
                    raise InputError(f"{prefix}{place}.{name}.train: expected a data set, found ''")
            else:
                _validate(part, f"{prefix}{place}.{name}.")
    names = [field.name for field in dataclasses.fields(Experiment) if field.name != "stages"]
    found = {name: value for part in names for name, value in flatten(getattr(config, part), f"{part}.").items()}
    found = {name: value for name, value in found.items() if not name.startswith("mixture.sources.")}
    _check_fields(found, flatten(Experiment()), prefix)
    if config.train.profile:
        start, colon, stop = config.train.profile.partition(":")
        if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
            raise InputError(f"{prefix}train.profile: expected START:STOP in steps, found {config.train.profile!r}")


def _check_fields(flat: dict[str, Any], defaults: dict[str, Any], prefix: str, rules: str = "") -> None:
    """Fields against the types of their defaults, and CHOICES and RANGES, where they stand under `rules` + name."""
    for name, value in flat.items():
        if name not in defaults:
            raise InputError(_unknown_field(name, defaults))
        wanted = type(defaults[name])
        whole = wanted is float and isinstance(value, int) and not isinstance(value, bool)  # the same number
        if type(value) is not wanted and not whole:
            raise InputError(f"{prefix}{name}: expected {wanted.__name__}, found {type(value).__name__} {value!r}")
        accepted = CHOICES.get(rules + name)
        if accepted and value not in accepted:
            raise InputError(f"{prefix}{name}: expected one of {', '.join(map(repr, accepted))}, found {value!r}")
        low, high, open_end = RANGES.get(rules + name, (-math.inf, math.inf, False))
        if name in OPTIONAL and value == -1 or rules + name not in RANGES:
            continue
        if not (low < value if open_end else low <= value) or not value <= high:
            bound = f"more than {low}" if open_end else f"at least {low}"
            bound += f", or -1 {OPTIONAL[name]}" if name in OPTIONAL else ""
            bound += "" if high == math.inf else f" and at most {high}"
            raise InputError(f"{prefix}{name}: expected {bound}, found {value!r}")


def override(config: Experiment, **fields: Any) -> Experiment:
    """Sets fields by dotted name with "__" for the dot: `override(config, optim__learning_rate=1e-5)`.

    Raises:
        InputError: for an unknown field or a bad value.
    """
    known = flatten(config)
    for name, value in fields.items():
        path = name.replace("__", ".")
        if path not in known:
            raise InputError(_unknown_field(path, known))
        *parents, leaf = path.split(".")
        part = config
        for parent in parents:
            part = getattr(part, parent)
        setattr(part, leaf, value)
    validate(config)
    return config


def to_json(config: Experiment) -> str:
    """The config as JSON text, keys in the order of the dataclasses."""
    return json.dumps(as_dict(config), indent=1)


def as_dict(config: Any) -> dict[str, Any]:
    """The config as nested dicts."""
    parts = {name: value for name, value in vars(config).items() if hasattr(value, "__dict__")}
    return {name: as_dict(value) if name in parts else value for name, value in vars(config).items()}


def load(argv: Sequence[str]) -> tuple[Experiment, Path]:
    """Reads `--config=FILE[:CUT] [--config.x.y=v ...] [--workdir=DIR]`.

    Args:
        argv: the command line, program name first.

    Returns:
        The validated experiment and the work directory (default: runs/NAME of the config file).

    Raises:
        InputError: a missing file, a file without `get_config`, an unknown field or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    program = Path(argv[0]).stem
    usage = f"usage: python -m experiments.{program} --config=FILE[:CUT] [--config.FIELD=VALUE ...] [--workdir=DIR]"
    argv = _join_values(argv)
    argv[1:] = sorted(argv[1:], key=lambda argument: not argument.startswith("--config="))  # the file comes first
    if "--help" in argv or "-h" in argv:
        print(usage + "\n\nFields and defaults:")
        named = {f"mixture.sources.NAME.{name}": value for name, value in flatten(Source()).items()}
        for name, value in (flatten(Experiment()) | named).items():
            print(f"  --config.{name}={value}")
        print("  --config.stages.NAME.FIELD: any of these, for a stage that the file names NAME")
        raise SystemExit(0)
    named = [argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")]
    if len(named) != 1:
        raise InputError(f"expected one --config=FILE, found {len(named)}; {usage}")
    file, _, cut = named[0].partition(":")
    known = flatten(_get_config(Path(file), cut))
    for argument in argv[1:]:
        field, equals, _ = argument.removeprefix("--config.").partition("=")
        if argument.startswith("--config.") and field not in known:
            raise InputError(_unknown_field(field, known))
        if not argument.startswith(("--config.", "--config=", "--workdir=")) or not equals:
            raise InputError(f"unknown argument {argument!r}; {usage}")

    values = flags.FlagValues()
    # With the cut always given, a `get_config` without a default is called rightly too.
    argv = [f"--config={file}:{cut}" if argument.startswith("--config=") else argument for argument in argv]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", f"runs/{Path(file).stem}{'_' + cut if cut else ''}", "", flag_values=values)
    try:
        values(list(argv))
        config = holder.value
    except Exception as error:  # ml_collections and absl raise many kinds, with tracebacks in their texts
        last = next(line for line in reversed(str(error).splitlines()) if line.strip())
        raise InputError(f"{file}: {last.strip()}") from error
    validate(config)
    return config, Path(values.workdir)


def _join_values(argv: Sequence[str]) -> list[str]:
    """`--config FILE` as `--config=FILE`: both spellings are in use."""
    joined, rest = [argv[0]], list(argv[1:])
    while rest:
        argument = rest.pop(0)
        takes_value = argument.startswith(("--config", "--workdir")) and "=" not in argument
        joined.append(f"{argument}={rest.pop(0)}" if takes_value and rest else argument)
    return joined


def _get_config(file: Path, cut: str) -> Experiment:
    """Runs the config file's `get_config`, for its fields' names and for errors in one line."""
    import runpy

    if not file.is_file():
        raise InputError(f"config file not found: {file}")
    try:
        module = runpy.run_path(str(file))
    except Exception as error:
        raise InputError(f"{file}: {type(error).__name__}: {error}") from error
    if "get_config" not in module:
        raise InputError(f"{file}: defines no get_config(cut)")
    try:
        config = module["get_config"](cut)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file}:{cut}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Experiment):
        raise InputError(f"{file}: get_config returned {type(config).__name__}, expected embed_jax.config.Experiment")
    return config
