"""Checks a config: the rules of its fields, and what only several fields together can tell."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

from embed_jax.config import NAMED, Experiment, Optim, ParamGroup, flatten
from embed_jax.config_fields import FieldRule, rules_of
from embed_jax.errors import InputError
from embed_jax.registry import unknown

# What other trainers, and people in a hurry, call a field.
ALIASES = {
    "model.name": "model model_name model_name_or_path base_model",
    "model.compute_dtype": "dtype bf16 fp16 precision torch_dtype",
    "model.remat": "gradient_checkpointing",
    "lora.rank": "r lora_r lora_rank",
    "lora.alpha": "lora_alpha",
    "lora.targets": "target_modules",
    "data.train": "train_file train_data dataset dataset_name data",
    "data.max_length": "max_seq_length max_seq_len seq_length max_len max_length",
    "batch.size": "bs batch batch_size train_batch_size per_device_train_batch_size",
    "batch.groups": "mini_batch_size gradient_cache",
    "loss.name": "loss objective",
    "loss.temperature": "temp tau scale",
    "optim.learning_rate": "lr learningrate peak_lr",
    "optim.schedule": "scheduler lr_schedule lr_scheduler lr_scheduler_type",
    "optim.warmup": "warmup_ratio warmup_steps warmup_proportion",
    "optim.weight_decay": "wd decay",
    "optim.clip_norm": "max_grad_norm grad_clip clip",
    "optim.accumulate": "gradient_accumulation_steps grad_accum accumulation_steps",
    "train.epochs": "epoch num_epochs num_train_epochs",
    "train.steps": "max_steps num_steps num_train_steps",
    "train.seed": "random_seed",
    "train.devices": "num_devices gpus n_gpu",
    "train.log_every": "logging_steps",
    "eval.every": "eval_steps eval_every evaluation_steps",
    "eval.metric": "metric metric_for_best_model",
    "eval.patience": "early_stopping early_stopping_patience",
    "checkpoint.every": "save_steps checkpoint_every save_every",
    "checkpoint.keep": "save_total_limit",
    "tracking.name": "run_name",
    "tracking.wandb": "report_to",
}
FIELD_OF = {alias: field for field, aliases in ALIASES.items() for alias in aliases.split()}


def validate(config: Experiment) -> None:
    """Checks every field, also of a mixture's sources, parameter groups and later stages.

    A value None of a field that may be unset becomes the unset value of its type.

    Raises:
        InputError: naming the field, its value and what is accepted.
    """
    _validate(config, "config.")


def _validate(config: Experiment, prefix: str) -> None:
    _check_fields(config, prefix, "")
    for name, source in vars(config.mixture.sources).items():
        if not source.train:
            raise InputError(f"{prefix}mixture.sources.{name}.train: expected a data set, found ''")
    for name, group in vars(config.optim.groups).items():
        _check_group(group, f"{prefix}optim.groups.{name}.")
    for field in ("validation_split", "holdout"):
        value = getattr(config.data, field)
        if value and vars(config.mixture.sources):
            raise InputError(
                f"{prefix}data.{field}: of the data set of data.train, not of a mixture, found "
                f"{value!r}"
            )
    if config.batch.clusters and config.mixture.batches == "mixed":
        raise InputError(
            f"{prefix}batch.clusters: a cluster is of one data set, expected "
            "mixture.batches='single', found 'mixed'"
        )
    if config.batch.cluster_model and not config.batch.clusters:
        raise InputError(
            f"{prefix}batch.clusters: needed by batch.cluster_model="
            f"{config.batch.cluster_model!r}, found 0"
        )
    _check_schedule(config.optim, prefix)
    _check_teacher(config, prefix)
    if config.eval.geometry and not (
        config.eval.sts or config.eval.retrieval or config.data.holdout
    ):
        raise InputError(
            f"{prefix}eval.geometry: needs texts to embed: set eval.sts or eval.retrieval; found "
            "neither"
        )
    if config.train.profile:
        start, colon, stop = config.train.profile.partition(":")
        if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
            raise InputError(
                f"{prefix}train.profile: expected START:STOP in steps, found "
                f"{config.train.profile!r}"
            )
    for name, stage in vars(config.stages).items():
        _validate(stage, f"{prefix}stages.{name}.")


def _check_teacher(config: Experiment, prefix: str) -> None:
    """Checks the settings of teacher vectors.

    They don't go beside a teacher or with records that the file does not cover, and ids need
    vectors.
    """
    sources = vars(config.mixture.sources)
    parts = {"data": config.data, **{f"mixture.sources.{name}": sources[name] for name in sources}}
    for path, part in parts.items():
        field = f"{prefix}{path}.teacher_vectors"
        if part.teacher_ids and not part.teacher_vectors:
            raise InputError(f"{field}: needed by teacher_ids={part.teacher_ids!r}, found ''")
        if not part.teacher_vectors:
            continue
        if sources and path == "data":
            raise InputError(
                f"{field}: of the data set of data.train, set it by source of a mixture"
            )
        if config.model.teacher:
            raise InputError(f"{field}: not beside model.teacher={config.model.teacher!r}")
        if config.data.validation_split or config.data.holdout:
            raise InputError(
                f"{field}: of training records only, not with data.validation_split or data.holdout"
            )


def _check_fields(part: Any, prefix: str, path: str) -> None:
    """Checks the fields of a part and of the parts in it; stages are left to the caller.

    Args:
        part: a part of the config.
        prefix: of the config in messages, such as "config.".
        path: of the part in the config, such as "optim.".
    """
    rules = rules_of(type(part))
    fields = {field.name for field in dataclasses.fields(part)}
    for name, value in vars(part).items():
        if name not in fields:
            known = [f"{path}{field}" for field in flatten(type(part)())]
            raise InputError(unknown_field(f"{path}{name}", known))
        if name in rules:
            setattr(part, name, rules[name].check(value, f"{prefix}{path}{name}"))
        elif f"{path}{name}" in NAMED:
            _check_named(value, NAMED[f"{path}{name}"], prefix, f"{path}{name}.")
        elif not dataclasses.is_dataclass(value):
            raise InputError(
                f"{prefix}{path}{name}: expected a part of the config with fields, "
                f"found {type(value).__name__} {value!r}"
            )
        else:
            _check_fields(value, prefix, f"{path}{name}.")


def _check_named(held: SimpleNamespace, kind: type, prefix: str, path: str) -> None:
    for name, value in vars(held).items():
        if not isinstance(value, kind):
            raise InputError(
                f"{prefix}{path}{name}: expected embed_jax.config.{kind.__name__}, "
                f"found {type(value).__name__}"
            )
        if kind is not Experiment:
            _check_fields(value, prefix, f"{path}{name}.")


def _check_schedule(optim: Optim, prefix: str) -> None:
    if optim.schedule == "wsd" and optim.warmup + optim.decay > 1:
        raise InputError(
            f"{prefix}optim.decay: expected at most 1 together with optim.warmup={optim.warmup}, "
            f"found {optim.decay}"
        )


def _check_group(group: ParamGroup, prefix: str) -> None:
    try:
        re.compile(group.pattern)
    except re.error as error:
        raise InputError(
            f"{prefix}pattern: not a regular expression ({error}), found {group.pattern!r}"
        ) from None
    if not group.pattern:
        raise InputError(f"{prefix}pattern: expected a part of parameters' paths, found ''")
    if group.layers and not re.fullmatch(r"\d+(\s*,\s*\d+)*", group.layers):
        raise InputError(
            f"{prefix}layers: expected numbers with commas between, such as 0,1,2, "
            f"found {group.layers!r}"
        )


def rules_by_field(config: Experiment) -> dict[str, FieldRule]:
    """Returns the rule of every field by its dotted name, for the parts that the config has."""
    rules: dict[str, FieldRule] = {}

    def add(part: Any, path: str) -> None:
        own = rules_of(type(part)) if dataclasses.is_dataclass(part) else {}
        for name, value in vars(part).items():
            if name in own:
                rules[f"{path}{name}"] = own[name]
            elif hasattr(value, "__dict__"):
                add(value, f"{path}{name}.")

    add(config, "")
    return rules


def unknown_field(name: str, known: Collection[str]) -> str:
    """Returns the error's text: the field that was meant, and those of its part, or the parts."""
    meant = meant_field(name, known)
    part = (meant or name).split(".")[0]
    siblings = [field for field in known if field.startswith(part + ".")]
    if meant:
        return (
            f"unknown config field {name!r} (did you mean {meant!r}?); known: {', '.join(siblings)}"
        )
    if siblings:
        return unknown("config field", name, siblings)
    return unknown("config field", part, {field.split(".")[0] for field in known})


def meant_field(name: str, known: Collection[str]) -> str:
    """Returns the field that is usually meant by a name, such as "optim.learning_rate" by "lr".

    "" if there is no such field.

    Args:
        name: with or without its part: "lr", "train.lr".
        known: the dotted names of all fields.
    """
    if name.count(".") > 1:  # of a data set of a mixture, or of a stage
        return ""
    leaf = name.split(".")[-1].lower().replace("-", "_")
    same = [field for field in known if field.split(".")[-1] == leaf and field.count(".") == 1]
    meant = FIELD_OF.get(leaf) or (same[0] if len(same) == 1 else "")
    return meant if meant in known else ""
