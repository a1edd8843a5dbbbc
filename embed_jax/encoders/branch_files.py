"""Reads and writes heads beside a dense one in BGE-M3's layout.

A directory of such a model is that of a dense one for sentence-transformers, and has beside it

    sparse_linear.safetensors     weight [1, H], bias [1]: `lexical.LexicalWeights`
    colbert_linear.safetensors    weight [d, H], bias [d]: a vector of length 1 for each token

Where FlagEmbedding has written pickles (`sparse_linear.pt`), they are never opened: CONVERT is the
line that writes safetensors. The backbone's weights of such a model are a pickle too, so that a
reader of pickled tensors would be of no use by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.lexical import LexicalWeights
from embed_jax.encoders.spec import Branch, EncoderSpec
from embed_jax.encoders.vocabulary import VOCABULARY
from embed_jax.encoders.weights import open_safetensors, write_safetensors
from embed_jax.errors import InputError
from embed_jax.types import Params, param_dtype

STEMS = {"sparse": "sparse_linear", "multi_vector": "colbert_linear"}  # by the branch's name
FILES = {name: f"{stem}.safetensors" for name, stem in STEMS.items()}
CONVERT = (
    'python -c "import sys, torch; from safetensors.torch import save_file; '
    "[save_file(torch.load(f, weights_only=True), f[:-2] + 'safetensors') for f in sys.argv[1:]]\""
)


def has_branches(directory: Path) -> bool:
    """Tells whether a model's directory has files of heads beside the dense one."""
    return any((directory / file).is_file() for file in FILES.values())


def pickled_branches(directory: Path) -> list[str]:
    """Returns the pickles of heads that have no file of safetensors beside them."""
    return [
        f"{stem}.pt"
        for name, stem in STEMS.items()
        if (directory / f"{stem}.pt").is_file() and not (directory / FILES[name]).is_file()
    ]


def sparse_branch(unused: Sequence[int]) -> Branch:
    """Returns BGE-M3's sparse head, for which the tokens `unused` have no weight."""
    return Branch("sparse", vocabulary=LexicalWeights(tuple(unused)))


def multi_vector_branch(width: int, dim: int) -> Branch:
    """Returns BGE-M3's multi-vector head, from states of `width` numbers to vectors of `dim`."""
    linear = Dense(width, dim, activation="identity")
    return Branch("multi_vector", heads=(linear, Normalize()), skip_first=True)


def read_branches(
    directory: Path, width: int, unused: Sequence[int]
) -> tuple[tuple[Branch, ...], dict[str, Params]]:
    """Reads the heads beside a dense one, and their parameters by name.

    Args:
        directory: the model's directory.
        width: H, the size of the backbone's states.
        unused: tokens without a weight.

    Raises:
        InputError: for no such file, a damaged one, or tensors of other names or shapes.
    """
    branches: list[Branch] = []
    params: dict[str, Params] = {}
    for name, file in FILES.items():
        if not (directory / file).is_file():
            continue
        tensors = open_safetensors(directory / file)
        shapes = {key: value.shape for key, value in tensors.items()}
        dim = shapes.get("weight", (0,))[0] if name == "multi_vector" else 1
        if shapes != {"weight": (dim, width), "bias": (dim,)} or not dim:
            size = "d" if name == "multi_vector" else "1"
            raise InputError(
                f"{directory / file}: expected weight [{size}, {width}] and bias [{size}], found "
                f"{shapes}"
            )
        weight, bias = (
            np.array(tensors[key], param_dtype(tensors[key].dtype)) for key in ("weight", "bias")
        )
        own = {"kernel": np.ascontiguousarray(weight.T), "bias": bias}
        if name == "sparse":
            branches.append(sparse_branch(unused))
            params[name] = {"heads": {}, VOCABULARY: own}
        else:
            branches.append(multi_vector_branch(width, dim))
            params[name] = {"heads": {"0": own}}
    if not branches:
        raise InputError(
            f"{directory}: expected {' or '.join(FILES.values())} of a model with several heads, "
            "found none"
        )
    return tuple(branches), params


def write_branches(directory: Path, spec: EncoderSpec, params: Params) -> None:
    """Writes the heads beside a dense one.

    Args:
        directory: the model's directory.
        spec: the encoder's.
        params: of its branches, by name.

    Raises:
        InputError: for a branch that the layout has no file for.
    """
    for branch in spec.branches:
        width = spec.backbone.hidden_size
        if isinstance(branch.vocabulary, LexicalWeights):
            alike, own = (
                sparse_branch(branch.vocabulary.unused),
                params[branch.name].get(VOCABULARY),
            )
        else:
            dim = branch.heads[0].dim(width) if branch.heads else width
            alike = multi_vector_branch(width, dim)
            own = params[branch.name]["heads"].get("0")
        if branch != alike or own is None:
            raise InputError(f"{directory}: no file of BGE-M3's layout holds the head {branch}")
        tensors = {"weight": np.asarray(own["kernel"]).T, "bias": np.asarray(own["bias"])}
        write_safetensors(
            directory / FILES[branch.name],
            {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()},
        )
