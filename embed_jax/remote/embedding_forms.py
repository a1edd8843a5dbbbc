"""Providers' forms of requests for embeddings, and of their answers.

Requests and answers follow the providers' references (2026):

- OpenAI, and whatever server speaks its form:
  https://platform.openai.com/docs/api-reference/embeddings/create
- Cohere: https://docs.cohere.com/reference/embed
- Voyage: https://docs.voyageai.com/reference/embeddings-api
- Google: https://ai.google.dev/api/embeddings#method:-models.batchembedcontents
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from embed_jax.remote.server import Failed


@dataclasses.dataclass(frozen=True)
class Interface:
    """A provider's form.

    Attributes:
        base_url: of the provider's server.
        path: stands after it, with {model} to fill in.
        key_variable: the environment variable of the key.
        key_header: the header of the key.
        most_texts: in one request.
        most_bytes: of one request's texts in UTF-8; for a provider that limits a request's tokens,
            that limit, as a text has no more tokens than bytes. 0: no limit.
        kinds: the provider's words for `kind`; one without a word is not sent.
        request: `(model, texts, dim, the provider's kind, settings) -> request`; `dim` 0 and kind
            "" are left out.
        rows: the answer's embeddings in the order of the texts: lists of numbers, or float32 in
            base64.
    """

    base_url: str
    path: str
    key_variable: str
    most_texts: int
    kinds: Mapping[str, str]
    request: Callable[[str, Sequence[str], int, str, Mapping[str, Any]], dict[str, Any]]
    rows: Callable[[Any], list[Any]]
    most_bytes: int = 0
    key_header: str = "Authorization"


def _openai_request(model, texts, dim, kind, settings):
    options = _given(dimensions=dim, input_type=kind)
    return {"model": model, "input": texts, "encoding_format": "float", **options, **settings}


def _voyage_request(model, texts, dim, kind, settings):
    return {
        "model": model,
        "input": texts,
        **_given(output_dimension=dim, input_type=kind),
        **settings,
    }


def _cohere_request(model, texts, dim, kind, settings):
    options = _given(output_dimension=dim, input_type=kind)
    return {"model": model, "texts": texts, "embedding_types": ["float"], **options, **settings}


def _google_request(model, texts, dim, kind, settings):
    common = {
        "model": f"models/{model}",
        **_given(outputDimensionality=dim, taskType=kind),
        **settings,
    }
    return {"requests": [{"content": {"parts": [{"text": text}]}, **common} for text in texts]}


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value}


def _by_index(body):
    numbers = [item.get("index", place) for place, item in enumerate(body["data"])]
    if sorted(numbers) != list(range(len(numbers))):
        raise Failed("the server's answer does not number its embeddings 0, 1, 2, ...")
    return [body["data"][place]["embedding"] for place in np.argsort(numbers)]


INTERFACES = {
    "openai": Interface(
        "https://api.openai.com/v1",
        "/embeddings",
        "OPENAI_API_KEY",
        2048,
        {},
        _openai_request,
        _by_index,
        most_bytes=300_000,
    ),
    # search_document is what Cohere recommends where the use is unknown; v3 and later take no
    # request without a type.
    "cohere": Interface(
        "https://api.cohere.com",
        "/v2/embed",
        "CO_API_KEY",
        96,
        {
            "": "search_document",
            "query": "search_query",
            "document": "search_document",
            "classification": "classification",
            "clustering": "clustering",
        },
        _cohere_request,
        lambda body: body["embeddings"]["float"],
    ),
    "voyage": Interface(
        "https://api.voyageai.com/v1",
        "/embeddings",
        "VOYAGE_API_KEY",
        1000,
        {"query": "query", "document": "document"},
        _voyage_request,
        _by_index,
        most_bytes=120_000,
    ),
    "google": Interface(
        "https://generativelanguage.googleapis.com/v1beta",
        "/models/{model}:batchEmbedContents",
        "GEMINI_API_KEY",
        100,
        {
            "": "SEMANTIC_SIMILARITY",
            "query": "RETRIEVAL_QUERY",
            "document": "RETRIEVAL_DOCUMENT",
            "classification": "CLASSIFICATION",
            "clustering": "CLUSTERING",
        },
        _google_request,
        lambda body: [entry["values"] for entry in body["embeddings"]],
        key_header="x-goog-api-key",
    ),
}
