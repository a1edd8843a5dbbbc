"""A server that answers JSON with JSON over HTTP; tells failures that pass from those that don't.

The key goes into a request's header and nowhere else: it is removed from the server's messages.
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

PASSING = {408, 409, 425, 429}  # and 5xx: later the same request may succeed
OF_THE_REQUEST = {400, 413, 422}
SECRET = 12  # characters; a shorter "key" (none, EMPTY) is a word that an answer may hold
READ_BLOCK = 1 << 16


class Failed(Exception):
    """A request without a useful answer; another try may get one.

    Attributes:
        wait: seconds that the server asks to wait, if it does.
        unreachable: whether no connection came about.
    """

    def __init__(self, message: str, wait: float | None = None, unreachable: bool = False):
        super().__init__(message)
        self.wait, self.unreachable = wait, unreachable


class BadRequest(InputError):
    """The server refuses this request, perhaps for its content."""


class Server:
    """The server that requests go to.

    Attributes:
        url: of every request.
        reached: whether the server ever answered.
    """

    def __init__(
        self,
        base_url: str,
        path: str,
        *,
        key: str | None = None,
        key_header: str = "Authorization",
        headers: Mapping[str, str] | None = None,
        timeout: float = 120.0,
    ):
        """Checks the arguments; sends nothing.

        Args:
            base_url: http://HOST... or https://HOST...
            path: stands after `base_url`.
            key: sent with each request; None: no key.
            key_header: the header of the key; in "Authorization" it is "Bearer KEY".
            headers: more headers.
            timeout: seconds for a whole answer.

        Raises:
            InputError: for an invalid URL, or one with a password or parameters.
        """
        parts = urllib.parse.urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(
                f"base URL: expected http://HOST... or https://HOST..., found {base_url!r}"
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise InputError(
                "base URL: found a user, a password or parameters in it; keys come from the "
                "environment"
            )
        self.url = base_url.rstrip("/") + path
        self.reached = False
        self._key, self._timeout = key, timeout
        self._headers = {
            "Content-Type": "application/json",
            "Accept": "application/json",
            "User-Agent": "embed-jax",
        }
        self._headers |= headers or {}
        if key is not None:
            self._headers[key_header] = f"Bearer {key}" if key_header == "Authorization" else key
        local = [urllib.request.ProxyHandler({})] if _is_loopback(parts.hostname) else []
        self._opener = urllib.request.build_opener(_NoRedirect, *local)

    def post(self, content: Any) -> Any:
        """Returns the JSON that answers one request.

        Raises:
            Failed: if another try may succeed.
            InputError: if no other try can: a refused key, an unknown model, a bad request
                (BadRequest).
        """
        request = urllib.request.Request(
            self.url, json.dumps(content).encode(), self._headers, method="POST"
        )
        body = self._send(request)
        self.reached = True
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Failed("the server's answer is not JSON") from None

    def without_key(self, text: str) -> str:
        """Replaces the key in a text by ***."""
        return text.replace(self._key, "***") if self._key and len(self._key) >= SECRET else text

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
            raise Failed(f"the connection was cut: {self.without_key(one_line(error))}") from None

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        try:
            reason = message_of(error.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException):
            reason = ""
        message = f"HTTP {error.code} from {self.url}: {self.without_key(reason) or error.reason}"
        if error.code in PASSING or error.code >= 500:
            return Failed(message, wait=retry_after(error.headers.get("Retry-After")))
        if error.code < 400:
            return InputError(
                f"{message} (moved: is the base URL right, and https where it should be?)"
            )
        return BadRequest(message) if error.code in OF_THE_REQUEST else InputError(message)

    def _no_connection(self, reason: Any) -> Exception:
        if isinstance(reason, ssl.SSLCertVerificationError):
            return InputError(f"{self.url}: certificate refused: {reason.verify_message}")
        if isinstance(reason, ConnectionResetError | BrokenPipeError):
            return Failed(f"the connection was cut: {one_line(reason)}")
        text = getattr(reason, "strerror", None) or str(reason)
        return Failed(f"{self.url} cannot be reached: {text}", unreachable=True)


def read_key(variable: str, otherwise: str) -> str:
    """Reads the key in an environment variable.

    Args:
        variable: the variable's name.
        otherwise: what else the user can do, for the message.

    Raises:
        InputError: if it is missing, or can't stand in an HTTP header; the message does not contain
            it.

    >>> from unittest import mock
    >>> with mock.patch.dict("os.environ", EXAMPLE_KEY="secret"):
    ...     read_key("EXAMPLE_KEY", "or go without a key")
    'secret'
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        raise InputError(f"no key: the environment variable {variable} is not set ({otherwise})")
    if not all("!" <= letter <= "~" for letter in key):
        raise InputError(
            f"the environment variable {variable} holds no key: found blanks, line breaks or "
            "non-ASCII"
        )
    return key


def retry_after(value: str | None) -> float | None:
    """Reads the seconds that a Retry-After header asks to wait, a number or a date.

    None if there is no such wait.

    >>> retry_after("3")
    3.0
    """
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


def message_of(body: Any) -> str:
    """Returns the message of a body in one line: {"error": {"message": ...}}, {"detail": ...}.

    Any other body is returned whole, up to 300 characters.

    >>> message_of('{"error": {"message": "no such model"}}')
    'no such model'
    """
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
