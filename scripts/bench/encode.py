"""Bench of encoding: texts per second, also beside other libraries or another model."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .measure import alternate, count, count_or_none, counts, share_device
from .peers import PEERS, start_peers
from .speed import add_model_options, add_text_options, open_model, print_rates, read_texts

DESCRIPTION = f"""Texts per second, and the latency of single calls by batch size.

--against takes one or several of these, separated by commas:

  sentence-transformers           the same model, by PyTorch
  sentence-transformers:bfloat16  the same, its weights in bfloat16
  sentence-transformers:compile   the same in bfloat16, by torch.compile
  sentence-transformers:onnx      the same model, by ONNX Runtime
  sentence-transformers:openvino  the same model, by OpenVINO
  fastembed                       the same model by FastEmbed, in the ONNX file of scripts.export
  static                          a table of 256 numbers a token, by sentence-transformers
  MODEL                           another model here, a directory or hub name

Each of the first {len(PEERS)} runs in its own process, of --peer-python: libraries that need other
versions have their own environment. One that is missing there is left out with a line that
says what to install. The sides take turns; "ratio" is ours to theirs, above 1 if ours is faster."""
EXAMPLES = """examples:
  python -m scripts.bench encode --init random --shape minilm-l6
  python -m scripts.bench encode --model sentence-transformers/all-MiniLM-L6-v2 \\
      --data stsb/test.tsv --against sentence-transformers
  python -m scripts.bench encode --against sentence-transformers,static,fastembed \\
      --peer-python peers/bin/python
  python -m scripts.bench encode --model runs/student/model \\
      --against sentence-transformers/all-MiniLM-L6-v2
  python -m scripts.bench encode --batch 1,4,16,64,256,1024"""
LATENCY_REPETITIONS = 20


def add_options(command: argparse.ArgumentParser) -> None:
    add_model_options(command)
    add_text_options(command)
    command.add_argument(
        "--against", default="", help="other sides, separated by commas (see above)"
    )
    command.add_argument(
        "--peer-python", metavar="FILE", help="the Python of other libraries (default: this one)"
    )
    command.add_argument(
        "--layers", type=count_or_none, default=0, help="stop after N layers (default: all)"
    )
    command.add_argument(
        "--texts", type=count, default=2000, help="how many texts (default: %(default)s)"
    )
    command.add_argument(
        "--batch",
        type=counts,
        default="",
        help="also latency of single calls with N texts each: 1,4,16,...",
    )
    command.add_argument(
        "--batch-tokens",
        type=count_or_none,
        default=0,
        help="slots that a device encodes at a time (default: auto)",
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    names = [name.strip() for name in args.against.split(",") if name.strip()]
    for name in names:
        library, _, variant = name.partition(":")
        if variant and name not in PEERS and f"{library}:" in "".join(PEERS):
            return f"--against: expected some of {', '.join(PEERS)}, or a model, found {name!r}"
    args.against = list(dict.fromkeys(names))
    return None


def bench_encode(args: argparse.Namespace) -> None:
    if args.against:
        share_device()
    model = open_model(args.model, args.shape, args.max_length, args.dtype)
    read = functools.partial(read_texts, args.data, words=args.words, documents_only=True)
    texts = read(args.texts)
    encode = functools.partial(model.encode, batch_tokens=args.batch_tokens, layers=args.layers)
    with contextlib.ExitStack() as stack:
        names = [name for name in args.against if name in PEERS]
        python, half = args.peer_python, args.dtype == "bfloat16"
        peers = stack.enter_context(start_peers(model, names, python, bfloat16=half))
        others: dict[str, Callable[..., Any]] = {**peers}
        for name in args.against:
            if name not in PEERS:
                others[name] = open_model(name, "", model.max_length, args.dtype).encode
        name = f"encode/{Path(args.data or 'made').name}"
        calls: list[Callable[..., Any]] = [encode, *others.values()]
        sides = [functools.partial(call, texts) for call in calls]
        seconds = alternate(sides, args.repeat)
        rates = [[len(texts) / second for second in side] for side in seconds]
        by_name = dict(zip(others, rates[1:], strict=True))
        print_rates(name, "texts/s", rates[0], by_name, as_json=args.json)
        for size in args.batch:
            batches = [read(size * (turn + 1))[-size:] for turn in range(4)]
            _print_latency(size, batches, {"ours": encode, **others}, args.repeat, args.json)


def _print_latency(
    size: int,
    batches: list[list[str]],
    calls: dict[str, Callable[..., Any]],
    repeat: int,
    as_json: bool,
) -> None:
    """Prints the rates of single calls of `size` texts, and the percentiles of their times."""
    for call in calls.values():
        for batch in batches:
            call(batch)  # every shape compiled
    repeat = max(LATENCY_REPETITIONS if size <= 64 else repeat, 3)
    turns = [itertools.cycle(batches) for _ in calls]
    sides = [
        functools.partial(_call_next, call, turn)
        for call, turn in zip(calls.values(), turns, strict=True)
    ]
    seconds = alternate(sides, repeat)
    rates = [[size / second for second in side] for side in seconds]
    latency = {
        f"{name}_{percentile}_ms": round(1000 * float(np.percentile(side, share)), 2)
        for name, side in zip(calls, seconds, strict=True)
        for percentile, share in (("p50", 50), ("p95", 95))
    }
    others = dict(zip(list(calls)[1:], rates[1:], strict=True))
    print_rates(f"encode/batch={size}", "texts/s", rates[0], others, as_json=as_json, **latency)


def _call_next(call: Callable, batches: Iterator[list[str]]) -> None:
    call(next(batches))
