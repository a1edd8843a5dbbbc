"""The loss over an example's own candidates."""

import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.losses.listwise import own_candidates
from embed_jax.parallel.world import local_world
from embed_jax.world import make_columns


def test_it_is_torchs_cross_entropy_of_each_list():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    columns = make_columns(rng.normal(size=(5, 7, 8)).astype(np.float32))
    present = np.ones((5, 7), bool)
    present[3:, 2] = False  # two negatives fewer
    present[1, 4] = False  # no positive: no lesson
    present[2:, 5] = False  # nothing to tell it from
    columns = columns.replace(present=jnp.asarray(present))
    values, weights, metrics = own_candidates.on_world(
        columns, local_world(columns), {}, temperature=0.1
    )
    assert list(weights) == [1, 1, 1, 1, 0, 0, 1]
    anchor, *candidates = torch.nn.functional.normalize(
        torch.tensor(np.asarray(columns.embeddings)), dim=-1
    )
    for i in np.flatnonzero(np.asarray(weights)):
        there = [candidates[k][i] for k in range(4) if present[k + 1, i]]
        logits = torch.stack([anchor[i] @ candidate for candidate in there]) / 0.1
        expected = torch.nn.functional.cross_entropy(logits[None], torch.tensor([0]))
        assert float(values[i]) == pytest.approx(float(expected), rel=1e-5)
        assert bool(metrics["accuracy"][i]) == bool(logits.argmax() == 0)
