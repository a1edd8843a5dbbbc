"""The default fields of each family of decoders, and the sizes of well-known models."""

from __future__ import annotations

import dataclasses

from embed_jax.encoders.decoder import FULL, SLIDING, DecoderConfig
from embed_jax.encoders.rope import Rope

WINDOW = 4096  # where config.json has no sliding_window
LLAMA_DEFAULT = DecoderConfig(rms_norm_eps=1e-6)
QWEN2_DEFAULT = dataclasses.replace(LLAMA_DEFAULT, family="qwen2", qkv_bias=True)
QWEN3_DEFAULT = dataclasses.replace(LLAMA_DEFAULT, family="qwen3", qk_norm=True)
GEMMA_DEFAULT = dataclasses.replace(
    LLAMA_DEFAULT,
    family="gemma",
    head_size=256,
    norm_offset=1.0,
    scale_embeddings=True,
    activation="gelu_pytorch_tanh",
    pad_token_id=0,
    tied=True,
)
GEMMA2_DEFAULT = dataclasses.replace(
    GEMMA_DEFAULT, family="gemma2", norm_after=True, query_scalar=256, softcap=50.0, window=WINDOW
)
GEMMA3_DEFAULT = dataclasses.replace(
    GEMMA2_DEFAULT,
    family="gemma3_text",
    qk_norm=True,
    softcap=None,
    rope=Rope(theta=1e6),
    local_rope=Rope(),
)

LLAMA3_ROPE = Rope(
    theta=500000.0,
    rope_type="llama3",
    factor=32.0,
    original_max_position_embeddings=8192,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
)
LLAMA2_7B = DecoderConfig()
LLAMA3_8B = DecoderConfig(
    vocab_size=128256,
    num_kv_heads=8,
    intermediate_size=14336,
    max_positions=8192,
    rope=Rope(theta=500000.0),
)
QWEN2_7B = dataclasses.replace(
    QWEN2_DEFAULT,
    vocab_size=152064,
    hidden_size=3584,
    num_layers=28,
    num_heads=28,
    num_kv_heads=4,
    intermediate_size=18944,
    max_positions=131072,
    rope=Rope(theta=1e6),
)
QWEN3_8B = dataclasses.replace(
    QWEN3_DEFAULT,
    vocab_size=151936,
    num_layers=36,
    num_kv_heads=8,
    intermediate_size=12288,
    max_positions=40960,
    rope=Rope(theta=1e6),
)
TINY = DecoderConfig(
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=16,
    intermediate_size=128,
    max_positions=512,
)

SHAPES = {
    "llama2-7b": LLAMA2_7B,
    "llama3-8b": LLAMA3_8B,
    "llama3.2-1b": dataclasses.replace(
        LLAMA3_8B,
        hidden_size=2048,
        num_layers=16,
        head_size=64,
        intermediate_size=8192,
        max_positions=131072,
        rope=LLAMA3_ROPE,
        tied=True,
    ),
    "sheared-llama-1.3b": dataclasses.replace(
        LLAMA2_7B,
        hidden_size=2048,
        num_layers=24,
        num_heads=16,
        num_kv_heads=16,
        intermediate_size=5504,
    ),
    "mistral-7b": DecoderConfig(
        family="mistral", num_kv_heads=8, intermediate_size=14336, max_positions=32768, window=4096
    ),
    "qwen2-1.5b": dataclasses.replace(
        QWEN2_7B,
        vocab_size=151936,
        hidden_size=1536,
        num_heads=12,
        num_kv_heads=2,
        intermediate_size=8960,
        tied=True,
    ),
    "qwen2-7b": QWEN2_7B,
    "qwen3-0.6b": dataclasses.replace(
        QWEN3_8B, hidden_size=1024, num_layers=28, num_heads=16, intermediate_size=3072, tied=True
    ),
    "qwen3-4b": dataclasses.replace(QWEN3_8B, hidden_size=2560, intermediate_size=9728, tied=True),
    "qwen3-8b": QWEN3_8B,
    "gemma-2b": dataclasses.replace(
        GEMMA_DEFAULT,
        vocab_size=256000,
        hidden_size=2048,
        num_layers=18,
        num_heads=8,
        num_kv_heads=1,
        intermediate_size=16384,
        max_positions=8192,
    ),
    "gemma2-2b": dataclasses.replace(
        GEMMA2_DEFAULT,
        vocab_size=256000,
        hidden_size=2304,
        num_layers=26,
        num_heads=8,
        num_kv_heads=4,
        intermediate_size=9216,
        max_positions=8192,
        layer_types=(SLIDING, FULL) * 13,
    ),
    "gemma3-300m": dataclasses.replace(
        GEMMA3_DEFAULT,
        vocab_size=262144,
        hidden_size=768,
        num_layers=24,
        num_heads=3,
        num_kv_heads=1,
        intermediate_size=1152,
        max_positions=2048,
        causal=False,
        window=257,
        layer_types=((SLIDING,) * 5 + (FULL,)) * 4,
    ),
    "decoder-tiny": TINY,
    "decoder-small": dataclasses.replace(
        TINY,
        hidden_size=256,
        num_layers=4,
        num_heads=8,
        num_kv_heads=4,
        head_size=32,
        intermediate_size=768,
    ),
}
