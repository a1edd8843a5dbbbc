"""Merges models of one shape into one: checkpoints of a run, or runs with other data or seeds.

slerp goes along the great circle between two tensors, as the last stage of Qwen3-Embedding's
training does; linear is the plain average. More than two models are merged one after the other.
Adapters are merged into their base first. The tokenizer, the prompts and all else are the first
model's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from embed_jax.errors import InputError, exit_with_one_line

from .commands import Parser, load_encoder

EXAMPLES = """examples:
  python -m scripts.merge --models runs/a/model,runs/b/model --output runs/merged
  python -m scripts.merge --models runs/a/model,runs/b/model,runs/c/model --weights 2,1,1 \\
      --output runs/merged
"""


def main() -> None:
    merge_models(parse(sys.argv[1:]))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.merge", __doc__, EXAMPLES)
    parser.add_argument(
        "--models", required=True, help="directories or hub names, separated by commas"
    )
    parser.add_argument(
        "--weights", default="", help="weight of each model, separated by commas (default: equal)"
    )
    parser.add_argument(
        "--method", choices=("slerp", "linear"), default="slerp", help="default: %(default)s"
    )
    parser.add_argument("--output", required=True, type=Path, help="the directory to write")
    args = parser.parse_args(argv)
    args.models = [name.strip() for name in args.models.split(",")]
    if len(args.models) < 2:
        parser.error(f"--models: expected two or more, found {len(args.models)}")
    try:
        args.weights = [float(weight) for weight in args.weights.split(",")] if args.weights else []
    except ValueError:
        parser.error(f"--weights: expected numbers separated by commas, found {args.weights!r}")
    if args.weights and (len(args.weights) != len(args.models) or min(args.weights) <= 0):
        parser.error(
            f"--weights: expected {len(args.models)} numbers above 0, one per model, found "
            f"{args.weights}"
        )
    return args


def merge_models(args: argparse.Namespace) -> None:
    """Writes the merged model."""
    from embed_jax.encoders.merge import merge

    models = [load_encoder(name).merged() for name in args.models]
    first = models[0]
    for name, model in zip(args.models[1:], models[1:], strict=True):
        if model.spec != first.spec:
            raise InputError(
                f"--models: {name} has another shape than {args.models[0]}: {model.spec} and "
                f"{first.spec}"
            )
        if model.tokenizer.hf.get_vocab() != first.tokenizer.hf.get_vocab():
            raise InputError(f"--models: {name} has another vocabulary than {args.models[0]}")
    first.params = merge([model.params for model in models], args.weights, args.method)
    first.save(args.output)
    print(f"model: {args.output}")


if __name__ == "__main__":
    exit_with_one_line(main)
