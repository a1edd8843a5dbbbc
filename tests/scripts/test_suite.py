"""Suites, comparisons and leaderboards through the command."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest

import embed_jax
from scripts.evaluate import __main__ as evaluate


@pytest.fixture
def suite(sts, beir, tmp_path):
    path = tmp_path / "suite.yaml"
    path.write_text(
        "- {task: sts, data: sts, name: pairs}\n- {task: retrieval, data: beir, k: '5'}\n"
    )
    return path


@pytest.fixture
def other_model(tiny_model, tmp_path):
    """The tiny model with other weights."""
    model = embed_jax.load(str(tiny_model))
    rng = np.random.default_rng(0)
    model.params = jax.tree.map(
        lambda leaf: leaf + rng.normal(size=leaf.shape).astype(np.float32), model.params
    )
    model.save(tmp_path / "other")
    return tmp_path / "other"


def test_each_task_is_a_file_and_what_is_done_is_not_done_again(run, tiny_model, suite, tmp_path):
    arguments = ("--model", tiny_model, "--suite", suite, "--output", tmp_path / "results")
    status, out, err = run(evaluate, *arguments)
    assert (status, err) == (0, "") and "2 of 2 tasks to do" in out
    directory = next(path for path in (tmp_path / "results").iterdir() if path.is_dir())
    assert sorted(path.name for path in directory.iterdir()) == ["beir.json", "pairs.json"]
    result = json.loads((directory / "pairs.json").read_text())
    assert result["n"] == len(result["items"]["values"]) == 30 and result["main"] == "spearman"
    assert result["model"] == str(tiny_model) and "jax" in result["versions"]
    table = (tmp_path / "results" / "table.md").read_text()
    assert table.count("| pairs | sts | spearman | 30 |") == 1 and "| average |" in table
    assert (tmp_path / "results" / "scores.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    (directory / "beir.json").unlink()
    status, out, err = run(evaluate, *arguments)
    assert (status, err) == (0, "") and "1 of 2 tasks to do" in out
    assert (directory / "pairs.json").stat().st_mtime_ns == before[directory / "pairs.json"]
    assert "2 of 2 tasks to do" in run(evaluate, *arguments, "--dim", "16")[1]  # other embeddings


def test_texts_are_embedded_once_for_all_tasks(run, tiny_model, suite, tmp_path, sentences):
    suite.write_text(
        suite.read_text() + "- {task: sts, data: sts, name: by_dot, similarity: dot}\n"
    )
    _, out, _ = run(
        evaluate, "--model", tiny_model, "--suite", suite, "--output", tmp_path / "results"
    )
    pairs = {*sentences[:31]}
    queries = {" ".join(sentences[n].split()[:4]) for n in range(5)}
    documents = {
        *sentences[:40]
    }  # with the prompt "", on purpose: not what symmetric tasks ask for
    assert f"{len(pairs) + len(queries) + len(documents)} texts embedded" in out


def test_models_side_by_side(run, tiny_model, other_model, suite, tmp_path):
    output = tmp_path / "results"
    names = f"{tiny_model},{other_model}"
    status, out, err = run(evaluate, "--model", names, "--suite", suite, "--output", output)
    assert (status, err) == (0, "")
    ranking = tmp_path / "ranking.json"
    status, out, err = run(evaluate, "--leaderboard", output, "--output", ranking)
    assert (status, err) == (0, "")
    rows = json.loads(ranking.read_text())["ranking"]
    assert {row["model"] for row in rows} == set(names.split(",")) and rows[0]["average"] >= rows[
        1
    ]["average"]
    directories = sorted(path for path in output.iterdir() if path.is_dir())
    status, out, err = run(
        evaluate, "--compare", *directories, "--output", tmp_path / "compared.json"
    )
    assert (status, err) == (0, "")
    compared = json.loads((tmp_path / "compared.json").read_text())
    assert compared["tasks"].keys() == {"pairs", "beir"}
    pairs = compared["tasks"]["pairs"]
    assert pairs["difference"] == pytest.approx(pairs["a"] - pairs["b"], abs=1e-6)
    assert pairs["p"] <= pairs["p_holm"] and compared["verdict"] in out
    same = run(
        evaluate, "--compare", directories[0], directories[0], "--output", tmp_path / "same.json"
    )
    assert same[0] == 0 and json.loads((tmp_path / "same.json").read_text())["overall"]["p"] == 1
    status, out, _ = run(
        evaluate, "--compare", tiny_model, other_model, "--suite", suite, "--output", output
    )
    assert status == 0 and "0 of 2 tasks to do" in out and f"A: {tiny_model}" in out


def test_training_overlap_is_said(run, tiny_model, sts, tmp_path, sentences):
    seen = [next(text for text in sentences[:10] if len(text.split()) >= 3)]
    training = tmp_path / "train.tsv"
    training.write_text(
        "anchor\tpositive\n" + "".join(f"{text}\tsomething else\n" for text in seen)
    )
    output = tmp_path / "out.json"
    arguments = ("--task", "sts", "--data", sts, "--training", training, "--output", output)
    status, out, err = run(evaluate, "--model", tiny_model, *arguments)
    assert (status, err) == (0, "")
    overlap = json.loads(output.read_text())["overlap"]
    assert overlap["items"] >= 1 and overlap["clean"] is not None
    assert f"{overlap['items']} of 30 pairs share 8 words in a row with the training data" in out

    other = tmp_path / "other.tsv"
    other.write_text(sts.read_text())
    arguments = ("--task", "sts", "--data", f"{sts},{other}", *arguments[4:])
    status, _, err = run(evaluate, "--model", tiny_model, *arguments)
    assert (status, err) == (0, "")
    by_data = json.loads(output.read_text())["overlap"]
    assert list(by_data.values()) == [overlap, overlap] and "other" in by_data, by_data


class Embeddings(BaseHTTPRequestHandler):
    """An API like OpenAI's; a text's vector is made of its bytes, so similar texts are near."""

    def do_POST(self):
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        self.server.asked += texts
        size = self.server.size
        vectors = [
            np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)[97 : 97 + size]
            for text in texts
        ]
        data = [
            {"index": place, "embedding": (vector + 0.1).tolist()}
            for place, vector in enumerate(vectors)
        ]
        content = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Embeddings)
    server.asked, server.size = [], 26
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_model_behind_an_api_is_judged_by_the_same_suite(
    run, tiny_model, suite, server, tmp_path
):
    output = tmp_path / "results"
    url = f"http://127.0.0.1:{server.server_port}"
    arguments = ("--model", f"{tiny_model},openai:letters", "--suite", suite, "--output", output)
    status, out, err = run(evaluate, *arguments, "--endpoint-url", url)
    assert (status, err) == (0, "")
    assert "openai:letters: 2 of 2 tasks to do" in out
    assert len(server.asked) == len(set(server.asked))  # nothing is paid for twice
    (output / "openai_letters" / "beir.json").unlink()
    requests = len(server.asked)
    assert run(evaluate, *arguments, "--endpoint-url", url)[0] == 0
    assert len(server.asked) == requests  # all of it is in the cache
    refused = run(
        evaluate,
        "--model",
        "openai:letters",
        "--task",
        "sts",
        "--data",
        suite.parent / "sts",
        "--layers",
        "1",
    )
    assert refused[0] == 2 and "--layers is not for an endpoint" in refused[2]


def test_an_exported_file_is_judged_like_its_model(run, refused, tiny_model, sts, tmp_path):
    pytest.importorskip("onnxruntime")
    from embed_jax.export.onnx import write_onnx

    model = embed_jax.load(str(tiny_model))
    model.prompts, model.default_prompt_name = {"sts": "say "}, "sts"
    model.save(tmp_path / "model")
    (tmp_path / "model" / "onnx").mkdir()
    file = tmp_path / "model" / "onnx" / "x.onnx"
    write_onnx(model, file)
    result = []
    for name in (tmp_path / "model", file):
        output = tmp_path / "out.json"
        assert (
            run(evaluate, "--model", name, "--task", "sts", "--data", sts, "--output", output)[0]
            == 0
        )
        result.append(json.loads(output.read_text())["items"]["values"])
    assert np.abs(np.subtract(*result)).max() < 1e-5
    arguments = ("--task", "sts", "--data", sts)
    assert "--dim is not for a file" in refused(evaluate, "--model", file, *arguments, "--dim", "8")
    assert "no such file" in refused(evaluate, "--model", tmp_path / "y.onnx", *arguments)


def test_an_endpoint_of_another_dimension_is_refused(run, sts, server):
    url = f"http://127.0.0.1:{server.server_port}"
    status, out, err = run(
        evaluate,
        "--model",
        "openai:x",
        "--task",
        "sts",
        "--data",
        sts,
        "--endpoint-url",
        url,
        "--dim",
        "8",
    )
    assert status == 2 and err.count("\n") == 1 and "asked x for 8 dimensions, found 26" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- {task: sts, data: sts, nme: x}", "sts sts: unknown option 'nme'"),
        ("- {task: sts, data: nowhere}", "suite.yaml: task 1: nowhere"),
        ("- {task: sts, data: nowhere}", "looked for {}/nowhere and"),
        ("- {task: classification, data: one.tsv, train: one.tsv}", "two"),
        ("- {task: sts, data: sts, split: dev}", "dev"),
    ],
)
def test_bad_tasks_are_refused_before_any_work(
    refused, tiny_model, suite, tmp_path, content, message
):
    (tmp_path / "one.tsv").write_text("text\tlabel\na b\tx\nc d\tx\n")
    suite.write_text(content)
    output = tmp_path / "results"
    message = message.format(tmp_path)
    assert message in refused(evaluate, "--model", tiny_model, "--suite", suite, "--output", output)


def test_what_is_no_folder_of_results_is_refused(refused, tmp_path):
    assert "no such directory" in refused(evaluate, "--leaderboard", tmp_path / "nowhere")
    assert "no such file" in refused(
        evaluate, "--compare", tmp_path / "a.json", tmp_path / "b.json"
    )
