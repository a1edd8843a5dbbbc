"""Latent attention: token states read a trained dictionary before they are pooled (NV-Embed)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.encoders.layers import LayerNormalization, Linear, activation, apply_module
from embed_jax.errors import InputError
from embed_jax.types import Params

EPS = 1e-5  # torch's, which no file changes
STDDEV = 0.02
SHARDING = ((r"token_head/\w+/kernel", ("fsdp", None)),)


@dataclasses.dataclass(frozen=True)
class LatentAttention:
    r"""Attention of each token's state over r trained latents, and an MLP after it.

    "NV-Embed: Improved Techniques for Training LLMs as Generalist Embedding Models" (Lee et al.
    2024, section 3.1). The token states are the queries, the latents the keys and values. For a
    token's state x [D] and the latents L [r, D], with H heads of size d:

        q = norm(x) W_q,  K = norm'(L) W_k,  V = norm'(L) W_v     no biases, [D, H d] each
        x <- x + concat_h(softmax(q_h K_h^T / sqrt(d)) V_h) W_o   no bias, [H d, D]
        (u, g) = norm''(x) W_1 + b_1                              [D, 2 M], M = 4 D
        x <- x + (u * gelu(g)) W_2 + b_2                          [M, D]

    The resulting states are pooled, by their mean in the paper. Tokens do not see each other here,
    so neither packing nor padding matters. The paper's text has the attention and "an MLP of two
    linear maps with a GELU between"; norms, residuals and the gate of the MLP are those of the code
    that its authors published, and so are the tensors' names in files. This was not compared with
    NV-Embed's own weights.

    >>> head = LatentAttention(width=8, latents=4, heads=2)
    >>> params = head.init(jax.random.key(0))
    >>> head.apply(params, jnp.ones((1, 3, 8))).shape
    (1, 3, 8)

    Attributes:
        width: D, the size of the token states.
        latents: r, the number of latents.
        heads: H, the number of heads.
        head_size: d; 0: D / H. NV-Embed has 4096, its D.
        mlp_size: M; 0: 4 D.
    """

    width: int
    latents: int = 512
    heads: int = 8
    head_size: int = 0
    mlp_size: int = 0

    def __post_init__(self):
        for name in ("width", "latents", "heads"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"latent attention: {name}: expected 1 or more, found {getattr(self, name)}"
                )
        if not self.head_size and self.width % self.heads:
            raise InputError(
                f"latent attention: heads: expected a divisor of the width {self.width}, or a "
                f"head_size, found {self.heads}"
            )

    @property
    def size(self) -> int:
        """d, a head's size."""
        return self.head_size or self.width // self.heads

    @property
    def hidden(self) -> int:
        """M, the MLP's size."""
        return self.mlp_size or 4 * self.width

    def init(self, key: PRNGKeyArray) -> Params:
        """Draws latents of variance 1 and linear maps of standard deviation 0.02, float32."""
        keys = iter(jax.random.split(key, 7))
        inner = self.heads * self.size
        shapes = {
            "query": (self.width, inner),
            "key": (self.width, inner),
            "value": (self.width, inner),
        }
        shapes |= {
            "out": (inner, self.width),
            "up": (self.width, 2 * self.hidden),
            "down": (self.hidden, self.width),
        }
        params = {
            name: {"kernel": STDDEV * jax.random.normal(next(keys), shape)}
            for name, shape in shapes.items()
        }
        for name in ("up", "down"):
            params[name]["bias"] = jnp.zeros(shapes[name][1])
        for name in ("norm", "latents_norm", "mlp_norm"):
            params[name] = {"scale": jnp.ones(self.width), "bias": jnp.zeros(self.width)}
        return params | {"latents": jax.random.normal(next(keys), (self.latents, self.width))}

    def apply(self, params: Params, hidden: Float[Array, "R T D"]) -> Float[Array, "R T D"]:
        """Returns the states to pool, in the dtype of `hidden`; norms and softmax in float32."""
        dtype = hidden.dtype

        def linear(name: str, x: Float[Array, "N I"], bias: bool = False) -> Float[Array, "N O"]:
            layer = Linear(params[name]["kernel"].shape[-1], dtype, STDDEV, use_bias=bias)
            return apply_module(layer, params[name], x)

        def norm(name: str, x: Float[Array, "N D"]) -> Float[Array, "N D"]:
            return apply_module(LayerNormalization(EPS, dtype), params[name], x)

        def split(x: Float[Array, "N I"]) -> Float[Array, "H N d"]:
            return x.reshape(-1, self.heads, self.size).swapaxes(0, 1)

        x = hidden.reshape(-1, self.width)
        latents = norm("latents_norm", params["latents"])
        query, key, value = (
            split(linear(name, side))
            for name, side in (("query", norm("norm", x)), ("key", latents), ("value", latents))
        )
        scores = (
            jnp.matmul(query, key.swapaxes(1, 2), preferred_element_type=jnp.float32)
            * self.size**-0.5
        )
        read = jnp.matmul(jax.nn.softmax(scores, axis=-1).astype(dtype), value)
        x = x + linear("out", read.swapaxes(0, 1).reshape(len(x), -1))
        up, gate = jnp.split(linear("up", norm("mlp_norm", x), bias=True), 2, axis=-1)
        return (x + linear("down", up * activation("gelu")(gate), bias=True)).reshape(hidden.shape)


def latent_attention(
    latents: int = 512, heads: int = 8, head_size: int = 0, mlp_size: int = 0
) -> Callable[[int], LatentAttention]:
    """Returns `width -> LatentAttention`, for config files, which do not know the model's width."""
    return functools.partial(
        LatentAttention, latents=latents, heads=heads, head_size=head_size, mlp_size=mlp_size
    )
