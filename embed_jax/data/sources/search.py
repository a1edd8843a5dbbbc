"""Opens retrieval tasks by name."""

from __future__ import annotations

from pathlib import Path

from embed_jax.data.pairs import SearchTask
from embed_jax.data.sources.beir import read_beir, read_hub


def open_retrieval_task(name: str, split: str = "test") -> SearchTask:
    """Opens a retrieval task: its corpus, queries and relevance judgements.

    Args:
        name: "python_docs", "limit" or "limit:50000" (see `limit_task`), a directory in BEIR's
            layout, "hf:NAME", or "pool:DIRECTORY" with reranking data, whose candidates are the
            corpus.
        split: the split of the judgements.

    Raises:
        InputError: the data cannot be read, or judgements have unknown ids.
    """
    if name == "python_docs":
        from embed_jax.data.sources.python_docs import python_docs_task

        return python_docs_task(split)
    if name.partition(":")[0] == "limit" and not Path(name).exists():
        from embed_jax.data.sources.limit import open_limit

        return open_limit(name, split)
    if name.startswith("pool:"):
        from embed_jax.data.sources.pool import read_pool

        return read_pool(name.removeprefix("pool:"), split)
    return (
        read_hub(name.removeprefix("hf:"), split)
        if name.startswith("hf:")
        else read_beir(name, split)
    )
