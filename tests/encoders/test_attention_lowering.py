"""Programs for GPU and TPU are lowered on CPU, with the attention that is taken there."""

import jax
import numpy as np
import pytest

from embed_jax.config import Optim
from embed_jax.data.pack import pack_batch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.losses.in_batch import info_nce
from embed_jax.parallel.gather import global_loss, sharded_encode
from embed_jax.parallel.mesh import make_mesh
from embed_jax.train.optim import make_optimizer
from embed_jax.train.step import init_state, make_train_step
from embed_jax.types import Batch

BACKENDS = {
    "cpu": ("cpu", "while"),
    "gpu": ("cuda", "__gpu$xla.gpu.triton"),
    "tpu": ("tpu", "tpu_custom_call"),
}


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


def tiny_encoder(shape, backend, **options):
    """Builds an encoder that only this backend has: equal ones are one, traced once."""
    spec = random_spec(shape, vocab_size=50 + list(BACKENDS).index(backend))
    return build_encoder(spec, compute_dtype="bfloat16", **options)


def check_lowering(backend, function, *arguments):
    platform, kernel = BACKENDS[backend]
    text = function.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert kernel in text, "attention of long rows is a kernel, or a loop over blocks"


@pytest.fixture(scope="module")
def batch():
    """Two pairs of long texts, in rows that are long enough for a kernel."""
    ids = [np.full(length, 5, np.int32) for length in (500, 40, 600, 30)]
    tokens, order = pack_batch([ids[:2], ids[2:]], groups=1, row_length=640)
    present = np.ones((1, 2, 2), bool)
    return Batch({"encoder": tokens}, present, np.zeros((*present.shape, 2), np.uint32), order)


def test_encoding_with_two_kinds_of_layers(batch, backend):
    encoder = tiny_encoder("modernbert-tiny", backend)
    params = jax.eval_shape(encoder.init, jax.random.key(0))
    check_lowering(backend, sharded_encode(encoder, make_mesh(1)), params, batch.tokens["encoder"])


def test_a_training_step_with_dropout(batch, backend):
    encoder = tiny_encoder("tiny", backend, remat="layer")
    optimizer = make_optimizer(Optim(learning_rate=1e-3), 10)

    def start():
        params = {"encoder": encoder.init(jax.random.key(0)), "loss": {}}
        return init_state(params, optimizer)

    step = make_train_step(global_loss(encoder, info_nce.on_world, make_mesh(1)), optimizer)
    check_lowering(backend, step, jax.eval_shape(start), batch, jax.random.key(0))
