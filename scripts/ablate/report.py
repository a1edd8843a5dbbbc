"""The results of a table of runs: cells, verdicts on the paper's claims, JSON and Markdown."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from embed_jax.evals.leaderboard import markdown
from embed_jax.train.ablation import AblationRun, spread
from embed_jax.train.ablation_table import Table
from embed_jax.train.agreement import Interval, Verdict, judge, rank_correlation, student_interval


@dataclasses.dataclass(frozen=True)
class Report:
    """A table with its results.

    Attributes:
        table: the table.
        runs: its runs.
        overrides: config fields of the command line.
        chosen: with --grid, the fields that validation chose for each row.
    """

    table: Table
    runs: Sequence[AblationRun]
    overrides: dict[str, str]
    chosen: dict[str, str]

    def values(self, metric: str) -> dict[str, dict[int, float]]:
        """Returns {row: {seed: value}} of a metric, rows in order; those without it are empty."""
        by_row: dict[str, dict[int, float]] = {run.row: {} for run in self.runs}
        for run in self.runs:
            if metric in run.metrics:
                by_row[run.row][run.seed] = run.metrics[metric]
        return by_row

    def cells(self, *, errors: bool = True) -> tuple[list[str], list[list[str]]]:
        """Returns the columns' names and the rows.

        Args:
            errors: whether there is a column with the errors of runs, if any failed.
        """
        table = self.table
        failed = errors and any(run.error for run in self.runs)
        header = ["row", *["chosen"] * bool(self.chosen)]
        for position, metric in enumerate(table.metrics):
            header += [metric, *["paper"] * (position == 0 and bool(table.paper))]
        rows = []
        for row in dict.fromkeys(run.row for run in self.runs):
            cells = [row, *([self.chosen[row]] if self.chosen else [])]
            for position, metric in enumerate(table.metrics):
                values = list(self.values(metric)[row].values())
                cells.append(self._mean(values))
                if position == 0 and table.paper:
                    cells.append(str(table.paper.get(row, "-")))
            own = [run for run in self.runs if run.row == row]
            cells.append(f"{sum(not run.error for run in own)}/{len(own)}")
            if failed:
                cells.append("; ".join(f"seed {run.seed}: {run.error}" for run in own if run.error))
            rows.append(cells)
        return [*header, "runs", *["error"] * failed], rows

    def _mean(self, values: Sequence[float]) -> str:
        if not values:
            return "-"
        mean, sd = spread(values)
        text = self.table.format_value(mean)
        return text if math.isnan(sd) else f"{text} ± {self.table.format_value(sd)}"

    def remarks(self) -> list[str]:
        """Returns lines below the table: the source, tau, and a verdict for each claim."""
        table = self.table
        lines = []
        if table.source and (table.paper or table.claims):
            checked = f" (numbers checked against its {table.checked})" if table.paper else ""
            lines.append(f"paper: {table.source}{checked}")
        if tau := self._tau:
            lines.append(
                f"Kendall's tau of our rows with the paper's: {tau.mean:.2f} "
                f"[{tau.low:.2f}, {tau.high:.2f}], {_seeds(tau.n)}"
            )
        return lines + [self._verdict(verdict) for verdict in self._verdicts]

    @functools.cached_property
    def _tau(self) -> Interval | None:
        return rank_correlation(self.table, self.values(self.table.metrics[0]))

    @functools.cached_property
    def _verdicts(self) -> list[Verdict]:
        return judge(self.table, self.values(self.table.metrics[0]))

    def _verdict(self, verdict: Verdict) -> str:
        if verdict.gain is None:
            return f"{verdict.claim}: {verdict.verdict} (no seed has both rows)"
        gain = verdict.gain
        mean, low, high = (
            self.table.format_value(value, "+") for value in (gain.mean, gain.low, gain.high)
        )
        ends = f" [{low}, {high}]" if gain.n > 1 else ""
        return f"{verdict.claim}: {verdict.verdict} ({mean}{ends}, {_seeds(gain.n)})"

    def as_json(self) -> dict[str, Any]:
        """Returns all numbers as measured, without SCALE."""
        table, rows = self.table, {}
        for row in dict.fromkeys(run.row for run in self.runs):
            own = [run for run in self.runs if run.row == row]
            summary = {}
            for metric in dict.fromkeys(metric for run in own for metric in run.metrics):
                values = [run.metrics[metric] for run in own if metric in run.metrics]
                interval = student_interval(values)
                summary[metric] = {
                    "mean": interval.mean,
                    "sd": spread(values)[1],
                    "low": interval.low,
                    "high": interval.high,
                    "n": interval.n,
                }
            rows[row] = {
                "config": dict(table.rows[row]),
                "chosen": self.chosen.get(row),
                "summary": summary,
                "paper": table.paper.get(row),
                "runs": [
                    {
                        "seed": run.seed,
                        "workdir": str(run.workdir),
                        "error": run.error or None,
                        "metrics": run.metrics,
                    }
                    for run in own
                ],
            }
        return {
            "table": table.name,
            "title": table.title,
            "experiment": table.experiment,
            "config": table.config,
            "overrides": self.overrides,
            "metrics": list(table.metrics),
            "scale": table.scale,
            "source": table.source or None,
            "checked": table.checked or None,
            "tau": _interval(self._tau),
            "verdicts": {
                verdict.claim: {"verdict": verdict.verdict, "gain": _interval(verdict.gain)}
                for verdict in self._verdicts
            },
            "rows": rows,
        }

    def as_markdown(self, command: str, picture: str) -> str:
        """Returns a page: title, command, table, what its numbers are, remarks, picture."""
        lines = markdown(*self.cells())
        page = [f"# {self.table.title}", "", f"`{command}`", "", lines, self._legend(), ""]
        if remarks := self.remarks():
            page += [*(f"* {remark}" for remark in remarks), ""]
        return "\n".join([*page, f"![{self.table.title}]({picture})", ""])

    def _legend(self) -> str:
        """Returns sentences about the numbers of the table."""
        scale = f", x{self.table.scale:g}" if self.table.scale != 1 else ""
        legend = f"Mean ± standard deviation over seeds{scale}; intervals are 95 %, Student's, over"
        selecting = dict.fromkeys(run.settings["eval.metric"] for run in self.runs)
        metric = " or ".join(f"`{name}`" for name in selecting if name)
        meanings = {
            "best": f"`best`: the best {metric} of a run's evaluations.",
            "start": f"`start`: {metric} before the first step.",
        }
        used = [meanings[name] for name in self.table.metrics if metric and name in meanings]
        return " ".join([legend, "seeds.", *used])


def _seeds(number: int) -> str:
    return "one seed" if number == 1 else f"{number} seeds"


def _interval(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else dataclasses.asdict(interval)
