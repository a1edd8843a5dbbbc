"""Whole pipelines on retrieval data: evaluate run --task retrieval --pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError

from ..commands import OneLineParser, print_table


def add_arguments(parser: OneLineParser) -> None:
    """Adds the options for pipelines."""
    group = parser.add_argument_group("pipelines")
    group.add_argument(
        "--pipeline",
        default="",
        metavar="FILE",
        help="YAML files of pipelines, or folders of them, separated by commas, in place of "
        "--model; see configs/pipelines",
    )
    group.add_argument(
        "--models", default="", metavar="ROLE=MODEL", help="other models, separated by commas"
    )
    group.add_argument(
        "--scores",
        default="",
        metavar="ROLE=FILE",
        help="scores by scripts.annotate in the place of rerankers, separated by commas",
    )
    group.add_argument(
        "--sample", type=int, default=0, help="search this number of queries (default: all)"
    )
    group.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    group.add_argument("--indexes", type=Path, help="folder to keep the indexes in")
    group.add_argument(
        "--timed-queries", type=int, default=20, help="queries that are timed (default: 20)"
    )
    group.add_argument(
        "--costs", default="", help="rerank=MS: milliseconds a pair, of scores that are read"
    )
    group.add_argument("--table", type=Path, help="Markdown file for the table")
    group.add_argument("--plot", type=Path, help="picture of nDCG@10 against ms per query")


def pipeline_files(names: str) -> list[Path]:
    """Returns the files of pipelines, those of folders in the order of their names.

    Raises:
        InputError: a folder has none.
    """
    files: list[Path] = []
    for name in map(Path, names.split(",")):
        inside = sorted(name.glob("*.yaml")) if name.is_dir() else [name]
        if not inside:
            raise InputError(f"{name}: a folder without .yaml files")
        files += inside
    return files


def roles(text: str, option: str) -> dict[str, str]:
    """Reads "ROLE=NAME,ROLE=NAME"."""
    values: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        role, equals, name = part.partition("=")
        if not (role and equals and name) or role in values:
            raise InputError(f"--{option}: expected ROLE=NAME, each role once, found {part!r}")
        values[role] = name
    return values


def evaluate_pipelines(
    files: Sequence[Path],
    tasks: Mapping[str, Any],
    *,
    models: Mapping[str, str],
    score_files: Mapping[str, str],
    costs: str = "",
    sample: int = 0,
    seed: int = 0,
    indexes: Path | None = None,
    timed_queries: int = 20,
    table: Path | None = None,
    plot: Path | None = None,
    compute_dtype: str = "float32",
) -> dict[str, Any]:
    """Evaluates pipelines on tasks; prints, and writes, a table of each task.

    Args:
        files: of pipelines.
        tasks: retrieval tasks by name.
        models: by role, in place of those that the files name.
        score_files: by role, in place of models.
        costs: see `parse_costs`; added to pipelines whose reranker's scores are read.
        sample: how many queries of each task are searched; 0: all. See `sample_queries`.
        seed: of the sample.
        indexes: folder to keep the indexes in; None: they are removed.
        timed_queries: how many queries are timed.
        table: Markdown file to write.
        plot: picture to write.
        compute_dtype: of the models' layers.

    Returns:
        {task: {pipeline: results}}.
    """
    from embed_jax.corpus_index import Models
    from embed_jax.evals.budget import parse_costs
    from embed_jax.evals.leaderboard import markdown
    from embed_jax.evals.rerankers import sample_queries
    from embed_jax.evals.retrieval import make_retrieval_task
    from embed_jax.evals.stages import evaluate_pipeline, pipelines_table, plot_pipelines
    from embed_jax.pipelines import open_pipeline
    from embed_jax.retrieval.pipeline_spec import read_pipeline
    from embed_jax.retrieval.score_store import RememberedScores, read_score_file

    specs = [read_pipeline(file).with_models(models) for file in files]
    if len({spec.name for spec in specs}) < len(specs):
        raise InputError("--pipeline: expected different names of pipelines")
    if unused := models.keys() - {role for spec in specs for role in spec.models}:
        raise InputError(f"--models: no pipeline has the role {min(unused)!r}")
    scores = {role: read_score_file(file) for role, file in score_files.items()}
    declared = parse_costs(costs) if costs else None
    shared, lines = Models(compute_dtype), []
    remembered: dict[
        tuple[str, str], RememberedScores
    ] = {}  # a pair is scored once for all pipelines
    outcomes: dict[str, dict[str, Any]] = {}
    for name, task in tasks.items():
        outcomes[name] = {}
        if sample:
            data = sample_queries((task.corpus, task.queries, task.qrels), sample, seed)
            task = make_retrieval_task(data, name=task.name)
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory) if indexes is None else indexes / name
            for spec in specs:
                opened = open_pipeline(spec, task.corpus, folder, models=shared, scores=scores)
                reranker, is_read = opened.pipeline.reranker, False
                if spec.rerank is not None and reranker is not None:
                    is_read = spec.rerank.model in scores
                    key = spec.rerank.model, spec.models[spec.rerank.model]
                    reranker = remembered.setdefault(key, RememberedScores(reranker))
                outcomes[name][spec.name] = evaluate_pipeline(
                    opened.pipeline,
                    task,
                    reranker=reranker,
                    timed_queries=timed_queries,
                    costs=declared if is_read else None,
                    bytes_per_document=opened.bytes_per_document(len(task.corpus)),
                )
        header, rows = pipelines_table(outcomes[name])
        print(f"{name}: {len(task.qrels)} queries, {len(task.corpus):,} documents")
        print_table(header, rows)
        lines += [f"{name}:", "", markdown(header, rows)]
    if table:
        table.write_text("\n".join(lines), encoding="utf-8")
    if plot:
        plot_pipelines(outcomes, plot)
    return {
        name: {pipeline: each.to_json() for pipeline, each in of_task.items()}
        for name, of_task in outcomes.items()
    }
