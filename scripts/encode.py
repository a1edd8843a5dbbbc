"""Embeds the texts of a file into a float32 array [N, D] in input order, or into compressed codes.

Reads text (one per line), JSONL, TSV or CSV with a header, each also as .gz. The whole input is
checked before the first text is encoded. Memory does not grow with the number of texts.

int8, uint8, int4 and pq<bytes> learn their ranges or centres from the embeddings of the first
16,384 texts, or from --calibration; what they learnt is written beside the codes, as
OUTPUT.calibration.json and .npz.

With --shard I/N this process encodes the I-th of N shares of the texts into a Parquet file with ids
in the folder --output. --merge DIR checks that every shard is whole and every id there once, and
writes the array that one process would have written, bit by bit on machines of one kind, with the
ids as OUTPUT.ids.json. A shard that is there is not encoded again.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, RunError, exit_with_one_line, require

from .commands import Parser, add_compute_dtype, load_model, whole_file

EXAMPLES = """examples:
  python -m scripts.encode --model sentence-transformers/all-MiniLM-L6-v2 \\
      --input sentences.txt --output sentences.npy
  python -m scripts.encode --model runs/quickstart/model --input corpus.jsonl.gz \\
      --field title,text --output corpus.npy
  python -m scripts.encode --model Qwen/Qwen3-Embedding-0.6B --input claims.txt \\
      --output claims.npy \\
      --instruction "Given a claim, find documents that refute the claim"
  python -m scripts.encode --model runs/quickstart/model --input corpus.jsonl.gz \\
      --output corpus.npy --dim 256 \\
      --precision int8
  python -m scripts.encode --model runs/quickstart/model --input more.jsonl.gz \\
      --output more.npy --dim 256 \\
      --precision int8 --calibration corpus.calibration.json
  python -m scripts.encode --model runs/quickstart/model --input corpus.jsonl.gz \\
      --field title,text --shard 2/8 --output shards
  python -m scripts.encode --merge shards --output corpus.npy
"""


def main() -> None:
    args = parse(sys.argv[1:])
    if args.shard:
        encode_shard(args)
        return
    if args.merge:
        merge(args.merge, args.output)
        return
    with whole_file(args.output) as beside:
        count = check_input(args)
        encode_file(args, count, beside)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.encode", __doc__, EXAMPLES)
    parser.add_argument("--model", help="directory or hub name")
    parser.add_argument(
        "--input", type=Path, help=".txt, .jsonl, .tsv or .csv file, or any of them .gz"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="the .npy file to write; with --shard the folder of all shards",
    )
    shards = parser.add_mutually_exclusive_group()
    shards.add_argument(
        "--shard",
        default="",
        metavar="I/N",
        help="encode share I of N, I from 0 on; auto: the process index and count that "
        "jax.distributed would have, in a SLURM job or under Open MPI",
    )
    shards.add_argument("--merge", type=Path, metavar="DIR", help="folder of shards to merge")
    parser.add_argument(
        "--field",
        default="text",
        help="field to encode; several (title,text) are joined by a blank (default: text)",
    )
    parser.add_argument(
        "--prompt-name",
        help="which of the model's prompts to put before each text (default: its own)",
    )
    parser.add_argument(
        "--instruction", help="the task of the texts, for models with a template for instructions"
    )
    parser.add_argument(
        "--batch-tokens",
        type=int,
        default=0,
        help="slots that a device encodes at a time (default: suits the device)",
    )
    add_compute_dtype(parser)
    parser.add_argument(
        "--dim",
        type=int,
        help="keep the first N numbers of each embedding, scaled to length 1 (default: all)",
    )
    parser.add_argument(
        "--precision",
        default="float32",
        help="float32, int8, uint8, int4, binary, ubinary, or pq and the bytes of a code: pq48 "
        "(default: float32)",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="data for int8, uint8, int4 and pq: .npy file of float embeddings of the "
        "same model and --dim, of "
        "which the first 16,384 are read; or a calibration that was written before (.json or .npz)",
    )
    args = parser.parse_args(argv)
    if args.merge and (args.model or args.input):
        parser.error("--merge: expected no --model and no --input, the shards are encoded")
    if not args.merge and not (args.model and args.input):
        parser.error("expected --model, --input and --output")
    if not args.output:
        parser.error("expected --output")
    if args.shard and args.shard != "auto":
        from embed_jax.retrieval.shards import parse_shard

        parse_shard(args.shard)
    if args.output.suffix != ".npy" and not args.shard:
        parser.error(f"--output: expected a name that ends in .npy, found {str(args.output)!r}")
    if args.batch_tokens < 0:
        parser.error(f"--batch-tokens: expected 0 or more, found {args.batch_tokens}")
    if args.dim is not None and args.dim < 1:
        parser.error(f"--dim: expected 1 or more, found {args.dim}")
    if args.instruction is not None and args.prompt_name is not None:
        parser.error("--instruction: expected none beside --prompt-name")
    check_precision_options(args, parser)
    return args


def check_precision_options(args: argparse.Namespace, parser: Parser) -> None:
    from embed_jax.retrieval.calibration import calibration_of, pq_parts

    needed = calibration_of(args.precision)
    if args.shard and needed and not args.calibration:
        parser.error(f"--precision {args.precision} with --shard: expected --calibration, as a "
                     "shard does not have the texts to learn from")  # fmt: skip
    if args.calibration and not needed:
        parser.error(f"--calibration: {args.precision} needs none")
    if args.calibration and args.calibration.suffix not in (".npy", ".json", ".npz"):
        parser.error(
            f"--calibration: expected a .npy, .json or .npz file, found {str(args.calibration)!r}"
        )
    if pq_parts(args.precision):
        require("faiss")


def records(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yields ids and texts of the input as they are needed; without `_id` a text's position."""
    from embed_jax.data.sources.files import iter_lines

    fields = args.field.split(",")
    for position, (line, record) in enumerate(iter_lines(args.input)):
        missing = [field for field in fields if not isinstance(record.get(field), str)]
        if missing:
            raise InputError(
                f"{args.input}:{line}: no field {missing[0]!r} with a text; found "
                f"{', '.join(record) or 'none'}; "
                "name the one to encode with --field"
            )
        text = (
            " ".join(record[field] for field in fields).strip()
            if len(fields) > 1
            else record[fields[0]]
        )
        yield str(record.get("_id", position)), text


def texts(args: argparse.Namespace) -> Iterator[str]:
    """Yields the texts of the input as they are needed."""
    return (text for _, text in records(args))


def check_input(args: argparse.Namespace) -> int:
    """Reads the whole input once, so that a bad line is an error before the work begins.

    Returns:
        The number of texts.
    """
    count = solid = 0
    for text in texts(args):
        count, solid = count + 1, solid + bool(text.strip())
    check_some_text(args.input, count, solid)
    return count


def check_some_text(path: Path, count: int, solid: int) -> None:
    """Raises an InputError if no text of a file has more than white space."""
    if not solid:
        raise InputError(
            f"{path}: {f'all {count} texts are empty' if count else 'empty, no texts in it'}"
        )


def encode_shard(args: argparse.Namespace) -> None:
    """Encodes this process' share of the input, unless it is there already."""
    from embed_jax.data import window
    from embed_jax.parallel.distributed import process_position
    from embed_jax.retrieval.quantize import quantize_embeddings
    from embed_jax.retrieval.shards import (
        Shard,
        has_shard,
        parse_shard,
        survey_texts,
        write_shard,
    )

    require("pyarrow")
    index, count = process_position() if args.shard == "auto" else parse_shard(args.shard)
    survey = survey_texts(lambda: records(args), str(args.input))
    check_some_text(args.input, survey.texts, survey.solid)
    shard = Shard(index, count, survey, window.WINDOW, shard_settings(args))
    file = args.output / f"{shard.name}.parquet"
    if has_shard(args.output, shard):
        print(f"{file}: is there already, {len(shard.rows)} texts")
        return
    model, dim = open_model(args)
    calibration = read_calibration(args, dim)
    began, rows = time.monotonic(), shard.rows
    names: collections.deque[str] = collections.deque()  # of texts that were read

    def own_texts() -> Iterator[str]:
        for name, text in itertools.islice(records(args), rows.start, rows.stop):
            names.append(name)
            yield text

    blocks = embed_texts(args, model, own_texts())
    codes = (quantize_embeddings(block, args.precision, calibration) for block in blocks)
    write_shard(args.output, shard, (names.popleft() for _ in rows), codes)
    seconds = time.monotonic() - began
    print(f"{file}: texts {rows.start} to {rows.stop} of {survey.texts}, {seconds:.1f} s")


def shard_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Returns what the embeddings of a shard depend on."""
    import hashlib

    from embed_jax.encoders.hub import digest_files, resolve

    calibration = hashlib.blake2b(digest_size=16)
    if args.calibration:
        suffixes = (".npy",) if args.calibration.suffix == ".npy" else (".json", ".npz")
        for file in map(args.calibration.with_suffix, suffixes):
            if not file.is_file():
                raise InputError(f"{file}: no such file")
            calibration.update(file.read_bytes())
    return {
        "model": digest_files(resolve(args.model)),
        **{name: getattr(args, name) for name in ("field", "prompt_name", "instruction")},
        **{name: getattr(args, name) for name in ("batch_tokens", "dim", "precision")},
        "compute_dtype": args.compute_dtype,
        "calibration": calibration.hexdigest() if args.calibration else None,
    }


def merge(folder: Path, output: Path) -> None:
    """Merges shards into an .npy file, with the ids beside it."""
    from embed_jax.retrieval.shards import merge_shards

    with whole_file(output) as beside, whole_file(output.with_suffix(".ids.json")) as ids_beside:
        count, dim, shards = merge_shards(folder, beside, ids_beside)
    print(f"{output}: {count} texts of {dim} numbers, from {shards} shards, every id once")


def open_model(args: argparse.Namespace) -> tuple[Any, int]:
    """Loads the model; returns it with the dimension of the embeddings."""
    from embed_jax.retrieval.calibration import check_precision

    model = load_model(args.model, args.compute_dtype)
    dim = args.dim or model.dim
    if dim > model.dim:
        raise InputError(
            f"--dim: expected 1 to {model.dim}, the size of the model's embeddings, found {dim}"
        )
    check_precision(args.precision, dim)
    return model, dim


def encode_file(args: argparse.Namespace, count: int, beside: Path) -> None:
    """Encodes the input into the file `beside`."""
    import numpy as np

    from embed_jax.retrieval.calibration import save_calibration
    from embed_jax.retrieval.quantize import quantize_embeddings

    model, dim = open_model(args)
    calibration = read_calibration(args, dim)
    began = time.monotonic()
    blocks: Iterable[Any] = embed_texts(args, model, texts(args))
    if calibration is None:
        calibration, blocks = calibrate_blocks(args.precision, blocks)
    codes = (quantize_embeddings(block, args.precision, calibration) for block in blocks)
    first = next(codes)
    output = np.lib.format.open_memmap(
        beside, mode="w+", dtype=first.dtype, shape=(count, first.shape[1])
    )
    done = 0
    for block in itertools.chain([first], codes):
        output[done : done + len(block)] = block[: count - done]
        done += len(block)
    if done != count:
        raise RunError(
            f"{args.input}: changed while it was read: {count} texts at first, then {done}"
        )
    output.flush()
    if calibration:
        save_calibration(calibration, args.output.with_suffix(".calibration"))
    seconds = time.monotonic() - began
    size = f"{dim} dimensions" + f" as {args.precision}" * (args.precision != "float32")
    print(f"{args.output}: {count} texts, {size}, {seconds:.1f} s, {count / seconds:.0f} texts/s")


def embed_texts(args: argparse.Namespace, model: Any, some: Iterable[str]) -> Iterator[Any]:
    """Yields the embeddings of texts, block by block."""
    import numpy as np

    for block in model.encode_blocks(
        some,
        prompt_name=args.prompt_name,
        instruction=args.instruction,
        dim=args.dim or 0,
        batch_tokens=args.batch_tokens,
        show_progress=sys.stderr.isatty(),
    ):
        if not np.isfinite(block).all():
            raise RunError("the model gives embeddings with numbers that are not finite")
        yield block


def read_calibration(args: argparse.Namespace, dim: int) -> Any:
    """Returns the calibration that --calibration names, or learnt from its embeddings, or None."""
    import numpy as np

    from embed_jax.retrieval.calibration import SAMPLE, calibrate, load_calibration
    from embed_jax.retrieval.quantize import check_calibration

    if args.calibration is None:
        return None
    calibration: Any
    if args.calibration.suffix != ".npy":
        calibration = load_calibration(args.calibration)
    else:
        try:
            sample = np.load(args.calibration, mmap_mode="r")[:SAMPLE]
        except OSError as error:
            raise InputError(f"{args.calibration}: cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{args.calibration}: no array: {error}") from None
        if sample.ndim == 2 and sample.shape[1] != dim:
            raise InputError(
                f"{args.calibration}: of {sample.shape[1]} dimensions, the embeddings have {dim}"
            )
        calibration = calibrate(sample, args.precision)
    check_calibration(args.precision, calibration, dim)
    return calibration


def calibrate_blocks(precision: str, blocks: Iterable[Any]) -> tuple[Any, Iterable[Any]]:
    """Returns the calibration learnt from the first blocks (None if not needed), and all blocks."""
    import numpy as np

    from embed_jax.retrieval.calibration import SAMPLE, calibrate, calibration_of

    if calibration_of(precision) is None:
        return None, blocks
    first, rows = [], 0
    for block in blocks:
        first.append(block)
        rows += len(block)
        if rows >= SAMPLE:
            break
    return calibrate(np.concatenate(first), precision), itertools.chain(first, blocks)


if __name__ == "__main__":
    exit_with_one_line(main)
