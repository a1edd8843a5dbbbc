"""Evaluates a model on sentence similarity (sts) or search (retrieval), with 95 % bootstrap intervals.

sts: Spearman and Pearson of cosine similarities with people's scores. The figure over all pairs of a file is SimCSE's
`all` aggregation; with several subsets, the mean over them and the mean weighted by their sizes are shown too. Several
data sets give a row each and their average.

retrieval: nDCG, MRR, recall and MAP as trec_eval defines them, over the queries that have judgements. With --sweep:
nDCG@10, bytes a vector and queries a second of compressed embeddings, every dimension with every precision and search.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, exit_with_one_line, require
from scripts import evaluate_sweep
from scripts.commands import Parser, load_model, print_table, write_json, written_whole

EXAMPLES = """data:
  sts        a file with the columns score, sentence1, sentence2 and optionally subset (.tsv, .csv, .jsonl, each also
             .gz), or a directory with such a file called SPLIT.tsv and so on; several, separated by commas
  retrieval  a directory in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), or python_docs

examples:
  python -m scripts.evaluate --model sentence-transformers/all-MiniLM-L6-v2 --task sts --data stsb/test.tsv
  python -m scripts.evaluate --model runs/simcse/model --task sts --data sts12,sts13,sts14,sts15,sts16,stsb,sick_r
  python -m scripts.evaluate --model runs/quickstart/model --task retrieval --data python_docs --baseline bm25 \\
      --output results.json
  python -m scripts.evaluate --model sentence-transformers/all-MiniLM-L6-v2 --task retrieval --data scifact --sweep \\
      --dims 384,256,128 --precisions float32,int8,int4,binary,pq64,pq32,pq16 --rescore 0,4,4:int8 --keep 0.95 \\
      --output sweep.json --plot sweep.png
"""
QUERY_PROMPTS = ("query",)  # used without being named, as in sentence-transformers' encode_query and encode_document
CORPUS_PROMPTS = ("document", "passage", "corpus")


def main() -> None:
    args = parse(sys.argv[1:])
    run = {"sts": run_sts, "retrieval": run_sweep if args.sweep else run_retrieval}[args.task]
    if args.output is None:
        run(args)
        return
    with written_whole(args.output) as beside:
        write_json(beside, run(args))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.evaluate", __doc__, EXAMPLES)
    parser.add_argument("--model", required=True, help="directory or hub name")
    parser.add_argument("--task", required=True, choices=["sts", "retrieval"])
    parser.add_argument("--data", required=True, help="what to evaluate on; see below")
    parser.add_argument("--split", default="test", help="which split of a directory or of python_docs (default: test)")
    parser.add_argument("--output", type=Path, help="JSON file for metrics, intervals and versions")
    parser.add_argument(
        "--batch-tokens", type=int, default=0, help="slots a device encodes at a time (default: what suits the device)"
    )
    parser.add_argument("--dim", type=int, default=0, help="cut embeddings to so many numbers (default: all)")
    parser.add_argument(
        "--instruction",
        help="what texts are encoded for, for models with a template for it; in retrieval of queries, not of documents",
    )
    parser.add_argument("--layers", type=int, default=0, help="stop after so many of the layers (default: all)")
    sts = parser.add_argument_group("sts")
    sts.add_argument("--prompt-name", help="which of the model's prompts to put before each text (default: its own)")
    retrieval = parser.add_argument_group("retrieval")
    retrieval.add_argument("--k", default="10,100", help="cut-offs, separated by commas (default: 10,100)")
    retrieval.add_argument("--baseline", choices=["bm25"], help="a row to compare with")
    retrieval.add_argument(
        "--query-prompt-name", help="the model's prompt for queries (default: 'query' if it has one, else its own)"
    )
    retrieval.add_argument(
        "--corpus-prompt-name",
        help="its prompt for documents (default: 'document', 'passage' or 'corpus' if it has one, else its own)",
    )
    retrieval.add_argument(
        "--ignore-identical-ids",
        action="store_true",
        help="leave out a document with the query's own id, as BEIR does: for ArguAna and Quora",
    )
    sweep = evaluate_sweep.add_arguments(parser)
    args = parser.parse_args(argv)
    others = {"--task retrieval": [retrieval, sweep]} if args.task == "sts" else {"--task sts": [sts]}
    if not args.sweep:
        others.setdefault("--sweep", []).append(sweep)
    for wanted, groups in others.items():
        for action in (action for group in groups for action in group._group_actions):
            if getattr(args, action.dest) != action.default:
                parser.error(f"{action.option_strings[0]} is for {wanted}")
    if args.batch_tokens < 0:
        parser.error(f"--batch-tokens: expected 0 or more, found {args.batch_tokens}")
    for option in ("dim", "layers"):
        if getattr(args, option) < 0:
            parser.error(f"--{option}: expected 1 or more, found {getattr(args, option)}")
    if args.instruction is not None and (args.prompt_name or args.query_prompt_name) is not None:
        parser.error("--instruction: expected none beside --prompt-name or --query-prompt-name")
    if args.sweep and args.dim:
        parser.error("--sweep takes several sizes: --dims instead of --dim")
    if args.sweep and (args.baseline or args.k != parser.get_default("k")):
        parser.error("--sweep measures nDCG@10 of the model: neither --k nor --baseline goes with it")
    numbers = args.k.split(",")
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        parser.error(f"--k: expected numbers from 1 up, separated by commas, found {args.k!r}")
    args.k = sorted({int(number) for number in numbers})
    if args.sweep:
        evaluate_sweep.check_arguments(args, parser)
    return args


def run_sts(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates on each data set; prints a table and returns the results."""
    import numpy as np

    from embed_jax.data.sources.files import read_sts
    from embed_jax.evals.metrics import bootstrap_interval, pearson, spearman
    from embed_jax.evals.sts import pair_similarities, sts_metrics

    files = [sts_file(name, args.split) for name in args.data.split(",")]
    names = [path.parent.name if path.name.split(".")[0] == args.split else path.stem for path in files]
    if len(set(names)) < len(names):
        names = [str(path) for path in files]
    sets = {name: read_sts(path) for name, path in zip(names, files, strict=True)}
    encode = functools.partial(load_model(args.model).encode, **encode_options(args))
    encode = functools.partial(encode, prompt_name=args.prompt_name, instruction=args.instruction)
    metrics, intervals = {}, {}
    for name, (sentences1, sentences2, scores, subsets) in sets.items():
        similarities, gold = pair_similarities(encode, sentences1, sentences2), np.array(scores)
        metrics[name] = sts_metrics(similarities, gold, subsets)
        intervals[name] = {
            metric: bootstrap_interval(len(gold), lambda i, f=f, s=similarities, g=gold: f(s[i], g[i]))
            for metric, f in (("spearman", spearman), ("pearson", pearson))
        }
    columns = list(dict.fromkeys(metric for found in metrics.values() for metric in found))
    rows = [
        [name, str(len(sets[name][2])), *(cell(found.get(metric), intervals[name].get(metric)) for metric in columns)]
        for name, found in metrics.items()
    ]
    if len(sets) > 1:
        main = ("spearman", "pearson")
        average = {metric: float(np.mean([found[metric] for found in metrics.values()])) for metric in main}
        rows.append(["average", "", *(cell(average.get(metric), None) for metric in columns)])
        metrics = {f"{name}/{metric}": v for name, found in metrics.items() for metric, v in found.items()}
        metrics |= {f"average/{metric}": value for metric, value in average.items()}
        intervals = {f"{name}/{metric}": v for name, found in intervals.items() for metric, v in found.items()}
    else:
        metrics, intervals = metrics[names[0]], intervals[names[0]]
    print_table(["data", "pairs", *columns], rows)
    return results(args, metrics, intervals, n=sum(len(columns[2]) for columns in sets.values()))


def sts_file(name: str, split: str) -> Path:
    """The file named, or the one called SPLIT in the directory named."""
    from embed_jax.data.sources.files import FORMATS

    path = Path(name)
    if not path.is_dir():
        return path
    candidates = [path / f"{split}{ending}{gz}" for ending in FORMATS for gz in ("", ".gz")]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if len(found) != 1:
        raise InputError(f"{path}: expected one file {split}.tsv, .csv or .jsonl (.gz), found {len(found)}")
    return found[0]


def run_retrieval(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates the model and the baseline; prints a table and returns the results."""
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.evals.retrieval import evaluate_retrieval, evaluate_search
    from embed_jax.retrieval.bm25 import bm25_search

    if args.baseline:
        require("bm25s", "search")
    task = open_retrieval_task(args.data, args.split)
    options = {"ks": args.k, "ignore_identical_ids": args.ignore_identical_ids}
    model = load_model(args.model)
    found = {
        args.model: evaluate_retrieval(*encoders(args, model), *task, similarity=model.similarity_fn_name, **options)
    }
    if args.baseline:
        found[args.baseline] = evaluate_search(bm25_search, *task, **options)
    intervals = {name: result.intervals() for name, result in found.items()}
    corpus, _, qrels = task
    print(f"{args.data}: {len(qrels)} queries, {len(corpus)} documents")
    print_table(
        ["metric", *found],
        [
            [metric, *(cell(result.metrics[metric], intervals[name][metric]) for name, result in found.items())]
            for metric in found[args.model].metrics
        ],
    )
    content = results(args, found[args.model].metrics, intervals[args.model], n=len(qrels))
    if args.baseline:
        content["baseline"] = {
            "name": args.baseline,
            "metrics": found[args.baseline].metrics,
            "intervals": intervals[args.baseline],
        }
    return content


def run_sweep(args: argparse.Namespace) -> dict[str, Any]:
    """Measures compressed embeddings; prints a table and returns the results."""
    from embed_jax.data.sources import open_retrieval_task

    task = open_retrieval_task(args.data, args.split)
    model = load_model(args.model)
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise InputError(f"{args.model}: --sweep is for similarity cosine or dot, found {model.similarity_fn_name!r}")
    found = evaluate_sweep.sweep(args, model, *encoders(args, model), task)
    return results(args, found["metrics"], found["intervals"], n=len(task[2])) | found


def encoders(args: argparse.Namespace, model: Any) -> tuple[Callable, Callable]:
    """What embeds queries and what embeds documents, each with its prompt."""
    encode = functools.partial(model.encode, **encode_options(args))
    queries, corpus = query_options(model), corpus_options(model)
    if args.instruction is not None:
        queries = {"instruction": args.instruction}
    if args.query_prompt_name:
        queries = {"prompt_name": args.query_prompt_name}
    if args.corpus_prompt_name:
        corpus = {"prompt_name": args.corpus_prompt_name}
    return functools.partial(encode, **queries), functools.partial(encode, **corpus)


def encode_options(args: argparse.Namespace) -> dict[str, Any]:
    size = {"dim": args.dim, "layers": args.layers}
    return {**size, "batch_tokens": args.batch_tokens, "show_progress": sys.stderr.isatty()}


def query_options(model: Any) -> dict[str, str]:
    """The model's prompt for queries by its usual name; {}: its default, if it has one."""
    name = next((name for name in QUERY_PROMPTS if name in model.prompts), None)
    return {} if name is None else {"prompt_name": name}


def corpus_options(model: Any) -> dict[str, str]:
    """The model's prompt for documents by one of its usual names; {}: its default. Many models have none for them."""
    name = next((name for name in CORPUS_PROMPTS if name in model.prompts), None)
    if name is None:
        return {"prompt": ""} if model.default_prompt_name is None else {}
    return {"prompt_name": name}


def cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else f"{value:.4f}"


def results(args: argparse.Namespace, metrics: dict, intervals: dict, n: int) -> dict[str, Any]:
    """What is written to --output: scores are fractions, n counts pairs or queries."""
    from embed_jax.train.tracking import environment

    return {
        "task": args.task,
        "model": args.model,
        "data": args.data,
        "split": args.split if args.data == "python_docs" or Path(args.data.split(",")[0]).is_dir() else None,
        "dim": args.dim or None,
        "layers": args.layers or None,
        "instruction": args.instruction,
        "metrics": metrics,
        "intervals": intervals,
        "n": n,
        "versions": environment(),
    }


if __name__ == "__main__":
    exit_with_one_line(main)
