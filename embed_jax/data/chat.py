"""A language model behind HTTP: one prompt, one answer, in OpenAI's (chat completions) or Anthropic's (messages) form.

The key goes into a request's header and nowhere else: it is taken out of whatever the server says.
"""

from __future__ import annotations

import contextlib
import email.utils
import http.client
import ipaddress
import json
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from embed_jax.errors import InputError, one_line

INTERFACES = ("openai", "anthropic")
KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}
PASSING = {408, 409, 425, 429}  # and 5xx: later the same request may do
OF_THE_PROMPT = {400, 413, 422}
SECRET = 12  # characters; a shorter "key" (none, EMPTY) is a word that an answer may hold
READ_BLOCK = 1 << 16


class Failed(Exception):
    """A request that got no answer of use; another may.

    Attributes:
        wait: seconds that the server asks to wait, if it does.
        unreachable: whether no connection came about.
    """

    def __init__(self, message: str, wait: float | None = None, unreachable: bool = False):
        super().__init__(message)
        self.wait, self.unreachable = wait, unreachable


class BadPrompt(InputError):
    """The server takes no such request; the prompt may be why."""


class Endpoint:
    """Where a language model answers.

    Attributes:
        interface: "openai" or "anthropic".
        model: the model's name there.
        settings: what else a request holds: temperature, max_tokens, ...
        reached: whether the server ever answered.
    """

    def __init__(
        self,
        interface: str,
        base_url: str,
        model: str,
        settings: Mapping[str, Any],
        *,
        key: str | None = None,
        timeout: float = 120.0,
    ):
        """Checks what it is given; sends nothing.

        Args:
            base_url: what stands before /chat/completions (openai) or /v1/messages (anthropic).
            key: sent with each request; None: no key.
            timeout: seconds for a whole answer.

        Raises:
            InputError: for a URL that is none, or that holds a password or parameters.
        """
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"base URL: expected http://HOST... or https://HOST..., found {base_url!r}")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError("base URL: found a user, a password or parameters in it; keys come from the environment")
        self.interface, self.model, self.settings = interface, model, dict(settings)
        path = {"openai": "/chat/completions", "anthropic": "/v1/messages"}[interface]
        self.url = base_url.rstrip("/") + path
        self.reached = False
        self._key, self._timeout = key, timeout
        local = [urllib.request.ProxyHandler({})] if _is_loopback(parts.hostname) else []
        self._opener = urllib.request.build_opener(_NoRedirect, *local)

    def complete(self, prompt: str) -> str:
        """The model's answer to one request.

        Raises:
            Failed: if another try may do.
            InputError: if it will not: a refused key, an unknown model, a bad request.
        """
        content = {"model": self.model, "messages": [{"role": "user", "content": prompt}], **self.settings}
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "embed-jax"}
        if self.interface == "anthropic":
            headers["anthropic-version"] = "2023-06-01"
        if self._key is not None and self.interface == "anthropic":
            headers["x-api-key"] = self._key
        elif self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, json.dumps(content).encode(), headers, method="POST")
        body = self._send(request)
        self.reached = True
        try:
            found = json.loads(body)
        except ValueError:
            raise Failed("the server's answer is no JSON") from None
        try:
            return self._without_key(answer_text(self.interface, found))
        except Failed as error:
            raise Failed(self._without_key(str(error))) from None

    def _send(self, request: urllib.request.Request) -> bytes:
        until = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                blocks = []
                while block := response.read1(READ_BLOCK):
                    blocks.append(block)
                    if time.monotonic() > until:
                        raise TimeoutError
                if response.length:  # read1 does not say that the rest is missing
                    raise http.client.IncompleteRead(b"", response.length)
                return b"".join(blocks)
        except urllib.error.HTTPError as error:
            self.reached = True
            raise self._refusal(error) from None
        except urllib.error.URLError as error:
            raise self._no_connection(error.reason) from None
        except TimeoutError:
            self.reached = True
            raise Failed(f"no answer within {self._timeout:g} s") from None
        except (OSError, http.client.HTTPException) as error:
            self.reached = True
            raise Failed(f"the connection was cut: {self._without_key(one_line(error))}") from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        try:
            said = _message(error.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            said = ""
        message = f"HTTP {error.code} from {self.url}: {self._without_key(said) or error.reason}"
        if error.code in PASSING or error.code >= 500:
            return Failed(message, wait=retry_after(error.headers.get("Retry-After")))
        if error.code < 400:
            return InputError(f"{message} (moved: is the base URL right, and https where it should be?)")
        return BadPrompt(message) if error.code in OF_THE_PROMPT else InputError(message)

    def _no_connection(self, reason: Any) -> Exception:
        if isinstance(reason, ssl.SSLCertVerificationError):
            return InputError(f"{self.url}: certificate refused: {reason.verify_message}")
        if isinstance(reason, ConnectionResetError | BrokenPipeError):
            return Failed(f"the connection was cut: {one_line(reason)}")
        said = getattr(reason, "strerror", None) or str(reason)
        return Failed(f"{self.url} cannot be reached: {said}", unreachable=True)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key and len(self._key) >= SECRET else text


def read_key(variable: str) -> str:
    """The key in an environment variable.

    Raises:
        InputError: if there is none, or it can stand in no HTTP header; the message does not hold it.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(
            f"no key: the environment variable {variable} is not set (--key-variable names another, "
            "--no-key goes without)"
        )
    if not all("!" <= letter <= "~" for letter in key):
        raise InputError(f"the environment variable {variable} holds no key: found blanks, line breaks or non-ASCII")
    return key


def answer_text(interface: str, body: Any) -> str:
    """The text of an answer's body.

    Raises:
        Failed: if it holds none, or was cut at the token limit.
    """
    try:
        if interface == "openai":
            choice = body["choices"][0]
            text, why, cut = choice["message"]["content"], choice.get("finish_reason"), "length"
        else:
            text = "".join(block["text"] for block in body["content"] if block["type"] == "text")
            why, cut = body.get("stop_reason"), "max_tokens"
    except (KeyError, IndexError, TypeError, AttributeError):
        text = why = cut = None
    if not isinstance(text, str) or not text.strip():
        raise Failed(f"the server's answer has no text in the {interface} form: {_message(body)}")
    if why == cut:
        raise Failed("the answer was cut at the token limit (see --max-tokens)")
    return text


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks to wait, given as a number or a date; None if it says nothing."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(seconds, 0.0) if seconds < float("inf") else None


def _message(body: Any) -> str:
    """What a body says, in one line: {"error": {"message": ...}}, {"message": ...}, {"detail": ...}, or all of it."""
    if isinstance(body, str):
        with contextlib.suppress(ValueError):
            body = json.loads(body)
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return " ".join((body if isinstance(body, str) else json.dumps(body)).split())[:300]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected request would take the key elsewhere."""

    def redirect_request(self, *args):
        return None
