"""The bench runs with made text and random weights, and with few packages."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from embed_jax.errors import EXTRAS, InputError
from scripts.bench import __main__ as bench
from scripts.bench import attention, indexes, multi_vector
from scripts.bench.hlo import Collective, collectives_of

ROOT = Path(__file__).parents[2]
# Packages that are not required where speed is measured, such as on a borrowed accelerator.
HEAVY = (*EXTRAS, "orbax")
TINY = ["--shape", "tiny", "--repeat", "2"]


@pytest.fixture(scope="module")
def results_of(tmp_path_factory):
    """`results_of(*arguments)`: results of `bench` by name, in a process without HEAVY."""
    # Fast to compile matters here, fast to run does not; and processes that a bench starts compile
    # what it compiles.
    faster = {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    }
    faster["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    return functools.partial(run_bench, {**os.environ, **faster, "PYTHONPATH": str(ROOT)})


def run_bench(environment, *arguments):
    code = (
        f"import sys\nfor name in {HEAVY!r}: sys.modules[name] = None\n"
        "import scripts.bench.__main__ as bench\nbench.main()\n"
    )
    line = [sys.executable, "-c", code, *arguments, "--json"]
    process = subprocess.run(
        line, cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert process.returncode == 0, process.stderr
    results = {result["name"]: result for result in map(json.loads, process.stdout.splitlines())}
    for result in results.values():
        assert {"name", "unit", "ours", "theirs", "ratio", "n", "machine"} <= result.keys()
    return results


@pytest.mark.parametrize(
    "arguments, names",
    [
        pytest.param(
            ["encode", "--texts", "20", "--batch", "1,4"],
            ["encode/made", "encode/batch=1", "encode/batch=4"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["train", "--batch-size", "8", "--steps", "1"],
            ["train/made/batch=8"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_speed(results_of, arguments, names):
    results = results_of(*arguments, "--init", "random", *TINY)
    assert list(results) == names
    for result in results.values():
        assert result["ours"] > 0 and result["theirs"] is None and result["n"] >= 2


@pytest.mark.parametrize(
    "others",
    ["", pytest.param(",checks,loss,maxsim,cross-encoder", marks=pytest.mark.slow)],
)
def test_an_accelerator_s_rows_need_few_packages(results_of, others):
    kinds = "launch,train,encode" + others
    results = results_of("gpu", "--size", "tiny", "--rows", kinds, "--minutes", "20")
    rates = {name[4:]: line for name, line in results.items() if line["ours"] is not None}
    notes = {name[4:]: line["note"] for name, line in results.items() if line["ours"] is None}
    assert notes.pop("launch the experiments") == "not installed: orbax, grain"
    for name in ("train tiny, LoRA 2, 16 tokens", "encode tiny, 16 tokens"):
        assert 0 < rates[name]["mfu"] < 1 and rates[name]["gib"] > 0 and rates[name]["ours"] > 0
    if others:
        assert rates["train a cross-encoder, tiny, 16 tokens"]["loss"] > 0
        assert notes.pop("info_nce, ring, 64 negatives") == "one device"
        assert notes.pop("tests that need a GPU") == "no accelerator"
    assert not notes and len(rates) == (7 if others else 2)


@pytest.mark.slow
def test_loss(results_of):
    options = [
        "--sizes",
        "256",
        "--dims",
        "16",
        "--devices",
        "2",
        "--repeat",
        "2",
        "--largest",
        "2048",
    ]
    results = results_of("loss", *options)
    timed = {form: results[f"loss/{form}/N=256/D=16"] for form in ("dense", "tiled", "ring")}
    largest = {form: results[f"loss/{form}/N=2048/D=16"] for form in ("dense", "tiled", "ring")}
    assert len(results) == 6
    for result in timed.values():
        assert (
            result["n"] == 2
            and result["ours"] > 0
            and result["ratio"] > 0
            and result["measured_mib"] >= 0
        )
    assert timed["ring"]["devices"] == 2 and timed["dense"]["devices"] == 1
    # Of the largest batch only tiled was run; dense holds more than all pairs, the others far less.
    assert (
        largest["tiled"]["ours"] > 0
        and largest["dense"]["ours"] is None
        and largest["ring"]["ours"] is None
    )
    assert largest["dense"]["compiled_mib"] > 2048 * 2048 * 4 / 2**20
    assert largest["tiled"]["measured_mib"] < largest["dense"]["compiled_mib"]


@pytest.mark.slow
def test_memory(results_of):
    results = results_of("memory", "--batch-size", "32", "--group", "16", "--exact", "32", *TINY)
    gradient = results["memory/gradient"]
    assert (
        gradient["ours"] < 4 * gradient["theirs"] < 1e-5
    )  # no further apart than rounding takes one group
    assert results["memory/time"]["ratio"] > 0
    for name in ("arguments", "temporaries", "compiled", "measured"):
        assert (
            results[f"memory/{name}"]["ours"] >= results[f"memory/{name}"]["theirs"] > 0
            or name == "measured"
        )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--form", "ring", "--fsdp", "2", "--groups", "2"], marks=pytest.mark.slow),
        pytest.param(["--fsdp", "2", "--fsdp-gather", "once"], marks=pytest.mark.slow),
    ],
)
def test_a_step_sends_what_the_formula_says(results_of, options):
    results = results_of("scaling", "--shape", "tiny", "--devices", "4", *options)
    kinds = {"all-gather", "reduce-scatter", "all-reduce"} | (
        {"collective-permute"} if "ring" in options else set()
    )
    assert set(results) == {f"scaling/devices=4/{kind}" for kind in kinds | {"memory"}}
    for kind in kinds:
        assert results[f"scaling/devices=4/{kind}"]["ratio"] == pytest.approx(1, abs=0.002), kind
    memory = results["scaling/devices=4/memory"]
    assert memory["ours"] >= memory["state_mib"] + memory["temporaries_mib"]


HLO = """HloModule jit_step, is_scheduled=true, num_partitions=8

%region_1.2 (a: f32[], b: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a, %b)
}

%inner (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %ppermute.1 = f32[4,2]{1,0} collective-permute(%x), channel_id=1, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %tuple.1 = (s32[], f32[4,2]{1,0}) tuple(%i, %ppermute.1)
}

%body (p: (s32[], /*index=1*/f32[4,2])) -> (s32[], f32[4,2]) {
  %reduce_scatter.7 = f32[2,4]{1,0} reduce-scatter(%y), replica_groups={{0,1},{2,3},{4,5},{6,7}}, \
to_apply=%region_1.2
  ROOT %while.1 = (s32[], f32[4,2]{1,0}) while(%t), condition=%cond, body=%inner, \
backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
}

%cond (p: (s32[], f32[4,2])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%endless (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  ROOT %all-to-all.1 = bf16[8]{0} all-to-all(%z), replica_groups={}
}

ENTRY %main.5_spmd (param.0: f32[4]) -> (f32[4], f32[]) {
  %all_gather.1 = pred[2,32]{0,1} all-gather(%mask), replica_groups={{0,1,2,3,4,5,6,7}}, \
dimensions={1}
  %all-reduce.2 = (f32[10]{0}, /*index=1*/f32[2,3]{1,0}) all-reduce(%u), \
replica_groups=[2,4]<=[8], to_apply=%region_1.2
  %while.2 = (s32[], f32[4,2]{1,0}) while(%t), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
  %while.3 = (s32[], f32[4,2]{1,0}) while(%t), condition=%cond, body=%endless
  ROOT %get-tuple-element.1 = f32[4]{0} get-tuple-element(%all-reduce.2), index=0
}
""".replace("\\\n", "")


def test_collectives_of_a_program():
    assert collectives_of(HLO) == [
        Collective("all-gather", 64, 1, False, 8),
        Collective("all-reduce", 64, 1, False, 4),
        Collective("reduce-scatter", 64, 5, True, 2),
        Collective("collective-permute", 32, 15, True, 2),
        Collective("all-to-all", 16, None, True, 8),
    ]
    assert [collective.received for collective in collectives_of(HLO)] == [56, 96, 32, 32, 14]


@pytest.mark.parametrize(
    "line, message",
    [
        (
            ["encode", "--batch", "1,x"],
            "--batch: expected numbers from 1 up, separated by commas, found '1,x'",
        ),
        (["encode", "--texts", "0"], "--texts: expected a number from 1 up, found '0'"),
        (["train", "--batch-size", "-1"], "--batch-size: expected a number from 1 up, found '-1'"),
        (["train", "--texts", "9"], "unrecognized arguments: --texts 9"),
        (
            ["gpu", "--minutes-at-most", "9"],
            "--minutes-at-most 9; did you mean --minutes? (see python -m scripts.bench gpu --help)",
        ),
        (["encode", "--repeat", "x"], "--repeat: expected a number from 1 up, found 'x'"),
        (
            ["loss", "--forms", "dense,rign"],
            "--forms: expected some of dense, tiled, ring, found 'rign'",
        ),
        (
            ["loss", "--sizes", "1022"],
            "--sizes, --largest: expected multiples of the ring's --devices 4, found 1022",
        ),
        (["loss", "--dims", ""], "--dims: expected at least one size"),
        (["memory", "--group", "3"], "--group: expected an even number (pairs), found 3"),
        (
            ["memory", "--row-length", "64"],
            "--row-length: expected 128 or more (the longest texts), found 64",
        ),
        (
            ["memory", "--batch-size", "100"],
            "--batch-size: expected a multiple of --group 128, found 100",
        ),
        (
            ["scaling", "--devices", "2,4", "--fsdp", "4"],
            "--devices: expected multiples of --fsdp 4 * --tensor 1, found 2",
        ),
        (
            ["scaling", "--groups", "3"],
            "--batch-per-device: expected a multiple of --groups 3, found 8",
        ),
        (["scaling", "--form", "auto"], "argument --form: invalid choice: 'auto'"),
        (
            ["attention", "--form", "flash"],
            "--form: expected one of auto, xla, blocks, segments, pallas, cudnn, found 'flash'",
        ),
        (["mining", "--against", "sentence-transformers", "--on-disk"], "without --on-disk"),
        (["start", "--sentences", "3"], "--sentences: expected 64 or more, found 3"),
        (["speed"], "invalid choice: 'speed'"),
        ([], "the following arguments are required: what"),
    ],
)
def test_a_wrong_option_is_one_line(line, message):
    with pytest.raises(InputError) as caught:
        bench.parse(line)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "command",
    ["encode", "train", "roofline", "gpu", "loss", "memory", "mining", "scaling", "start"],
)
def test_help_has_an_example(command, capsys):
    with pytest.raises(SystemExit):
        bench.parse([command, "--help"])
    assert f"python -m scripts.bench {command}" in capsys.readouterr().out


def test_attention(capsys):
    options = ["--lengths", "32", "--sentences", "2", "--window", "0", "--heads", "1", "--size"]
    args = bench.parse(["attention", *options, "4", "--slots", "32", "--repeat", "2", "--json"])
    attention.bench_attention(args)
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(results) == 4, "time and memory of values, and with gradients"
    for line in results:
        assert line["ours"] >= 0 and line["theirs"] >= 0 and line["sentences"] == 2


def test_multi_vector(tmp_path):
    pytest.importorskip("faiss")
    data = {"documents": 600, "tokens": 8, "dim": 16, "path": str(tmp_path / "index")}
    build = multi_vector.measure_build(**data, bits=8)
    assert build["build peak"] >= 0 and build["bytes per document"] > 8 * 16
    search = multi_vector.measure_search(**data, queries=4, exact=4, probes=10**6, candidates=10**6)
    assert search["recall@10"] > 0.9 and search["search p95"] >= search["search p50"] > 0
    with pytest.raises(InputError, match="--dim: expected a multiple of 8, found 9"):
        bench.parse(["multi-vector", "--dim", "9"])


def test_indexes_are_built_searched_and_changed(tmp_path):
    pytest.importorskip("faiss")
    vectors = np.random.default_rng(0).normal(size=(700, 16)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    real = indexes.make_data(tmp_path, tmp_path / "vectors.npy", 1500, 20, 30)
    made = np.load(tmp_path / "documents.npy")
    queries = np.load(tmp_path / "queries.npy")
    assert real == 680 and made.shape == (1500, 16) and len(np.load(tmp_path / "extra.npy")) == 30
    assert not {row.tobytes() for row in queries} & {row.tobytes() for row in made}
    # Perturbed vectors are spread as the real ones are.
    np.testing.assert_allclose(made[680:].std(axis=0), made[:680].std(axis=0), rtol=0.2)
    folder = str(tmp_path)
    indexes.find_exact(folder)
    for kind in ("exact", "hnsw"):
        values = indexes.measure_build(folder, kind)
        values |= indexes.measure_search(folder, kind, candidates=64, probes=4)
        values |= indexes.measure_change(folder, kind)
        assert values["recall@10"] > (0.99 if kind == "exact" else 0.8)
        assert values["p95"] >= values["p50"] > 0 and values["bytes per document"] >= 64
        assert values["add 30"] > 0 and values["delete 30"] > 0
    with pytest.raises(InputError, match="--vectors: expected more than 756 vectors, found"):
        indexes.make_data(tmp_path, tmp_path / "vectors.npy", 1500, 500, 30)
