"""Models over HTTP: /v1/embeddings in OpenAI's form, /rerank in Cohere's and Jina's.

Requests and answers follow the providers' references (2026):

- https://platform.openai.com/docs/api-reference/embeddings/create
- https://docs.cohere.com/reference/rerank
- https://jina.ai/reranker
"""

from __future__ import annotations

import base64
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from embed_jax.embedding_model import TextEncoder
from embed_jax.pair_scores import PairScorer
from embed_jax.registry import unknown
from embed_jax.serve.batching import Batcher
from embed_jax.serve.fields import (
    SHOWN_NAME,
    Refused,
    choice_field,
    read_object,
    text_field,
    texts_field,
    whole_number,
)

MOST_TEXTS = 2048  # of a request, as at OpenAI
MOST_DOCUMENTS = 1000  # of a request, as at Cohere
# Cohere's words and the shorter ones of others, for the side of a text.
SIDES_OF_TYPES = {
    "": "",
    "query": "query",
    "search_query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
}
EMBEDDING_FIELDS = ("model", "input", "encoding_format", "dimensions", "user", "input_type")
RERANK_FIELDS = (
    "model",
    "query",
    "documents",
    "top_n",
    "return_documents",
    "max_tokens_per_doc",
    "user",
)


class Endpoints:
    """Embedding models and rerankers as endpoints.

    Attributes:
        embedders: models by name.
        rerankers: scorers of pairs by name.
        routes: of the application.
    """

    def __init__(
        self, embedders: Mapping[str, Any], rerankers: Mapping[str, PairScorer], batcher: Batcher
    ):
        """Keeps models.

        Args:
            embedders: models by name, each giving a text one vector.
            rerankers: scorers of pairs by name.
            batcher: makes the calls.
        """
        self.embedders, self.rerankers, self._batcher = embedders, rerankers, batcher
        self._started = int(time.time())
        self.routes = [
            Route("/v1/models", self.list_models),
            Route("/v1/embeddings", self.embed, methods=["POST"]),
            *(
                Route(path, self.rerank, methods=["POST"])
                for path in ("/rerank", "/v1/rerank", "/v2/rerank")
            ),
        ]

    async def list_models(self, request: Request) -> Response:
        """Answers with the names of all models."""
        names = [*self.embedders, *(name for name in self.rerankers if name not in self.embedders)]
        models = [
            {"id": name, "object": "model", "created": self._started, "owned_by": "embed-jax"}
            for name in names
        ]
        return JSONResponse({"object": "list", "data": models})

    async def embed(self, request: Request) -> Response:
        """Answers texts with embeddings.

        Besides OpenAI's fields there is `input_type`, "query" or "document", for models that treat
        the two differently.
        """
        content = await read_object(request, EMBEDDING_FIELDS)
        name, model = _model(content, self.embedders)
        texts = _inputs(content)
        encoding = choice_field(content, "encoding_format", ("float", "base64"))
        side = SIDES_OF_TYPES[choice_field(content, "input_type", tuple(SIDES_OF_TYPES))]
        dim = _dimensions(content, model)
        call = functools.partial(embed_texts, model, dim, side)
        results = await self._batcher.submit(("embed", name, dim, side), call, texts)
        write = _base64 if encoding == "base64" else _numbers
        data = [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, (vector, _) in enumerate(results)
        ]
        tokens = sum(count for _, count in results)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})

    async def rerank(self, request: Request) -> Response:
        """Answers a query and documents with their scores, best first."""
        content = await read_object(request, RERANK_FIELDS)
        name, score = _model(content, self.rerankers)
        query = text_field(content, "query")
        documents = texts_field(content, "documents", MOST_DOCUMENTS)
        top_n = whole_number(content, "top_n", 2**31)  # more than there are: all
        call = functools.partial(score_pairs_of, score)
        pairs = [(query, document) for document in documents]
        scores = await self._batcher.submit(("rerank", name), call, pairs)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_n]
        shown = content.get("return_documents") is True
        results = [
            {"index": index, "relevance_score": scores[index]}
            | ({"document": {"text": documents[index]}} if shown else {})
            for index in order
        ]
        answer = {"id": f"rerank-{time.time_ns():x}", "model": name, "results": results}
        return JSONResponse(answer | {"meta": {"api_version": {"version": "2"}}})


def embed_texts(
    model: Any, dim: int, side: str, texts: Sequence[str]
) -> list[tuple[Float[np.ndarray, " D"], int]]:
    """Returns the embedding of each text, and how many tokens the text has.

    Args:
        model: an embedding model.
        dim: numbers of an embedding; 0: all.
        side: "query", "document" or "".
        texts: any number of them.
    """
    encode = {"query": model.encode_query, "document": model.encode_document, "": model.encode}
    vectors = encode[side](list(texts), **({"dim": dim} if dim else {}))
    if isinstance(vectors, dict):  # a model with several heads
        vectors = vectors["dense"]
    encodings = TextEncoder(model).tokenizer.tokenize(list(texts))
    counts = [len(encoding) for encoding in encodings]
    return list(zip(np.asarray(vectors, np.float32), counts, strict=True))


def score_pairs_of(score: PairScorer, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Returns the score of each query with its document."""
    return score([query for query, _ in pairs], [document for _, document in pairs]).tolist()


def _model(content: Mapping[str, Any], known: Mapping[str, Any]) -> tuple[str, Any]:
    """Returns the name and the model that a request names; the only one where it names none.

    Raises:
        Refused: it is not known, or there are several.
    """
    name = content.get("model")
    if name is None and len(known) == 1:
        (name,) = known
    if not isinstance(name, str) or name not in known:
        shown = name[:SHOWN_NAME] if isinstance(name, str) else ""
        message = unknown("model", shown, known) if known else "no model is served here"
        raise Refused(message, 404, "model", "model_not_found")
    return name, known[name]


def _inputs(content: Mapping[str, Any]) -> list[str]:
    """Returns the texts of a request for embeddings."""
    value = content.get("input")
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int | list):
        raise Refused(
            "input: expected texts, found token ids, which are another tokenizer's; send texts "
            "(LangChain: check_embedding_ctx_length=False)",
            field="input",
        )
    return texts_field(content, "input", MOST_TEXTS)


def _dimensions(content: Mapping[str, Any], model: Any) -> int:
    """Returns how many numbers of an embedding are kept; 0: all.

    Raises:
        Refused: the model has fewer, or was not trained to be cut.
    """
    dim = whole_number(content, "dimensions", model.dim)
    if dim in (None, model.dim):
        return 0
    assert dim is not None
    if all(trained >= model.dim for trained in getattr(model, "matryoshka_dims", ())):
        raise Refused(
            f"dimensions: this model has {model.dim}, and was not trained for fewer (Matryoshka)",
            field="dimensions",
        )
    return dim


def _base64(vector: Float[np.ndarray, " D"]) -> Any:
    return base64.b64encode(np.ascontiguousarray(vector, "<f4").tobytes()).decode()


def _numbers(vector: Float[np.ndarray, " D"]) -> Any:
    return vector.tolist()
