"""Makes a model smaller: fewer layers, embeddings of fewer dimensions, or both.

Layers are counted from 0. Dimensions are chosen by principal components of the embeddings of your
texts, and written as a Dense module: the result is a directory that sentence-transformers loads
too. A model with fewer layers is a start: `python -m experiments.distill` trains it to imitate the
whole one. Fewer
dimensions save storage and make search faster, not encoding. With --sts it says what both cost. For
few dimensions try the first numbers of each embedding too (embed_jax.sentence.truncate): of
all-MiniLM-L6-v2 they kept more on STS-B at 64 and below.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from embed_jax.errors import InputError, exit_with_one_line

from .commands import Parser, load_encoder, print_table

if TYPE_CHECKING:
    from embed_jax.encoders.spec import EncoderSpec
    from embed_jax.sentence import SentenceEncoder
    from embed_jax.types import Params

EXAMPLES = """examples:
  python -m scripts.shrink --model sentence-transformers/all-MiniLM-L6-v2 --layers 0,3,5 \\
      --output student
  python -m scripts.shrink --model runs/quickstart/model --dim 128 --texts sentences.txt \\
      --output small \\
      --sts stsb/test.tsv
"""


def main() -> None:
    shrink(parse(sys.argv[1:]))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.shrink", __doc__, EXAMPLES)
    parser.add_argument("--model", required=True, help="directory or hub name")
    parser.add_argument("--layers", help="the layers to keep, counted from 0: 0,2,4 (default: all)")
    parser.add_argument(
        "--dim", type=int, help="dimensions of the embeddings (default: the model's)"
    )
    parser.add_argument(
        "--texts",
        type=Path,
        help="for --dim: .txt, .jsonl, .tsv or .csv file, or .gz, of more texts than dimensions",
    )
    parser.add_argument("--field", default="text", help="field of --texts (default: text)")
    parser.add_argument(
        "--limit",
        type=int,
        default=20_000,
        help="the first N different texts (default: 20000)",
    )
    parser.add_argument(
        "--sts", type=Path, help="STS file: Spearman's correlation before and after"
    )
    parser.add_argument("--output", required=True, type=Path, help="the directory to write")
    args = parser.parse_args(argv)
    if args.layers is None and args.dim is None:
        parser.error("nothing to do: expected --layers, --dim or both")
    if (args.dim is None) != (args.texts is None):
        parser.error("--dim and --texts belong together, found only one of them")
    if args.limit < 1:
        parser.error(f"--limit: expected 1 or more, found {args.limit}")
    return args


def shrink(args: argparse.Namespace) -> None:
    """Writes the smaller model; prints size and, with --sts, quality of both."""
    import jax

    from embed_jax.data.sources.sts import read_sts
    from embed_jax.encoders.shrink import add_pca, keep_layers, parse_layers
    from embed_jax.evals.sts import sts_evaluator
    from embed_jax.types import num_params

    evaluate = sts_evaluator(*read_sts(args.sts)) if args.sts else None
    texts = read_texts(args) if args.texts else []
    model = smaller = load_encoder(args.model)
    spec, params = model.spec, jax.device_get(model.params)
    if args.layers is not None:
        try:
            spec, params = keep_layers(spec, params, parse_layers(args.layers))
        except InputError as error:
            raise InputError(f"--{error}") from None
        smaller = rebuild_model(model, spec, params)
    if args.dim is not None:
        if not 1 <= args.dim <= model.dim:
            raise InputError(f"--dim: expected 1 to {model.dim}, the model's own, found {args.dim}")
        if len(texts) <= args.dim:
            raise InputError(
                f"{args.texts}: expected more than {args.dim} different texts (--dim), found "
                f"{len(texts)}"
            )
        smaller = rebuild_model(model, *add_pca(spec, params, smaller.encode(texts), args.dim))
    smaller.save(args.output)

    sides = (model, smaller)
    rows = [
        ["layers", *(str(side.spec.backbone.num_layers) for side in sides)],
        ["dimensions", *(str(side.dim) for side in sides)],
        ["parameters", *(f"{num_params(side.params):,}" for side in sides)],
    ]
    if evaluate:
        rows.append(["Spearman", *(f"{evaluate(side.encode)['spearman']:.4f}" for side in sides)])
    print_table(["", "before", "after"], rows)
    print(f"model: {args.output}")


def read_texts(args: argparse.Namespace) -> list[str]:
    """Reads the different texts of a file, in its order."""
    from embed_jax.data.sources.files import iter_lines

    texts: dict[str, None] = {}
    for line, record in iter_lines(args.texts):
        if not isinstance(record.get(args.field), str):
            known = ", ".join(record) or "none"
            raise InputError(
                f"{args.texts}:{line}: no field {args.field!r}, found {known}; name it with --field"
            )
        if record[args.field].strip():
            texts[record[args.field]] = None
        if len(texts) == args.limit:
            break
    if not texts:
        raise InputError(f"{args.texts}: empty, no texts in it")
    return list(texts)


def rebuild_model(model: SentenceEncoder, spec: EncoderSpec, params: Params) -> SentenceEncoder:
    """Returns another encoder with the tokenizer, the prompts and the settings of a model."""
    return type(model)(
        spec,
        params,
        model.tokenizer,
        dataclasses.replace(model.settings, matryoshka_dims=(), adaptive_layers=False, base=""),
        compute_dtype=model.compute_dtype,
    )


if __name__ == "__main__":
    exit_with_one_line(main)
