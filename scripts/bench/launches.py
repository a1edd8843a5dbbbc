"""Launches a small run of each experiment: trained, ended by SIGTERM, and resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .measure import make_words, random_model

if TYPE_CHECKING:
    from embed_jax.config import Experiment

SENTENCES, PAIRS, LABELLED = "sentences.jsonl", "pairs.jsonl", "labelled.jsonl"
# Of each experiment a config, the data that it trains on, and fields for a model of two layers.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "simcse": ("simcse/unsup_bert_base.py", SENTENCES, {}),
    "nli": ("nli/sup_simcse_bert_base.py", LABELLED, {}),
    "matryoshka": (
        "matryoshka/nli.py",
        LABELLED,
        {"loss__name": "matryoshka(info_nce(), dims='32,16')", "eval__dims": ""},
    ),
    "llm": ("llm/e5_mistral.py", PAIRS, {"model__name": "random:decoder-tiny"}),
    "retrieval": ("retrieval/quickstart.py", PAIRS, {}),
    "mlm": ("mlm/bert_small.py", SENTENCES, {}),
    "distill": ("distill/layers.py", SENTENCES, {"model__layers": "1"}),
    "cross_encoder": ("cross_encoder/python_docs.py", PAIRS, {}),
    "late_interaction": (
        "late_interaction/python_docs.py",
        PAIRS,
        {"late__dim": 16, "late__query_marker": "[MASK] ", "late__document_marker": ""},
    ),
    "sparse": ("sparse/splade_v2_max.py", PAIRS, {}),
    "multi_head": ("multi_head/bge_m3.py", PAIRS, {"late__dim": 16}),
}
# Nothing but training: no evaluation, and no mining.
NO_EVALUATION = {
    "eval__sts": "",
    "eval__test_sts": "",
    "eval__retrieval": "",
    "eval__retrieval_split": "",
    "eval__test_split": "",
    "eval__metric": "",
    "eval__baseline": "",
    "eval__every": -1,
    "mine__strategy": "",
    "data__validation_split": "",
    "data__holdout": 0.0,
}
NEEDED = ("orbax", "grain")  # by every run
STOP_AFTER = 2  # steps, of the run that SIGTERM ends
COMPARED = 3  # first steps whose loss is compared
SAMPLES = 128  # records of the data
VOCABULARY = 512  # words of the model


@dataclasses.dataclass(frozen=True)
class Launch:
    """The course of a launched run.

    Attributes:
        losses: by step.
        stopped: the step after which SIGTERM ended it; 0: it ended by itself.
        resumed: whether it then went on to its end, each step once.
    """

    losses: dict[int, float]
    stopped: int
    resumed: bool

    def describe(self, offline: bool) -> str:
        """Returns one line; `offline` tells that Weights & Biases logged the run."""
        first, last = self.losses[1], self.losses[max(self.losses)]
        end = f"SIGTERM after step {self.stopped}" if self.stopped else "ended before SIGTERM"
        resumed = ", resumed to its end" if self.resumed else ""
        logged = ", logged by W&B offline" if offline else ""
        return f"loss {first:.4g} to {last:.4g}, {end}{resumed}{logged}"


def missing_packages() -> list[str]:
    """Returns the packages that runs need and that are not installed."""
    return [name for name in NEEDED if not is_installed(name)]


def is_installed(name: str) -> bool:
    """Tells whether a package can be imported, without importing it."""
    with contextlib.suppress(ValueError):  # imported already, from nowhere that could be found
        return importlib.util.find_spec(name) is not None
    return True


def write_material(folder: Path) -> None:
    """Writes a model of two layers with its tokenizer, and generated data of each kind."""
    random_model("tiny", 32, vocab_size=VOCABULARY).save(folder / "model")
    words = [numbers % (VOCABULARY - 8) for numbers in make_words(2 * SAMPLES, 8)]
    texts = [" ".join(f"w{word}" for word in own) for own in words]
    first, second = texts[:SAMPLES], texts[SAMPLES:]
    records: dict[str, list[dict[str, Any]]] = {
        SENTENCES: [{"text": text} for text in texts],
        PAIRS: [{"anchor": a, "positive": b} for a, b in zip(first, second, strict=True)],
        # Each premise with a hypothesis of each label, as in SNLI.
        LABELLED: [
            {"premise": text, "hypothesis": other, "label": label}
            for number, text in enumerate(first)
            for label, other in enumerate(second[number:] + second[:number])
            if label < 3
        ],
    }
    for name, lines in records.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")


def small_config(family: str, folder: Path, **fields: Any) -> Experiment:
    """Returns the small cut of a config of an experiment, for the material in `folder`.

    Args:
        family: one of FAMILIES.
        folder: see `write_material`.
        **fields: of the config, such as `train__steps=3`.
    """
    from embed_jax.config_file import load_config, override

    file, data, own = FAMILIES[family]
    config, _ = load_config([f"experiments/{family}.py", f"--config={file}:small"])
    common: dict[str, Any] = {
        "model__name": str(folder / "model"),
        "data__train": str(folder / data),
        "data__limit": 0,
        "data__max_length": 16,
        "batch__size": 8,
        "batch__groups": 2,
        "train__devices": 1,
        "tracking__wandb": "disabled",
        "tracking__experiment": family,
    }
    if config.model.teacher:
        common["model__teacher"] = str(folder / "model")
    if own.get("model__name", "").startswith("random:"):
        common["model__tokenizer"] = str(folder / "model")
    return override(config, **{**NO_EVALUATION, **common, **own, **fields})


def launch(
    family: str, folder: Path, workdir: Path, steps: int, *, interrupt: bool, wandb: str
) -> Launch:
    """Trains a small run; SIGTERM ends it, and it is resumed.

    Args:
        family: one of FAMILIES.
        folder: see `write_material`.
        workdir: of the run.
        steps: of the whole run.
        interrupt: whether SIGTERM is sent.
        wandb: `config.tracking.wandb`.
    """
    package = __package__.removesuffix("scripts.bench")
    run = importlib.import_module(f"{package}experiments.{family}").run
    fields = {"train__steps": steps, "checkpoint__every": steps, "tracking__wandb": wandb}
    stopped = 0
    with terminated_after(workdir / "metrics.jsonl", STOP_AFTER if interrupt else 0):
        result = run(small_config(family, folder, **fields), workdir)
    if not result.finished:
        stopped = max(read_losses(workdir))
        result = run(small_config(family, folder, **fields), workdir)
    losses = read_losses(workdir)
    resumed = bool(stopped) and result.finished and sorted(losses) == list(range(1, steps + 1))
    return Launch(losses, stopped, resumed)


@contextlib.contextmanager
def terminated_after(metrics: Path, steps: int) -> Iterator[None]:
    """Sends this process SIGTERM once `steps` steps are logged; 0: never.

    A run notes the signal and ends after its step; outside of a run it is ignored.
    """
    over = threading.Event()

    def watch() -> None:
        while steps and not over.wait(0.002):
            if metrics.exists() and len(read_losses(metrics.parent)) >= steps:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)


def read_losses(workdir: Path) -> dict[int, float]:
    """Returns the losses that a run has logged by step; a line that is being written is left."""
    losses = {}
    for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            values = json.loads(line)
            if "loss" in values:
                losses[int(values["step"])] = float(values["loss"])
    return losses


def launch_references(folder: str, families: Sequence[str], steps: int) -> dict[str, list[float]]:
    """Returns the first losses of runs that nothing ends, by experiment; for another process."""
    losses: dict[str, list[float]] = {}
    for family in families:
        workdir = Path(folder) / f"reference_{family}"
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(Exception):
            own = launch(family, Path(folder), workdir, steps, interrupt=False, wandb="disabled")
            losses[family] = [own.losses[step] for step in range(1, COMPARED + 1)]
    return losses


def largest_difference(workdir: Path, reference: Sequence[float]) -> float:
    """Returns the largest relative difference of a run's first losses to those of another."""
    losses = read_losses(workdir)
    return max(
        abs(losses[step] - value) / max(abs(value), 1e-6)
        for step, value in enumerate(reference, start=1)
    )
