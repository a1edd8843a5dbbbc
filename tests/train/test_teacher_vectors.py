"""Training with a teacher's embeddings from a file equals training with the teacher.

Files that do not fit are refused.
"""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from embed_jax.config import Experiment, Source
from embed_jax.config_file import override
from embed_jax.data.teacher import number_records, open_teacher_vectors
from embed_jax.encoders.shrink import add_pca
from embed_jax.errors import InputError
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, split_groups
from embed_jax.sentence import SentenceEncoder, load_sentence_encoder
from embed_jax.train.sources import read_with_teacher
from embed_jax.types import Batch, Encoder, TokenBatch

pytest.importorskip("grain")
ROOT = Path(__file__).parents[2]
SIZE, STEPS = 8, 4  # the student's embeddings have 32 numbers


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_model, sentences):
    """A directory with sentences, a teacher of another size, and its embeddings of them."""
    directory = tmp_path_factory.mktemp("teacher")
    (directory / "sentences.txt").write_text("\n".join(sentences[:40]) + "\n")
    model = load_sentence_encoder(str(tiny_model))
    points = np.random.default_rng(0).normal(size=(40, 32))
    spec, params = add_pca(model.spec, jax.device_get(model.params), points, SIZE)
    teacher = SentenceEncoder(spec, params, model.tokenizer)
    teacher.save(directory / "model")
    np.save(
        directory / "vectors.npy",
        load_sentence_encoder(str(directory / "model")).encode(sentences[:40]),
    )
    return directory


@pytest.fixture
def distill(monkeypatch, files, tiny_model):
    """`distill(workdir, **fields)`.

    Runs `experiments.distill` on the sentences; the teacher or its file is still to be set.
    """
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import distill

    def run(workdir, **fields):
        usual = {
            "model__name": str(tiny_model),
            "data__train": str(files / "sentences.txt"),
            "data__max_length": 40,
            "batch__size": 8,
            "batch__groups": 2,
            "batch__rows": 8,
            "loss__name": f"embedding_mse(projection={SIZE})",
            "optim__learning_rate": 1e-2,
            "train__steps": STEPS,
            "train__devices": 1,
            "checkpoint__every": 2,
            "checkpoint__keep": 9,
            "tracking__wandb": "disabled",
        }
        return distill.run(override(Experiment(), **usual | fields), Path(workdir))

    return run


@pytest.fixture
def from_file(distill, files):
    def run(workdir, vectors=files / "vectors.npy", **fields):
        return distill(workdir, data__teacher_vectors=str(vectors), **fields)

    return run


def tensors_of(workdir):
    return load_file(workdir / "model" / "model.safetensors")


def test_from_a_file_and_live_it_is_the_same_training_which_resumes_to_the_same_bits(
    distill, from_file, files, tiny_model, tmp_path
):
    vectors = tmp_path / "vectors.npy"
    shutil.copy(files / "vectors.npy", vectors)
    distill(tmp_path / "live", model__teacher=str(files / "model"))
    from_file(tmp_path / "file", vectors)
    live, ours = (tensors_of(tmp_path / name) for name in ("live", "file"))
    start = load_file(tiny_model / "model.safetensors")
    assert live.keys() == ours.keys() == start.keys(), "the projection is not saved"
    flat = [np.concatenate([tree[name].ravel() for name in sorted(tree)]) for tree in (live, ours)]
    assert np.linalg.norm(flat[0] - flat[1]) <= 1e-6 * np.linalg.norm(flat[0])
    moved = np.concatenate([start[name].ravel() for name in sorted(start)]) - flat[0]
    assert np.linalg.norm(moved) > 1e-3 * np.linalg.norm(flat[0])

    # Stopped after step 2.
    shutil.copytree(tmp_path / "file", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "model")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / str(STEPS))
    shutil.copytree(tmp_path / "stopped", tmp_path / "changed")
    from_file(tmp_path / "stopped", vectors)
    for name, tensor in tensors_of(tmp_path / "stopped").items():
        assert tensor.tobytes() == ours[name].tobytes(), name

    # One number of the file is another one.
    changed = np.load(vectors)
    changed[7, 3] += 1.0
    np.save(vectors, changed)
    with pytest.raises(
        InputError, match="train.teacher_vectors was .* a run is resumed unchanged"
    ) as refused:
        from_file(tmp_path / "changed", vectors)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["embedding_mse", "embedding_cosine"])
def test_devices_and_groups_give_the_same_gradient(name):
    """Examples have two texts, one of which is missing; the projection has a gradient too."""
    batch_size, dim, columns = 8, 6, 2
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 20, (columns, batch_size)).astype(np.int32)
    teacher = rng.normal(size=(batch_size, columns, 5)).astype(np.float32)
    present = np.ones((batch_size, columns), bool)
    present[3, 1] = False
    encoder = Encoder(
        lambda key: {"table": jax.random.normal(key, (20, dim))},
        lambda params, tokens, key, read=None: params["table"][tokens.token_ids[0]],
        None,
        dim,
        layers=(),
    )
    loss = build_loss(f"{name}(projection=5)")
    params = {
        "encoder": encoder.init(jax.random.key(0)),
        "loss": loss.init(dim, jax.random.key(1)),
    }

    def value(params, groups, devices):
        each = batch_size // groups
        dealt = ids.reshape(columns, groups, each).swapaxes(0, 1).reshape(groups, 1, -1)
        sentence = np.broadcast_to(np.arange(columns * each, dtype=np.int32), dealt.shape)
        tokens = TokenBatch(dealt, sentence, 0 * sentence, sentence >= 0, sentences=columns * each)
        hashes = np.arange(1, 2 * columns * batch_size + 1, dtype=np.uint32)
        batch = Batch(
            {"encoder": tokens},
            present.reshape(groups, each, columns).transpose(0, 2, 1),
            hashes.reshape(groups, columns, each, 2),
            np.arange(batch_size).reshape(groups, each),
            teacher=teacher.reshape(groups, each, columns, 5),
        )
        mesh = make_mesh(devices)
        return global_loss(encoder, loss, mesh)(params, split_groups(batch, mesh), None)[0]

    gradient = jax.jit(jax.value_and_grad(value), static_argnums=(1, 2))
    result = [jax.tree.leaves(gradient(params, *split)) for split in ((1, 1), (4, 1), (4, 4))]
    students = params["encoder"]["table"][ids.T] @ params["loss"]["kernel"] + params["loss"]["bias"]
    if name == "embedding_mse":
        expected = np.mean((np.asarray(students) - teacher)[present] ** 2)
        assert float(result[0][0]) == pytest.approx(expected, rel=1e-5)
    for other in result[1:]:
        for ours, reference in zip(other, result[0], strict=True):
            np.testing.assert_allclose(
                ours, reference, rtol=0, atol=1e-6 * jnp.abs(reference).max()
            )


def test_rows_are_found_by_order_or_by_id(files, tmp_path):
    vectors = np.load(files / "vectors.npy")
    records = [{"text": f"text {n}"} for n in range(40)]
    by_order = open_teacher_vectors(str(files / "vectors.npy"), num_records=40)
    assert isinstance(by_order.vectors.base, np.memmap) or isinstance(by_order.vectors, np.memmap)
    for numbered in (number_records(records), number_records(tuple(records))):
        assert len(numbered) == 40
        np.testing.assert_array_equal(by_order(numbered[5:][2]), vectors[7:8])
    order = np.random.default_rng(0).permutation(40)
    np.save(tmp_path / "shuffled.npy", vectors[order].astype(np.float16))
    (tmp_path / "ids.txt").write_text("\n".join(f"id{n}" for n in order) + "\n")
    by_id = open_teacher_vectors(str(tmp_path / "shuffled.npy"), str(tmp_path / "ids.txt"))
    np.testing.assert_array_equal(by_id({"id": "id7"}), vectors[7:8].astype(np.float16))
    assert by_id({"id": "id7"}).dtype == np.float32
    with pytest.raises(InputError, match="id 'gone' has no vector in .*shuffled.npy"):
        by_id({"id": "gone"})


def test_records_left_out_move_no_row(files, sentences, tmp_path):
    settings = override(
        Experiment(),
        data__train=str(files / "sentences.txt"),
        data__teacher_vectors=str(files / "vectors.npy"),
        data__limit=10,
    ).data
    records, vectors = read_with_teacher(settings)
    assert len(records) == 10
    expected = np.load(files / "vectors.npy")
    np.testing.assert_array_equal(vectors(records[9]), expected[9:10])
    np.testing.assert_array_equal(vectors([*records][3:][0]), expected[3:4])


def save(path, array):
    np.save(path, array)
    return str(path)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((39, 8), np.float32), "expected 40 rows, one for each record, found 39"),
        (
            np.zeros((40, 8), np.int8),
            r"expected floats \[records, size\] or .*found int8 \[40, 8\]",
        ),
        (np.zeros(40, np.float32), r"expected floats .*found float32 \[40\]"),
        (np.zeros((40, 2, 8), np.float32), "expected vectors of 1 texts a record, found 2"),
        (np.zeros((40, 9), np.float32), "expected embeddings of size 8, found 9"),
    ],
)
def test_a_file_of_other_vectors_is_refused_in_one_line(from_file, tmp_path, array, message):
    with pytest.raises(InputError, match=message) as refused:
        from_file(tmp_path / "run", save(tmp_path / "vectors.npy", array))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model__teacher": "MODEL"}, "config.data.teacher_vectors: not beside model.teacher="),
        ({"data__validation_split": "test"}, "config.data.teacher_vectors: of training records"),
        ({"loss__name": "covariance"}, "config.data.teacher_vectors: the loss 'covariance' has no"),
        ({"data__teacher_ids": "gone.txt"}, "gone.txt: no such file"),
        ({"data__teacher_vectors": "gone.npy"}, "gone.npy: no such file"),
        ({"data__teacher_vectors": "", "data__teacher_ids": "x"}, "needed by teacher_ids='x'"),
        ({"data__teacher_vectors": ""}, "config.model.teacher: the loss 'embedding_mse.*needs a"),
    ],
)
def test_settings_that_exclude_each_other_are_one_line(distill, files, tmp_path, fields, message):
    fields = {name: str(files / "model") if v == "MODEL" else v for name, v in fields.items()}
    fields = {"data__teacher_vectors": str(files / "vectors.npy"), **fields}
    with pytest.raises(InputError, match=message) as refused:
        distill(tmp_path / "run", **fields)
    assert "\n" not in str(refused.value)


def test_data_sets_of_a_mixture_have_their_own_files(files, sentences, tmp_path, monkeypatch):
    """Sizes must agree; a source without a file says which field is missing."""
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import distill

    config = Experiment()
    vectors = str(files / "vectors.npy")
    pairs = [{"anchor": sentences[n], "positive": sentences[n + 1]} for n in range(0, 16, 2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    both = save(tmp_path / "pairs.npy", np.load(vectors)[:16].reshape(8, 2, SIZE))
    config.mixture.sources.a = Source(
        str(files / "sentences.txt"), columns="text", teacher_vectors=vectors
    )
    config.mixture.sources.b = Source(str(tmp_path / "pairs.jsonl"), teacher_vectors=both)
    sources = distill.read_data(config)
    result = sources["b"].fields.teacher(sources["b"].records[2])
    np.testing.assert_array_equal(result, np.load(vectors)[4:6])
    assert sources["a"].fields.teacher(sources["a"].records[2]).shape == (1, SIZE)
