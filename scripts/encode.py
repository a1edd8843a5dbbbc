"""Embeds the texts of a file: a float32 array [N, D] in input order, written piece by piece.

Reads text (one a line), JSONL, TSV or CSV with a header, each also as .gz. The whole input is checked before the first
text is encoded. Memory does not grow with the number of texts.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from embed_jax.errors import InputError, RunError, exit_with_one_line
from scripts.commands import Parser, written_whole

EXAMPLES = """examples:
  python -m scripts.encode --model sentence-transformers/all-MiniLM-L6-v2 --input sentences.txt --output sentences.npy
  python -m scripts.encode --model runs/quickstart/model --input corpus.jsonl.gz --field title,text --output corpus.npy
"""


def main() -> None:
    args = parse(sys.argv[1:])
    with written_whole(args.output) as beside:
        count = check_input(args)
        encode_file(args, count, beside)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.encode", __doc__, EXAMPLES)
    parser.add_argument("--model", required=True, help="directory or hub name")
    parser.add_argument("--input", required=True, type=Path, help=".txt, .jsonl, .tsv or .csv file, or any of them .gz")
    parser.add_argument("--output", required=True, type=Path, help="the .npy file to write")
    parser.add_argument(
        "--field", default="text", help="field to encode; several (title,text) are joined by a blank (default: text)"
    )
    parser.add_argument("--prompt-name", help="which of the model's prompts to put before each text (default: its own)")
    parser.add_argument(
        "--batch-tokens", type=int, default=0, help="slots a device encodes at a time (default: what suits the device)"
    )
    args = parser.parse_args(argv)
    if args.output.suffix != ".npy":
        parser.error(f"--output: expected a name that ends in .npy, found {str(args.output)!r}")
    if args.batch_tokens < 0:
        parser.error(f"--batch-tokens: expected 0 or more, found {args.batch_tokens}")
    return args


def texts(args: argparse.Namespace) -> Iterator[str]:
    """The input's texts, read as they are needed."""
    from embed_jax.data.sources.files import iter_lines

    fields = args.field.split(",")
    for line, record in iter_lines(args.input):
        missing = [field for field in fields if field not in record]
        if missing:
            raise InputError(
                f"{args.input}:{line}: no field {missing[0]!r} with a text; found {', '.join(record) or 'none'}; "
                "name the one to encode with --field"
            )
        yield " ".join(record[field] for field in fields).strip() if len(fields) > 1 else record[fields[0]]


def check_input(args: argparse.Namespace) -> int:
    """Reads the whole input once and returns the number of texts: a bad last line is known before the work begins."""
    count = solid = 0
    for text in texts(args):
        count, solid = count + 1, solid + bool(text.strip())
    if not solid:
        raise InputError(f"{args.input}: {f'all {count} texts are empty' if count else 'empty, no texts in it'}")
    return count


def encode_file(args: argparse.Namespace, count: int, beside: Path) -> None:
    """Encodes the input into the file `beside`."""
    import numpy as np

    from embed_jax.sentence import load
    from embed_jax.train.fit import enable_compilation_cache

    enable_compilation_cache()
    model = load(args.model)
    began = time.monotonic()
    output = np.lib.format.open_memmap(beside, mode="w+", dtype=np.float32, shape=(count, model.dim))
    blocks = model.encode_blocks(
        texts(args),
        prompt_name=args.prompt_name,
        batch_tokens=args.batch_tokens,
        show_progress=sys.stderr.isatty(),
    )
    done = 0
    for block in blocks:
        output[done : done + len(block)] = block[: count - done]
        done += len(block)
    if done != count:
        raise RunError(f"{args.input}: changed while it was read: {count} texts at first, then {done}")
    output.flush()
    seconds = time.monotonic() - began
    print(f"{args.output}: {count} texts, {model.dim} dimensions, {seconds:.1f} s, {count / seconds:.0f} texts/s")


if __name__ == "__main__":
    exit_with_one_line(main)
