"""Other libraries that encode texts, each in its own process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_jax.errors import InputError, RunError, require, warn

from . import peer_process

if TYPE_CHECKING:
    from embed_jax.sentence import SentenceEncoder

PEER = "sentence-transformers"
# What to install for each. sentence-transformers encodes ONNX and OpenVINO by Optimum, whose
# releases need older versions of transformers than this package does.
PEERS = {
    PEER: "sentence-transformers",
    "sentence-transformers:bfloat16": "sentence-transformers",
    "sentence-transformers:compile": "sentence-transformers",
    "sentence-transformers:onnx": "sentence-transformers[onnx]",
    "sentence-transformers:openvino": "sentence-transformers[openvino]",
    "fastembed": "fastembed",
    "static": "sentence-transformers",
}


def peer_autocast(device: str, dtype: str) -> Any:
    """Returns the context in which torch computes a forward pass in a dtype, as trainers do.

    The backward pass stays outside, and computes each operation in the dtype of its forward pass.

    Args:
        device: "cpu" or "cuda".
        dtype: "float32" or "bfloat16".
    """
    require("torch")
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")


def load_peer(directory: Path) -> Any:
    """Returns a saved model in sentence-transformers in this process, on a GPU if there is one."""
    require("torch")
    require("sentence_transformers")
    import logging

    import torch
    from sentence_transformers import SentenceTransformer

    logging.disable(logging.WARNING)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return SentenceTransformer(str(directory), device=device)


def as_peer(model: SentenceEncoder) -> Any:
    """Returns the same model in sentence-transformers."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        return load_peer(Path(folder) / "model")


@contextlib.contextmanager
def start_peers(
    model: SentenceEncoder,
    names: Sequence[str],
    python: str | None = None,
    *,
    bfloat16: bool = False,
) -> Iterator[dict[str, Callable[[list[str]], None]]]:
    """Starts processes that hold the same model in other libraries, until the block ends.

    Args:
        model: of which a copy is given to them.
        names: some of PEERS.
        python: the interpreter; None: this one.
        bfloat16: whether sentence-transformers computes in bfloat16 under its plain name, too.

    Yields:
        Functions by name that encode texts there, and return when it is done. One that is not
        installed there is left out with a warning.

    Raises:
        InputError: nothing of `names` is installed there.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        functions: dict[str, Callable[[list[str]], None]] = {}
        missing = []
        for name in names:
            directory = _write_model(model, folder, name)
            variant = f"{name}:bfloat16" if bfloat16 and name == "sentence-transformers" else name
            peer = Peer(variant, directory, python or sys.executable)
            stack.callback(peer.close)
            if peer.is_installed:
                functions[name] = peer.encode
            else:
                missing.append(
                    f"--against {name}: cannot be used in {python or 'this environment'}: "
                    f'pip install "{PEERS[name]}" ({peer.message})'
                )
        if names and not functions:
            raise InputError("; ".join(missing))
        for message in missing:
            warn(message)
        yield functions


def _write_model(model: SentenceEncoder, folder: Path, name: str) -> Path:
    """Returns a directory with the model; for FastEmbed its ONNX file is there too."""
    with_onnx = name == "fastembed"
    directory = folder / ("onnx" if with_onnx else "model")
    if not directory.exists():
        model.save(directory)
        if with_onnx:
            require("onnx")
            from embed_jax.export.onnx import write_onnx

            write_onnx(model, directory / peer_process.ONNX_FILE)
            file = directory / "tokenizer_config.json"  # FastEmbed cuts texts where this file says
            settings = json.loads(file.read_text()) | {"model_max_length": model.max_length}
            file.write_text(json.dumps(settings))
    return directory


class Peer:
    """A process that has a model loaded, and encodes texts when it is told to.

    Attributes:
        is_installed: whether its library is there, and has loaded the model.
        message: what the process said of a library that is not.
    """

    def __init__(self, name: str, directory: Path, python: str):
        self.name = name
        self._errors = tempfile.TemporaryFile(mode="w+")
        # -P: the modules beside the script are not to be found by its libraries.
        line = [python, "-P", peer_process.__file__, name, str(directory)]
        try:
            self._process = subprocess.Popen(
                line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        except OSError as error:
            self._errors.close()
            raise InputError(f"--peer-python: {python}: {error.strerror}") from None
        answer = self._answer()
        self.is_installed = "missing" not in answer
        self.message = answer.get("missing", "")

    def encode(self, texts: list[str]) -> None:
        """Encodes texts there."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(texts) + "\n")
        self._process.stdin.flush()
        self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(peer_process.ANSWER):
                return json.loads(line.removeprefix(peer_process.ANSWER))
        self._errors.seek(0)
        last = (self._errors.read().strip().splitlines() or ["nothing"])[-1]
        raise RunError(f"--against {self.name}: the process ended: {last}")
