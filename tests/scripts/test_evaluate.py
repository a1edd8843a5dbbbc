import json
import math
import shutil

import pytest

import embed_jax
from embed_jax import __version__
from embed_jax.data.sources.beir import read_beir
from embed_jax.data.sources.sts import read_sts
from embed_jax.evals.search import retrieval_evaluator
from embed_jax.evals.sts import sts_evaluator
from scripts.evaluate import __main__ as evaluate
from scripts.evaluate import aliases, embedders, sweep


def test_sts(run, tiny_model, sts, tmp_path):
    output = tmp_path / "results.json"
    status, out, err = run(
        evaluate, "--model", tiny_model, "--task", "sts", "--data", sts, "--output", output
    )
    assert (status, err) == (0, "")
    result = json.loads(output.read_text())
    expected = sts_evaluator(*read_sts(sts))(embed_jax.load(str(tiny_model)).encode)
    assert {name: result["metrics"][name] for name in expected} == pytest.approx(expected)
    assert set(result["metrics"]) - set(expected) == {
        f"{similarity}_{metric}"
        for similarity in ("dot", "euclidean", "manhattan")
        for metric in ("spearman", "pearson")
    }
    assert {"spearman", "spearman_mean", "spearman_wmean"} <= result["metrics"].keys()
    low, high = result["intervals"]["spearman"]
    assert low <= result["metrics"]["spearman"] <= high
    assert result["n"] == 30 and result["task"] == "sts" and "jax" in result["versions"]
    assert f"{expected['spearman']:.4f}" in out
    assert [path.name for path in tmp_path.iterdir() if "results" in path.name] == ["results.json"]


def test_embeddings_are_cut_and_stop_at_a_layer(run, tiny_model, sts, tmp_path):
    output = tmp_path / "results.json"
    line = [
        "--model",
        tiny_model,
        "--task",
        "sts",
        "--data",
        sts,
        "--dim",
        "8",
        "--layers",
        "1",
        "--output",
        output,
    ]
    status, _, err = run(evaluate, *line)
    assert status == 0 and "warning: dim 8 was not trained: this model was for 32 only" in err
    result, model = json.loads(output.read_text()), embed_jax.load(str(tiny_model))
    with pytest.warns(UserWarning):
        expected = sts_evaluator(*read_sts(sts))(lambda texts: model.encode(texts, dim=8, layers=1))
    assert {name: result["metrics"][name] for name in expected} == pytest.approx(expected)
    assert (result["dim"], result["layers"]) == (8, 1)


def test_several_sts_sets_give_their_average(run, tiny_model, sts, tmp_path):
    other = tmp_path / "other.tsv"
    other.write_text("".join(sts.read_text().splitlines(keepends=True)[:20]))
    output = tmp_path / "results.json"
    data = f"{sts.parent},{other}"
    status, out, err = run(
        evaluate, "--model", tiny_model, "--task", "sts", "--data", data, "--output", output
    )
    assert (status, err) == (0, "")
    metrics = json.loads(output.read_text())["metrics"]
    assert metrics["average/spearman"] == pytest.approx(
        (metrics["sts/spearman"] + metrics["other/spearman"]) / 2
    )
    assert any(line.startswith("average") for line in out.splitlines())
    assert (
        out.splitlines()[-1]
        == "other: only 19 pairs: its interval is wide, and too narrow still below some thirty"
    )


def test_an_undefined_correlation_is_null(run, tiny_model, tmp_path):
    data, output = tmp_path / "flat.tsv", tmp_path / "results.json"
    data.write_text("score\tsentence1\tsentence2\n1\ta dog\ta cat\n1\ta house\ta river\n")
    status, _, err = run(
        evaluate, "--model", tiny_model, "--task", "sts", "--data", data, "--output", output
    )
    assert (status, err) == (0, "")
    assert json.loads(output.read_text())["metrics"]["spearman"] is None


def test_retrieval(run, tiny_model, beir, tmp_path):
    pytest.importorskip("bm25s")
    output = tmp_path / "results.json"
    arguments = (
        "--model",
        tiny_model,
        "--task",
        "retrieval",
        "--data",
        beir,
        "--k",
        "1,10",
        "--output",
        output,
    )
    status, out, err = run(evaluate, *arguments, "--baseline", "bm25")
    assert (status, err) == (0, "")
    result = json.loads(output.read_text())
    expected = retrieval_evaluator(*read_beir(beir), ks=(1, 10))(
        embed_jax.load(str(tiny_model)).encode
    )
    assert result["metrics"] == pytest.approx(expected)
    assert result["n"] == 5 and result["split"] == "test"
    assert result["baseline"]["metrics"]["mrr@1"] > 0.5  # a query's words are its document's
    assert result["intervals"].keys() == result["metrics"].keys()
    assert "ndcg@10" in out and "bm25" in out


def test_without_output_nothing_is_written(run, tiny_model, sts, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert run(evaluate, "--model", tiny_model, "--task", "sts", "--data", sts)[0] == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_stored_prompts_are_used_for_queries_and_documents(
    run, tiny_model, beir, tmp_path, monkeypatch
):
    model = embed_jax.load(str(tiny_model))
    model.prompts = {"query": "find ", "passage": "text "}
    used = []

    def encode(texts, prompt_name=None, **options):
        used.append(prompt_name)
        return embed_jax.SentenceEncoder.encode(model, texts, prompt_name=prompt_name)

    monkeypatch.setattr(model, "encode", encode)
    monkeypatch.setattr(embedders, "load_model", lambda *args: model)
    run(evaluate, "--model", "m", "--task", "retrieval", "--data", beir)
    assert used == ["query", "passage"]


@pytest.mark.parametrize(
    ("prompts", "default", "arguments", "queries", "corpus"),
    [
        ({"query": "find "}, None, (), {"prompt_name": "query"}, {"prompt": ""}),
        ({"query": "find "}, "query", (), {"prompt_name": "query"}, {}),
        (
            {"query": "a", "document": "b"},
            None,
            ("--instruction", "find"),
            {"instruction": "find"},
            {"prompt_name": "document"},
        ),
        ({}, None, ("--instruction", "find"), {"instruction": "find"}, {"prompt": ""}),
        (
            {"s2p": "find "},
            None,
            ("--query-prompt-name", "s2p"),
            {"prompt_name": "s2p"},
            {"prompt": ""},
        ),
    ],
)
def test_each_side_of_a_search_has_its_prompt(
    tiny_model, prompts, default, arguments, queries, corpus
):
    """A model without a prompt for documents encodes them without one, and does not warn."""
    model = embed_jax.load(str(tiny_model))
    model.prompts, model.default_prompt_name = prompts, default
    args = evaluate.parse(["--model", "m", "--task", "retrieval", "--data", "x", *arguments])
    options = embedders.read_options(args)
    shared = embedders.encoder(options, model).keywords
    result = [encode.keywords for encode in sweep.encoders(options, model)]
    assert result == [shared | queries, shared | corpus]


def test_an_instruction_is_given_to_the_model(run, refused, tiny_model, sts, tmp_path):
    arguments = ("--task", "sts", "--data", sts, "--instruction", "find the same")
    assert "this model has no template for instructions" in refused(
        evaluate, "--model", tiny_model, *arguments
    )
    model = embed_jax.load(str(tiny_model))
    model.template = "Instruct: {instruction}\nQuery: "
    model.save(tmp_path / "model")
    status, _, err = run(
        evaluate, "--model", tmp_path / "model", *arguments, "--output", tmp_path / "results.json"
    )
    assert (status, err) == (0, "")
    assert json.loads((tmp_path / "results.json").read_text())["instruction"] == "find the same"
    _, _, err = run(evaluate, "--model", tmp_path / "model", *arguments[:-2])
    assert err.startswith("warning: this model has a template for instructions, and none was given")
    assert err.count("\n") == 1


def test_a_model_may_compute_in_bfloat16(run, refused, tiny_model, beir, tmp_path):
    arguments = ("--task", "retrieval", "--data", beir, "--k", "1,10")
    options = (*arguments, "--compute-dtype", "bfloat16")
    output = tmp_path / "results.json"
    assert run(evaluate, "--model", tiny_model, *options, "--output", output)[0] == 0
    result = json.loads(output.read_text())
    half = embed_jax.load(str(tiny_model), compute_dtype="bfloat16")
    expected = retrieval_evaluator(*read_beir(beir), ks=(1, 10))(half.encode)
    assert result["metrics"] == pytest.approx(expected)
    assert result["compute_dtype"] == "bfloat16"
    refusal = refused(evaluate, "--model", "openai:any", *options)
    assert "openai:any: --compute-dtype is not for an endpoint" in refusal


def bad_sts_files(directory):
    good = "score\tsentence1\tsentence2\n1.0\ta dog\ta cat\n"
    files = {
        "wrong_header.tsv": (b"label\tfirst\tsecond\n1\ta\tb\n", "label, first, second"),
        "too_few_fields.tsv": (good.encode() + b"2.0\tonly one\n", "too_few_fields.tsv:3"),
        "no_number.tsv": (good.encode() + b"high\ta\tb\n", "no_number.tsv:3"),
        "not_utf8.tsv": (good.encode() + b"2.0\tcaf\xe9\tb\n", "not_utf8.tsv:3"),
        "empty.tsv": (b"", "empty"),
        "only_header.tsv": (good.splitlines()[0].encode() + b"\n", "empty"),
        "damaged.tsv.gz": (b"\x1f\x8b\x08\x00truncated", "damaged"),
        "unknown.parquet": (b"PAR1", "unknown file type"),
    }
    for name, (content, message) in files.items():
        (directory / name).write_bytes(content)
        yield directory / name, message


def test_bad_sts_files_are_refused(refused, tiny_model, tmp_path):
    for path, message in [*bad_sts_files(tmp_path), (tmp_path / "missing.tsv", "no such file")]:
        output = tmp_path / "results.json"
        err = refused(
            evaluate, "--model", tiny_model, "--task", "sts", "--data", path, "--output", output
        )
        assert path.name in err and message in err


def test_bad_retrieval_data_are_refused(refused, tiny_model, beir, tmp_path):
    qrels = (beir / "qrels" / "test.tsv").read_text()
    header = qrels.splitlines(keepends=True)[0]
    for content, message in (
        (qrels + "q9\td1\t1\n", "q9"),
        (header + "q1\td99\t1\n", "none of the judged documents is in the corpus, such as 'd99'"),
        (qrels + "q1\td30\tgood\n", "test.tsv:12"),
    ):
        (beir / "qrels" / "test.tsv").write_text(content)
        err = refused(evaluate, "--model", tiny_model, "--task", "retrieval", "--data", beir)
        assert message in err
    assert "test" in refused(
        evaluate, "--model", tiny_model, "--task", "retrieval", "--data", beir, "--split", "dev"
    )
    assert "no such" in refused(
        evaluate, "--model", tiny_model, "--task", "retrieval", "--data", tmp_path / "nowhere"
    )


def test_bad_models_and_outputs_are_refused(refused, tiny_model, sts, tmp_path):
    arguments = ("--task", "sts", "--data", sts)
    output = ("--output", tmp_path / "results.json")
    assert "nobody/nothing" in refused(evaluate, "--model", "nobody/nothing", *arguments, *output)
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors" in refused(evaluate, "--model", damaged, *arguments, *output)
    nowhere = tmp_path / "nowhere" / "results.json"
    assert "cannot be written" in refused(
        evaluate, "--model", tiny_model, *arguments, "--output", nowhere
    )
    assert "it is a directory" in refused(
        evaluate, "--model", tiny_model, *arguments, "--output", tmp_path
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "sts"), "--data"),
        (("--task", "singing", "--data", "x"), "singing"),
        (
            ("--task", "sts", "--data", "x", "--baseline", "bm25"),
            "--baseline is for --task retrieval",
        ),
        (("--data", "x"), "expected one of --suite, --task, --compare, --leaderboard, found none"),
        (("--task", "sts", "--leaderboard", "x"), "found --task and --leaderboard"),
        (
            ("--task", "sts", "--data", "x", "--set", "scale"),
            "--set: expected NAME=VALUE, found 'scale'",
        ),
        (("--leaderboard", "x"), "unrecognized arguments: --model m"),
        (("--suite", "x.yaml"), "the following arguments are required: --output"),
        (("--task", "retrieval", "--data", "x", "--k", "ten"), "'ten'"),
        (("--task", "sts", "--data", "x", "--batch-tokens", "-1"), "-1"),
        (("--task", "sts", "--data", "x", "--dim", "-8"), "--dim: expected 1 or more, found -8"),
        (("--task", "sts", "--data", "x", "--modle", "m"), "--modle"),
        (
            ("--task", "sts", "--data", "x", "--instruction", "a", "--prompt-name", "b"),
            "--instruction: expected none",
        ),
    ],
)
def test_bad_usage_is_refused(refused, arguments, message):
    assert message in refused(evaluate, "--model", "m", *arguments)


def test_unknown_prompts_and_small_budgets_are_refused(refused, tiny_model, sts, tmp_path):
    arguments = (
        "--model",
        tiny_model,
        "--task",
        "sts",
        "--data",
        sts,
        "--output",
        tmp_path / "results.json",
    )
    assert "'query'" in refused(evaluate, *arguments, "--prompt-name", "query")
    assert "batch_tokens" in refused(evaluate, *arguments, "--batch-tokens", "2")


def test_no_not_a_number_reaches_the_file(tmp_path):
    from scripts.commands import write_json

    write_json(tmp_path / "x.json", {"a": [math.nan, 1.0], "b": {"c": math.inf}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.0], "b": {"c": None}}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--task sts --model m --data x", "run --task sts --model m --data x"),
        ("--model m --task=sts --data x", "run --model m --data x --task sts"),
        ("--suite s --model a,b --output o", "suite s --model a,b --output o"),
        ("--suite s --compare a b --output o", "suite s --model a,b --compare --output o"),
        ("--compare a b --margin 0.1", "compare a b --margin 0.1"),
        ("--output x --leaderboard d", "leaderboard d --output x"),
        (
            "--model m --task retrieval --data x --sweep --dims 8",
            "sweep --model m --data x --dims 8",
        ),
        ("--diagnose --model m --task retrieval --data x", "diagnose --model m --data x"),
    ],
)
def test_old_flags_stand_for_subcommands(old, new):
    names = {word.partition("=")[0] for word in old.split()}
    assert any(names >= {flag} for flag in aliases.ALIASES)
    result, expected = (vars(evaluate.parse(line.split())) for line in (old, new))
    assert {**result, "check": None} == {**expected, "check": None}


def test_every_old_flag_has_a_subcommand():
    assert {name for name, _ in aliases.ALIASES.values()} <= set(evaluate.COMMANDS)
    assert __version__ < "1", (
        "remove scripts/evaluate/aliases.py: the old flags were read until 1.0"
    )
