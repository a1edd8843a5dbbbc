"""Two encoders as one: a tower for the first column of the examples, another for all others.

    encoder = two_towers(query, document)
    params = {"query": query.init(key), "document": document.init(key)}
    encoder.apply(params, {"query": tokens_of_queries, "encoder": tokens_of_documents})  # [S, D]

The loss sees one column of embeddings after the other, as those of a single encoder, so that every
loss, gradient caching and any number of devices work unchanged. Similarities between two queries
(the term "qq" of a loss) or two documents ("pp") are defined too: both towers embed into one space.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.errors import InputError
from embed_jax.types import Encoder, Params, TokenBatch


def two_towers(query: Encoder, document: Encoder) -> Encoder:
    """Returns an encoder with a tower for queries (anchors) and one for documents (candidates).

    >>> from embed_jax.encoders.build import build_encoder
    >>> from embed_jax.encoders.spec import random_spec
    >>> tower = build_encoder(random_spec("tiny", vocab_size=10))
    >>> sorted(jax.eval_shape(two_towers(tower, tower).init, jax.random.key(0)))
    ['document', 'query']

    Args:
        query: encodes column 0 of the examples, packed in `tokens["query"]`.
        document: encodes columns 1 .. C - 1, packed in `tokens["encoder"]`.

    Returns:
        An encoder with the parameters {"query": tree, "document": tree}. Its `config`, and the
        layers that parameters split over devices are gathered by, are those of the documents'
        tower. It has no embeddings of earlier layers and no token states.

    Raises:
        InputError: for embeddings of different sizes.
    """
    if query.dim != document.dim:
        raise InputError(
            f"towers: expected embeddings of one size, found {query.dim} of queries and "
            f"{document.dim} of documents"
        )

    def init(key: PRNGKeyArray) -> Params:
        keys = jax.random.split(key)
        return {"query": query.init(keys[0]), "document": document.init(keys[1])}

    def apply(
        params: Params, tokens: dict[str, TokenBatch], key: PRNGKeyArray | None = None, read=None
    ) -> Float[Array, "S D"]:
        keys = (None, None) if key is None else jax.random.split(key)
        queries = query.apply(params["query"], tokens["query"], keys[0])
        documents = document.apply(params["document"], tokens["encoder"], keys[1], read)
        return jnp.concatenate([queries, documents])

    return Encoder(
        init=init,
        apply=apply,
        config=document.config,
        dim=document.dim,
        sharding=tuple(
            (f"{tower}/(?:{pattern})", axes)
            for tower, encoder in (("query", query), ("document", document))
            for pattern, axes in encoder.sharding
        ),
        layers=("document", *document.layers) if document.layers else (),
    )


def two_sides(query: Encoder, document: Encoder) -> Encoder:
    """Returns one encoder, of one tree of parameters, for queries and documents of other forms.

    Args:
        query: encodes column 0 of the examples, packed in `tokens["query"]`.
        document: the same with another form, such as more vectors for a text; it encodes columns 1
            .. C - 1, packed in `tokens["encoder"]`.

    Returns:
        An encoder that gives a tree for each column.
    """

    def apply(
        params: Params, tokens: dict[str, TokenBatch], key: PRNGKeyArray | None = None, read=None
    ) -> tuple[Any, ...]:
        keys = (None, None) if key is None else jax.random.split(key)
        queries = query.apply(params, tokens["query"], keys[0], read)
        documents = document.apply(params, tokens["encoder"], keys[1], read)
        columns = tokens["encoder"].sentences // tokens["query"].sentences
        parts = jax.tree.map(lambda leaf: jnp.split(leaf, columns), documents)
        return (
            queries,
            *(
                jax.tree.map(lambda leaf, column=column: leaf[column], parts, is_leaf=_is_list)
                for column in range(columns)
            ),
        )

    return dataclasses.replace(document, apply=apply, hidden=None, by_layer=None)


def _is_list(tree: Any) -> bool:
    return isinstance(tree, list)
