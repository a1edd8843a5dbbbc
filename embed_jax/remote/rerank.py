"""Rerankers behind an API, as teachers: Cohere, Jina, Voyage, and servers of their forms.

Requests and answers follow the providers' references (2026):

- Cohere: https://docs.cohere.com/reference/rerank
- Jina, and vLLM (`/v1/rerank`) or other servers of the same form: https://jina.ai/reranker
- Voyage: https://docs.voyageai.com/reference/reranker-api
- Text Embeddings Inference: https://huggingface.github.io/text-embeddings-inference
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.errors import InputError, RunError
from embed_jax.registry import unknown
from embed_jax.remote.ask import Job, Retries, ask_all
from embed_jax.remote.server import Failed, Server, message_of, read_key

Documents = Sequence[tuple[str, str]]  # each with its query


@dataclasses.dataclass(frozen=True)
class RerankForm:
    """A provider's form of requests.

    Attributes:
        base_url: of the provider's server; "": there is no such server.
        path: stands after it.
        key_variable: the environment variable of the key; "": no key.
        most_documents: in one request.
        documents: the name of the field with the documents.
        names_model: whether requests name the model; else the server has only one.
        fields: more fields of each request.
    """

    base_url: str
    path: str
    key_variable: str
    most_documents: int
    documents: str = "documents"
    names_model: bool = True
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


RERANK_FORMS = {
    "cohere": RerankForm("https://api.cohere.com", "/v2/rerank", "CO_API_KEY", 1000),
    "jina": RerankForm(
        "https://api.jina.ai/v1",
        "/rerank",
        "JINA_API_KEY",
        1000,
        fields={"return_documents": False},
    ),
    "voyage": RerankForm("https://api.voyageai.com/v1", "/rerank", "VOYAGE_API_KEY", 1000),
    # 32 is what a server takes unless it was started with a larger --max-client-batch-size.
    "tei": RerankForm("", "/rerank", "", 32, documents="texts", names_model=False),
}


class RerankEndpoint(Server):
    """A server that answers a query and documents with their scores.

    Attributes:
        form: the provider's form.
        model: the model's name there.
        settings: more fields of a request.
    """

    def __init__(
        self,
        interface: str,
        model: str,
        *,
        base_url: str = "",
        settings: Mapping[str, Any] | None = None,
        key_variable: str | None = None,
        timeout: float = 120.0,
    ):
        """Checks the arguments; sends nothing.

        Args:
            interface: one of RERANK_FORMS.
            model: the model's name there.
            base_url: of another server than the provider's.
            settings: more fields of a request, such as `{"raw_scores": True}` of "tei".
            key_variable: the environment variable with the key; None: the provider's; "": no key.
            timeout: seconds for a whole answer.

        Raises:
            InputError: for an unknown interface, an invalid URL, a key that is missing.
        """
        if interface not in RERANK_FORMS:
            raise InputError(unknown("interface", interface, RERANK_FORMS))
        self.form, self.model = RERANK_FORMS[interface], model
        self.settings = {**self.form.fields, **(settings or {})}
        variable = self.form.key_variable if key_variable is None else key_variable
        super().__init__(
            base_url or self.form.base_url,
            self.form.path,
            key=read_key(variable, "another variable can be named, or no key be sent")
            if variable
            else None,
            timeout=timeout,
        )

    def complete(self, query_and_documents: tuple[str, Sequence[str]]) -> Float[np.ndarray, " n"]:
        """Returns the scores of one request's documents, in their order.

        Raises:
            Failed: if another try may succeed.
            InputError: if no other try can succeed.
        """
        query, documents = query_and_documents
        texts = [text or " " for text in documents]  # no provider takes an empty text
        content = {"query": query or " ", self.form.documents: texts, **self.settings}
        if self.form.names_model:
            content = {"model": self.model, **content}
        body = self.post(content)
        try:
            return answer_scores(body, len(documents))
        except Failed as error:
            raise Failed(self.without_key(str(error))) from None


def answer_scores(body: Any, count: int) -> Float[np.ndarray, " n"]:
    """Returns the scores of an answer in the order of the documents.

    Args:
        body: the answer's JSON: a list of `{"index": ..., "relevance_score": ...}` in any order,
            also under "results" or "data", and also with "score".
        count: how many documents there were.

    Raises:
        Failed: if it does not hold a finite score of each document.

    >>> body = {"results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "score": 2}]}
    >>> answer_scores(body, 2).tolist()
    [2.0, 0.5]
    """
    results = body
    if isinstance(body, dict):
        results = body["results"] if "results" in body else body.get("data")
    scores = np.full(count, np.nan)
    try:
        for result in results:
            score = result["relevance_score"] if "relevance_score" in result else result["score"]
            if not 0 <= result["index"] < count:
                raise IndexError
            scores[result["index"]] = score
    except (KeyError, IndexError, TypeError, ValueError):
        raise Failed(f"the server's answer holds no scores: {message_of(body)}") from None
    missing = int((~np.isfinite(scores)).sum())
    if missing:
        raise Failed(f"the server's answer lacks finite scores of {missing} of {count} documents")
    return scores


def rerank_scorer(
    endpoint: RerankEndpoint,
    *,
    batch_size: int = 0,
    concurrency: int = 4,
    retries: Retries | None = None,
    per_minute: float = 0,
) -> Callable[[Iterable[tuple[str, str]]], Iterator[tuple[Documents, np.ndarray]]]:
    """Returns a function that takes (query, passage) pairs and yields them with their scores.

    Consecutive pairs of one query are one request. Answers are yielded as they come; requests that
    fail do not stop the others, and are told at the end.

    Args:
        endpoint: the server.
        batch_size: documents in one request; 0: as many as the provider takes.
        concurrency: requests at a time.
        retries: how often and when to try again.
        per_minute: requests; 0: no limit.

    Raises:
        InputError: by the function: for a server that can't be reached or refuses a request.
        RunError: by the function, after all answers: for requests that failed in every try.

    >>> endpoint = RerankEndpoint("tei", "m", base_url="http://localhost")
    >>> endpoint.complete = lambda request: np.array([float(len(text)) for text in request[1]])
    >>> list(rerank_scorer(endpoint)([("q", "a"), ("q", "bc")]))
    [([('q', 'a'), ('q', 'bc')], array([1., 2.]))]
    """
    most = batch_size or endpoint.form.most_documents

    def jobs(pairs: Iterable[tuple[str, str]]) -> Iterator[Job]:
        for query, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            while batch := list(itertools.islice(group, most)):
                documents = [document for _, document in batch]
                yield Job(
                    f"{query}\n{documents[0]}",
                    (query, documents),
                    functools.partial(_with_pairs, batch),
                    f"{len(documents)} documents of the query {query[:40]!r}",
                )

    def score(
        pairs: Iterable[tuple[str, str]],
    ) -> Iterator[tuple[Documents, np.ndarray]]:
        failures: list[str] = []
        answers = ask_all(
            endpoint, jobs(pairs), concurrency=concurrency, retries=retries, per_minute=per_minute
        )
        with contextlib.closing(answers):
            for job, answer in answers:
                if isinstance(answer, Failed):
                    failures.append(f"{job.where}: {answer}")
                else:
                    yield answer
        if failures:
            raise RunError(f"{len(failures)} requests got no answer, the first: {failures[0]}")

    return score


def _with_pairs(
    pairs: Sequence[tuple[str, str]], scores: Float[np.ndarray, " n"]
) -> tuple[Sequence[tuple[str, str]], Float[np.ndarray, " n"]]:
    return pairs, scores
