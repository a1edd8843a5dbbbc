"""Writes a run's numbers to metrics.jsonl, Weights & Biases and the terminal."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.atomic import write_whole
from embed_jax.errors import InputError, require

SHOWN_WAIT = 0.05  # of a step's time


class MetricsFile:
    """`metrics.jsonl`: one line a step, flushed, each step once even after a resume."""

    def __init__(self, path: Path | None, resume_step: int):
        """Opens the file and cuts it back to the steps up to `resume_step`, and off a half line.

        None: no file.
        """
        self._file = None
        if path is None:
            return
        lines = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    if json.loads(line)["step"] <= resume_step:
                        lines.append(line + "\n")
            write_whole(path, "".join(lines))
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self._file is None:
            return
        # JSON knows no NaN: an undefined metric (a correlation with a constant) is null.
        known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **known}) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Wandb:
    """One wandb run per work directory; a resumed run continues it, and no step is sent twice."""

    def __init__(self, mode: str, project: str, name: str, workdir: Path, config: dict[str, Any]):
        """Starts or continues the run.

        Args:
            mode: "auto" is online when logged in, else offline, with a message; "disabled" sends
                nothing.
            project: of the run.
            name: of the run.
            workdir: of the training; keeps the run's id and its last step.
            config: the run's settings.
        """
        self._run = None
        if mode == "auto":
            logged_in = bool(os.environ.get("WANDB_API_KEY")) or _netrc_has("api.wandb.ai")
            mode = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
        if mode == "disabled":
            return
        require("wandb")
        import wandb

        os.environ.setdefault("WANDB_SILENT", "true")
        # A re-run of steps after a resume gives the same numbers: those already sent are left out.
        self._sent_file = workdir / "wandb_step"
        self._sent = int(self._sent_file.read_text()) if self._sent_file.exists() else -1
        id_file = workdir / "wandb_id"
        if not id_file.exists():
            write_whole(id_file, secrets.token_hex(4))
        try:
            self._run = wandb.init(
                project=project,
                name=name or workdir.name,
                id=id_file.read_text().strip(),
                resume="allow",
                mode=mode,
                dir=str(workdir),
                config=config,
            )
        except Exception as error:
            raise InputError(
                f"config.tracking.wandb={mode!r}: {error}; set it to 'offline' or 'disabled'"
            ) from error
        if mode == "offline":
            print(
                "wandb: offline (not logged in); upload later with: wandb sync "
                f"{workdir}/wandb/offline-run-*"
            )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends the metrics of a step, unless they were sent before."""
        if self._run is None or step <= self._sent:
            return
        write_whole(self._sent_file, str(step))
        self._sent = step
        self._run.log(dict(metrics), step=step)

    def write_table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], pictures: Sequence[Path] = ()
    ) -> None:
        """Sends a table as "table", and PNG pictures as "picture/NAME" by their files' names."""
        if self._run is None:
            return
        import wandb

        table = wandb.Table(columns=list(header), data=[list(row) for row in rows])
        images = {
            f"picture/{path.stem}": wandb.Image(str(path))
            for path in pictures
            if path.suffix == ".png"
        }
        self._run.log({"table": table, **images})

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()


def _netrc_has(host: str) -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class Progress:
    """A progress bar on a terminal; elsewhere one plain line every `log_every` steps.

    With `quiet` nothing is shown. A wait for data is shown from a twentieth of a step's time on.
    """

    def __init__(self, start: int, total: int, log_every: int, quiet: bool = False):
        self._total, self._every, self._quiet = total, log_every, quiet
        self._started, self._start = time.monotonic(), start
        self._bar = None
        if sys.stderr.isatty() and not quiet:
            import tqdm

            self._bar = tqdm.tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def step(self, step: int, loss: float, tokens_per_second: float, waiting: float = 0.0) -> None:
        """Shows a step; `waiting` is the share of the time since the last one spent on batches."""
        shown = [f"loss {loss:.4f}", f"{tokens_per_second:,.0f} tokens/s"]
        if waiting >= SHOWN_WAIT:
            shown.append(f"{waiting:.0%} waiting for data")
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
            self._bar.update(1)
        elif not self._quiet and (step % self._every == 0 or step == self._total):
            left = (time.monotonic() - self._started) / (step - self._start) * (self._total - step)
            line = [f"step {step}/{self._total}", *shown, f"{left:.0f} s left"]
            print("  ".join(line), flush=True)

    def say(self, line: str) -> None:
        """Prints a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(line)
        elif not self._quiet:
            print(line, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
