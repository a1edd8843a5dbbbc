"""XTR: a late-interaction score of the tokens that a search over the whole batch would find.

Lee et al. (2023), "Rethinking the Role of Token Retrieval in Multi-Vector Retrieval".
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from embed_jax.errors import InputError
from embed_jax.maxsim import MAXSIM, best_matches
from embed_jax.scores import Score, join_columns, pair_score
from embed_jax.types import Columns, World
from embed_jax.vectors import dot_matrix

TOP_K = 256
LEAST = "least"  # a leaf of queries: the product from which on a token of a document is retrieved
ROUNDING = 1e-6  # by which products of equal tokens may differ


def xtr(top_k: int = TOP_K) -> Score:
    """Makes the score (1 / Z) sum_i max_j A_ij q_i d_j, over a query's and a document's tokens.

    A_ij is 1 if d_j is among the `top_k` best matches of q_i in all documents of the batch, else 0:
    found by a search for tokens. Z is the number of the query's tokens that found one of the
    document; 0 is the score of a document of which none was found (Lee et al. 2023, eq. 5). It is a
    score to train with; with `top_k` of at least all tokens of the batch it is the mean of MaxSim.
    Tokens that are as good as the last one found, within rounding, are found too.

    Args:
        top_k: how many tokens of all documents of the batch each token of a query finds.

    Raises:
        InputError: for a `top_k` below 1.

    >>> from embed_jax.losses import own_candidates
    >>> query = {"tokens": jnp.eye(2)[None], "mask": jnp.ones((1, 2), bool)}
    >>> near, far = ({**query, "tokens": query["tokens"] * cosine} for cosine in (0.9, 0.4))
    >>> print(own_candidates(query, near, far, similarity=xtr(1), temperature=1.0))  # 0.9 and 0
    [0.3412]
    """
    if not top_k >= 1:
        raise InputError(f"top_k: expected 1 or more, found {top_k}")

    def in_world(own: Columns, world: World) -> tuple[Columns, World]:
        return _with_least_products(own, world, top_k)

    score = pair_score("xtr", _pair, matrix=_matrix, numbers=MAXSIM.numbers, limits=(-1.0, 1.0))
    return dataclasses.replace(score, prepare=_prepare, in_world=in_world)


def _prepare(embeddings: Any, dims: tuple[int, ...]) -> tuple[Any, ...]:
    """Returns tokens of each prefix; those of queries with their least products."""
    prepared = MAXSIM.prepare({name: embeddings[name] for name in ("tokens", "mask")}, dims)
    if LEAST not in embeddings:
        return prepared
    least = jnp.moveaxis(embeddings[LEAST], 1, 0)
    return tuple({**tree, LEAST: each} for tree, each in zip(prepared, least, strict=True))


def _matrix(queries: Any, documents: Any) -> Float[Array, "q n"]:
    if LEAST not in queries:
        raise InputError(
            "similarity 'xtr': a score depends on all documents of the batch: it is a score of "
            "losses, found a call on pairs; 'maxsim' compares a query with a document"
        )
    matches = best_matches(queries["tokens"], documents["tokens"], documents["mask"])
    retrieved = queries["mask"] & (matches >= queries[LEAST])
    retrieved &= jnp.any(documents["mask"], axis=-1)[:, None, None]
    total = jnp.sum(jnp.where(retrieved, matches, 0.0), axis=-1)
    return (total / jnp.maximum(jnp.sum(retrieved, axis=-1), 1)).T


def _pair(query: Any, document: Any) -> Float[Array, ""]:
    return _matrix(*jax.tree.map(lambda leaf: leaf[None], (query, document)))[0, 0]


def _with_least_products(own: Columns, world: World, top_k: int) -> tuple[Columns, World]:
    """Adds to each token of a query the product of the last token that it retrieves.

    That is half-way between the `top_k`-th product and the next, so that rounding, which differs
    with the size of a tile, does not decide.
    """
    dims = () if own.prefixes is None else own.prefixes.sizes

    def tokens_of_documents(columns: Columns, prefix: int) -> dict[str, Array]:
        """Returns the tokens of all documents, [n, d] and [n], of one prefix."""
        which = [c for c in range(len(columns.embeddings)) if c != columns.query]
        documents = [
            {**tree, "mask": tree["mask"] & columns.present[c][:, None]}
            for c, tree in ((c, columns.embeddings[c]) for c in which)
        ]
        prepared = MAXSIM.prepare(join_columns(documents), dims)[prefix]
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), prepared)

    def products(rows: Array, candidates: dict[str, Array], _: Any) -> Float[Array, "1 b n"]:
        values = dot_matrix(rows, candidates["tokens"])
        return jnp.where(candidates["mask"], values, -jnp.inf)[None]

    least = []
    queries = MAXSIM.prepare(own.embeddings[own.query], dims)
    for prefix, query in enumerate(queries):
        tokens = query["tokens"]
        largest = world.largest(
            products,
            tokens.reshape(-1, tokens.shape[-1]),
            functools.partial(tokens_of_documents, prefix=prefix),
            top_k + 1,
        )[0]
        middle = (largest[:, -2] + largest[:, -1]) / 2
        middle -= ROUNDING * jnp.maximum(jnp.abs(middle), 1.0)
        least.append(middle.reshape(tokens.shape[:2]))
    # [b, M, K]; everybody's, as queries are candidates too in losses of both directions.
    everybodys = world.gather(lax.stop_gradient(jnp.stack(least, axis=1)))

    def add(columns: Columns) -> Columns:
        trees = list(columns.embeddings)
        trees[columns.query] = {**trees[columns.query], LEAST: everybodys[columns.example]}
        return columns.replace(embeddings=tuple(trees))

    return add(own), world.view(add)


XTR = xtr()
