"""The architecture of an encoder as frozen data, of which `build.build_encoder` makes functions."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Protocol, runtime_checkable

from embed_jax.encoders.heads import Head, Normalize
from embed_jax.encoders.latent import LatentAttention
from embed_jax.encoders.lexical import LexicalWeights
from embed_jax.encoders.vocabulary import Splade, TokenWeights
from embed_jax.encoders.weighted_layers import WeightedLayers
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY, lookup, unknown

ALL_LINEAR = "all-linear"


@runtime_checkable
class Backbone(Protocol):
    """Fields that the frozen dataclass of every family of backbones has."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @property
    def family(self) -> str:
        """The name in `registry.REGISTRY["backbone"]`."""

    @property
    def vocab_size(self) -> int:
        """The number of rows of the table of tokens."""

    @property
    def hidden_size(self) -> int:
        """D, the size of a token's state."""

    @property
    def num_layers(self) -> int:
        """The number of layers; 0 for a table of vectors."""


@dataclasses.dataclass(frozen=True)
class LoraSpec:
    """A low-rank adapter (Hu et al. 2021): x W + b becomes x W + b + scale (dropout(x) A) B.

    >>> LoraSpec(rank=8, alpha=16.0).scale
    2.0

    Attributes:
        rank: r, of A [in, r] and B [r, out].
        alpha: scale is alpha / r, or alpha / sqrt(r) with rsLoRA.
        dropout: rate, of the adapter's input, when a dropout key is given.
        targets: the linear maps of the layers, by the end of Hugging Face's name ("q_proj",
            "attention.output.dense"), by a regular expression of the whole name
            ("layers.0.self_attn.q_proj"), or "all-linear".
        rslora: rank-stabilised scale (Kalajdzievski 2023).
        dora: weight-decomposed (Liu et al. 2024, equation 5): the kernel is magnitude * (W + scale
            A B) / norm, where norm [out] is the length of each column of W + scale A B, treated as
            a constant in the backward pass (section 4.3).
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    dora: bool = False

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(f"an adapter's rank: expected 1 or more, found {self.rank}")
        if not 0 <= self.dropout < 1:
            raise InputError(
                f"an adapter's dropout: expected at least 0 and below 1, found {self.dropout}"
            )

    @property
    def scale(self) -> float:
        """The factor of A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


Vocabulary = Splade | TokenWeights | LexicalWeights


@dataclasses.dataclass(frozen=True)
class Branch:
    """One more output of an encoder, from the same pass of the backbone.

    >>> branch = Branch("multi_vector", "", (Normalize(),), skip_first=True)
    >>> branch.spec(find_shape("tiny")).heads
    (Normalize(),)

    Attributes:
        name: of the output; "dense" is the encoder's own.
        pooling: see `EncoderSpec`.
        heads: see `EncoderSpec`.
        vocabulary: see `EncoderSpec`.
        skip_first: whether the first token, [CLS], does not count.
    """

    name: str
    pooling: str = ""
    heads: tuple[Head, ...] = ()
    vocabulary: Vocabulary | None = None
    skip_first: bool = False

    def spec(self, backbone: Backbone) -> EncoderSpec:
        """Returns the architecture of an encoder that has this output only."""
        return EncoderSpec(backbone, self.pooling, self.heads, vocabulary=self.vocabulary)


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """The architecture of an encoder; hashable, and written with the model.

    >>> spec = EncoderSpec(find_shape("bert-base"), pooling="cls", heads=(Normalize(),))
    >>> spec.backbone.hidden_size
    768

    Attributes:
        backbone: a transformer's or a table's frozen dataclass; its `family` names the code in the
            registry.
        pooling: one of pooling.POOLINGS, or several joined by "+"; "": none, each token keeps its
            vector.
        heads: the heads after the pooling, in order. Two specs may share parameters: entries of
            heads that a spec does not name are ignored, which is how SimCSE's MLP is used in
            training only.
        lora: the low-rank adapter of the backbone's layers, or None.
        token_head: a head on the token states, of the last layer or of all, before the pooling; or
            None.
        vocabulary: a head that gives sparse embeddings, in place of pooling and heads; or None.
        branches: further outputs from the same pass; the encoder then gives {"dense": its own,
            and each branch's by its name}.
    """

    backbone: Backbone
    pooling: str = "mean"
    heads: tuple[Head, ...] = ()
    lora: LoraSpec | None = None
    token_head: LatentAttention | WeightedLayers | None = None
    vocabulary: Vocabulary | None = None
    branches: tuple[Branch, ...] = ()


def random_spec(
    shape_name: str, *, vocab_size: int = 0, pooling: str = "mean", normalize: bool = True
) -> EncoderSpec:
    """Returns the spec of a well-known shape, for runs that start from random parameters.

    `build_encoder(random_spec("tiny")).init(key)` makes the parameters.

    >>> spec = random_spec("bert-base", pooling="cls")
    >>> spec.backbone.num_layers, spec.pooling, spec.heads
    (12, 'cls', (Normalize(),))

    Args:
        shape_name: a name in the `shapes` of one of the registered families: "tiny", "bert-base",
            "modernbert-base", "llama3.2-1b", "static", ...
        vocab_size: the number of tokens; 0: the shape's own.
        pooling: one of pooling.POOLINGS, or several joined by "+".
        normalize: whether embeddings get length 1.

    Raises:
        InputError: for an unknown shape.
    """
    backbone = find_shape(shape_name)
    if vocab_size:
        backbone = dataclasses.replace(backbone, vocab_size=vocab_size)
    return EncoderSpec(backbone, pooling, (Normalize(),) if normalize else ())


def find_shape(name: str) -> Backbone:
    """Returns the backbone of a well-known shape; imports families only until one has it.

    >>> find_shape("minilm-l6").num_layers
    6

    Raises:
        InputError: for an unknown shape; the message lists the known ones.
    """
    for family in REGISTRY["backbone"]:
        shapes = lookup("backbone", family).shapes
        if name in shapes:
            return shapes[name]
    raise InputError(unknown("shape", name, known_shapes()))


def known_shapes() -> dict[str, Backbone]:
    """Returns the well-known shapes of all registered families by name."""
    return {
        name: shape
        for family in REGISTRY["backbone"]
        for name, shape in lookup("backbone", family).shapes.items()
    }
