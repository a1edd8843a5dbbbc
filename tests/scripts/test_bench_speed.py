"""Benches of speed: where the time goes, other libraries, and what an accelerator is asked."""

import json
import signal
import sys
import time

import jax
import numpy as np
import pytest

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.spec import find_shape, random_spec
from embed_jax.errors import InputError, RunError
from embed_jax.train.speed import known_peak
from scripts.bench import __main__ as bench
from scripts.bench import gpu, gpu_rows, gpu_table, launches, measure, start, train
from scripts.bench.flops import layer_reaches, needed_flops, seen_pairs
from scripts.bench.measure import random_model
from scripts.bench.parts import Part, kernel_shapes
from scripts.bench.peers import start_peers
from scripts.bench.speed import print_rates


@pytest.fixture
def results_here(capsys):
    """`results_here(*arguments)`: results of `bench` by name, in this process."""

    def run(*arguments):
        args = bench.parse([*arguments, "--json"])
        args.run(args)
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        return {line["name"]: line for line in lines}

    return run


# ---- the machine and its limit -------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "model name\t: Intel(R) Xeon(R)  Processor\nflags\t: fpu avx2 avx512f amx_bf16 sse\n"
            "model name\t: another\n",
            "Intel(R) Xeon(R) Processor (avx2 avx512f amx_bf16), ",
        ),
        (
            "model name : Neoverse-V2\nFeatures : fp asimd sve bf16\n",
            "Neoverse-V2 (asimd sve bf16)",
        ),
    ],
)
def test_a_figure_names_its_processor(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert measure.describe_cpu(str(tmp_path / "cpuinfo")).startswith(expected)
    assert measure.describe_cpu(str(tmp_path / "absent")).endswith(" CPUs")


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("reach", [None, 0, 1, 3, 100])
def test_pairs_of_tokens_are_counted_as_the_mask_shows_them(length, reach):
    back = np.arange(length)[:, None] - np.arange(length)
    seen = np.abs(back) <= (length if reach is None else reach)
    assert seen_pairs(length, reach) == seen.sum()
    assert seen_pairs(length, reach, causal=True) == (seen & (back >= 0)).sum()


def test_needed_flops_are_those_of_the_products():
    config = find_shape("bert-base")
    kernels = [(768, 768)] * 48 + [(768, 3072), (3072, 768)] * 12
    params = jax.eval_shape(build_encoder(random_spec("bert-base")).init, jax.random.key(0))
    assert sorted(kernel_shapes(params)) == sorted(kernels)
    # 7.1 million numbers a layer, and 4 T^2 D of attention.
    expected = 12 * (2 * 128 * 12 * 768**2 + 4 * 128**2 * 768)
    assert needed_flops(config, kernels, [128], training=False) == expected
    assert needed_flops(config, kernels, [128, 128], training=True) == 6 * expected
    frozen = needed_flops(config, kernels, [128], training=True, frozen=True)
    assert frozen == 12 * (4 * 128 * 12 * 768**2 + 12 * 128**2 * 768)
    assert layer_reaches(find_shape("mistral-7b")) == [4095] * 32
    assert layer_reaches(find_shape("qwen3-0.6b")) == [None] * 28


def test_known_peaks():
    assert known_peak("NVIDIA H200") == 989e12 and known_peak("NVIDIA L40S") == 362e12
    assert known_peak("TPU v5 lite") == 197e12 and known_peak("TPU v5") == 459e12
    assert known_peak("cpu") is None


@pytest.mark.parametrize("what", ["encode", pytest.param("train", marks=pytest.mark.slow)])
def test_the_parts_and_the_rest_are_the_program(what, results_here, monkeypatch):
    monkeypatch.setattr("scripts.bench.flops.SQUARES", (32,))
    options = ["--shape", "tiny", "--length", "16", "--texts", "8", "--batch-size", "4"]
    results = results_here("roofline", *options, "--repeat", "1", "--of", what)
    own = {name.removeprefix(f"roofline/{what}")[1:]: line for name, line in results.items()}
    parts = ["matrix products", "attention", "activation", "norms and residuals"]
    parts += ["embedding lookup", "pooling", "rest"]
    parts += ["loss", "optimiser"] if what == "train" else []
    assert own.keys() == {*parts, "", "program", "host waits", "tokenising", "packing", "gap"}
    seconds = {name: line["ours"] for name, line in own.items()}
    assert sum(seconds[part] for part in parts) == pytest.approx(seconds["program"], rel=1e-3)
    total = seconds["program"] + seconds["host waits"]
    assert total == pytest.approx(seconds[""], rel=1e-3)
    assert own["matrix products"]["gflops"] > 0 and seconds["gap"] > 1
    assert own["gap"]["limit"] * seconds["gap"] == pytest.approx(seconds[""], rel=1e-3)


def test_a_part_is_timed_with_its_gradient():
    calls = []

    def double(x, offset):
        calls.append(x)
        return 2 * x + offset

    part = Part("double", double, (np.ones(3, np.float32),), (np.arange(3),), times=2)
    assert part.seconds(1, training=True) > 0
    # Traced once for its shape, and once with its gradient.
    assert len(calls) == 2 and type(calls[0]) is not type(calls[1])


def test_a_table_has_no_roofline(results_here):
    with pytest.raises(InputError, match="static: expected a transformer, found a table"):
        results_here("roofline", "--shape", "static")


# ---- other libraries -----------------------------------------------------------------------------

FASTEMBED = """
import json, pathlib

class TextEmbedding:
    def add_custom_model(name, **options):
        assert options["dim"]

    def __init__(self, name, specific_model_path):
        self.folder = pathlib.Path(specific_model_path)

    def embed(self, texts):
        assert (self.folder / "model.onnx").stat().st_size
        settings = json.loads((self.folder / "tokenizer_config.json").read_text())
        assert settings["model_max_length"] == 16 and texts == ["w1 w2", "w3"]
        return texts
"""


def test_another_library_encodes_in_its_own_process(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    common = tmp_path / "fastembed" / "common"
    common.mkdir(parents=True)
    (common.parent / "__init__.py").write_text(FASTEMBED)
    (common / "__init__.py").write_text("")
    (common / "model_description.py").write_text(
        "class PoolingType: DISABLED = 0\nclass ModelSource:\n    def __init__(self, hf): pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = []
    monkeypatch.setattr("scripts.bench.peers.warn", seen.append)
    model = random_model("tiny", 16)
    with start_peers(model, ["fastembed", "sentence-transformers:openvino"]) as functions:
        assert list(functions) == ["fastembed"]
        functions["fastembed"](["w1 w2", "w3"])
    (message,) = seen
    assert message.startswith("--against sentence-transformers:openvino: cannot be used in this ")
    assert 'pip install "sentence-transformers[openvino]"' in message and "\n" not in message


def test_a_library_that_is_not_there_is_one_line(tmp_path):
    model = random_model("tiny", 16)
    with pytest.raises(InputError, match="--peer-python: .*absent: No such file"):
        with start_peers(model, ["static"], str(tmp_path / "absent")):
            pass
    with pytest.raises(InputError, match="--against: expected some of sentence-transformers, .*"):
        bench.parse(["encode", "--against", "static,sentence-transformers:onyx"])


def test_ratios_have_their_quartiles(capsys):
    rates = {"static": [1.0, 2.0, 4.0], "other": [2.0, 2.0, 2.0]}
    print_rates("encode/x", "texts/s", [2.0, 4.0, 2.0], rates, as_json=False, fill=0.9)
    out = capsys.readouterr().out
    assert "encode/x: 2.0 texts/s, fill 0.9" in out and "[1.25, 2.00]" in out
    print_rates("encode/x", "texts/s", [2.0, 4.0, 2.0], rates, as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["against"], line["ratio"]) for line in lines] == [("static", 2.0), ("other", 1.0)]


@pytest.mark.slow
def test_sentence_transformers_and_a_table_of_vectors(results_here):
    pytest.importorskip("sentence_transformers")
    args = bench.parse(["encode", "--shape", "tiny", "--texts", "8", "--repeat", "2", "--json",
                        "--against", "sentence-transformers,static"])  # fmt: skip
    args.run(args)


# ---- an accelerator ------------------------------------------------------------------------------


def test_rows_are_printed_until_the_time_is_up(capsys):
    def row(name, measure):
        return gpu_table.Row("kind", name, measure)

    def slow():
        time.sleep(0.02)
        return {"rate": 2.0, "unit": "tokens", "ms": 1.0, "note": "a note"}

    def fails():
        raise ValueError("RESOURCE_EXHAUSTED: too large")

    rows = [row("first", slow), row("second", fails), row("third", lambda: {"failed": True})]
    left, failed = gpu.measure_rows(rows, time.monotonic() + 60, False)
    assert left == [] and failed == rows[2:]
    out = capsys.readouterr().out
    assert "out of memory" in out and "a note" in out
    # No time for another row like the longest of its kind.
    end = time.monotonic() + gpu.LEAST_LEFT + 0.01
    assert gpu.measure_rows([rows[0], *rows], end, False)[0] == rows


def test_rows_come_in_the_order_of_their_worth(tmp_path):
    rows = gpu_table.list_rows(gpu_table.SIZES["full"], tmp_path)
    kinds = list(dict.fromkeys(row.kind for row in rows))
    expected = ["launch", "train", "encode", "checks", "peer", "loss", "maxsim", "cross-encoder"]
    assert kinds == expected
    names = [row.name for row in rows]
    assert len(set(names)) == len(names) and max(map(len, names)) <= gpu.WIDTHS[0] + 12
    for length in (32, 128, 512, 2048, 8192):
        for shape in ("bert-base", "modernbert-base", "qwen3-0.6b"):
            assert f"encode {shape}, {length} tokens" in names


@pytest.mark.parametrize("length", [3, 16, 200])
def test_rows_of_texts_of_one_length_have_no_padding(length):
    tokens = gpu_rows.full_rows(1000, length, 30)
    assert tokens.sentences % 2 == 0 and tokens.token_ids.max() < 30
    counts = np.bincount(tokens.sentence.ravel(), minlength=tokens.sentences)
    assert (counts[: tokens.sentences] == length).all()
    assert (tokens.sentence == tokens.sentences).sum() in (0, length)


def test_a_wrong_kind_of_rows_is_one_line():
    args = bench.parse(["gpu", "--rows", "train,serve"])
    with pytest.raises(
        InputError, match="--rows: expected some of launch, train, .* found 'serve'"
    ):
        args.run(args)
    with pytest.raises(InputError, match="--minutes: expected more than 0, found 0"):
        bench.parse(["gpu", "--minutes", "0"])


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launches")
    launches.write_material(folder)
    return folder


def test_sigterm_comes_after_the_logged_steps_and_only_then(tmp_path):
    metrics, caught = tmp_path / "metrics.jsonl", []
    with launches.terminated_after(metrics, 2):
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        signal.signal(signal.SIGTERM, lambda *_: caught.append(len(launches.read_losses(tmp_path))))
        with metrics.open("w") as file:
            for step in range(1, 200):
                file.write(json.dumps({"step": step, "loss": 1.0}) + "\n" + '{"step"')
                file.flush()
                time.sleep(0.01)
                file.seek(file.tell() - 7)
                if caught:
                    break
    assert len(caught) == 1 and caught[0] >= 2
    with launches.terminated_after(tmp_path / "none", 2):
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.parametrize("family", launches.FAMILIES)
def test_a_launched_run_is_ended_by_sigterm_and_resumed(family, material, tmp_path):
    for package in (*launches.NEEDED, "bm25s", "matplotlib"):
        pytest.importorskip(package)
    workdir = tmp_path / family
    launch = launches.launch(family, material, workdir, 12, interrupt=True, wandb="disabled")
    assert launches.STOP_AFTER <= launch.stopped < 12 and launch.resumed
    assert launches.largest_difference(workdir, [launch.losses[1]]) == 0
    assert launch.describe(True).endswith(", resumed to its end, logged by W&B offline")


# ---- the start -----------------------------------------------------------------------------------


def test_a_start_ends_at_its_line_and_has_the_memory_of_its_process_only():
    program = """
import sys, time
held = bytearray(50 << 20)
held[::4096] = b"x" * len(held[::4096])
time.sleep(0.2)
print("ready", flush=True)
sys.stdin.read()
time.sleep(0.3)"""
    began = time.perf_counter()
    own = start.start_process("it", [sys.executable, "-c", program], "ready")
    assert 0.2 <= own.seconds < time.perf_counter() - began - 0.3
    if sys.platform == "linux":
        assert 50 << 20 < own.peak < 120 << 20  # this process has more


@pytest.mark.parametrize(
    "program, ending",
    [("raise SystemExit('no such model')", "1: no such model"), ("pass", "0: nothing")],
)
def test_a_process_that_does_not_start_is_told(program, ending):
    with pytest.raises(RunError, match=f"it ended with {ending}$"):
        start.start_process("it", [sys.executable, "-c", program], "ready")


@pytest.mark.slow
def test_a_first_embedding_a_first_step_and_compiling_are_measured(results_here):
    for package in launches.NEEDED:
        pytest.importorskip(package)
    options = ["--shape", "tiny", "--repeat", "1", "--sentences", "200", "--steps", "3"]
    results = results_here("start", *options, "--layers", "1,2")
    assert len(results) == 10 and all(line["ours"] > 0 for line in results.values())
    deeper = results["start/compile training, 2 layers"]
    assert deeper["theirs"] == results["start/compile training, 1 layers"]["ours"]


def test_the_fill_of_padded_columns():
    args = bench.parse(["train", "--shape", "tiny", "--steps", "1", "--batch-size", "8"])
    work = train.Work(args)
    # With two special tokens 3 and 5 of 2 x 5 slots, and 4 and 4 of 2 x 4.
    assert work.padded_fill(["w1", "w1 w2 w3", "w1 w2", "w3 w4"]) == pytest.approx(16 / 18)
