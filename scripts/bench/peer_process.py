"""The process of another library: loads a model, and encodes lists of texts from standard input.

`python peer_process.py NAME DIRECTORY`, started by `peers.Peer` in any environment: it imports
nothing of this package.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWER = "bench: "  # how its answers begin, among what libraries print
ONNX_FILE = "model.onnx"
STATIC_DIM = 256
OPTIMUM = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel.openvino"}


def load_peer(name: str, directory: Path) -> Callable[[list[str]], Any]:
    """Returns a function that encodes texts, all of them in one call.

    Args:
        name: one of `peers.PEERS`, or with ":bfloat16".
        directory: a model in sentence-transformers' layout; for FastEmbed with an ONNX file.
    """
    library, _, variant = name.partition(":")
    if library == "fastembed":
        return load_fastembed(directory)
    if variant in OPTIMUM:
        importlib.import_module(OPTIMUM[variant])  # which sentence-transformers does late
    import torch
    from sentence_transformers import SentenceTransformer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"device": device}
    if library == "static":
        options["modules"] = [load_static(directory)]
    elif variant in OPTIMUM:
        options |= {"model_name_or_path": str(directory), "backend": variant}
        if variant == "onnx" and device == "cpu":
            options["model_kwargs"] = {"provider": "CPUExecutionProvider"}
    else:
        options["model_name_or_path"] = str(directory)
    model = SentenceTransformer(**options)
    if variant in ("bfloat16", "compile"):
        model = model.bfloat16()
    if variant == "compile":
        model[0].auto_model = torch.compile(model[0].auto_model, dynamic=True)
    return lambda texts: model.encode(texts, show_progress_bar=False)


def load_static(directory: Path) -> Any:
    """Returns a table of random vectors for the model's tokenizer: speed depends on no weights."""
    import numpy as np
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    shape = tokenizer.get_vocab_size(), STATIC_DIM
    table = np.random.default_rng(0).standard_normal(shape, np.float32)
    return StaticEmbedding(tokenizer, embedding_weights=table)


def load_fastembed(directory: Path) -> Callable[[list[str]], Any]:
    """Returns FastEmbed's function of a model whose file gives pooled vectors."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        "bench",
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(hf="bench/bench"),
        dim=1,  # it is only reported
        model_file=ONNX_FILE,
    )
    model = TextEmbedding("bench", specific_model_path=str(directory))

    return lambda texts: list(model.embed(texts))


def answer(content: dict[str, Any]) -> None:
    print(ANSWER + json.dumps(content), flush=True)


def main() -> None:
    try:
        encode = load_peer(sys.argv[1], Path(sys.argv[2]))
    except Exception as error:  # also of a library whose version does not fit another's
        answer({"missing": " ".join(f"{type(error).__name__}: {error}".split())})
        return
    answer({})
    for line in sys.stdin:
        encode(json.loads(line))
        answer({})


if __name__ == "__main__":
    main()
