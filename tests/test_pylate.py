"""Late interaction against PyLate 1.6, in its own environment (`bash .ci/pylate`)."""

import dataclasses
import json
import os
import subprocess

import numpy as np
import pytest

import embed_jax
from embed_jax.losses import distillation, in_batch
from embed_jax.xtr import xtr

from .test_late_interaction import (
    DOCUMENTS,
    EXPANDED,
    QUERIES,
    assert_same_gradients,
    make_model,
    make_tokenizer,
    on_world,
    values_and_gradients,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::embed_jax.errors.EmbedJaxWarning"),
    pytest.mark.skipif("PYLATE_PYTHON" not in os.environ, reason="needs PyLate, by itself"),
]
COLUMNS = [QUERIES, DOCUMENTS[:3], DOCUMENTS[1:]]
LABELS = np.array([[0.9, 0.1], [0.3, 0.5], [0.7, 0.6]], np.float32)
THIRD = [*DOCUMENTS[2:], DOCUMENTS[0]]
LABELS_OF_THREE = np.concatenate([LABELS, [[0.5], [0.1], [0.65]]], axis=1).astype(np.float32)
FOUND = [3, 12]  # tokens of all documents that a query's token finds, of XTR
PEER = """
import json, sys
import numpy as np, torch
from pylate import losses, models
from pylate.scores.xtr import XTRScores

task = json.loads(sys.argv[1])
model = models.ColBERT(task["model"], device="cpu")
arrays = {}
for side in ("query", "document"):
    encoded = model.encode(task[side], is_query=side == "query", show_progress_bar=False)
    arrays |= {f"{side}/{number}": vectors for number, vectors in enumerate(encoded)}
columns = task["columns"]
labels = torch.tensor(task["labels"])
# Padded alike, as documents are stacked; those of a query one after the other for distillation.
flat = [text for texts in zip(*columns[1:]) for text in texts]
cases = {
    "contrastive": (losses.Contrastive(model), columns),
    "distillation": (losses.Distillation(model, normalize_scores=False), [columns[0], flat]),
}
# Lists of three, as two scores of 0 and 1 have no gradient.
three = [text for texts in zip(*columns[1:], task["third"]) for text in texts]
normalised = {"distillation, normalised": (losses.Distillation(model), [columns[0], three])}
# Of no token is there another one as good, which PyLate would leave to chance.
apart = [columns[0][:2], columns[1][:2], columns[2][1:]]
for k in task["found"]:
    cases[f"xtr {k}"] = losses.Contrastive(model, score_metric=XTRScores(k=k)), apart
for name, (loss, texts) in [*cases.items(), *normalised.items()]:
    labels = torch.tensor(task["labels_of_three"] if name in normalised else task["labels"])
    features = [model.tokenize(each, is_query=not c, pad=c > 0) for c, each in enumerate(texts)]
    model.zero_grad()
    value = loss(features, labels)
    value.backward()
    arrays[f"loss/{name}"] = value.detach().numpy()
    for parameter, tensor in model.named_parameters():
        if tensor.grad is not None:
            arrays[f"gradient/{name}/{parameter}"] = tensor.grad.numpy()
model.save(task["saved"])
np.savez(task["output"], **arrays)
"""


def ask_pylate(directory, output):
    """Returns PyLate's vectors, losses and gradients of a model, and where PyLate saved it."""
    task = {
        "model": str(directory),
        "query": QUERIES,
        "document": DOCUMENTS,
        "columns": COLUMNS,
        "labels": LABELS.tolist(),
        "found": FOUND,
        "third": THIRD,
        "labels_of_three": LABELS_OF_THREE.tolist(),
        "saved": str(output / "saved"),
        "output": str(output / "arrays.npz"),
    }
    done = subprocess.run(
        [os.environ["PYLATE_PYTHON"], "-c", PEER, json.dumps(task)],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(output / "arrays.npz") as arrays:
        return dict(arrays), output / "saved"


@pytest.mark.parametrize("attend", [False, True])
def test_vectors_scores_losses_and_layout_are_pylates(tmp_path, attend):
    (tmp_path / "tokenizer").mkdir()
    texts = dataclasses.replace(EXPANDED, attend=attend)
    model = make_model(make_tokenizer(tmp_path / "tokenizer"), texts=texts)
    model.save(tmp_path / "model", "pylate")
    peer, saved = ask_pylate(tmp_path / "model", tmp_path)

    # PyLate reads our directory, and we read what PyLate writes.
    for ours in (model, embed_jax.load(saved)):
        encoded = {"query": ours.encode_query(QUERIES), "document": ours.encode_document(DOCUMENTS)}
        for side, vectors in encoded.items():
            for number, each in enumerate(vectors):
                np.testing.assert_allclose(each, peer[f"{side}/{number}"], atol=1e-5)
        expected = [
            [(peer[f"query/{q}"] @ peer[f"document/{d}"].T).max(axis=1).sum() for d in range(4)]
            for q in range(3)
        ]
        np.testing.assert_allclose(ours.similarity(*encoded.values()), expected, atol=1e-4)

    options = {"similarity": "maxsim", "temperature": 1.0}
    results = values_and_gradients(
        model,
        COLUMNS,
        {
            "contrastive": on_world(in_batch.info_nce, **options, mask_duplicates=False),
            "distillation": on_world(distillation.kl, **options),
        },
        LABELS,
    )
    normalised = on_world(distillation.kl, student_normalization="min_max", **options)
    results |= values_and_gradients(
        model, [*COLUMNS, THIRD], {"distillation, normalised": normalised}, LABELS_OF_THREE
    )
    apart = [COLUMNS[0][:2], COLUMNS[1][:2], COLUMNS[2][1:]]
    xtr_losses = {
        f"xtr {k}": on_world(
            in_batch.info_nce, similarity=xtr(k), temperature=1.0, mask_duplicates=False
        )
        for k in FOUND
    }
    results |= values_and_gradients(model, apart, xtr_losses, LABELS[:2])
    for name, (value, gradient) in results.items():
        expected = float(peer[f"loss/{name}"])
        assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-5), name
        prefix = f"gradient/{name}/"
        assert_same_gradients(
            gradient, {key: array for key, array in peer.items() if key.startswith(prefix)}
        )
