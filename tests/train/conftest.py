"""Runs of `experiments.simcse` on a tiny encoder, for tests of resuming."""

import contextlib
import io
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = 24


@pytest.fixture(scope="session")
def sentence_file(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("data") / "sentences.txt"
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def arguments(sentence_file, tiny_tokenizer):
    """`arguments(workdir, *overrides)`: the command line of a run on a tiny encoder."""

    def make(workdir: Path, *overrides: str) -> list[str]:
        fields = {
            "model.tokenizer": tiny_tokenizer,
            "data.train": sentence_file,
            "eval.sts": "",
            "eval.metric": "",
            "eval.every": 0,
            "batch.size": 16,
            "batch.groups": 2,
            "batch.row_length": 64,
            "batch.rows": 6,
            "train.steps": STEPS,
            "train.log_every": 1,
            "train.devices": 1,
            "checkpoint.every": 3,
            "tracking.wandb": "disabled",
        }
        return [
            f"--config={ROOT}/configs/simcse/unsup_bert_base.py:small",
            *(f"--config.{name}={value}" for name, value in fields.items()),
            f"--workdir={workdir}",
            *overrides,
        ]

    return make


@pytest.fixture(scope="session")
def simcse_here(arguments):
    """Runs the command in this process, and returns (exit status, stderr)."""

    def run(workdir: Path, *overrides: str) -> tuple[int, str]:
        err = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
            patch.chdir(ROOT)
            patch.syspath_prepend(str(ROOT))
            from embed_jax.errors import exit_with_one_line
            from experiments import simcse

            patch.setattr(sys, "argv", ["experiments/simcse.py", *arguments(workdir, *overrides)])
            with pytest.raises(SystemExit) as exit:
                exit_with_one_line(simcse.main)
        return exit.value.code, err.getvalue()

    return run
