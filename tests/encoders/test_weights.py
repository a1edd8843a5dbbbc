"""Weights are read in slices straight onto a mesh, keep bfloat16, and are written in shards.

Damaged files are refused before anything is read.
"""

import dataclasses
import json
import os
import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import embed_jax
from embed_jax.encoders.bert import BertConfig
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.encoders.heads import Dense, LayerNorm, Normalize
from embed_jax.encoders.read import read_model
from embed_jax.encoders.spec import EncoderSpec, known_shapes, random_spec
from embed_jax.encoders.static import StaticConfig
from embed_jax.encoders.weights import open_tensors, read_tensors, write_safetensors, write_tensors
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError
from embed_jax.parallel.loading import by_rules, sharded_put
from embed_jax.parallel.mesh import make_mesh

QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
SLOW = pytest.mark.slow
FAMILIES = [
    "tiny",
    "nomic-tiny",
    "deberta-tiny",
    "gte-tiny",
    "t5-tiny",
    "decoder-tiny",
    "modernbert-tiny",
    pytest.param("mpnet", marks=SLOW),
    pytest.param("electra", marks=SLOW),
]


class NoTokenizer:
    def save(self, directory):
        pass


def to_bfloat16(directory, out):
    """Copies a model's directory with tensors, also those of heads, in bfloat16."""
    shutil.copytree(directory, out)
    for path in out.rglob("model.safetensors"):
        write_safetensors(
            path, {name: x.astype(jnp.bfloat16) for name, x in load_file(path).items()}
        )
    return out


def numbers(tree):
    """Returns float32 copies of a tree's leaves."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)


# ---- slices


@pytest.mark.parametrize(
    "name", ["bert", "mpnet", "nomic_bert"]
)  # the last has fused tensors in its file
def test_slices_are_those_of_the_whole_and_own_their_memory(name, torch_models):
    directory = torch_models[name][1]
    whole = read_model(directory).params
    rng = np.random.default_rng(0)
    seen = []

    def put(path, shape, dtype, read):
        seen.append(path)
        leaf = read((slice(None),) * len(shape))
        assert leaf.shape == shape and leaf.dtype == dtype == np.float32
        for _ in range(4):
            bounds = [sorted(rng.choice(size + 1, 2, replace=False)) for size in shape]
            index = tuple(slice(first, last) for first, last in bounds)
            part = read(index)
            np.testing.assert_array_equal(part, leaf[index])
            part[...] = np.nan  # its own memory, not the file's pages
            np.testing.assert_array_equal(read(index), leaf[index])
        return leaf

    params = read_model(directory, put=put).params
    jax.tree.map(np.testing.assert_array_equal, params, whole)
    assert len(seen) == len(jax.tree.leaves(whole["backbone"])) and all(
        path.startswith("backbone/") for path in seen
    )


def test_opened_tensors_are_those_of_the_file_whatever_their_dtype(tmp_path):
    rng = np.random.default_rng(0)
    dtypes = [
        "bool",
        *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)),
        "f2",
        "f4",
        "f8",
        jnp.bfloat16,
    ]
    tensors = {f"{i}": rng.integers(0, 2, (3, i)).astype(dtype) for i, dtype in enumerate(dtypes)}
    tensors["scalar"] = np.float32(rng.normal())
    save_file(
        {name: np.asarray(value) for name, value in tensors.items()}, tmp_path / "model.safetensors"
    )
    for result in (open_tensors(tmp_path), read_tensors(tmp_path)):
        assert set(result) == set(tensors)
        for name, value in tensors.items():
            assert result[name].dtype == value.dtype and result[name].shape == value.shape
            np.testing.assert_array_equal(result[name], value)
    with pytest.raises(ValueError, match="read-only"):
        open_tensors(tmp_path)["scalar"][...] = 1


# ---- onto the mesh


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A model of some 25 MB in many layers, and its tensors."""
    config = BertConfig(
        vocab_size=1000,
        hidden_size=256,
        num_layers=8,
        num_heads=4,
        intermediate_size=1024,
        embedding_size=256,
    )
    spec = EncoderSpec(config)
    shapes = jax.eval_shape(build_encoder(spec).init, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), shapes)
    directory = tmp_path_factory.mktemp("large") / "model"
    write_model(
        directory, spec, params, tokenizer=NoTokenizer(), max_length=16, shard_bytes=5 * 10**6
    )
    return directory, spec, params


def test_each_device_gets_its_part_and_the_host_holds_one_at_a_time(large):
    directory, spec, params = large
    assert len(list(directory.glob("model-*.safetensors"))) > 4
    mesh = make_mesh(fsdp=4, tensor=2)
    plain = sharded_put(by_rules(build_encoder(spec).sharding, mesh))
    sizes = []

    def counted(path, shape, dtype, read):
        def counting(index):
            part = read(index)
            sizes.append(part.nbytes)
            return part

        return plain(path, shape, dtype, counting)

    read_model(directory)  # what is imported and traced once is not to count
    tracemalloc.start()
    try:
        result = read_model(directory, put=counted).params
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) == sum(leaf.nbytes for leaf in jax.tree.leaves(params["backbone"])) > 25e6
    largest = params["backbone"]["layers"]["up"]["kernel"].nbytes
    # JAX lets go of a host's array a little after it was copied: two or three parts of eight may be
    # there at once.
    assert max(sizes) == largest / 8 and peak < largest / 2
    kernel = result["backbone"]["layers"]["down"]["kernel"]
    assert tuple(kernel.sharding.spec) == (None, "tensor", "fsdp") and kernel.addressable_shards[
        0
    ].data.nbytes == max(sizes)
    for ours, reference in zip(jax.tree.leaves(result), jax.tree.leaves(params), strict=True):
        for shard in ours.addressable_shards:
            np.testing.assert_array_equal(shard.data, reference[shard.index])


@pytest.mark.parametrize(
    ("dtype", "expected"), [("", "bfloat16"), ("bfloat16", "bfloat16"), ("float32", "float32")]
)
def test_parts_in_the_dtype_asked_for(dtype, expected, torch_models, tmp_path):
    directory = to_bfloat16(torch_models["bert"][1], tmp_path / "half")
    saved = read_model(directory)
    mesh = make_mesh(fsdp=2, tensor=2)
    rules = build_encoder(saved.spec).sharding
    result = read_model(directory, put=sharded_put(by_rules(rules, mesh), dtype)).params
    assert {leaf.dtype.name for leaf in jax.tree.leaves(result)} == {expected}
    assert all(len(leaf.devices()) == 8 for leaf in jax.tree.leaves(result))
    jax.tree.map(np.testing.assert_array_equal, numbers(result), numbers(saved.params))


# ---- bfloat16


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_parameters_compute_as_their_float32_values(name, torch_models, packed, tmp_path):
    spec = (
        random_spec(name, vocab_size=60)
        if name in known_shapes()
        else read_model(torch_models[name][1]).spec
    )
    size = spec.backbone.hidden_size
    encoder = build_encoder(
        dataclasses.replace(spec, heads=(Dense(size, 8), LayerNorm(8), Normalize()))
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    params = jax.tree.map(
        lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(jnp.bfloat16), shapes
    )
    write_model(tmp_path / "half", spec, params, tokenizer=NoTokenizer(), max_length=16)
    half = {**read_model(tmp_path / "half").params, "heads": params["heads"]}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}
    tokens = (
        packed.replace(segment=np.where(packed.position > 2, 1, 0))
        if name in ("tiny", "nomic-tiny")
        else packed
    )
    apply = jax.jit(encoder.apply, compiler_options=QUICKLY)
    result, expected = apply(half, tokens), apply(numbers(half), tokens)
    assert result.dtype == jnp.float32 and np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(result, expected)


def test_a_classifier_in_bfloat16(packed):
    classifier = build_encoder(
        make_classifier(random_spec("tiny", vocab_size=60).backbone, num_labels=2)
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(classifier.init, jax.random.key(0))
    half = jax.tree.map(lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(jnp.bfloat16), shapes)
    apply = jax.jit(classifier.apply, compiler_options=QUICKLY)
    result, expected = apply(half, packed), apply(numbers(half), packed)
    assert result.dtype == jnp.float32 and np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(result, expected)


def test_a_static_table_in_bfloat16(tiny_tokenizer, tmp_path):
    from embed_jax.data.tokenizer_files import load_tokenizer

    tokenizer = load_tokenizer(tiny_tokenizer, 16, special_tokens=False)
    spec = EncoderSpec(StaticConfig(vocab_size=tokenizer.vocab_size, hidden_size=8))
    table = np.random.default_rng(0).normal(size=(tokenizer.vocab_size, 8)).astype(jnp.bfloat16)
    params = {"backbone": {"token": table}, "heads": {}}
    embed_jax.SentenceEncoder(spec, params, tokenizer).save(tmp_path / "half")
    embed_jax.SentenceEncoder(spec, numbers(params), tokenizer).save(tmp_path / "single")
    half, single = (embed_jax.load(str(tmp_path / name)) for name in ("half", "single"))
    assert half.params["backbone"]["token"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        half.encode(["a dog", "the cat"]), single.encode(["a dog", "the cat"])
    )
    shape = []
    read_model(tmp_path / "half", put=lambda path, *about: shape.append((path, *about[:2])))
    assert shape == [("backbone/token", table.shape, jnp.bfloat16)]


def test_what_is_saved_has_the_bits_that_were_loaded(tiny_model, tmp_path):
    saved = read_model(tiny_model)
    from embed_jax.data.tokenizer_files import load_tokenizer

    spec = dataclasses.replace(saved.spec, heads=(Dense(32, 8), LayerNorm(8), Normalize()))
    params = {**build_encoder(spec).init(jax.random.key(1)), "backbone": saved.params["backbone"]}
    write_model(
        tmp_path / "single", spec, params, tokenizer=load_tokenizer(tiny_model, 40), max_length=40
    )
    half = to_bfloat16(tmp_path / "single", tmp_path / "half")
    for directory, dtype in ((half, "bfloat16"), (tmp_path / "single", "float32")):
        model = embed_jax.load(str(directory))
        model.save(tmp_path / "again")
        assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == dtype
        for path in directory.rglob("model.safetensors"):
            before, after = (
                load_file(path),
                load_file(tmp_path / "again" / path.relative_to(directory)),
            )
            assert set(before) == set(after)
            for name, value in before.items():
                assert (
                    value.dtype == after[name].dtype == jnp.dtype(dtype)
                    and value.tobytes() == after[name].tobytes()
                )


def test_layers_of_two_dtypes_are_stacked_in_float32(torch_models, tmp_path):
    directory = to_bfloat16(torch_models["bert"][1], tmp_path / "mixed")
    tensors = load_file(directory / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    tensors[name] = tensors[name].astype(np.float32) + np.float32(1e-5)
    write_safetensors(directory / "model.safetensors", tensors)
    kernel = read_model(directory).params["backbone"]["layers"]["down"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[1], tensors[name].T)


# ---- shards


def test_a_large_model_is_written_as_shards_that_transformers_reads(torch_models, tmp_path):
    from transformers import AutoModel

    model, directory = torch_models["bert"]
    saved, out = read_model(directory), tmp_path / "out"
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(saved.params))

    def write(shard_bytes):
        write_model(
            out,
            saved.spec,
            saved.params,
            tokenizer=NoTokenizer(),
            max_length=16,
            shard_bytes=shard_bytes,
        )
        jax.tree.map(np.testing.assert_array_equal, read_model(out).params, saved.params)
        return sorted(path.name for path in out.glob("model*"))

    assert write(whole) == ["model.safetensors"]
    files = write(20_000)
    count = len(files) - 1
    assert count > 2 and files[-1] == "model.safetensors.index.json"
    assert files[:-1] == [
        f"model-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)
    ]
    for file in files[:-1]:
        tensors = load_file(out / file)
        assert len(tensors) == 1 or sum(value.nbytes for value in tensors.values()) <= 20_000
    assert json.loads((out / files[-1]).read_text())["metadata"]["total_size"] == whole
    reference = AutoModel.from_pretrained(out).state_dict()
    for key, value in model.state_dict().items():
        if "pooler" not in key:
            np.testing.assert_array_equal(reference[key], value)
    assert len(write(40_000)) < len(
        files
    )  # shards of other names are replaced, and so is the index
    assert write(whole) == ["model.safetensors"]


# ---- what is refused


@pytest.fixture
def shards(tmp_path):
    """Four tensors in as many shards."""
    tensors = {name: np.full((4, 8), number, np.float32) for number, name in enumerate("abcd")}
    write_tensors(tmp_path, tensors, shard_bytes=128)
    assert set(open_tensors(tmp_path)) == set("abcd")
    return tmp_path


def test_a_download_that_stopped_is_found_at_opening(shards):
    third, fourth = (shards / f"model-{number:05}-of-00004.safetensors" for number in (3, 4))
    whole = fourth.read_bytes()
    fourth.unlink()
    with pytest.raises(
        InputError, match="00004-of-00004.safetensors: no such file, though .*fetch it again"
    ):
        open_tensors(shards)
    fourth.symlink_to(shards / "nowhere")  # as in a cache of the hub's
    with pytest.raises(
        InputError, match="00004-of-00004.safetensors: no such file, though .*fetch it again"
    ):
        open_tensors(shards)
    fourth.unlink()
    fourth.write_bytes(whole)
    third.write_bytes(third.read_bytes()[:-1])
    with pytest.raises(
        InputError, match=r"00003-of-00004.safetensors: damaged .*truncated.*\); fetch it again"
    ) as error:
        open_tensors(shards)
    assert "\n" not in str(error.value)


def test_an_index_of_no_files(shards):
    for index in ({}, {"weight_map": []}, {"weight_map": {"a": 1}}):
        (shards / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(
            InputError, match="index.json: has no 'weight_map' from tensors to files"
        ):
            open_tensors(shards)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "F8_E4M3"}, "tensor 'x': unknown dtype 'F8_E4M3'.*known: BF16, "),
        ({"shape": [4, 3]}, r"tensor 'x' has 64 bytes, which are not F32 of shape \(4, 3\)"),
        ({"shape": [-4, -4]}, r"damaged .*tensor 'x': shape \(-4, -4\)"),
        ({"data_offsets": [-64, 64]}, "damaged .*tensor 'x': .*bytes -64 to 64"),
        ({"data_offsets": [0]}, "damaged or no safetensors file"),
        ({"data_offsets": None}, "damaged or no safetensors file"),
        ({"data_offsets": [0, 2**40]}, "damaged .*truncated: its header names 1,099,511,"),
    ],
)
def test_headers_that_do_not_fit_their_file(changes, message, tmp_path):
    about = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]} | changes
    header = json.dumps(
        {"x": {key: value for key, value in about.items() if value is not None}}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(64)
    )
    with pytest.raises(InputError, match=message) as error:
        open_tensors(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path / "model.safetensors") in str(error.value)


def test_nothing_is_read_before_all_is_checked(torch_models, tmp_path):
    model, _ = torch_models["bert"]
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    last = max(tmp_path.glob("model-*.safetensors"))
    tensors = load_file(last)
    save_file({**tensors, "zzz.weight": np.zeros(2, np.float32)}, last)
    with pytest.raises(InputError, match="unexpected tensor 'zzz.weight'"):
        read_model(tmp_path, put=lambda *_: pytest.fail("a leaf was made"))
    save_file(tensors, last)
    first = min(tmp_path.glob("model-*.safetensors"))
    tensors = load_file(first)
    name, value = tensors.popitem()
    save_file({**tensors, name: value[:-1]}, first)
    with pytest.raises(InputError, match=f"tensor '{name}' has shape"):
        read_model(tmp_path, put=lambda *_: pytest.fail("a leaf was made"))


def test_a_tokenizer_larger_than_the_table(tiny_model, tmp_path):
    out, config = tmp_path / "model", json.loads((tiny_model / "config.json").read_text())
    shutil.copytree(tiny_model, out)
    tensors, name = load_file(out / "model.safetensors"), "embeddings.word_embeddings.weight"
    size, tokenizer = len(tensors[name]), json.loads((out / "tokenizer.json").read_text())

    def refused(rows, tokens, **changes):
        save_file({**tensors, name: np.zeros((rows, 32), np.float32)}, out / "model.safetensors")
        (out / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
        (out / "tokenizer.json").write_text(json.dumps(tokenizer | changes))
        with pytest.raises(
            InputError, match=f"model: a table of {rows} rows for a tokenizer of {tokens} tokens"
        ):
            embed_jax.load(str(out))

    refused(size - 1, size)
    gap = tokenizer["model"]["vocab"] | {
        "dog": size + 9
    }  # as many tokens as before, but not of the ids 0, 1, 2, ...
    refused(size, size + 10, model=tokenizer["model"] | {"vocab": gap})
    refused(size + 9, size + 10, model=tokenizer["model"] | {"vocab": gap})


# ---- who may read them


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_of_weights_is_for_whom_other_files_are_for(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_tensors(tmp_path, {"a": np.ones(3, np.float32)})
        (tmp_path / "other").write_text("")
    finally:
        os.umask(before)
    result = (tmp_path / "model.safetensors").stat().st_mode & 0o777
    assert result == mode == (tmp_path / "other").stat().st_mode & 0o777
    (tmp_path / "model.safetensors").chmod(0o640)
    write_tensors(tmp_path, {"a": np.zeros(3, np.float32)})
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640, "a file keeps its own"
    np.testing.assert_array_equal(read_tensors(tmp_path)["a"], np.zeros(3))
