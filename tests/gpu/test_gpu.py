"""Checks of what only a GPU can show; they skip without one.

    bash .ci/gpu

prints what was measured as a table. The code of the checks also runs on CPU, with XLA's attention
in place of cuDNN's, so that it cannot break unseen (`test_the_checks_run_without_a_gpu`).
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from embed_jax.encoders.attention import attention
from embed_jax.encoders.attention_mask import make_mask
from embed_jax.types import TokenBatch

ROWS, SLOTS, HEADS, SIZE = 4, 128, 8, 64
PADDING = 1000  # the sentence of padding
MASKS = {
    "packed": {},
    "causal": {"causal": True},
    "window": {"windows": (16,)},
}


def packed_positions() -> tuple[np.ndarray, np.ndarray]:
    """Returns sentence and position of rows that hold sentences of 3 to 40 tokens, then padding."""
    rng = np.random.default_rng(0)
    sentence = np.full((ROWS, SLOTS), PADDING, np.int32)
    position = np.zeros((ROWS, SLOTS), np.int32)
    for row in range(ROWS):
        start, number = 0, row * 100
        while (length := int(rng.integers(3, 41))) <= SLOTS - start:
            sentence[row, start : start + length] = number
            position[row, start : start + length] = np.arange(length)
            start, number = start + length, number + 1
    return sentence, position


def relative_error(tree, reference) -> float:
    flat, expected = (
        np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(values)])
        for values in (tree, reference)
    )
    return float(np.linalg.norm(flat - expected) / np.linalg.norm(expected))


def attention_errors(implementation: str, mask: dict, key_heads: int) -> dict[str, float]:
    """Returns relative errors of bfloat16 attention and its gradient against float32's.

    Each divided by the error of XLA's bfloat16 attention, which rounds the same inputs.
    """
    rng = np.random.default_rng(1)
    shapes = {"query": HEADS, "key": key_heads, "value": key_heads}
    inputs = {
        name: jnp.asarray(rng.normal(size=(ROWS, SLOTS, heads, SIZE)), jnp.bfloat16)
        for name, heads in shapes.items()
    }
    sentence, position = packed_positions()
    tokens = TokenBatch(sentence, sentence, position, sentence < PADDING, PADDING)
    made = make_mask(tokens, dense=True, **mask)
    cotangent = jnp.asarray(rng.normal(size=(ROWS, SLOTS, HEADS, SIZE)), jnp.float32)
    cotangent *= (sentence < PADDING)[..., None, None]  # what comes out at padding is never used

    def output_and_gradient(inputs, implementation):
        def total(inputs):
            out = attention(**inputs, mask=made, implementation=implementation)
            return jnp.sum(out.astype(jnp.float32) * cotangent), out * (cotangent != 0)

        (_, out), gradient = jax.value_and_grad(total, has_aux=True)(inputs)
        return out, gradient

    compute = jax.jit(output_and_gradient, static_argnums=1)
    with jax.default_matmul_precision("highest"):
        exact = compute(jax.tree.map(lambda x: x.astype(jnp.float32), inputs), "xla")
    xla, other = compute(inputs, "xla"), compute(inputs, implementation)
    return {
        name: relative_error(other[index], exact[index]) / relative_error(xla[index], exact[index])
        for index, name in enumerate(("output", "gradient"))
    }


@pytest.fixture
def train(tmp_path, tiny_tokenizer, sentences):
    """`train(name, **fields) -> (lines of metrics, weights)` of four steps of SimCSE."""
    from embed_jax.config import Experiment
    from embed_jax.config_file import override
    from experiments import simcse

    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")

    def run(name: str, **fields):
        defaults = {
            "model.name": "random:tiny",
            "model.tokenizer": str(tiny_tokenizer),
            "data.train": str(path),
            "data.max_length": 32,
            "batch.size": 16,
            "batch.groups": 2,
            "train.steps": 4,
            "train.devices": 1,
            "optim.learning_rate": 1e-3,
            "tracking.wandb": "disabled",
        }
        fields = {name.replace(".", "__"): value for name, value in (defaults | fields).items()}
        config = override(Experiment(), **fields)
        workdir = tmp_path / name
        simcse.run(config, workdir)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
        return lines, load_file(workdir / "model" / "model.safetensors")

    return run


def check_bfloat16_step(train, report):
    exact, _ = train("float32")
    rounded, _ = train("bfloat16", **{"model.compute_dtype": "bfloat16"})
    for field, limit in (
        ("loss", 2e-2),
        ("grad_norm", 5e-2),
    ):  # bfloat16 has 8 bits: 4e-3 a product
        error = abs(rounded[0][field] - exact[0][field]) / abs(exact[0][field])
        report(f"bfloat16 step, {field}, relative", error, limit)


def check_deterministic(train, report):
    (_, first), (_, second) = (
        train(name, **{"train.deterministic": True}) for name in ("first", "second")
    )
    different = sum(first[name].tobytes() != second[name].tobytes() for name in first)
    report("deterministic mode, tensors that differ", different, 0)


def check_fsdp(train, report):
    _, plain = train("plain")
    for gather in ("layer", "once"):
        _, split = train(gather, **{"train.fsdp": 1, "train.fsdp_gather": gather})
        report(f"fsdp_gather={gather}, weights", relative_error(split, plain), 1e-6)


def check_encoding(tiny_model, sentences, report):
    import embed_jax

    model = embed_jax.load(str(tiny_model))
    vectors = model.encode(sentences, normalize_embeddings=True)
    one_by_one = np.stack([model.encode(text, normalize_embeddings=True) for text in sentences[:8]])
    # TensorFloat-32 has 10 bits: 1e-3 a product.
    report("encode, packed against one by one", relative_error(vectors[:8], one_by_one), 5e-3)
    with jax.default_matmul_precision("highest"):
        exact = embed_jax.load(str(tiny_model)).encode(sentences, normalize_embeddings=True)
    report("encode, against highest precision", relative_error(vectors, exact), 5e-3)
    half = embed_jax.load(str(tiny_model), compute_dtype="bfloat16")
    rounded = half.encode(sentences, normalize_embeddings=True)
    report("encode in bfloat16", relative_error(rounded, exact), 5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("key_heads", [HEADS, 2], ids=["heads", "grouped"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("implementation", ["cudnn", "pallas"])
def test_attention_errs_no_more_than_xlas(implementation, mask, key_heads, report):
    for quantity, ratio in attention_errors(implementation, MASKS[mask], key_heads).items():
        report(f"{implementation}'s error / XLA's, {quantity}", ratio, 2.0)


@pytest.mark.gpu
def test_a_step_in_bfloat16_is_near_one_in_float32(train, report):
    check_bfloat16_step(train, report)


@pytest.mark.gpu
def test_deterministic_mode_repeats_the_bits(train, report):
    check_deterministic(train, report)


@pytest.mark.gpu
def test_fsdp_on_one_device_changes_nothing(train, report):
    check_fsdp(train, report)


@pytest.mark.gpu
def test_the_encode_path(tiny_model, sentences, report):
    check_encoding(tiny_model, sentences, report)


def test_the_checks_run_without_a_gpu(train, report):
    mask = {"causal": True, "windows": (16,)}
    for quantity, ratio in attention_errors("blocks", mask, 2).items():
        report(f"error / XLA's, {quantity}", ratio, 2.0)
    check_bfloat16_step(train, report)
