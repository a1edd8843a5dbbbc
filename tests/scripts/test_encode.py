import functools
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embed_jax
from embed_jax.retrieval.calibration import calibrate, load_calibration, save_calibration
from embed_jax.retrieval.quantize import dequantize_embeddings, quantize_embeddings
from embed_jax.sentence import truncate
from scripts import encode

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def expected(tiny_model, sentences):
    return embed_jax.load(str(tiny_model)).encode(sentences)


def write(directory, kind, sentences):
    path = directory / f"input.{kind}"
    lines = {
        "txt": sentences,
        "tsv": ["text\tnumber", *(f"{text}\t{n}" for n, text in enumerate(sentences))],
        "jsonl": [json.dumps({"_id": str(n), "text": text}) for n, text in enumerate(sentences)],
    }[kind.removesuffix(".gz")]
    with (gzip.open if kind.endswith("gz") else open)(path, "wt") as file:
        file.write("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "tsv", "txt.gz"])
def test_embeds_in_input_order(run, tiny_model, sentences, expected, tmp_path, kind):
    path, output = write(tmp_path, kind, sentences), tmp_path / "out.npy"
    status, out, err = run(encode, "--model", tiny_model, "--input", path, "--output", output)
    assert (status, err) == (0, "")
    result = np.load(output)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert "200 texts" in out
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name, "out.npy"]


def test_joins_fields_as_evaluate_does(run, tiny_model, tmp_path):
    path, output = tmp_path / "corpus.jsonl", tmp_path / "out.npy"
    records = [{"title": "red house", "text": "a dog"}, {"title": "", "text": "the cat"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    arguments = (
        "--model",
        tiny_model,
        "--input",
        path,
        "--output",
        output,
        "--field",
        "title,text",
    )
    assert run(encode, *arguments)[0] == 0
    expected = embed_jax.load(str(tiny_model)).encode(["red house a dog", "the cat"])
    np.testing.assert_allclose(np.load(output), expected, atol=1e-6)


def test_an_output_that_is_there_is_replaced_whole_or_not_at_all(run, tiny_model, tmp_path):
    path, output = tmp_path / "input.txt", tmp_path / "out.npy"
    path.write_text("a dog\n")
    output.write_bytes(b"old")
    assert run(encode, "--model", "nobody/nothing", "--input", path, "--output", output)[0] == 2
    assert output.read_bytes() == b"old"
    assert run(encode, "--model", tiny_model, "--input", path, "--output", output)[0] == 0
    assert np.load(output).shape[0] == 1


@pytest.mark.parametrize("precision", ["int8", "int4", "binary"])
def test_codes_and_their_calibration(run, tiny_model, sentences, expected, tmp_path, precision):
    path, output = write(tmp_path, "txt", sentences), tmp_path / "out.npy"
    arguments = ("--model", tiny_model, "--input", path, "--precision", precision, "--dim", 16)
    assert run(encode, *arguments, "--output", output)[0] == 0
    short = truncate(expected, 16)
    calibration = calibrate(short, precision)
    close = dequantize_embeddings(np.load(output), precision, calibration)
    np.testing.assert_allclose(
        close,
        dequantize_embeddings(
            quantize_embeddings(short, precision, calibration), precision, calibration
        ),
        atol=1e-3,
    )
    written = {"out.calibration.json", "out.calibration.npz"} if calibration else set()
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "out.npy", *written}


@pytest.mark.parametrize("name", ["sample.npy", "learnt.json"])
def test_a_given_calibration_is_used(run, tiny_model, sentences, expected, tmp_path, name):
    path, output = write(tmp_path, "txt", sentences), tmp_path / "out.npy"
    calibration = calibrate(expected[:100] / 2, "int8")
    np.save(tmp_path / "sample.npy", expected[:100] / 2)
    save_calibration(calibration, tmp_path / "learnt")
    arguments = ("--model", tiny_model, "--input", path, "--output", output, "--precision", "int8")
    assert run(encode, *arguments, "--calibration", tmp_path / name)[0] == 0
    assert (
        np.abs(
            np.load(output).astype(int) - quantize_embeddings(expected, "int8", calibration)
        ).max()
        <= 1
    )
    assert load_calibration(tmp_path / "out.calibration").count == 100


def test_ranges_are_learnt_from_the_first_texts(
    run, tiny_model, sentences, expected, tmp_path, monkeypatch
):
    """The first block has 8,192 texts by default; here it has 64."""
    monkeypatch.setattr("embed_jax.retrieval.calibration.SAMPLE", 100)
    monkeypatch.setattr("embed_jax.data.window.WINDOW", 64)
    path, output = write(tmp_path, "txt", sentences), tmp_path / "out.npy"
    assert (
        run(
            encode,
            "--model",
            tiny_model,
            "--input",
            path,
            "--output",
            output,
            "--precision",
            "int8",
        )[0]
        == 0
    )
    calibration = load_calibration(tmp_path / "out.calibration")
    assert calibration.count == 128
    np.testing.assert_allclose(calibration.low, expected[:128].min(axis=0), atol=1e-6)
    assert len(np.load(output)) == 200


def test_bad_compression_is_refused(refused, tiny_model, sentences, tmp_path):
    path, few = write(tmp_path, "txt", sentences), tmp_path / "few.txt"
    few.write_text("a dog\n")
    np.save(tmp_path / "other.npy", np.zeros((200, 8), np.float32))
    np.save(tmp_path / "nan.npy", np.full((200, 32), np.nan, np.float32))
    (tmp_path / "damaged.npy").write_bytes(b"text")
    save_calibration(calibrate(np.eye(200, 8, dtype=np.float32), "int8"), tmp_path / "of_8")
    bad = {
        "unknown 'int7'": ("--precision", "int7"),
        "--dim: expected 1 or more, found 0": ("--dim", 0),
        "--dim: expected 1 to 32": ("--dim", 33),
        "binary: expected a dimension divisible by 8, found 12": (
            "--precision",
            "binary",
            "--dim",
            12,
        ),
        "at least 100 vectors, found 1": ("--precision", "int8", "--input", few),
        "binary needs none": ("--precision", "binary", "--calibration", tmp_path / "other.npy"),
        "other.npy: of 8 dimensions": (
            "--precision",
            "int8",
            "--calibration",
            tmp_path / "other.npy",
        ),
        "calibration: of 8 dimensions": (
            "--precision",
            "int8",
            "--calibration",
            tmp_path / "of_8.json",
        ),
        "expected one of int4, found int8": (
            "--precision",
            "int4",
            "--calibration",
            tmp_path / "of_8.npz",
        ),
        "not finite": ("--precision", "int8", "--calibration", tmp_path / "nan.npy"),
        "damaged.npy": ("--precision", "int8", "--calibration", tmp_path / "damaged.npy"),
        "missing.npy": ("--precision", "int8", "--calibration", tmp_path / "missing.npy"),
        "expected a .npy, .json or .npz": ("--precision", "int8", "--calibration", few),
    }
    for message, options in bad.items():
        output = tmp_path / "out.npy"
        assert message in refused(
            encode, "--model", tiny_model, "--input", path, "--output", output, *options
        )


def test_bad_inputs_are_refused(refused, tiny_model, tmp_path):
    files = {
        "missing.txt": (None, "no such file"),
        "empty.txt": (b"", "empty"),
        "blank.tsv": (b"text\tn\n \t1\n", "empty"),
        "not_utf8.txt": (b"fine\ncaf\xe9\n", "not_utf8.txt:2"),
        "no_text.jsonl": (b'{"title": "x"}\n', "'text'"),
        "broken.jsonl": (b'{"text": "x"}\n{"text": \n', "broken.jsonl:2"),
        "number.jsonl": (b'{"text": 5}\n', "number.jsonl:1"),
        "few.tsv": (b"text\tn\nonly\n", "few.tsv:2"),
        "cut.txt.gz": (gzip.compress(b"some text\n" * 1000)[:30], "gzip"),
        "table.xlsx": (b"PK", "unknown file type"),
    }
    for name, (content, message) in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        output = tmp_path / "out.npy"
        err = refused(encode, "--model", tiny_model, "--input", tmp_path / name, "--output", output)
        assert name in err and message in err, err


def test_bad_usage_is_refused(refused, tiny_model, tmp_path):
    path = tmp_path / "input.txt"
    path.write_text("a dog and a cat\n")
    good = ("--model", tiny_model, "--input", path)
    assert ".npy" in refused(encode, *good, "--output", tmp_path / "out.bin")
    assert "cannot be written" in refused(
        encode, *good, "--output", tmp_path / "nowhere" / "out.npy"
    )
    assert "batch_tokens" in refused(
        encode, *good, "--output", tmp_path / "out.npy", "--batch-tokens", "2"
    )
    assert "'query'" in refused(
        encode, *good, "--output", tmp_path / "out.npy", "--prompt-name", "query"
    )
    assert "--output" in refused(encode, *good)
    good = (*good, "--output", tmp_path / "out.npy", "--instruction", "find")
    assert "this model has no template for instructions" in refused(encode, *good)
    assert "--instruction: expected none beside --prompt-name" in refused(
        encode, *good, "--prompt-name", "query"
    )


def test_an_instruction_is_put_into_the_models_template(run, tiny_model, tmp_path):
    model = embed_jax.load(str(tiny_model))
    model.template = "Instruct: {instruction}\nQuery: "
    model.save(tmp_path / "model")
    (tmp_path / "input.txt").write_text("a dog\na cat\n")
    files = ("--input", tmp_path / "input.txt", "--output", tmp_path / "out.npy")
    status, _, err = run(
        encode, "--model", tmp_path / "model", *files, "--instruction", "find the cat"
    )
    assert (status, err) == (0, "")
    expected = model.encode(["a dog", "a cat"], prompt="Instruct: find the cat\nQuery: ")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_an_input_that_changes_is_a_failure_that_leaves_nothing(
    run, tiny_model, tmp_path, monkeypatch
):
    path = tmp_path / "input.txt"
    path.write_text("a dog\na cat\n")
    monkeypatch.setattr(encode, "check_input", lambda args: 1)
    status, _, err = run(
        encode, "--model", tiny_model, "--input", path, "--output", tmp_path / "out.npy"
    )
    assert status == 1 and "changed" in err and err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["input.txt"]


def test_as_a_command(tiny_model, tmp_path):
    """Runs the command in a shell: exit status, one line, no traceback."""
    (tmp_path / "input.txt").write_bytes(b"\xff\n")
    files = ["--input", str(tmp_path / "input.txt"), "--output", str(tmp_path / "out.npy")]
    command = [sys.executable, "-m", "scripts.encode", "--model", str(tiny_model), *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    shown = subprocess.run([*command[:3], "--help"], capture_output=True, text=True, cwd=ROOT)
    assert shown.returncode == 0 and "example" in shown.stdout


@pytest.fixture
def corpus(tmp_path, sentences):
    path = tmp_path / "corpus.jsonl"
    records = [{"_id": f"d{n}", "text": text} for n, text in enumerate(sentences)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_shards_are_merged_to_the_bytes_of_one_process(
    run, refused, tiny_model, corpus, tmp_path, monkeypatch
):
    """Blocks of 64 texts instead of 8,192; one of three processes is lost before its end."""
    pytest.importorskip("pyarrow")
    monkeypatch.setattr("embed_jax.data.window.WINDOW", 64)
    monkeypatch.setattr("embed_jax.load", functools.cache(embed_jax.load), raising=False)
    base = ("--model", tiny_model, "--input", corpus)
    assert run(encode, *base, "--output", tmp_path / "one.npy")[0] == 0
    folder = tmp_path / "shards"
    for shard in ("2/3", "0/3"):
        status, out, err = run(encode, *base, "--output", folder, "--shard", shard)
        assert (status, err) == (0, "") and "of 200" in out
    output = tmp_path / "merged.npy"
    merge = ("--merge", folder, "--output", output)
    with monkeypatch.context() as patch:  # the process ends in the middle of its work
        patch.setattr("embed_jax.retrieval.shards._hash_file", lambda path: 1 / 0)
        assert run(encode, *base, "--output", folder, "--shard", "1/3")[0] == 1
    assert "1 of 3 shards missing: run again with --shard 1/3" in refused(encode, *merge)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "3")
    assert run(encode, *base, "--output", folder, "--shard", "auto")[0] == 0
    status, out, err = run(encode, *base, "--output", folder, "--shard", "1/3")
    assert status == 0 and "is there already" in out, err
    status, out, err = run(encode, *merge)
    assert status == 0 and "from 3 shards, every id once" in out, err
    assert output.read_bytes() == (tmp_path / "one.npy").read_bytes()
    ids = json.loads((tmp_path / "merged.ids.json").read_text())
    assert ids == [f"d{number}" for number in range(200)]


def test_bad_use_of_shards_is_refused(refused, tiny_model, corpus, tmp_path):
    base = ("--model", tiny_model, "--input", corpus, "--output", tmp_path / "s")
    twice = tmp_path / "twice.jsonl"
    twice.write_text(corpus.read_text() + '{"_id": "d7", "text": "again"}\n')
    for message, options in {
        "expected I/N with I from 0 to N - 1": ("--shard", "3/3"),
        "auto: neither SLURM_PROCID nor": ("--shard", "auto"),
        "not allowed with argument --shard": ("--shard", "0/3", "--merge", tmp_path),
        "--precision int8 with --shard: expected --calib": ("--shard=0/3", "--precision", "int8"),
        "twice.jsonl: the id 'd7' stands 2 times": ("--shard", "0/3", "--input", twice),
        "--merge: expected no --model": ("--merge", tmp_path),
    }.items():
        assert message in refused(encode, *base, *options), options
    output = ("--output", tmp_path / "out.npy")
    assert "no shards; scripts.encode" in refused(encode, "--merge", tmp_path, *output)
    assert "expected --model, --input and --output" in refused(encode, *output, "--input", corpus)


# Encodes several shards in blocks of 16 texts; "stuck" stops within the writing of the first one.
WORKER = """
import sys, time
from embed_jax.data import window
from embed_jax.retrieval import shards
from scripts import encode
window.WINDOW = 16
names, stuck, *arguments = sys.argv[1:]
if stuck:
    shards._hash_file = lambda path: print("writing", flush=True) or time.sleep(600)
for name in names.split(","):
    sys.argv = ["encode", *arguments, "--shard", name]
    encode.main()
"""


@pytest.mark.slow
def test_eight_shards_of_four_processes_one_of_which_is_killed(
    run, refused, tiny_model, corpus, tmp_path, monkeypatch
):
    """SIGKILL while a shard is written: only that process' two shards are encoded again."""
    pytest.importorskip("pyarrow")
    base = ("--model", str(tiny_model), "--input", str(corpus), "--output", str(tmp_path / "s"))

    def start(number, stuck=""):
        command = [sys.executable, "-c", WORKER, f"{number}/8,{number + 4}/8", stuck, *base]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    workers = [start(0), start(1, "stuck"), start(2), start(3)]
    while "writing" not in workers[1].stdout.readline():
        assert workers[1].poll() is None
    workers[1].kill()
    assert [worker.wait() for worker in workers] == [0, -9, 0, 0]
    assert list((tmp_path / "s").glob(".shard-00001-of-00008.parquet.*"))
    merge = ("--merge", tmp_path / "s", "--output", tmp_path / "merged.npy")
    assert "2 of 8 shards missing: run again with --shard 1/8, 5/8" in refused(encode, *merge)
    assert start(1).wait() == 0
    monkeypatch.setattr("embed_jax.data.window.WINDOW", 16)
    assert run(encode, *merge)[0] == 0
    assert not list((tmp_path / "s").glob(".*"))
    whole = subprocess.run(
        [sys.executable, "-c", WORKER.replace('*arguments, "--shard", name', "*arguments"), "-", "",
         *base[:-1], str(tmp_path / "one.npy")],
        cwd=ROOT, check=True, timeout=600,
    )  # fmt: skip
    assert whole.returncode == 0
    assert (tmp_path / "merged.npy").read_bytes() == (tmp_path / "one.npy").read_bytes()
