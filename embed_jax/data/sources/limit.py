"""LIMIT: a search that is easy for words and hard for one vector, with texts made from a seed.

After Weller et al. (2025), "On the Theoretical Limitations of Embedding-Based Retrieval": people
like things, and a query asks who likes one of them. Each pair of the first 46 people shares exactly
one thing that nobody else likes, which makes 46 * 45 / 2 = 1,035 queries, of which 1,000 are asked:
every pair of documents has to be the answer to some query. All further people, up to 50,000, like
other things, which no query asks for.

The form of the data is the paper's; names, things and texts are our own, so figures compare systems
with each other, and are not those of the paper's data.
"""

from __future__ import annotations

import itertools

import numpy as np

from embed_jax.data.pairs import SearchTask
from embed_jax.data.sources.limit_words import LIKED_THINGS
from embed_jax.errors import InputError

NAME = "limit"
PEOPLE = 46  # who can be an answer
PAIRS = list(itertools.combinations(range(PEOPLE), 2))
QUERIES = 1000
# Beginnings and ends of first and last names, 65,536 in all.
_FIRST = (
    "Al Be Ca Da El Fa Gi Ha In Jo Ka Le Mi No Pe Ro",
    "bin da fer gan la len lio ma na nor ra ric sa ton vin zia",
)
_LAST = (
    "Bar Cas Dor Fen Gal Hol Kel Lin Mar Nor Pel Quin Ros Tol Ver Wes",
    "berg croft dale ford garth holm ley man mond ner ova sen ski stad ton wick",
)


def limit_task(documents: int = PEOPLE, queries: int = QUERIES, seed: int = 0) -> SearchTask:
    """Makes the corpus, the queries and the judgements, two for each query.

    All people like 45 things. The first 46 documents are the same for any number of them.

    >>> corpus, queries, qrels = limit_task(documents=100)
    >>> len(corpus), len(queries), {len(judged) for judged in qrels.values()}
    (100, 1000, {2})

    Args:
        documents: 46 or more; the paper's forms have 46 and 50,000.
        queries: at most 1,035, drawn from the pairs.
        seed: of names, things, their order, and which pairs are asked for.

    Raises:
        InputError: for an impossible number of documents or queries, or a negative seed.
    """
    names = [" ".join(parts) for parts in itertools.product(_combine(_FIRST), _combine(_LAST))]
    if not PEOPLE <= documents <= len(names):
        raise InputError(
            f"limit: expected {PEOPLE} to {len(names):,} documents, found {documents:,}"
        )
    if not 1 <= queries <= len(PAIRS):
        raise InputError(f"limit: expected 1 to {len(PAIRS):,} queries, found {queries:,}")
    if seed < 0:
        raise InputError(f"limit: expected a seed of 0 or more, found {seed}")
    name_rng, thing_rng, query_rng, other_rng = np.random.default_rng(seed).spawn(4)
    names = [names[index] for index in name_rng.permutation(len(names))[:documents]]
    words = [LIKED_THINGS[index] for index in thing_rng.permutation(len(LIKED_THINGS))]
    shared, others = dict(zip(PAIRS, words, strict=False)), np.array(words[len(PAIRS) :])
    likes = [
        thing_rng.permutation([thing for pair, thing in shared.items() if person in pair])
        for person in range(PEOPLE)
    ]
    likes += [
        other_rng.choice(others, size=PEOPLE - 1, replace=False) for _ in range(documents - PEOPLE)
    ]
    corpus = {
        f"d{number}": f"{name} likes {', '.join(liked[:-1])} and {liked[-1]}."
        for number, (name, liked) in enumerate(zip(names, likes, strict=True))
    }
    query_pairs = [PAIRS[index] for index in query_rng.permutation(len(PAIRS))[:queries]]
    texts = {f"q{number}": f"Who likes {shared[pair]}?" for number, pair in enumerate(query_pairs)}
    qrels = {
        f"q{number}": {f"d{person}": 1 for person in pair}
        for number, pair in enumerate(query_pairs)
    }
    return corpus, texts, qrels


def open_limit(name: str, split: str = "test") -> SearchTask:
    """Opens "limit", the small form of 46 documents, or "limit:50000", one of that many.

    Raises:
        InputError: for another split than "test", or an impossible number of documents.
    """
    if split != "test":
        raise InputError(f"{name}: expected the split 'test', found {split!r}")
    documents = name.partition(":")[2] or str(PEOPLE)
    if not documents.isdecimal():
        raise InputError(f"{name}: expected limit:DOCUMENTS, such as limit:50000")
    return limit_task(int(documents))


def _combine(syllables: tuple[str, str]) -> list[str]:
    first, last = (each.split() for each in syllables)
    return [start + end for start, end in itertools.product(first, last)]
