"""The application: page and endpoints behind one set of limits, headers and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embed_jax.errors import InputError, RunError, one_line
from embed_jax.pair_scores import PairScorer
from embed_jax.serve.batching import Batcher, Busy
from embed_jax.serve.endpoints import Endpoints
from embed_jax.serve.fields import Refused
from embed_jax.serve.page import Page
from embed_jax.serve.searches import ServedSearch

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")
JSON_PATHS = ("/v1/", "/v2/", "/rerank")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def make_app(
    searches: Mapping[str, ServedSearch],
    *,
    embedders: Mapping[str, Any] | None = None,
    rerankers: Mapping[str, PairScorer] | None = None,
    hosts: Sequence[str] = LOOPBACK,
    batcher: Batcher | None = None,
) -> SafeHeaders:
    """Returns the application, for uvicorn or any other server of ASGI.

    Args:
        searches: pipelines that the page searches, by name.
        embedders: models of /v1/embeddings by name.
        rerankers: scorers of pairs of /rerank by name.
        hosts: names under which it is reached; requests with another Host are refused, so that a
            foreign page in the same browser, whose name may lead here too, cannot read it. "*":
            any name.
        batcher: makes the calls; None: a new one.
    """
    batcher = batcher or Batcher()
    endpoints = Endpoints(embedders or {}, rerankers or {}, batcher)
    models = {"embeddings": list(endpoints.embedders), "reranking": list(endpoints.rerankers)}
    page = Page(searches, batcher, models)

    def answer(request: Request, message: str, status: int, field: str = "", code: str = ""):
        headers = {"Retry-After": "1"} if status == 503 else None
        if request.url.path.startswith(JSON_PATHS):
            return JSONResponse(error_form(message, status, field, code), status, headers)
        response = page.refuse(message, status, request.query_params)
        response.headers.update(headers or {})
        return response

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return answer(request, str(error), error.status, error.field, error.code)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        text = "There is no such page." if error.status_code == 404 else f"{error.detail}."
        response = answer(request, text, error.status_code)
        response.headers.update(error.headers or {})
        return response

    async def input_error(request: Request, error: Exception) -> Response:
        return answer(request, one_line(error), 400)

    async def run_error(request: Request, error: Exception) -> Response:
        return answer(request, one_line(error), 500)

    async def busy(request: Request, error: Exception) -> Response:
        return answer(request, str(error), 503)

    async def broken(request: Request, error: Exception) -> Response:
        return answer(request, "The server failed; its log says why.", 500)

    app = Starlette(
        routes=[Route("/health", _health), *endpoints.routes, *page.routes],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
        ],
        exception_handlers={
            Refused: refused,
            HTTPException: http_error,
            InputError: input_error,
            RunError: run_error,
            Busy: busy,
            Exception: broken,
        },
    )
    return SafeHeaders(app)  # outermost, for the answers of every other layer


def error_form(message: str, status: int, field: str = "", code: str = "") -> dict[str, Any]:
    """Returns an error in OpenAI's form, and its message where Cohere's clients look for it.

    >>> error_form("no", 400)["error"]["type"]
    'invalid_request_error'
    """
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": field or None, "code": code or None}
    return {"error": error, "message": message}


async def _health(request: Request) -> Response:
    return PlainTextResponse("ok")


class SafeHeaders:
    """Puts HEADERS on every answer."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, send_with_headers)
