"""A language model over HTTP, in OpenAI's (chat completions) or Anthropic's (messages) form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embed_jax.remote.server import Failed, Server, message_of

INTERFACES = ("openai", "anthropic")
KEY_VARIABLES = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}


class ChatEndpoint(Server):
    """A server of a language model.

    Attributes:
        interface: "openai" or "anthropic".
        model: the model's name there.
        settings: more fields of a request: temperature, max_tokens, ...
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
        """Makes a Server that posts to `base_url` + the path of the interface.

        The path is OpenAI's "/chat/completions" or Anthropic's "/v1/messages".

        Args:
            interface: one of INTERFACES.
            base_url: stands before the path.
            model: the model's name there.
            settings: more fields of a request, such as temperature.
            key: sent with each request; None: no key.
            timeout: seconds for a whole answer.
        """
        if interface == "openai":
            super().__init__(base_url, "/chat/completions", key=key, timeout=timeout)
        else:
            headers = {"anthropic-version": "2023-06-01"}
            super().__init__(
                base_url,
                "/v1/messages",
                key=key,
                key_header="x-api-key",
                headers=headers,
                timeout=timeout,
            )
        self.interface, self.model, self.settings = interface, model, dict(settings)

    def complete(self, prompt: str) -> str:
        """Returns the model's answer to one request.

        Raises:
            Failed, InputError: see `post`; Failed too for an answer without text.
        """
        content = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            **self.settings,
        }
        answer = self.post(content)
        try:
            return self.without_key(answer_text(self.interface, answer))
        except Failed as error:
            raise Failed(self.without_key(str(error))) from None


def answer_text(interface: str, body: Any) -> str:
    """Returns the text of an answer's body.

    Args:
        interface: one of INTERFACES.
        body: the answer's JSON.

    Raises:
        Failed: if it contains no text, or was cut at the token limit.

    >>> answer_text("openai", {"choices": [{"message": {"content": "yes"}}]})
    'yes'
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
        raise Failed(f"the server's answer has no text in the {interface} form: {message_of(body)}")
    if why == cut:
        raise Failed("the answer was cut at the token limit (see --max-tokens)")
    return text
