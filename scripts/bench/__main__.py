"""Measures speed and memory of encoding, training, attention, losses, caching and many devices.

Needs only jax, flax, optax, transformers, jaxtyping and numpy (start trains, and needs the extra
train); only suite needs data files and weights, and --against needs sentence-transformers or
another library. The sides of a comparison take turns, and medians are printed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from embed_jax.errors import exit_with_one_line, require

from ..commands import OneLineParser
from . import (
    attention,
    clients,
    encode,
    gpu,
    indexes,
    loss,
    maxsim,
    memory,
    mining,
    multi_vector,
    pairs,
    queries,
    roofline,
    scaling,
    start,
    suite,
    train,
    vocabulary,
)
from .measure import describe_cpu
from .peers import PEER

EXAMPLES = """examples:
  python -m scripts.bench encode --init random --shape minilm-l6
  python -m scripts.bench encode --against sentence-transformers,fastembed,static
  python -m scripts.bench train --batch-size 128 --against sentence-transformers --json
  python -m scripts.bench roofline --shape minilm-l6 --length 128
  python -m scripts.bench gpu --minutes 8
  python -m scripts.bench attention --lengths 256,2048
  python -m scripts.bench clients --url http://127.0.0.1:8000
  python -m scripts.bench indexes --vectors sentences.npy --documents 1000000
  python -m scripts.bench loss --sizes 1024,2048,4096 --dims 256
  python -m scripts.bench maxsim
  python -m scripts.bench memory --batch-size 4096 --group 128
  python -m scripts.bench memory --config configs/llm/e5_mistral.py --devices 8 --memory 80 \\
      --config.train.fsdp=8
  python -m scripts.bench mining --queries 10000 --passages 100000
  python -m scripts.bench multi-vector --documents 50000
  python -m scripts.bench pairs --against sentence-transformers
  python -m scripts.bench queries --model runs/two_towers,runs/quickstart
  python -m scripts.bench scaling --devices 8,16,64 --fsdp 8
  python -m scripts.bench start --against sentence-transformers
  python -m scripts.bench vocabulary --memory 8
  python -m scripts.bench suite --suite configs/suites/english.yaml --data DIRECTORY \\
      --model MODEL --against mteb

--json prints one object a line: name, unit, ours, theirs, ratio, n, machine and more. Rates, whose
unit ends in "/s", have a ratio above 1 where ours is faster; of seconds, MiB and differences a
ratio above 1 is a cost."""


def main() -> None:
    args = parse(sys.argv[1:])
    if getattr(args, "against", None) == PEER:
        require("sentence_transformers")
    args.run(args)
    if not args.json:
        print(f"on {describe_cpu()}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads and checks the options of one command.

    Raises:
        InputError: for options that cannot be used.
    """
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = OneLineParser(
        prog="python -m scripts.bench", description=__doc__, epilog=EXAMPLES, **layout
    )
    commands = parser.add_subparsers(dest="what", required=True)

    def add(name: str, text: str, description: str, examples: str, add_options, run, check) -> None:
        command = commands.add_parser(
            name, help=text, description=description, epilog=examples, **layout
        )
        add_options(command)
        command.add_argument(
            "--json", action="store_true", help="one JSON object per line instead of text"
        )
        command.add_argument("--debug", action="store_true", help="show tracebacks")
        command.set_defaults(run=run, check=check)

    for name, text, module, run in (
        ("encode", "texts per second, and latency by batch size", encode, encode.bench_encode),
        ("train", "pairs per second", train, train.bench_train),
        ("roofline", "where the time goes", roofline, roofline.bench_roofline),
        ("gpu", "all that an accelerator can show, in minutes", gpu, gpu.bench_gpu),
        (
            "attention",
            "time and memory of attention by row length",
            attention,
            attention.bench_attention,
        ),
        ("clients", "latency of a server under load", clients, clients.bench_clients),
        (
            "indexes",
            "time, memory and recall of indexes of one vector a document",
            indexes,
            indexes.bench_indexes,
        ),
        ("loss", "time and memory of a loss by batch size", loss, loss.bench_loss),
        ("memory", "cost and savings of gradient caching", memory, memory.bench_memory),
        (
            "mining",
            "time and memory of mining hard negatives",
            mining,
            mining.bench_mining,
        ),
        (
            "multi-vector",
            "time, memory and size of an index of token embeddings",
            multi_vector,
            multi_vector.bench_multi_vector,
        ),
        ("maxsim", "memory and time of MaxSim over a batch", maxsim, maxsim.bench_maxsim),
        ("pairs", "pairs that a cross-encoder scores and trains on", pairs, pairs.bench_pairs),
        ("queries", "time to embed the query of a search", queries, queries.bench_queries),
        ("start", "time until a first embedding and a first step", start, start.bench_start),
        ("suite", "time of evaluating on a suite of tasks", suite, suite.bench_suite),
        (
            "scaling",
            "memory and traffic of a training step by number of devices",
            scaling,
            scaling.bench_scaling,
        ),
        (
            "vocabulary",
            "memory of the head of sparse models",
            vocabulary,
            vocabulary.bench_vocabulary,
        ),
    ):
        add(
            name,
            text,
            module.DESCRIPTION,
            module.EXAMPLES,
            module.add_options,
            run,
            module.check_options,
        )
    overrides = [argument for argument in argv if argument.startswith("--config.")]
    args = parser.parse_args([argument for argument in argv if argument not in overrides])
    if overrides and not getattr(args, "config", None):
        parser.error(f"{overrides[0]}: only with memory --config FILE")
    args.overrides = overrides
    wrong = args.check(args)
    if wrong:
        parser.error(wrong)
    return args


if __name__ == "__main__":
    exit_with_one_line(main)
