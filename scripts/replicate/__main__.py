"""Trains the model of a config with sentence-transformers' modules and losses, to compare quality.

The weights at the start, the records of each batch, the optimiser and its schedule are those of the
experiment; only the dropout masks are others, and the order within a batch, on which no loss
depends. Computes in float32. Writes metrics.jsonl, with the loss of every step and the evaluations
on config.eval.sts, and model/.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, exit_with_one_line, require

from ..commands import PARENT, Parser, print_table

EXAMPLES = """examples:
  python -m scripts.replicate --experiment nli --config=configs/nli/x.py:small \\
      --workdir=runs/x_peer --against=runs/x

  both runs for two seeds, and a table of them:
  for seed in 0 1; do python -m experiments.nli --config=configs/nli/x.py \\
      --config.loss.mask_duplicates=False \\
      --config.train.seed=$seed --workdir=runs/x/seed$seed; done
  python -m scripts.replicate --experiment nli --config=configs/nli/x.py \\
      --config.loss.mask_duplicates=False \\
      --seeds=0,1 --workdir=runs/x_peer --against=runs/x

  a cross-encoder, and the paired difference of the two on a task:
  python -m scripts.replicate --experiment cross_encoder --workdir=runs/peer --against=runs/ours \\
      --config=configs/cross_encoder/mined_lists.py --config.data.train=lists.jsonl
  for run in ours peer; do python -m scripts.evaluate run --task reranking --data wikiqa_rerank \\
      --model runs/$run/model --output runs/$run.json; done
  python -m scripts.evaluate compare runs/ours.json runs/peer.json --margin 0.01
"""
EXPERIMENTS = ("nli", "retrieval", "cross_encoder")
THREADS = 2
# Fields, or beginnings of fields, that must be as they are by default.
UNSUPPORTED: tuple[str, ...] = (
    "model.query",
    "model.same_mask",
    "data.augment",
    "data.consistency",
    "mixture.",
    "loss.mlm",
    "queue.",
    "mine.",
)
UNSUPPORTED += ("eval.patience", "stages.", "optim.name", "optim.groups.")


def main() -> None:
    require("torch")
    require("sentence_transformers")
    args, rest = parse(sys.argv[1:])
    import jax
    import torch
    import transformers

    from embed_jax.config_file import load_config, override

    from .embedders import embedder_peer
    from .pairs import pair_peer
    from .training import train

    transformers.logging.set_verbosity_error()  # our models have no pooler, which is news to it
    transformers.logging.disable_progress_bar()
    jax.config.update("jax_platforms", "cpu")  # the accelerator is torch's
    torch.set_num_threads(THREADS)
    config, _ = load_config([f"experiments/{args.experiment}", *rest])
    check_supported(config)
    runs = {
        seed: (args.workdir / f"seed{seed}", args.against and args.against / f"seed{seed}")
        for seed in args.seeds
    }
    runs = runs or {config.train.seed: (args.workdir, args.against)}
    for seed, (workdir, ours) in runs.items():
        if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
            raise InputError(
                f"--workdir: expected a new directory, found {workdir} with files in it"
            )
        if ours:
            check_same(override(config, train__seed=seed), ours)
    make_peer = pair_peer if args.experiment == "cross_encoder" else embedder_peer
    for seed, (workdir, _) in runs.items():
        override(config, train__seed=seed)
        train(config, workdir, read_data(args.experiment, config, workdir), make_peer)
        print(f"model: {workdir / 'model'}", flush=True)
    if args.against:
        print_comparison(
            {seed: (measures(ours), measures(peer)) for seed, (peer, ours) in runs.items()}
        )


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Returns our options, and the overrides of the config."""
    parser = Parser("scripts.replicate", __doc__, EXAMPLES)
    parser.add_argument(
        "--experiment", required=True, choices=EXPERIMENTS, help="whose data are read"
    )
    parser.add_argument(
        "--config",
        required=True,
        help="its config, and --config.FIELD=VALUE, as for the experiment",
    )
    parser.add_argument(
        "--workdir", required=True, type=Path, help="a new directory for metrics.jsonl and model/"
    )
    parser.add_argument(
        "--against", type=Path, help="the experiment's own work directory, to compare with"
    )
    seeds = (
        "config.train.seed of several runs, separated by commas: in WORKDIR/seedN, compared "
        "with AGAINST/seedN"
    )
    parser.add_argument("--seeds", default="", help=seeds)
    args, rest = parser.parse_known_args(argv)
    numbers = args.seeds.split(",") if args.seeds else []
    if not all(number.isdecimal() for number in numbers):
        parser.error(f"--seeds: expected whole numbers, separated by commas, found {args.seeds!r}")
    args.seeds = [int(number) for number in numbers]
    return args, [f"--config={args.config}", *rest]


def check_supported(config: Any) -> None:
    """Refuses settings that only our training has."""
    from embed_jax.config import Experiment, flatten

    usual = flatten(Experiment())
    for name, value in flatten(config).items():
        if name.startswith(UNSUPPORTED) and value != usual.get(name):
            raise InputError(
                f"config.{name}={value!r}: not trained with sentence-transformers here"
            )
    if config.eval.metric and not (
        config.eval.sts and config.eval.metric in ("sts/spearman", "sts/pearson")
    ):
        raise InputError(
            f"config.eval.metric: {config.eval.metric!r} is not measured here; accepted: "
            "'sts/spearman'"
        )


def read_data(experiment: str, config: Any, workdir: Path) -> Any:
    """Reads the training data of an experiment, as `train.fit` takes them."""
    read = importlib.import_module(f"{PARENT}experiments.{experiment}").read_data
    return read(*(config, workdir)[: len(inspect.signature(read).parameters)])[0]


def check_same(config: Any, workdir: Path) -> None:
    """Refuses one of our runs that has not ended, or had another config."""
    from embed_jax.config import Experiment, flatten
    from embed_jax.train.workdir import FREE_FIELDS

    measures(workdir)
    before = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    defaults = flatten(Experiment())  # a run may be older than a field
    for name, value in flatten(config).items():
        part, _, field = name.partition(".")
        value_there = before.get(part, {}).get(field, defaults.get(name))
        if value_there != value and not name.startswith(FREE_FIELDS):
            raise InputError(
                f"--against={workdir}: config.{name} was {value_there!r} there and is {value!r} "
                "here"
            )


def measures(workdir: Path) -> dict[str, float]:
    """Returns the mean loss of the last tenth of the steps and the last scores of a run."""
    path = workdir / "metrics.jsonl"
    lines = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.is_file()
        else []
    )
    losses = [line["loss"] for line in lines if "loss" in line]
    if not losses or not (workdir / "model").is_dir():
        raise InputError(
            f"--against: expected a run that has ended, found {workdir} without model or "
            "metrics.jsonl"
        )
    last = losses[-math.ceil(len(losses) / 10) :]
    scores = {
        name: value for line in lines for name, value in line.items() if name.startswith("sts/")
    }
    scores = {name: math.nan if value is None else value for name, value in scores.items()}
    return {"loss": sum(last) / len(last), **scores}


def print_comparison(runs: dict[int, tuple[dict[str, float], dict[str, float]]]) -> None:
    """Prints a row for each measure and seed, of both sides, and their means over several seeds."""
    rows = []
    for name in next(iter(runs.values()))[1]:
        pairs = {
            str(seed): (ours.get(name, math.nan), peer[name]) for seed, (ours, peer) in runs.items()
        }
        if len(pairs) > 1:
            pairs["mean"] = tuple(
                sum(column) / len(column) for column in zip(*pairs.values(), strict=True)
            )
        rows += [
            [name, seed, f"{a:.4f}", f"{b:.4f}", f"{a - b:+.4f}"] for seed, (a, b) in pairs.items()
        ]
    print_table(["measure", "seed", "ours", "sentence-transformers", "difference"], rows)


if __name__ == "__main__":
    exit_with_one_line(main)
