"""Trains the model of a config with sentence-transformers' modules and losses, to compare quality.

The weights at the start, the records of each batch, the optimiser and its schedule are those of the
experiment; only the dropout masks are others, and the order within a batch, on which no loss
depends. Computes in float32. Writes metrics.jsonl, with the loss of every step and the evaluations
on config.eval.sts, and model/.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import inspect
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, RunError, exit_with_one_line, require

from .commands import PARENT, Parser, print_table

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
"""
EXPERIMENTS = ("nli", "retrieval")
THREADS = 2
# The arguments of our losses that sentence-transformers' losses have too; others must be as they
# are by default.
LOSSES = {
    "info_nce": ("temperature", "similarity", "symmetric", "mask_duplicates"),
    "softmax": ("num_labels", "concatenation"),
    "cosine_mse": (),
    "cosent": ("scale",),
    "angle": ("scale",),
}
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
    for seed, (workdir, _) in runs.items():
        override(config, train__seed=seed)
        train(config, workdir, read_data(args.experiment, config, workdir))
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


def train(config: Any, workdir: Path, sources: Any) -> None:
    """Trains as `train.fit` does, in torch.

    Args:
        config: of the run.
        workdir: a new or empty directory.
        sources: the training data, one `pipeline.RecordSource` by its name.

    Raises:
        InputError: for what sentence-transformers does not have.
        RunError: if the loss is not finite.
    """
    import jax
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import batch_to_device

    from embed_jax.config import to_json
    from embed_jax.data.sources.sts import read_sts
    from embed_jax.evals.sts import sts_evaluator
    from embed_jax.train.assembly import assemble
    from embed_jax.train.loop import is_evaluated
    from embed_jax.train.model import initial_model
    from embed_jax.train.objective import training_loss
    from embed_jax.train.tracking import MetricsFile, Progress

    # The model with our weights; the result may lack a head that is for training only, and shares
    # the other modules.
    torch.manual_seed(config.train.seed)
    ours = copy.deepcopy(config)
    ours.model.mlp = config.model.mlp and "kept"
    ours.train.devices = ours.train.fsdp = ours.train.tensor = 1
    start = initial_model(ours)
    with tempfile.TemporaryDirectory() as directory:
        start.result.save(f"{directory}/model")
        model = SentenceTransformer(f"{directory}/model")
    max_length = start.result.max_length
    result = remove_head(model) if config.model.mlp == "training" else model

    # The data, the loss, the batches: those of our run.
    run = assemble(ours, sources, model=start)
    assert run.data is not None, "the run is not abstract"
    (source,) = run.data.sources.values()
    texts_of, num_texts = source.fields.columns, len(source.fields.columns(source.records[0]))
    for number, record in enumerate(source.records):
        if None in texts_of(record) or len(texts_of(record)) != num_texts:
            raise InputError(
                f"record {number}: sentence-transformers needs the same number of texts in each "
                "record, here "
                f"{num_texts}"
            )
    loss_params = jax.device_get(run.state.params["loss"])
    loss = training_loss(config)
    objective = peer_loss(loss, loss_params, model)
    order, num_steps, accumulate = run.data.order, run.data.num_steps, config.optim.accumulate
    if order is None:
        raise InputError("config.data.train: found a stream, whose batches are not known before")
    optimizer = make_optimizer(objective, config.optim)
    label_of: Callable[[Any], float] | None = source.fields.label
    if label_of is None and (scores_of := source.fields.score) is not None:
        label_of = lambda record: scores_of(record)[0]  # noqa: E731  named above
    sts = sts_evaluator(*read_sts(config.eval.sts)) if config.eval.sts else None
    encode = functools.partial(result.encode, show_progress_bar=False)

    def step(number: int) -> dict[str, float]:
        """Takes step `number`, from 1 up."""
        began = time.monotonic()
        model.max_seq_length = config.data.max_length
        model.train()
        batch = [source.records[int(index)] for index in order[number - 1]]
        texts = [texts_of(record) for record in batch]
        features = [
            batch_to_device(
                model.preprocess(list(column), prompt=source.prompts[min(column_index, 1)] or None),
                model.device,
            )
            for column_index, column in enumerate(zip(*texts, strict=True))
        ]
        labels = (
            torch.tensor([label_of(record) for record in batch], device=model.device)
            if label_of
            else None
        )
        value = objective(features, labels)
        if not torch.isfinite(value):
            raise RunError(f"loss not finite at step {number}")
        (value / accumulate).backward()
        line = {"loss": value.item(), "learning_rate": float(run.learning_rate(number - 1))}
        if number % accumulate == 0:
            norm = torch.nn.utils.clip_grad_norm_(
                objective.parameters(), config.optim.clip_norm or math.inf
            )
            for group in optimizer.param_groups:
                group["lr"] = line["learning_rate"]
            optimizer.step()
            optimizer.zero_grad()
            line["grad_norm"] = norm.item()
        num_tokens = sum(int(feature["attention_mask"].sum()) for feature in features)
        return line | {"tokens_per_second": num_tokens / (time.monotonic() - began)}

    # Training; with config.eval.metric the best model is kept, else the last.
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_json(config) + "\n", encoding="utf-8")
    file, progress = (
        MetricsFile(workdir / "metrics.jsonl", -1),
        Progress(0, num_steps, config.train.log_every),
    )
    best, best_parameters = -math.inf, None
    for number in range(num_steps + 1):
        line = step(number) if number else {}
        if number:
            progress.step(number, line["loss"], line["tokens_per_second"])
        if sts and is_evaluated(number, config.eval.every, num_steps):
            result.max_seq_length = max_length
            sts_scores = {f"sts/{name}": value for name, value in sts(encode).items()}
            progress.say(
                f"step {number}: "
                + "  ".join(f"{name} {value:.4f}" for name, value in sts_scores.items())
            )
            line |= sts_scores
            value = sts_scores.get(config.eval.metric, -math.inf)
            if value == best or value > best and value >= best + config.eval.min_gain:
                best, best_parameters = (
                    value,
                    {name: tensor.clone() for name, tensor in result.state_dict().items()},
                )
        if line:
            file.write(number, line)
    progress.close()
    file.close()
    if best_parameters is not None:
        result.load_state_dict(best_parameters)
    result.max_seq_length = max_length
    result.save_pretrained(str(workdir / ".model"), create_model_card=False)
    os.rename(workdir / ".model", workdir / "model")


def remove_head(model: Any) -> Any:
    """Returns the model without its last Dense layer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense

    last = max(index for index, module in enumerate(model) if isinstance(module, Dense))
    return SentenceTransformer(
        modules=[module for index, module in enumerate(model) if index != last],
        prompts=model.prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
    )


def peer_loss(loss: Any, params: Any, model: Any) -> Any:
    """Makes sentence-transformers' loss of the same value, a torch module.

    Args:
        loss: a `losses.base.Loss` with its arguments settled.
        params: its own parameters at the start.
        model: sentence-transformers' model.

    Raises:
        InputError: if it has no such loss.
    """
    import numpy as np
    import torch
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer import losses

    from embed_jax.losses.schedule import Schedule
    from embed_jax.registry import lookup

    if loss.name not in LOSSES:
        raise InputError(
            f"config.loss.name: {loss.name!r} is not replicated; accepted: {', '.join(LOSSES)}"
        )
    arguments = loss.compute.keywords
    for name, parameter in lookup("loss", loss.name).parameters.items():
        if isinstance(arguments[name], Schedule) or (
            name not in LOSSES[loss.name] and arguments[name] != parameter.default
        ):
            raise InputError(
                f"config.loss: {name}={arguments[name]!r}: sentence-transformers' {loss.name} "
                "does not have it"
            )
    if arguments.get("mask_duplicates"):
        print(
            "config.loss.mask_duplicates=True: with sentence-transformers duplicates are negatives",
            flush=True,
        )

    if loss.name == "info_nce":
        directions = (
            ("query_to_doc", "doc_to_query") if arguments["symmetric"] else ("query_to_doc",)
        )
        similarity = {"cosine": util.cos_sim, "dot": util.dot_score}[arguments["similarity"]]
        scale = 1 / arguments["temperature"]
        return losses.MultipleNegativesRankingLoss(
            model, scale, similarity, directions=directions, partition_mode="per_direction"
        )
    if loss.name == "softmax":
        parts = arguments["concatenation"].replace(" ", "")
        known = {part: part in parts for part in ("u,v", "|u-v|", "u*v")}
        if parts != ",".join(part for part, there in known.items() if there):
            raise InputError(
                f"config.loss: concatenation={parts!r}: sentence-transformers has "
                f"{', '.join(known)}"
            )
        num_labels = arguments["num_labels"]
        peer = losses.SoftmaxLoss(
            model, model.get_embedding_dimension(), num_labels, *known.values()
        )
        weights = {"weight": np.array(params["kernel"]).T, "bias": np.array(params["bias"])}
        peer.classifier.load_state_dict(
            {name: torch.tensor(value) for name, value in weights.items()}
        )
        return peer
    kind = {"cosine_mse": "CosineSimilarityLoss", "cosent": "CoSENTLoss", "angle": "AnglELoss"}[
        loss.name
    ]
    return getattr(losses, kind)(model, **arguments)


def make_optimizer(objective: Any, optim: Any) -> Any:
    """Makes torch's AdamW with the weight decay of `train.optim`.

    Biases, norms and the loss's own parameters have no weight decay.
    """
    import torch

    norms = [module for module in objective.modules() if isinstance(module, torch.nn.LayerNorm)]
    scales = {id(parameter) for module in norms for parameter in module.parameters()}
    decayed: list[Any] = []
    others: list[Any] = []
    for name, parameter in objective.named_parameters():
        decays = (
            name.startswith("model.") and not name.endswith("bias") and id(parameter) not in scales
        )
        (decayed if decays else others).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=optim.learning_rate, betas=(optim.b1, optim.b2), eps=optim.eps
    )


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
