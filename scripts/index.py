"""Makes a corpus searchable: an index on disk, built or brought up to date.

A corpus is a directory in BEIR's layout, or a JSONL file with `_id`, `text` and perhaps `title` and
fields for filters. An index that is there is compared with the corpus by the fields and by hashes
of the texts: only new and changed documents are encoded, and those that are gone are deleted. It is
refused with another model, prompt, dimension or way to cut documents. Whatever ends the process
leaves the old index or the whole new one.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, exit_with_one_line

from .commands import Parser, index_path

KINDS = ("exact", "int8", "binary", "hnsw", "ivf-pq", "lance", "bm25", "sparse", "multi-vector")
EXAMPLES = """kinds:
  exact           every document, by its vector
  int8, binary    8 bits or 1 bit a dimension; the best are scored again by their vectors
  hnsw, ivf-pq    approximate, by FAISS; --factory names another of its indexes
  lance           a LanceDB table; --output may be an address such as s3://bucket/index
  bm25            words
  sparse          a sparse model (SPLADE), exact
  multi-vector    a late-interaction model (ColBERT), compressed

examples:
  python -m scripts.index --corpus scifact --kind bm25 --output indexes/words
  python -m scripts.index --corpus scifact --kind hnsw \\
      --model sentence-transformers/all-MiniLM-L6-v2 --output indexes/dense
  python -m scripts.index --corpus corpus.jsonl --fields year,language \\
      --chunk-tokens 256 --chunk-overlap 32 \\
      --model sentence-transformers/all-MiniLM-L6-v2 --output indexes/chunks
  python -m scripts.index --corpus scifact --chunk-tokens 128 --late-chunks \\
      --model sentence-transformers/all-MiniLM-L6-v2 --output indexes/late
  python -m scripts.index --corpus scifact --vectors scifact.npy \\
      --model sentence-transformers/all-MiniLM-L6-v2 --kind ivf-pq --output indexes/ready"""


def main() -> None:
    run(parse(sys.argv[1:]))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.index", __doc__, EXAMPLES)
    parser.add_argument("--corpus", required=True, type=Path, help="documents, see above")
    parser.add_argument("--output", required=True, type=index_path, help="folder of the index")
    parser.add_argument("--kind", choices=KINDS, default="exact", help="(default: %(default)s)")
    parser.add_argument("--model", default="", help="directory or hub name; not for bm25")
    parser.add_argument(
        "--vectors", type=Path, help=".npy file with the documents' vectors by --model, in order"
    )
    parser.add_argument(
        "--dim", type=int, default=0, help="keep the first N numbers of each vector (default: all)"
    )
    parser.add_argument("--query-prompt", help="text before queries (default: the model's own)")
    parser.add_argument("--document-prompt", help="text before documents (default: the model's)")
    parser.add_argument(
        "--chunk-tokens", type=int, default=0, help="cut documents into chunks of N tokens"
    )
    parser.add_argument(
        "--chunk-overlap", type=int, default=0, help="tokens that chunks share (default: 0)"
    )
    parser.add_argument(
        "--late-chunks",
        action="store_true",
        help="let the model read the whole document, and pool its token states for each chunk",
    )
    parser.add_argument("--fields", default="", help="names of metadata, separated by commas")
    parser.add_argument("--factory", default="", help="FAISS's index factory string, for exact")
    parser.add_argument("--parameters", default="", help="FAISS's search-time settings")
    parser.add_argument("--no-texts", action="store_true", help="do not store the texts")
    parser.add_argument("--replace", action="store_true", help="build anew what is there")
    args = parser.parse_args(argv)
    if (args.kind == "bm25") == bool(args.model):
        word = "no --model" if args.model else "a --model"
        parser.error(f"--kind {args.kind}: expected {word}")
    for option in ("dim", "chunk_tokens", "chunk_overlap"):
        if getattr(args, option) < 0:
            parser.error(f"--{option.replace('_', '-')}: expected 0 or more, found "
                         f"{getattr(args, option)}")  # fmt: skip
    if (args.factory or args.parameters) and args.kind != "exact":
        parser.error("--factory, --parameters: only for --kind exact")
    if args.chunk_tokens and not args.chunk_overlap < args.chunk_tokens:
        parser.error(f"--chunk-overlap: expected less than --chunk-tokens {args.chunk_tokens}, "
                     f"found {args.chunk_overlap}")  # fmt: skip
    if args.late_chunks and not args.chunk_tokens:
        parser.error("--late-chunks: needs --chunk-tokens")
    if args.chunk_tokens and (not args.model or args.vectors):
        parser.error("--chunk-tokens: needs a --model that encodes, whose tokens are counted")
    return args


def run(args: argparse.Namespace) -> None:
    """Builds or updates the index, and prints its size."""
    from embed_jax import corpus_index
    from embed_jax.data.sources.beir import read_documents
    from embed_jax.retrieval.indexes import build_index, index_exists, open_index
    from embed_jax.retrieval.pipeline_spec import ChunkSpec, RetrieverSpec
    from embed_jax.runtime import enable_compilation_cache

    enable_compilation_cache()
    fields = [name for name in args.fields.split(",") if name]
    corpus, metadata = read_documents(args.corpus, fields)
    chunks = None
    if args.chunk_tokens:
        chunks = ChunkSpec(args.chunk_tokens, args.chunk_overlap, late=args.late_chunks)
    build = {"factory": args.factory, "parameters": args.parameters} if args.factory else {}
    spec = RetrieverSpec(
        args.kind,
        "model" if args.model else "",
        args.dim,
        args.query_prompt,
        args.document_prompt,
        build,
        chunks=chunks,
    )
    models = corpus_index.Models()
    identity = corpus_index.index_identity(spec, args.model, models)
    identity |= {"name": args.model, "fields": fields}
    texts = corpus_index.index_texts(spec, args.model, corpus, models)
    if chunks:
        from embed_jax.retrieval.text_chunks import document_of

        metadata = {name: metadata.get(document_of(name), {}) for name in texts}

    def documents(names: Sequence[str]) -> Iterator[Any]:
        some = {name: texts[name] for name in names}
        if args.vectors is None:
            yield from corpus_index.index_documents(
                spec, args.model, some, models, metadata, corpus=corpus
            )
            return
        rows = {name: row for row, name in enumerate(texts)}
        for name in names:
            yield name, vectors[rows[name]], some[name], metadata.get(name, {})

    if args.vectors is not None:
        vectors = read_vectors(args.vectors, len(texts))
    if index_exists(args.output) and not args.replace:
        # Another path to the same files is the same model.
        identity["name"] = open_index(args.output).identity.get("name")
        index = open_index(args.output, identity)
        changes = corpus_index.refresh_index(
            index, texts, documents, fields=metadata, is_late=args.late_chunks
        )
        counts = dataclasses.asdict(changes)
        print(
            f"{args.output}: " + ", ".join(f"{len(ids):,} {what}" for what, ids in counts.items())
        )
    else:
        options = dict(build)
        if args.vectors is None:
            options = corpus_index.build_options(spec, args.model, models)
        index = build_index(
            args.output,
            documents(list(texts)),
            identity=identity,
            kind=args.kind,
            store_texts=not args.no_texts,
            replace=args.replace,
            progress=show_progress(len(texts)),
            **options,
        )
    print(describe(args.output, index.size()))


def read_vectors(path: Path, count: int) -> Any:
    """Maps an .npy file with a vector for each document.

    Raises:
        InputError: it can't be read, or has another number of rows.
    """
    import numpy as np

    try:
        vectors = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not an .npy file: {error}") from None
    if vectors.ndim != 2 or len(vectors) != count:
        raise InputError(
            f"{path}: expected a vector for each of {count} documents, found the shape "
            f"{list(vectors.shape)}"
        )
    return vectors


def show_progress(total: int) -> Any:
    """Returns a function that draws a bar on a terminal."""
    if not sys.stderr.isatty():
        return lambda stage, documents: None
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def advance(stage: str, documents: int) -> None:
        bars.setdefault(stage, tqdm(total=total, desc=stage, unit=" documents")).update(documents)

    return advance


def describe(path: Path | str, size: Mapping[str, float]) -> str:
    """Returns a line about an index.

    >>> describe(Path("index"), {"documents": 10, "bytes per document": 300, "texts": 2000})
    'index: 10 documents, 300 bytes for each, 200 of them for its text'
    """
    documents, each = size["documents"], size["bytes per document"]
    texts = size["texts"] / max(documents, 1)
    return (
        f"{path}: {documents:,} documents, {each:,.0f} bytes for each, {texts:,.0f} of them for "
        "its text"
    )


if __name__ == "__main__":
    exit_with_one_line(main)
