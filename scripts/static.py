"""Makes a static encoder, a bag of token vectors: the baseline of every contextual encoder.

`words` reads word2vec's or GloVe's text; a text is the mean of its known words' vectors. `distil`
embeds each token of only a teacher's vocabulary, which needs no text. Both write
sentence-transformers' StaticEmbedding, which every command here takes as --model and every
experiment as config.model.name, to train it further.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from embed_jax.errors import InputError, exit_with_one_line

from .commands import Parser, load_encoder

EXAMPLES = """examples:
  python -m scripts.static words --vectors glove.6B.300d.txt --output models/glove
  python -m scripts.static distil --model sentence-transformers/all-MiniLM-L6-v2 \\
      --output models/static
  python -m scripts.static distil --model runs/nli/model --dim 0 --output models/static
"""


def main() -> None:
    args = parse(sys.argv[1:])
    check_output(args.output)
    model = args.make(args)
    model.save(args.output)
    print(f"{args.output}: {model.tokenizer.vocab_size} tokens, {model.dim} dimensions")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.static", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="what", required=True)

    def command(name: str, text: str, make, sif: float) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.add_argument("--output", required=True, type=Path, help="directory of the model")
        added.add_argument(
            "--sif",
            type=float,
            default=sif,
            help="a of the weights a / (a + p), p by Zipf's law from the rank in the vocabulary; "
            "0: no weights "
            f"(default: {sif:g})",
        )
        added.set_defaults(make=make)
        return added

    words = command("words", "a static encoder from word vectors", from_words, 0.0)
    words.add_argument(
        "--vectors", required=True, type=Path, help="word2vec's or GloVe's text, or either as .gz"
    )
    words.add_argument(
        "--lower-case",
        action=argparse.BooleanOptionalAction,
        help="lower-case texts (default: if no word of the file has a capital letter)",
    )
    distil = command(
        "distil",
        "a static encoder from a teacher's embeddings of single tokens",
        from_teacher,
        1e-4,
    )
    distil.add_argument("--model", required=True, help="the teacher: directory or hub name")
    distil.add_argument(
        "--dim",
        type=int,
        default=256,
        help="principal components to keep; 0: the teacher's embeddings (default: 256)",
    )
    return parser.parse_args(argv)


def check_output(directory: Path) -> None:
    """Refuses before the work what saving would refuse after it."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: expected a directory, found a file")
    if (
        directory.is_dir()
        and any(directory.iterdir())
        and not (directory / "modules.json").is_file()
    ):
        raise InputError(f"{directory}: is not empty, and has no model that could be replaced")


def from_words(args: argparse.Namespace):
    from embed_jax.static import static_from_words

    return static_from_words(args.vectors, lower_case=args.lower_case, sif=args.sif)


def from_teacher(args: argparse.Namespace):
    from embed_jax.static import distil

    return distil(load_encoder(args.model), args.dim, sif=args.sif)


if __name__ == "__main__":
    exit_with_one_line(main)
