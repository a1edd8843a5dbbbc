"""Writes a model for sentence-transformers, Hugging Face or ONNX, with a card; uploads it.

The model is a run's (--run, at any step of which there is a checkpoint) or one by name (--model); a
cross-encoder is recognised by its files. Formats, with commas between:

  sentence-transformers  a directory that sentence-transformers and embed_jax.load read: backbone,
                         pooling, heads, prompts, similarity, limit. It is a plain Hugging Face
                         directory too
  huggingface            only backbone and tokenizer: transformers' files do not record pooling; the
                         card does
  onnx                   onnx/sentence_embedding.onnx (for other --precision ..._fp16.onnx and
                         ..._int8.onnx), which takes token ids and gives the final embedding,
                         pooled; checked with ONNX Runtime. The backend="onnx" of
                         sentence-transformers wants token embeddings and cannot use it. Of a
                         cross-encoder onnx/model.onnx, which takes pairs and gives their logits

README.md is the model card: what a run's files say of base, data with licences, loss and settings;
--results of scripts.evaluate; code to use the model; the config to train it again. Read it before
publishing. The same model gives the same bytes. A directory that holds anything but an earlier
export is not touched.

TensorRT: trtexec --onnx=onnx/sentence_embedding.onnx --fp16 --saveEngine=model.plan \\
    --minShapes=input_ids:1x1,attention_mask:1x1 --optShapes=input_ids:32x64,attention_mask:32x64 \\
    --maxShapes=input_ids:256x512,attention_mask:256x512
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_jax.errors import InputError, RunError, exit_with_one_line, warn

from .commands import Parser

if TYPE_CHECKING:
    from embed_jax.cross_encoder import CrossEncoder
    from embed_jax.export.record import TrainingRun
    from embed_jax.sentence import SentenceEncoder

EXAMPLES = """examples:
  python -m scripts.export --run runs/quickstart --format sentence-transformers,onnx \\
      --output exported/code-search
  python -m scripts.export --run runs/simcse --step 500 --output exported/simcse-500 \\
      --results results/
  python -m scripts.export --model runs/matryoshka/model --dim 128 --format onnx \\
      --precision float32,int8 \\
      --output exported/small
  python -m scripts.export --run runs/e5 --adapter separate --output exported/adapter
  python -m scripts.export --run runs/quickstart --output exported/code-search \\
      --license apache-2.0 --language en \\
      --push-to-hub me/code-search --private
"""
FORMATS = ("sentence-transformers", "huggingface", "onnx")
ONNX_FILES = {
    "float32": "onnx/sentence_embedding.onnx",
    "float16": "onnx/sentence_embedding_fp16.onnx",
    "int8": "onnx/sentence_embedding_int8.onnx",
}
PAIR_ONNX_FILES = {
    "float32": "onnx/model.onnx",
    "float16": "onnx/model_fp16.onnx",
    "int8": "onnx/model_int8.onnx",
}
CHECKED = [
    "",
    "word",
    "A short sentence.",
    *(" ".join(["One text is longer than another"] * n) for n in (2, 5, 9)),
]
TOLERANCE = 1e-4  # of a float32 file, relative to the largest number of its output


def main() -> None:
    export(parse(sys.argv[1:]))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.export", __doc__, EXAMPLES)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, help="work directory of a training run")
    which.add_argument("--model", help="directory or hub name")
    parser.add_argument(
        "--step",
        type=int,
        default=0,
        help="the checkpoint of --run at this step (default: the model that it wrote)",
    )
    parser.add_argument(
        "--cross-encoder",
        action="store_true",
        help="the model is a cross-encoder (default: as its files say)",
    )
    parser.add_argument(
        "--format",
        default="sentence-transformers",
        help=f"of {', '.join(FORMATS)} (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, help="the directory to write")
    parser.add_argument(
        "--adapter",
        choices=("merged", "separate"),
        default="merged",
        help="an adapter: merged into its base, or separate in PEFT's files (default: %(default)s)",
    )
    parser.add_argument(
        "--dim", type=int, help="cut embeddings to their first N numbers, scaled to length 1"
    )
    parser.add_argument(
        "--precision",
        default="float32",
        help=f"precisions of ONNX files: {', '.join(ONNX_FILES)} (default: %(default)s)",
    )
    card = parser.add_argument_group("model card")
    card.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        help="JSON files of scripts.evaluate, or directories with them",
    )
    card.add_argument(
        "--license", default="", help="licence of the model, by the hub's name: apache-2.0"
    )
    card.add_argument("--language", default="", help="ISO 639 codes, separated by commas: en,de")
    hub = parser.add_argument_group(
        "hub", "HF_TOKEN or `hf auth login` gives the token, HF_ENDPOINT another hub"
    )
    hub.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", help="upload what was written, in one commit"
    )
    hub.add_argument("--private", action="store_true", help="a new repository is private")
    hub.add_argument("--revision", default="", help="the branch to write to (default: main)")
    args = parser.parse_args(argv)
    args.format, args.precision = _choices(args.format), _choices(args.precision)
    for option, names, known in (
        ("format", args.format, FORMATS),
        ("precision", args.precision, ONNX_FILES),
    ):
        if not names or not set(names) <= set(known):
            parser.error(
                f"--{option}: expected some of {', '.join(known)}, found "
                f"{', '.join(names) or 'none'}"
            )
    if {"sentence-transformers", "huggingface"} <= set(args.format):
        parser.error(
            "--format: a sentence-transformers directory is a huggingface one already; expected "
            "one of them"
        )
    if args.precision != ["float32"] and "onnx" not in args.format:
        parser.error("--precision is for --format onnx")
    if args.adapter == "separate" and (args.format == ["onnx"] or args.dim):
        parser.error("--adapter separate: an ONNX file and --dim need it merged")
    if args.step and not args.run:
        parser.error("--step is for --run")
    if args.step < 0 or (args.dim is not None and args.dim < 1):
        parser.error("--step and --dim: expected 1 or more")
    if not args.push_to_hub and (args.private or args.revision):
        parser.error("--private and --revision are for --push-to-hub")
    return args


def _choices(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def export(args: argparse.Namespace) -> None:
    """Writes the requested formats, and uploads them."""
    from embed_jax.export.card import CardContent, model_card
    from embed_jax.export.directory import CARD, replace_export
    from embed_jax.export.push import check_push, push
    from embed_jax.export.record import read_run
    from embed_jax.export.scores import read_scores

    if args.push_to_hub:
        check_push(args.push_to_hub)
    run = read_run(args.run) if args.run else None
    scores = tuple(read_scores(args.results))
    warn_of_others(args, {score.model for score in scores})
    with replace_export(args.output) as directory:
        model: CrossEncoder | SentenceEncoder
        if args.cross_encoder or is_cross_encoder(args):
            model = prepare_cross_encoder(args)
            files = write_cross_encoder(args, model, directory)
        else:
            model = prepare_sentence_encoder(args, run)
            files = write(args, model, directory)
        about = CardContent(
            name=args.push_to_hub or args.output.absolute().name,
            format=next((name for name in args.format if name != "onnx"), ""),
            onnx=tuple(files),
            run=run,
            step=args.step,
            base=getattr(model, "base", "") or (args.model or ""),
            scores=scores,
            licence=args.license,
            languages=tuple(_choices(args.language)),
        )
        (directory / CARD).write_text(model_card(model, about), encoding="utf-8")
    print(f"model: {args.output} ({', '.join(args.format)}); read its {CARD} before publishing")
    if args.push_to_hub:
        address = push(args.output, args.push_to_hub, private=args.private, revision=args.revision)
        print(f"hub: {address}")


def warn_of_others(args: argparse.Namespace, models: set[str]) -> None:
    """Warns of results that may be another model's."""
    own = (
        {args.run.resolve(), (args.run / "model").resolve()}
        if args.run
        else {Path(args.model).resolve()}
    )
    for name in sorted(models - {"", args.model}):
        if Path(name).resolve() not in own:
            warn(f"--results: of the model {name}; the card shows them as this model's")


# ---- what is exported ----------------------------------------------------------------------------


def is_cross_encoder(args: argparse.Namespace) -> bool:
    """Tells whether the files are those of a cross-encoder."""
    from embed_jax.encoders import model_kind
    from embed_jax.encoders.hub import resolve

    return model_kind.is_cross_encoder(args.run / "model" if args.run else resolve(args.model))


def prepare_cross_encoder(args: argparse.Namespace) -> CrossEncoder:
    """Returns the cross-encoder as it is to be written."""
    from embed_jax.cross_encoder import CrossEncoder, load_cross_encoder
    from embed_jax.train.run import load_run

    if args.dim:
        raise InputError("--dim: not for a cross-encoder")
    if "huggingface" in args.format:
        raise InputError(
            "--format: expected sentence-transformers or onnx for a cross-encoder, found "
            f"{', '.join(args.format)}"
        )
    model = load_run(args.run, args.step) if args.run else load_cross_encoder(args.model)
    if not isinstance(model, CrossEncoder):
        raise InputError(f"--cross-encoder: {args.run} is the run of an embedding model")
    return model.merged()


def prepare_sentence_encoder(args: argparse.Namespace, run: TrainingRun | None) -> SentenceEncoder:
    """Returns the model as it is to be written."""
    from embed_jax.cross_encoder import CrossEncoder
    from embed_jax.export.directory import truncate_model
    from embed_jax.late_interaction import LateInteractionEncoder
    from embed_jax.multi_head import MultiHeadEncoder
    from embed_jax.routed import RoutedEncoder
    from embed_jax.sentence import load_sentence_encoder
    from embed_jax.sparse import SparseEncoder
    from embed_jax.train.run import load_run

    model = load_run(args.run, args.step) if run else load_sentence_encoder(args.model)
    if isinstance(model, CrossEncoder):
        raise InputError(f"--run: {args.run} is the run of a cross-encoder: add --cross-encoder")
    if isinstance(model, LateInteractionEncoder | SparseEncoder | MultiHeadEncoder):
        raise InputError(
            f"--run: {args.run} is the run of a late-interaction or sparse model, or of one of "
            "several heads; its model directory is one that sentence-transformers reads already"
        )
    if isinstance(model, RoutedEncoder):
        raise InputError(
            f"--run: {args.run} has an encoder for each of {', '.join(model.routes)}; its model "
            "directory is one that sentence-transformers reads already"
        )
    if args.adapter == "separate":
        if not model.spec.lora:
            raise InputError("--adapter separate: the model has none, or has it merged already")
        return model
    model = model.merged() if model.spec.lora else model
    return truncate_model(model, args.dim) if args.dim else model


# ---- formats -------------------------------------------------------------------------------------


def write_cross_encoder(
    args: argparse.Namespace, model: CrossEncoder, directory: Path
) -> list[tuple[str, str]]:
    """Writes a cross-encoder in each format; returns the ONNX files with their precisions."""
    from embed_jax.export.onnx_run import compare_logits_onnx

    if "sentence-transformers" in args.format:
        model.save(directory)
    else:
        model.tokenizer.save(directory)
    queries, passages = CHECKED, CHECKED[::-1]
    return write_onnx_files(
        args,
        model,
        directory,
        PAIR_ONNX_FILES,
        lambda path: compare_logits_onnx(path, model, queries, passages),
        lambda: model.logits(queries, passages),
    )


def write(
    args: argparse.Namespace, model: SentenceEncoder, directory: Path
) -> list[tuple[str, str]]:
    """Writes an embedding model in each format; returns the ONNX files with their precisions."""
    from embed_jax.export.directory import write_plain
    from embed_jax.export.onnx_run import compare_onnx

    if "sentence-transformers" in args.format:
        model.save(directory)
    elif "huggingface" in args.format:
        write_plain(model, directory)
    else:
        model.tokenizer.save(directory)
    return write_onnx_files(
        args,
        model,
        directory,
        ONNX_FILES,
        lambda path: compare_onnx(path, model, CHECKED),
        lambda: model.encode(CHECKED, prompt=""),
    )


def write_onnx_files(
    args: argparse.Namespace,
    model: Any,
    directory: Path,
    names: Mapping[str, str],
    compare: Callable[[Path], float],
    compute: Callable[[], Any],
) -> list[tuple[str, str]]:
    """Writes an ONNX file for each precision, and runs each beside the model.

    Args:
        args: the command line.
        model: an embedding model or a cross-encoder.
        directory: that of the export.
        names: the file of each precision.
        compare: returns the largest difference of a file from the model on the checked texts.
        compute: returns the model's own numbers for the checked texts.

    Returns:
        The files with their precisions; none unless "onnx" is among the formats.
    """
    import numpy as np

    from embed_jax.export.onnx import write_onnx

    if "onnx" not in args.format:
        return []
    (directory / "onnx").mkdir()
    files = [(names[precision], precision) for precision in args.precision]
    largest = float(np.abs(compute()).max())
    for file, precision in files:
        path = directory / file
        write_onnx(model, path, precision=precision)
        difference = compare(path)
        if not np.isfinite(difference) or (
            precision == "float32" and difference > TOLERANCE * max(largest, 1.0)
        ):
            raise RunError(
                f"{path.name}: differs from the model by {difference:g}, of numbers up to "
                f"{largest:.2g}"
            )
        print(
            f"{path.name}: {precision}, differs from the model by at most {difference:.1e}, of "
            f"numbers up to {largest:.2g}"
        )
    return files


if __name__ == "__main__":
    exit_with_one_line(main)
