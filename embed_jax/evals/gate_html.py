"""A release gate's report as one HTML page: no scripts, nothing loaded, all texts escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from embed_jax.evals.gate import FAILED, PASSED, GateReport

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
caption { text-align: left; font-weight: bold; }
th, td { border: 1px solid #888; padding: .3rem .6rem; text-align: left; vertical-align: top; }
td { overflow-wrap: break-word; max-width: 30rem; }
.passed::before { content: "\\2713  "; } .failed::before { content: "\\2717  "; }
.failed { font-weight: bold; }
"""


def gate_html(report: GateReport) -> str:
    """Returns the page: the verdict, the checks, what failed, and what each case was served.

    Only ids of documents are shown, never their texts.
    """
    verdict = PASSED if report.passed else FAILED
    title = f"{report.spec.name}: {verdict}"
    parts = [f"<h1>{escape(report.spec.name)}: {_mark(verdict)}</h1>"]
    header, rows = report.rows()
    parts.append(_table("Checks", header, [[*row[:-1], ""] for row in rows],
                        [row[-1] for row in rows]))  # fmt: skip
    if report.baseline is not None:
        parts.append(f"<p>{escape(describe_power(report))}</p>")
    problems = [problem for check in report.checks for problem in check.problems]
    if problems:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
        parts.append(f"<h2>What failed</h2><ul>{items}</ul>")
    if report.times is not None:
        stages = report.times.percentiles().items()
        rows = [[stage, *(f"{value:.1f}" for value in each)] for stage, each in stages]
        parts.append(_table("Milliseconds of a query", ["stage", "p50", "p95", "p99"], rows))
    rows = [
        [
            case.name,
            case.query,
            ", ".join(case.expected) or "nothing",
            ", ".join(f"{name} ({score:.4g})" for name, score in report.served[case.name].items())
            or "nothing",
        ]
        for case in report.spec.cases
    ]
    parts.append(_table("Cases", ["case", "query", "expected", "served, best first"], rows))
    searched = [
        [name, ", ".join(f"{key}: {value}" for key, value in made_of.items())]
        for name, made_of in report.searched.items()
    ]
    if searched:
        parts.append(_table("What was searched", ["index", "made of"], searched))
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def describe_power(report: GateReport) -> str:
    """Says how often the test would notice a loss; "" without a baseline."""
    if report.baseline is None:
        return ""
    spec, test = report.baseline.spec, report.baseline.test
    head = f"{test.n} queries, false alarms at most {100 * spec.level:g} %: "
    if report.baseline.power is None:
        return f"{head}the scores are too low to lose {spec.loss:g} {spec.metric}"
    return (
        f"{head}a loss of {spec.loss:g} {spec.metric} would raise an alarm in "
        f"{100 * report.baseline.power:.0f} % of runs"
    )


def _mark(verdict: str) -> str:
    return f'<span class="{verdict}">{verdict}</span>'


def _table(
    caption: str, header: Sequence[str], rows: Sequence[Sequence[str]], marks: Sequence[str] = ()
) -> str:
    """Returns a table; the last cell of each row is a mark, where there are some."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for number, row in enumerate(rows):
        cells = [escape(cell) for cell in row]
        if marks:
            cells[-1] = _mark(marks[number])
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n"
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )
