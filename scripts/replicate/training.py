"""The training loop that `train.fit` has, in torch."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import RunError


@dataclasses.dataclass(frozen=True)
class Peer:
    """A run of ours as sentence-transformers has it.

    Attributes:
        run: ours, assembled: its batches, steps and learning rates.
        records: the training records.
        objective: a torch module with all parameters that are trained, the model as its `model`.
        result: the torch module that is saved.
        compute: computes the loss of a batch's records, and counts their tokens.
        evaluate: computes metrics of the model as it is, or None.
        save: writes the model into a directory.
    """

    run: Any
    records: Sequence[Mapping[str, Any]]
    objective: Any
    result: Any
    compute: Callable[[Sequence[Mapping[str, Any]]], tuple[Any, int]]
    evaluate: Callable[[], dict[str, float]] | None
    save: Callable[[str], None]


def train(config: Any, workdir: Path, sources: Any, make_peer: Callable[[Any, Any], Peer]) -> None:
    """Trains as `train.fit` does, in torch.

    Args:
        config: of the run.
        workdir: a new or empty directory.
        sources: the training data, one `pipeline.RecordSource` by its name.
        make_peer: makes the run of the config and the sources.

    Raises:
        InputError: for what sentence-transformers does not have.
        RunError: if the loss is not finite.
    """
    import torch

    from embed_jax.config import to_json
    from embed_jax.train.loop import is_evaluated
    from embed_jax.train.tracking import MetricsFile, Progress

    torch.manual_seed(config.train.seed)
    peer = make_peer(config, sources)
    run, objective = peer.run, peer.objective
    order, num_steps, accumulate = run.data.order, run.data.num_steps, config.optim.accumulate
    optimizer = make_optimizer(objective, config.optim)

    def step(number: int) -> dict[str, float]:
        """Takes step `number`, from 1 up."""
        began = time.monotonic()
        objective.train()
        batch = [peer.records[int(index)] for index in order[number - 1]]
        value, num_tokens = peer.compute(batch)
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
        if peer.evaluate and is_evaluated(number, config.eval.every, num_steps):
            scores = peer.evaluate()
            progress.say(
                f"step {number}: "
                + "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
            )
            line |= scores
            value = scores.get(config.eval.metric, -math.inf)
            if value == best or value > best and value >= best + config.eval.min_gain:
                best, best_parameters = (
                    value,
                    {name: tensor.clone() for name, tensor in peer.result.state_dict().items()},
                )
        if line:
            file.write(number, line)
    progress.close()
    file.close()
    if best_parameters is not None:
        peer.result.load_state_dict(best_parameters)
    peer.save(str(workdir / ".model"))
    os.rename(workdir / ".model", workdir / "model")


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
