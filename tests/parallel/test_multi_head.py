"""Heads trained together have the same loss and gradient on any devices, in groups and forms."""

import dataclasses

import jax
import numpy as np

from embed_jax.encoders.branch_files import multi_vector_branch, sparse_branch
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, split_groups

from .test_sparse import QUICKLY, VOCAB, assert_same, make_batch


def test_self_distillation_on_one_and_on_four_devices():
    spec = random_spec("tiny", vocab_size=VOCAB, pooling="cls")
    branches = sparse_branch((0,)), multi_vector_branch(spec.backbone.hidden_size, 8)
    backbone = dataclasses.replace(spec.backbone, num_layers=1)
    spec = dataclasses.replace(spec, backbone=backbone, branches=branches)
    encoder = build_encoder(spec, unroll=1, vectors_per_text=12)
    params = encoder.init(jax.random.key(0))
    params["backbone"]["embeddings"]["token"] *= 20.0  # texts are told apart
    loss = build_loss("self_distillation", {"temperature": 0.5})

    def gradient(devices, groups, form):
        mesh = make_mesh(devices)
        objective = global_loss(encoder, loss, mesh, form=form)
        step = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICKLY)
        trained = {"encoder": params, "loss": {}}
        batch = split_groups(make_batch(groups), mesh)
        (value, (metrics, _)), gradient = step(trained, batch, None, {})
        assert {f"distill/{head}" for head in ("dense", "sparse", "multi_vector")} <= set(metrics)
        branches = gradient["encoder"]["branches"]
        assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(branches))
        return value, gradient["encoder"]

    assert_same(gradient(4, 4, "ring"), gradient(1, 1, "dense"), "ring")
