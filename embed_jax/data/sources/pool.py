"""A retrieval task made of a reranking task: the candidates of all its queries are the corpus."""

from __future__ import annotations

import itertools
from pathlib import Path

from embed_jax.data.pairs import SearchTask
from embed_jax.data.sources.tasks import read_reranking
from embed_jax.errors import InputError


def read_pool(directory: str | Path, split: str = "test") -> SearchTask:
    """Reads a directory of reranking data as a retrieval task.

    The corpus is the candidates of all splits, so it is the same for each of them; equal texts are
    one document. A query's relevant documents are its positives, and all others are not relevant.
    Queries without a positive are left out.

    Args:
        directory: has SPLIT.jsonl (.gz) files; see `read_reranking`.
        split: of the queries.

    Returns:
        Corpus {id: text}; the split's queries {id: text}; relevance {query id: {document id: 1}}.

    Raises:
        InputError: for data that cannot be read, or a split without a query that has a positive.
    """
    directory = Path(directory)
    splits = sorted({file.name.partition(".jsonl")[0] for file in directory.glob("*.jsonl*")})
    if split not in splits:
        raise InputError(
            f"{directory}: no split {split!r}; there are {', '.join(splits) or 'no .jsonl files'}"
        )
    names: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    for name in splits:
        for queries, positives, negatives in zip(
            *read_reranking(str(directory), name), strict=True
        ):
            for text in itertools.chain(positives, negatives):
                names.setdefault(text, f"d{len(names)}")
            if positives and name == split:
                for query in queries:
                    grades = relevant.setdefault(query, {})
                    grades |= {names[text]: 1 for text in positives}
    if not relevant:
        raise InputError(f"{directory}: no query of the split {split!r} has a positive")
    queries_by_id = {f"q{index}": query for index, query in enumerate(relevant)}
    corpus = {name: text for text, name in names.items()}
    return corpus, queries_by_id, {name: relevant[text] for name, text in queries_by_id.items()}
