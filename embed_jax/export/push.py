"""Uploads a directory to the Hugging Face hub; this is the only file that writes to the hub."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, RunError, one_line

HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
REASONS = {
    401: "the token is not accepted; set HF_TOKEN to one that may write, from "
    "https://huggingface.co/settings/tokens",
    403: "the token may not write there",
    404: "no such organisation or repository, or the token does not see it",
    429: "too many requests; try again later",
}


def check_push(name: str) -> None:
    """Checks the repository's name and the token without asking the hub, before any work is done.

    Raises:
        InputError: the name is not OWNER/NAME, or there is no token.
    """
    from huggingface_hub import get_token

    if not re.fullmatch(HUB_NAME, name):
        raise InputError(f"--push-to-hub: expected OWNER/NAME, found {name!r}")
    if not get_token():
        raise InputError("--push-to-hub: no token; set HF_TOKEN, or run `hf auth login` once")


def push(
    directory: Path, name: str, *, private: bool = False, revision: str = "", message: str = ""
) -> str:
    """Uploads all files of a directory in one commit, and creates the repository if needed.

    Files of the repository that are not in the directory stay. The hub is that of HF_ENDPOINT, the
    token that of HF_TOKEN or `hf auth login`.

    Args:
        directory: the directory with the files.
        name: OWNER/NAME.
        private: whether a new repository is private; an existing one stays as it is.
        revision: the branch to write to, created if it does not exist; "": main.
        message: the commit's message; "": a standard message.

    Returns:
        The repository's address.

    Raises:
        InputError: the hub refuses the upload.
        RunError: the hub does not answer, or fails.
    """
    check_push(name)
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    with _raise_one_line_errors(name, api.endpoint):
        url = api.create_repo(name, private=private or None, exist_ok=True)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=directory,
            revision=revision or None,
            commit_message=message or "Export by embed-jax",
        )
    return str(url)


@contextlib.contextmanager
def _raise_one_line_errors(name: str, endpoint: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled:
        raise InputError("--push-to-hub: HF_HUB_OFFLINE is set, so nothing can be sent") from None
    except HfHubHTTPError as error:
        status = _status(error)
        if 400 <= status < 500:
            reason = REASONS.get(status) or one_line(error)[:300]
            raise InputError(
                f"--push-to-hub {name}: {endpoint} answers {status}: {reason}"
            ) from None
        raise RunError(
            f"--push-to-hub {name}: {endpoint} answers {status}: {one_line(error)[:300]}"
        ) from None
    # From the HTTP library, the upload's threads, or a file that cannot be read.
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise RunError(
            f"--push-to-hub {name}: {endpoint} cannot be written to ({reason})"
        ) from None


def _status(error: Any) -> int:
    return int(getattr(error.response, "status_code", 0) or 0)
