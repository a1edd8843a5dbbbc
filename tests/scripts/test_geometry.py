"""The command: its numbers are the library's, its files are whole, its errors one line."""

import functools
import json
import types

import numpy as np
import pytest

import embed_jax.sentence
from embed_jax.data.sources.sts import read_sts
from embed_jax.evals.geometry import embed_texts_and_pairs, geometry_metrics, sts_texts
from scripts.geometry import __main__ as geometry


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Loads each model once, as each loading compiles again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embed_jax.load", functools.cache(embed_jax.load), raising=False)
        yield


def test_numbers_are_the_library_s(run, tiny_model, sts, tmp_path):
    output = tmp_path / "geometry.json"
    status, out, err = run(geometry, "--model", tiny_model, "--data", sts, "--output", output)
    assert status == 0, err
    model = embed_jax.sentence.load_sentence_encoder(str(tiny_model))
    texts, pairs = sts_texts(*read_sts(sts))
    expected = geometry_metrics(*embed_texts_and_pairs(model.encode, texts, pairs))
    result = json.loads(output.read_text())
    assert result["metrics"] == pytest.approx(expected)
    assert (result["texts"], result["pairs"]) == (31, 5) and "31 texts, 5 positive pairs" in out
    assert all(name in out for name in expected)
    assert (len(result["variances"]), len(result["singular_values"])) == (
        model.dim,
        min(31, model.dim),
    )
    assert min(result["variances"]) == pytest.approx(expected["min_variance"])
    by_dimension = result["nearest_to_farthest_by_dimension"]
    assert by_dimension[str(model.dim)] == pytest.approx(expected["nearest_to_farthest"])
    assert "against" not in result and "jax" in result["versions"]


def test_before_and_after_with_a_picture(run, tiny_model, sts, tmp_path):
    pytest.importorskip("matplotlib")
    output, plot = tmp_path / "geometry.json", tmp_path / "geometry.png"
    arguments = ("--model", tiny_model, "--against", tiny_model, "--data", sts, "--limit", 20)
    status, _, err = run(geometry, *arguments, "--output", output, "--plot", plot)
    assert status == 0, err
    result = json.loads(output.read_text())
    assert result["against"]["metrics"] == result["metrics"], "the same model, on the same texts"
    assert result["texts"] == 20
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "geometry.json",
        "geometry.png",
        "sts",
    ]


def test_pairs_and_texts_without_scores(run, tiny_model, sentences, tmp_path):
    (tmp_path / "pairs.tsv").write_text(
        "\n".join(
            [
                "anchor\tpositive",
                *(f"{a}\t{b}" for a, b in zip(sentences[:20], sentences[20:40], strict=True)),
            ]
        )
    )
    (tmp_path / "texts.txt").write_text("\n".join(sentences[:40]))
    result = {}
    for name in ("pairs.tsv", "texts.txt"):
        output = tmp_path / "geometry.json"
        status, out, err = run(
            geometry, "--model", tiny_model, "--data", tmp_path / name, "--output", output
        )
        assert status == 0, err
        result[name] = json.loads(output.read_text())
    assert result["pairs.tsv"]["pairs"] == 20 and result["texts.txt"]["pairs"] == 0
    assert result["pairs.tsv"]["metrics"].keys() - result["texts.txt"]["metrics"].keys() == {
        "alignment"
    }
    for name, value in result["texts.txt"]["metrics"].items():
        assert value == pytest.approx(result["pairs.tsv"]["metrics"][name], rel=1e-5), (
            "the same texts"
        )


def test_a_picture_of_a_space_without_pairs(tmp_path):
    pytest.importorskip("matplotlib")
    from scripts.geometry.plot import plot_geometry

    embeddings = np.random.default_rng(0).normal(size=(30, 20))
    plot_geometry({"after": (embeddings, None)}, tmp_path / "one", "svg")
    assert "<svg" in (tmp_path / "one").read_text()


def test_a_cold_softmax_has_one_candidate_and_a_hot_one_all():
    from scripts.geometry.plot import effective_candidates

    similarities = np.random.default_rng(0).uniform(-1, 1, size=(5, 8))
    cold, warm, hot = effective_candidates(similarities, np.array([1e-4, 0.5, 1e4]))
    assert cold == pytest.approx(1, abs=1e-3) and hot == pytest.approx(8) and cold < warm < hot
    two = effective_candidates(np.array([[1.0, 1.0, -1.0]]), np.array([1e-3]))
    assert two == pytest.approx(2)


def test_bad_input_is_refused(refused, tiny_model, sts, tmp_path):
    few, flat, lists = tmp_path / "few.txt", tmp_path / "flat.tsv", tmp_path / "nli.tsv"
    few.write_text("one\ntwo\n")
    flat.write_text("score\tsentence1\tsentence2\n0\ta\tb\n")
    lists.write_text("premise\thypothesis\tlabel\na\tb\t0\n")
    good = ("--model", tiny_model, "--data", sts)
    assert "11 different texts" in refused(geometry, "--model", tiny_model, "--data", few)
    assert "flat.tsv" in refused(geometry, "--model", tiny_model, "--data", flat)
    assert "nli.tsv: no pairs" in refused(geometry, "--model", tiny_model, "--data", lists)
    assert "no such file" in refused(
        geometry, "--model", tiny_model, "--data", tmp_path / "none.tsv"
    )
    assert "--limit" in refused(geometry, *good, "--limit", 1)
    assert "11 different texts" in refused(geometry, *good, "--limit", 10)
    assert "--seed" in refused(geometry, *good, "--seed", -1)
    assert ".png" in refused(geometry, *good, "--plot", tmp_path / "plot.gif")
    assert "cannot be written" in refused(
        geometry, *good, "--output", tmp_path / "nowhere" / "geometry.json"
    )
    assert "'query'" in refused(geometry, *good, "--prompt-name", "query")
    assert "nobody/nothing" in refused(
        geometry, *good, "--against", "nobody/nothing", "--output", tmp_path / "o.json"
    )


def test_a_model_without_finite_embeddings_is_refused(
    refused, tiny_model, sts, tmp_path, monkeypatch
):
    broken = types.SimpleNamespace(encode=lambda texts, **options: np.full((len(texts), 8), np.nan))
    monkeypatch.setattr("embed_jax.load", lambda name, **options: broken)
    err = refused(
        geometry, "--model", tiny_model, "--data", sts, "--output", tmp_path / "geometry.json"
    )
    assert "finite" in err
