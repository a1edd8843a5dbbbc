"""What a run is worth at its end: the model before against after, on test data that chose nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from embed_jax.config import Experiment
from embed_jax.data.sources.files import find_file, read_sts
from embed_jax.evals.sts import sts_evaluator
from embed_jax.parallel.distributed import is_first_host
from embed_jax.sentence import load
from embed_jax.train.start import start_from


def report_sts(config: Experiment, workdir: Path) -> dict[str, float]:
    """Spearman's correlation on the files of `config.eval.test_sts`, before and after; prints a table.

    Args:
        workdir: of the finished run; `results.json` is written there.

    Returns:
        {"before/NAME": ..., "after/NAME": ...}, and their means over the files as NAME "average".

    Raises:
        InputError: for a file that cannot be read.
    """
    files = [
        find_file(name.strip(), "test" if Path(name.strip()).is_dir() else "train")
        for name in config.eval.test_sts.split(",")
    ]
    evaluators = {_name(file): sts_evaluator(*read_sts(file)) for file in files}
    models = {
        "before": start_from(config.model, config.data.max_length, config.train.seed, config.train.devices).sentence,
        "after": load(str(workdir / "model")),
    }
    found = {
        when: {name: one(model.encode)["spearman"] for name, one in evaluators.items()}
        for when, model in models.items()
    }
    for scores in found.values():
        scores["average"] = float(np.mean(list(scores.values())))
    flat = {f"{when}/{name}": score for when, scores in found.items() for name, score in scores.items()}
    if is_first_host():
        print(f"{'Spearman':16}" + "".join(f"{when:>10}" for when in found))
        for name in found["after"]:
            print(f"{name:16}" + "".join(f"{scores[name]:10.4f}" for scores in found.values()))
        beside = workdir / "results.json.new"
        beside.write_text(json.dumps({"task": "sts", "metrics": flat}, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, workdir / "results.json")
    return flat


def _name(file: Path) -> str:
    """sts12 of sts12/test.tsv; stsb-dev of stsb/dev.tsv, since its test split may be there too."""
    split = file.name.split(".")[0]
    return file.parent.name if split == "test" else f"{file.parent.name}-{split}" if file.parent.name else split
