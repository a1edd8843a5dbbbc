"""One fast test for each promise of the top README; a test's docstring quotes the sentence.

Larger versions of the same tests are beside the code: tests/parallel, tests/train/test_resume.py,
tests/encoders, tests/test_errors.py.
"""

import ast
import dataclasses
import functools
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from safetensors.numpy import load_file

import embed_jax
from embed_jax import losses
from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.pack import pack_batch
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import random_spec
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.parallel.gather import global_loss
from embed_jax.parallel.mesh import make_mesh, split_groups
from embed_jax.parallel.world import device_world, local_world
from embed_jax.registry import REGISTRY, lookup
from embed_jax.types import Batch
from embed_jax.world import make_columns

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling is most of the time
BATCH, DIM, DEVICES = 8, 6, 4
# Beside those of in-batch negatives (see tests/parallel/test_devices.py), losses that reduce over
# all texts of the world: it is held in tiles on one device, and whole and as a ring on four.
REDUCING = (
    "cosent",
    "angle",
    "angle_combined",
    "contrastive_tension_in_batch",
    "batch_hard_triplet",
    "batch_hard_soft_margin_triplet",
    "relational",
    "uniformity",
    "global_orthogonal",
)


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_every_promise_has_a_test_and_every_test_quotes_the_readme():
    quotes = []
    for name, function in list(globals().items()):
        match = (
            re.match(r"README: (.+)", one_line(function.__doc__ or ""))
            if name[:5] == "test_"
            else None
        )
        quotes += [match[1]] if match else []
    promises = README[README.index("tests/test_promises.py") :]
    promises = promises[: promises.index("\n## ")]
    bullets = [one_line(line) for line in re.findall(r"(?ms)^\* (.*?)(?=^\* |\Z)", promises)]
    assert sorted(quotes) == sorted(bullets) and len(bullets) >= 8


# ---- losses on devices ---------------------------------------------------------------------------


def some_columns(loss):
    """Returns random columns with everything that a loss can need."""
    rng = np.random.default_rng(0)
    least, most = loss.about.columns
    count = most or least + 1
    texts = rng.normal(0.5, size=(2, count, BATCH, DIM)).astype(np.float32)
    width = 1 if "score" in loss.about.needs else count - 1
    embeddings = tuple(jnp.asarray(column) for column in texts[0])
    if loss is losses.self_distillation:
        embeddings = tuple({"dense": x, "sparse": jnp.maximum(x, 0.0)} for x in embeddings)
    return make_columns(
        embeddings,
        label=rng.integers(2, size=BATCH),
        score=(rng.integers(4, size=(BATCH, width)) / 3).astype(np.float32),
        teacher=texts[1],
        guide=texts[1],
    )


def values_of(loss, columns, world, params):
    # A margin with distances on either side, and a temperature that does not magnify rounding.
    arguments = {"margin": 0.6, "temperature": 0.05}
    arguments = {name: value for name, value in arguments.items() if name in loss.parameters}
    if loss is losses.self_distillation:
        arguments |= {"similarity": "dense + 0.3 * sparse", "factors": "dense + 0.1 * sparse"}
    values, weights, _ = loss.on_world(columns, world, params, **arguments)
    return values, weights


def split_over_devices(function, columns, form="dense"):
    """Returns `function(columns, world, params)` on four devices, which share the examples.

    Tiles have one candidate.
    """
    mesh = jax.make_mesh(
        (DEVICES,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:DEVICES]
    )
    specs = columns.map_examples(lambda leaf, axis: PartitionSpec(*[None] * axis, "data"))

    def on_device(embeddings, params, columns):
        own = columns.replace(embeddings=embeddings)
        world = dataclasses.replace(device_world(own, form, ("data",)), tile=1)
        return function(own, world, lax.pcast(params, "data", to="varying"))

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(specs.embeddings, PartitionSpec(), specs),
        out_specs=PartitionSpec(),
    )


def test_devices_do_not_matter():
    """README: Loss and gradient are the same on 1 and on 4 devices, for every loss."""
    registered = {name: lookup("loss", name) for name in REGISTRY["loss"]}
    assert set(REDUCING) <= registered.keys()
    inputs = {}
    for name, loss in registered.items():
        columns = some_columns(loss)
        # One example is missing, and a negative of another where there are negatives.
        present = columns.present.at[:, 5].set(False).at[2:-1, 2].set(False)
        inputs[name] = columns.replace(present=present), loss.init(DIM, jax.random.key(0))

    def mean(loss, columns, world, params, total):
        values, weights = values_of(loss, columns, world, params)
        return total(jnp.sum(values * weights)) / jnp.maximum(total(jnp.sum(weights)), 1e-12)

    def on_one(loss, columns, params):
        def value(embeddings, params):
            own = columns.replace(embeddings=embeddings)
            world = local_world(own, "tiled" if loss.name in REDUCING else "auto", tile=3)
            return mean(loss, own, world, params, lambda total: total)

        return jax.value_and_grad(value, argnums=(0, 1))(columns.embeddings, params)

    def on_four(loss, columns, params, form="dense"):
        def function(own, world, params):
            return mean(loss, own, world, params, lambda total: lax.psum(total, "data"))

        split = split_over_devices(function, columns, form)
        gradient = jax.value_and_grad(split, argnums=(0, 1))
        return gradient(columns.embeddings, params, columns)

    def every(way, names):
        @functools.partial(jax.jit, compiler_options=QUICKLY)
        def of_losses(inputs):
            return {name: way(registered[name], *each) for name, each in inputs.items()}

        # The time to compile a program grows faster than its size.
        parts = [list(names)[start : start + 6] for start in range(0, len(names), 6)]
        results = [of_losses({name: inputs[name] for name in part}) for part in parts]
        return {name: result for part in results for name, result in part.items()}

    on_1, on_4 = every(on_one, registered), every(on_four, registered)
    in_rings = every(functools.partial(on_four, form="ring"), REDUCING)
    split = [((name, "dense"), each) for name, each in on_4.items()]
    split += [((name, "ring"), each) for name, each in in_rings.items()]
    for (name, form), (value_there, gradient_there) in split:
        value, gradient = on_1[name]
        flat, flat_there = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
            for tree in (gradient, gradient_there)
        )
        assert np.linalg.norm(flat) > 1e-3, name
        assert float(value_there) == pytest.approx(float(value), rel=1e-6), (name, form)
        assert np.linalg.norm(flat_there - flat) <= 1e-6 * np.linalg.norm(flat), (name, form)


def test_negatives_come_from_every_device():
    """README: In-batch negatives come from every device."""
    columns = some_columns(losses.info_nce)

    def gathered(own, world, _):
        values, _ = values_of(losses.info_nce, own, world, {})
        index = lax.axis_index("data") * values.shape[0]
        empty = lax.pcast(jnp.zeros(BATCH), "data", to="varying")
        return lax.psum(lax.dynamic_update_slice(empty, values, (index,)), "data")

    @jax.jit
    def three_ways(texts):
        parts = jnp.stack(texts).reshape(len(texts), DEVICES, -1, DIM).swapaxes(0, 1)
        local = jax.vmap(lambda part: losses.info_nce(*part, temperature=0.05))(parts)
        whole = losses.info_nce(*texts, temperature=0.05)
        return split_over_devices(gathered, columns)(texts, {}, columns), whole, local.reshape(-1)

    split, whole, local = three_ways(columns.embeddings)
    np.testing.assert_allclose(split, whole, rtol=1e-5)
    assert np.all(split > local)  # more negatives, a higher loss


# ---- an encoder ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder():
    spec = random_spec("tiny", vocab_size=64)
    small = {
        "hidden_size": 16,
        "embedding_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "num_layers": 1,
        "max_positions": 32,
    }
    backbone = dataclasses.replace(spec.backbone, **small)
    return build_encoder(dataclasses.replace(spec, backbone=backbone), unroll=1)


def token_ids(columns, examples):
    rng = np.random.default_rng(0)
    return [
        [rng.integers(1, 64, rng.integers(2, 12)).astype(np.int32) for _ in range(examples)]
        for _ in range(columns)
    ]


def test_groups_do_not_matter(encoder):
    """README: Splitting a batch into groups saves memory and does not change the gradient."""
    examples, mesh = 64, make_mesh(1)
    params = {"encoder": encoder.init(jax.random.key(0)), "loss": {}}

    def gradient_and_memory(groups):
        tokens, order = pack_batch(token_ids(2, examples), groups=groups, row_length=16)
        present = np.ones((groups, 2, examples // groups), bool)
        hashes = np.arange(1, 4 * examples + 1, dtype=np.uint32).reshape(2, examples, 2)
        hashes = np.moveaxis(hashes[:, order], 1, 0)
        batch = split_groups(Batch({"encoder": tokens}, present, hashes, order), mesh)
        objective = global_loss(encoder, losses.info_nce.on_world, mesh)
        step = jax.jit(jax.grad(lambda p, b: objective(p, b, None)[0]), compiler_options=QUICKLY)
        compiled = step.lower(params, batch).compile()
        gradient = jax.tree.leaves(compiled(params, batch))
        memory = compiled.memory_analysis().temp_size_in_bytes
        return np.concatenate([np.ravel(leaf) for leaf in gradient]), memory

    (whole, memory), (split, memory_of_groups) = gradient_and_memory(1), gradient_and_memory(8)
    assert np.linalg.norm(split - whole) <= 1e-6 * np.linalg.norm(whole)
    assert memory_of_groups < memory


def test_packed_equals_padded(encoder):
    """README: A sentence has the same embedding packed beside others as padded in its own row."""
    (texts,) = token_ids(1, 12)
    packed, order = pack_batch([texts], groups=1, row_length=32)
    assert packed.token_ids.shape[1] < len(texts)  # rows hold several sentences
    padded = [pack_batch([[text]], groups=1, row_length=12, rows=1)[0] for text in texts]
    params = encoder.init(jax.random.key(0))
    apply = jax.jit(lambda tokens: encoder.apply(params, tokens, None), compiler_options=QUICKLY)
    together, *separate = [apply(jax.tree.map(lambda leaf: leaf[0], t)) for t in (packed, *padded)]
    expected = np.concatenate(separate)[order[0]]
    np.testing.assert_allclose(together, expected, atol=1e-6)  # a sum in another order


# ---- a run, a model, a command -------------------------------------------------------------------


class Killed(BaseException):
    """Ends a run in the middle of its steps; no handler of errors catches it."""


def test_a_killed_run_resumes(tiny_model, sentences, tmp_path):
    """README: A killed run resumes to the same bits."""
    pytest.importorskip("grain")
    from embed_jax.train.fit import fit
    from embed_jax.train.sources import ONLY

    pairs = [{"anchor": sentences[n], "positive": sentences[n + 1]} for n in range(0, 32, 2)]
    fields = {
        "model__name": str(tiny_model),
        "data__max_length": 16,
        "batch__size": 8,
        "batch__rows": 8,
        "batch__row_length": 32,
        "train__steps": 4,
        "train__devices": 1,
        "train__log_every": 1,
        "eval__every": 1,
        "checkpoint__every": 2,
        "tracking__wandb": "disabled",
    }

    def run(name, evaluate):
        config = override(Experiment(), **fields)
        sources = {ONLY: RecordSource(pairs, record_fields(pairs))}
        fit(config, tmp_path / name, sources=sources, evaluators={"end": evaluate})
        log = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        trained = [line for line in map(json.loads, log) if "loss" in line]
        model = load_file(tmp_path / name / "model" / "model.safetensors")
        return model, [(line["step"], line["loss"]) for line in trained]

    calls = []

    def killed_after_step_3(encode):
        calls.append(None)  # before the first step, then after each
        if len(calls) == 4:
            raise Killed
        return {"score": 0.0}

    parameters, log = run("undisturbed", lambda encode: {"score": 0.0})
    with pytest.raises(Killed):
        run("killed", killed_after_step_3)
    assert not (tmp_path / "killed" / "model").exists()
    parameters_there, log_there = run("killed", lambda encode: {"score": 0.0})
    assert log_there == log and [step for step, _ in log] == [1, 2, 3, 4]
    for name, array in parameters.items():
        assert parameters_there[name].tobytes() == array.tobytes(), name


def test_models_load_in_sentence_transformers(tiny_model, sentences, tmp_path):
    """README: A saved model loads in sentence-transformers and gives the same embeddings there."""
    peer = pytest.importorskip("sentence_transformers")
    model = embed_jax.load(str(tiny_model))
    model.save(str(tmp_path / "saved"))
    there = peer.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    difference = np.abs(there.encode(sentences[:20]) - model.encode(sentences[:20])).max()
    assert difference < 1e-5  # rounding of two libraries


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_is_unpickled(tiny_model, tmp_path):
    """README: Weights are never unpickled, and no code from a model directory is run."""
    directory, touched = tmp_path / "model", tmp_path / "touched"
    shutil.copytree(tiny_model, directory)
    for file in directory.rglob("model.safetensors"):
        file.unlink()
        (file.parent / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(touched)))
    (directory / "modeling_own.py").write_text(f"open({str(touched)!r}, 'w')")
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.Model"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="safetensors"):
        embed_jax.load(str(directory))
    assert not touched.exists()
    for path in (ROOT / "embed_jax").rglob("*.py"):  # nor is there another way in
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                options = [ast.unparse(keyword) for keyword in node.keywords]
                assert ast.unparse(node.func) not in ("pickle.load", "pickle.loads", "torch.load")
                assert not {"allow_pickle=True", "trust_remote_code=True"} & set(options), path


MISTAKES = {
    "experiments.nli --config=configs/nli/mixture.py --config.optim.lr=1": "learning_rate",
    "experiments.simcse --config=configs/simcse/unsup_bert.py": "unsup_bert.py",
    "experiments.nli --config=configs/nli/mixture.py:smal": "known: small",
    "scripts.encode --modle x": "--model",
    "scripts.evaluate run --model MODEL --task stss --data DATA": "choose from 'sts'",
    "scripts.evaluate run --model MODEL --task sts --data DATA": "bad.tsv:3",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes_are_one_line(command, tiny_model, tmp_path, monkeypatch, capsys):
    """README: A wrong option, field or file gives one line that says what is accepted."""
    import importlib

    from embed_jax import packaged

    data = tmp_path / "bad.tsv"
    data.write_text("score\tsentence1\tsentence2\n1\ta dog\ta cat\nhigh\ta dog\ta house\n")
    words = command.replace("MODEL", str(tiny_model)).replace("DATA", str(data)).split()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        exit_with_one_line(importlib.import_module(packaged.main_module(words[0])).main)
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.count("\n") == 1
    assert message.startswith("error: ") and MISTAKES[command] in message


def test_scores_have_intervals(tiny_model, tmp_path, monkeypatch, capsys):
    """README: The main scores of an evaluation have confidence intervals."""
    from scripts.evaluate import __main__ as evaluate

    data, output = tmp_path / "sts.tsv", tmp_path / "result.json"
    rows = [f"{n % 5}\tthe cat {n}\tthe {'cat' if n % 5 > 2 else 'city'} {n}" for n in range(40)]
    data.write_text("score\tsentence1\tsentence2\n" + "\n".join(rows) + "\n")
    words = f"run --model {tiny_model} --task sts --data {data} --output {output}"
    monkeypatch.setattr(sys, "argv", ["scripts.evaluate", *words.split()])
    evaluate.main()
    result = json.loads(output.read_text())
    assert {"spearman", "pearson"} <= result["intervals"].keys() <= result["metrics"].keys()
    for name, (low, high) in result["intervals"].items():
        assert low <= result["metrics"][name] <= high


def test_a_loss_is_six_lines():
    """README: A new loss is six lines of code."""
    text = (ROOT / "embed_jax" / "losses" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n([^`]*?@losses.loss.*?)```", text, re.DOTALL)
    function = ast.parse(code).body[-1]
    body = function.body[1:]  # without the docstring
    lines = [*function.decorator_list, function.name, *body]
    assert len(lines) == 6
    names = {"jnp": jnp}
    exec(compile(code, "README.md", "exec"), names)
    anchors, positives = jnp.zeros((4, 2)), jnp.full((4, 2), 3.0)
    np.testing.assert_allclose(names["pull"](anchors, positives, power=1.0), np.sqrt(18), rtol=1e-6)
    columns = make_columns([anchors, positives])
    values, weights, _ = names["pull"].on_world(columns, local_world(columns), {}, power=2.0)
    np.testing.assert_allclose(values * weights, 18.0, rtol=1e-6)  # what training calls


def test_the_ten_lines_run(tiny_model, tmp_path, monkeypatch):
    """The first code block of the README runs from top to bottom."""
    pytest.importorskip("grain")
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    load, finetune = embed_jax.load, embed_jax.finetune
    monkeypatch.setattr(embed_jax, "load", lambda name, **fields: load(str(tiny_model), **fields))
    monkeypatch.setattr(
        embed_jax,
        "finetune",
        lambda pairs, **fields: finetune(pairs, model=str(tiny_model), **fields),
    )
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["vectors"].shape[0] == 2
    np.testing.assert_array_equal(
        load("my-model").encode(["Someone eats."]), names["better"].encode(["Someone eats."])
    )
