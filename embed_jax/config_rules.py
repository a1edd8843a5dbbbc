"""Which values the fields of a config accept."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any

from embed_jax.config import NAMED, Experiment, Optim, ParamGroup, Source, flatten, named_parts
from embed_jax.errors import InputError
from embed_jax.registry import unknown

CHOICES = {
    "model.mlp": ("", "kept", "training"),
    "model.compute_dtype": ("auto", "float32", "bfloat16"),
    "model.remat": ("none", "layer", "dots"),
    "model.attention": ("", "causal", "bidirectional"),
    "lora.base": ("float32", "bfloat16", "int8"),
    "mixture.sampling": ("proportional", "round_robin", "temperature", "weights"),
    "mixture.batches": ("single", "mixed"),
    "mine.sampling": ("top", "random"),
    "loss.form": ("auto", "dense", "tiled", "ring"),
    "loss.similarity": ("", "cosine", "dot"),
    "optim.name": ("adamw", "adafactor", "muon"),
    "optim.schedule": ("linear", "cosine", "constant", "wsd"),
    "train.fsdp_gather": ("layer", "once"),
    "tracking.wandb": ("auto", "online", "offline", "disabled"),
}

# field -> (lowest, highest, whether the lowest itself is refused)
RANGES = {
    "model.dropout": (-1.0, 0.99, False),
    "lora.rank": (0, math.inf, False),
    "lora.alpha": (0, math.inf, True),
    "lora.dropout": (0, 0.99, False),
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
    "optim.decay": (0, 1, True),
    "group.learning_rate_factor": (0, math.inf, False),
    "group.layer_decay": (0, 1, True),
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
    "eval.every": (-1, math.inf, False),
    "eval.patience": (0, math.inf, False),
    "eval.min_gain": (0, math.inf, False),
    "checkpoint.every": (0, math.inf, False),
    "checkpoint.keep": (1, math.inf, False),
}

# These may also be -1, in words:
OPTIONAL = {"loss.temperature": "for the loss's own", "loss.margin": "for the loss's own"}
OPTIONAL |= {"mine.absolute_margin": "for none", "mine.relative_margin": "for none"}


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
    """Checks types, choices and ranges, also of the sources of a mixture and of later stages.

    Raises:
        InputError: naming the field, its value and what is accepted.
    """
    _validate(config, "config.")


def _validate(config: Experiment, prefix: str) -> None:
    for part, kind in NAMED.items():
        for name, value in named_parts(config, part).items():
            field = f"{prefix}{part}.{name}"
            if not isinstance(value, kind):
                expected = f"embed_jax.config.{kind.__name__}"
                raise InputError(f"{field}: expected {expected}, found {type(value).__name__}")
            if kind is Experiment:
                _validate(value, f"{field}.")
            elif kind is Source:
                _check_fields(flatten(value), flatten(Source()), f"{field}.", "source.")
                if not value.train:
                    raise InputError(f"{field}.train: expected a data set, found ''")
            else:
                _check_group(value, f"{field}.")
    names = [field.name for field in dataclasses.fields(Experiment) if field.name != "stages"]
    found = {
        name: value
        for part in names
        for name, value in flatten(getattr(config, part), f"{part}.").items()
    }
    found = {
        name: value
        for name, value in found.items()
        if not name.startswith(tuple(f"{part}." for part in NAMED))
    }
    _check_fields(found, flatten(Experiment()), prefix)
    _check_schedule(config.optim, prefix)
    for field in ("validation_split", "holdout"):
        value = getattr(config.data, field)
        if value and vars(config.mixture.sources):
            raise InputError(
                f"{prefix}data.{field}: of the data set of data.train, not of a mixture, found {value!r}"
            )
    if config.eval.geometry and not (
        config.eval.sts or config.eval.retrieval or config.data.holdout
    ):
        raise InputError(
            f"{prefix}eval.geometry: needs texts to embed: set eval.sts or eval.retrieval; found neither"
        )
    if config.train.profile:
        start, colon, stop = config.train.profile.partition(":")
        if not (colon and start.isdigit() and stop.isdigit() and int(start) < int(stop)):
            raise InputError(
                f"{prefix}train.profile: expected START:STOP in steps, found {config.train.profile!r}"
            )


def _check_schedule(optim: Optim, prefix: str) -> None:
    if optim.schedule == "wsd" and optim.warmup + optim.decay > 1:
        raise InputError(
            f"{prefix}optim.decay: expected at most 1 together with optim.warmup={optim.warmup}, "
            f"found {optim.decay}"
        )


def _check_group(group: ParamGroup, prefix: str) -> None:
    _check_fields(flatten(group), flatten(ParamGroup()), prefix, "group.")
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


def _check_fields(
    flat: dict[str, Any], defaults: dict[str, Any], prefix: str, rules: str = ""
) -> None:
    """Fields against the types of their defaults, and CHOICES and RANGES, where they stand under `rules` + name."""
    for name, value in flat.items():
        if name not in defaults:
            raise InputError(unknown_field(name, defaults))
        wanted = type(defaults[name])
        whole = (
            wanted is float and isinstance(value, int) and not isinstance(value, bool)
        )  # the same number
        if type(value) is not wanted and not whole:
            raise InputError(
                f"{prefix}{name}: expected {wanted.__name__}, found {type(value).__name__} {value!r}"
            )
        accepted = CHOICES.get(rules + name)
        if accepted and value not in accepted:
            raise InputError(
                f"{prefix}{name}: expected one of {', '.join(map(repr, accepted))}, found {value!r}"
            )
        low, high, open_end = RANGES.get(rules + name, (-math.inf, math.inf, False))
        if name in OPTIONAL and value == -1 or rules + name not in RANGES:
            continue
        if not (low < value if open_end else low <= value) or not value <= high:
            bound = f"more than {low}" if open_end else f"at least {low}"
            bound += f", or -1 {OPTIONAL[name]}" if name in OPTIONAL else ""
            bound += "" if high == math.inf else f" and at most {high}"
            raise InputError(f"{prefix}{name}: expected {bound}, found {value!r}")


def unknown_field(name: str, known: Collection[str]) -> str:
    """The error's text: the field that was meant, and those of its part, or the parts."""
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
    """The field that is usually meant by a name, such as "optim.learning_rate" by "lr"; "" if none.

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
