"""Evaluates embedding models: one task, a suite of them, or a comparison of their results.

Tasks of all of MTEB's kinds by its protocols, and more (see below), each score with a 95 %
bootstrap interval over its items. `COMMAND --help` lists a command's options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from embed_jax.errors import exit_with_one_line

from ..commands import Parser, whole_file, write_json
from . import diagnose, embedders, results, searches, suite, sweep, task
from .aliases import translate

EXAMPLES = f"""data (a file, a directory with SPLIT.tsv, .csv, .jsonl or .gz, tfds:NAME, hf:NAME):
  sts             score, sentence1, sentence2 and optionally subset
  retrieval       a directory in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), or
                  python_docs, or limit, limit:50000 (made; see scripts.limit)
  classification  text, label (a directory with a train split too)
  clustering      text, label
  pairs           sentence1, sentence2, label (1 or 0)
  reranking       JSONL: query, positive (list), negative (list)
  bitext          two columns named by language
  summarization   JSONL: text, human_summaries, machine_summaries, relevance (lists)
  transfer        text, label: SentEval's protocol
  instructions    BEIR's layout with instructions: how a search follows them
  passkey         lengths in words, such as 256,1024: documents are made
A cross-encoder is a model for sts, pairs and reranking, and for --rerank.

{embedders.MODELS}
examples:
  python -m scripts.evaluate run --model sentence-transformers/all-MiniLM-L6-v2 --task sts \\
      --data stsb/test.tsv
  python -m scripts.evaluate run --model runs/simcse/model --task sts \\
      --data sts12,sts13,sts14,sts15,sts16,stsb,sick_r
  python -m scripts.evaluate run --model runs/quickstart/model --task retrieval \\
      --data python_docs --baseline bm25 \\
      --output results.json
  python -m scripts.evaluate run --model runs/a/model --task classification --data banking77 \\
      --set samples_per_label=16
  python -m scripts.evaluate run --model cross-encoder/ms-marco-MiniLM-L6-v2 --task reranking \\
      --data reranking.jsonl
  python -m scripts.evaluate run --model runs/a --task retrieval --data scifact \\
      --rerank cross-encoder/ms-marco-MiniLM-L6-v2 --depth 100
  python -m scripts.evaluate run --task retrieval --data scifact,nfcorpus \\
      --pipeline configs/pipelines --models reranker=runs/reranker/model \\
      --scores reranker=reranker.jsonl --costs rerank=15 \\
      --output pipelines.json --table pipelines.md --plot pipelines.png
  python -m scripts.evaluate suite configs/suites/english.yaml --model runs/a,runs/b \\
      --data DIRECTORY --output results
  python -m scripts.evaluate compare results/runs_a results/runs_b
  python -m scripts.evaluate leaderboard results
  python -m scripts.evaluate diagnose --model runs/a --data scifact --pairs pairs.tsv
  python -m scripts.evaluate searches --data limit --model bm25 \
      --model MiniLM=sentence-transformers/all-MiniLM-L6-v2 --model ColBERT=runs/colbert/model \
      --dims 32,128,256 --k 2,10,20 --metrics recall@2,recall@20 --output limit.json
  python -m scripts.evaluate sweep --model sentence-transformers/all-MiniLM-L6-v2 --data scifact \\
      --dims 384,256,128 --precisions float32,int8,int4,binary,pq64,pq32,pq16 --rescore 0,4,4:int8
      --keep 0.95 \\
      --output sweep.json --plot sweep.png

The flags of earlier versions (--task without a command, --suite, --compare, --leaderboard, --sweep,
--diagnose) are read until 1.0."""
# A subcommand, its line of help, what adds its options, what runs it.
COMMANDS = {
    "run": ("one kind of task on one or several data sets", task.add_arguments, task.run),
    "suite": ("a list of tasks, for one or several models", suite.add_arguments, suite.run),
    "compare": (
        "differences of two models that are not chance",
        results.add_compare_arguments,
        results.run_compare,
    ),
    "leaderboard": (
        "a ranking of models",
        results.add_leaderboard_arguments,
        results.run_leaderboard,
    ),
    "searches": (
        "several searches of one data set: BM25, dense at several sizes, sparse, late interaction",
        searches.add_arguments,
        searches.run,
    ),
    "sweep": ("compressed embeddings: quality, bytes, speed", sweep.add_arguments, sweep.run),
    "diagnose": ("the usual faults of a search", diagnose.add_arguments, diagnose.run),
}


def main() -> None:
    args = parse(sys.argv[1:])
    if args.output is None or args.command == "suite":
        args.run(args)
        return
    with whole_file(args.output) as beside:
        write_json(beside, args.run(args))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads and checks the options of one subcommand.

    Raises:
        InputError: for options that cannot be used.
    """
    parser = Parser("scripts.evaluate", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (line, add_arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=line, description=line, allow_abbrev=False)
        check = add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=run, check=check)
    args = parser.parse_args(translate(argv))
    args.check(args)
    return args


if __name__ == "__main__":
    exit_with_one_line(main)
