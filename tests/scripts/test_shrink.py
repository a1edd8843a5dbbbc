"""Smaller models on disk: correct here and in sentence-transformers, or refused."""

import jax
import numpy as np
import pytest

import embed_jax
from embed_jax.evals.sts import sts_evaluator
from scripts import shrink


@pytest.fixture
def texts(tmp_path, sentences):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join([*sentences, *sentences[:5]]) + "\n")
    return path


@pytest.mark.slow
def test_fewer_layers_and_dimensions_and_sentence_transformers_agrees(
    run, tiny_model, texts, sentences, sts, tmp_path
):
    arguments = (
        "--layers",
        "1",
        "--dim",
        8,
        "--texts",
        texts,
        "--sts",
        sts,
        "--output",
        tmp_path / "small",
    )
    status, out, err = run(shrink, "--model", tiny_model, *arguments)
    assert (status, err) == (0, "")
    before, after = embed_jax.load(str(tiny_model)), embed_jax.load(str(tmp_path / "small"))
    embeddings = after.encode(sentences)
    assert embeddings.shape == (200, 8) and after.spec.backbone.num_layers == 1
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)

    rows = [line.split("\t")[:3] for line in sts.read_text().splitlines()[1:]]
    scores, *pairs = zip(*rows, strict=True)
    evaluate = sts_evaluator(*pairs, list(map(float, scores)))
    shown = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert shown["layers"] == ["2", "1"] and shown["dimensions"] == ["32", "8"]
    sizes = [
        f"{sum(leaf.size for leaf in jax.tree.leaves(model.params)):,}" for model in (before, after)
    ]
    assert shown["parameters"] == sizes
    assert shown["Spearman"] == [
        f"{evaluate(model.encode)['spearman']:.4f}" for model in (before, after)
    ]

    peer = pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(tmp_path / "small"), device="cpu"
    )
    np.testing.assert_allclose(peer.encode(sentences[:20]), embeddings[:20], atol=1e-5)


def test_texts_are_different_ones_and_as_many_as_asked_for(texts, sentences):
    arguments = ["--model", "m", "--dim", "8", "--texts", str(texts), "--output", "o"]
    assert shrink.read_texts(shrink.parse(arguments)) == sentences
    assert shrink.read_texts(shrink.parse([*arguments, "--limit", "12"])) == sentences[:12]


def test_what_is_refused(refused, tiny_model, texts, tmp_path, sentences):
    good = ("--model", tiny_model, "--output", tmp_path / "small")
    files = {
        "empty.txt": "",
        "blank.tsv": "text\tn\n \t1\n",
        "few.txt": "\n".join([*sentences[:8], *sentences[:8]]) + "\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for arguments, message in (
        ((), "nothing to do: expected --layers, --dim or both"),
        (("--layers", "0,2"), "--layers 0,2: expected numbers from 0 to 1, found 2"),
        (
            ("--layers", "0,0"),
            "--layers 0,0: expected ascending numbers, each once, found 0 after 0",
        ),
        (
            ("--layers", "1,0"),
            "--layers 1,0: expected ascending numbers, each once, found 0 after 1",
        ),
        (
            ("--layers", "first"),
            "--layers: expected numbers with commas between, such as 0,2,4, found 'first'",
        ),
        (
            ("--layers", ""),
            "--layers: expected numbers with commas between, such as 0,2,4, found ''",
        ),
        (("--dim", 8), "--dim and --texts belong together"),
        (("--texts", texts), "nothing to do"),
        (("--layers", "0", "--texts", texts), "--dim and --texts belong together"),
        (("--dim", 0, "--texts", texts), "--dim: expected 1 to 32, the model's own, found 0"),
        (("--dim", 33, "--texts", texts), "--dim: expected 1 to 32, the model's own, found 33"),
        (
            ("--dim", 8, "--texts", tmp_path / "few.txt"),
            "few.txt: expected more than 8 different texts (--dim), found 8",
        ),
        (("--dim", 8, "--texts", tmp_path / "empty.txt"), "empty.txt: empty, no texts in it"),
        (("--dim", 8, "--texts", tmp_path / "blank.tsv"), "blank.tsv: empty, no texts in it"),
        (("--dim", 8, "--texts", tmp_path / "gone.txt"), "gone.txt: no such file"),
        (
            ("--dim", 8, "--texts", texts, "--field", "body"),
            "texts.txt:1: no field 'body', found text",
        ),
        (("--dim", 8, "--texts", texts, "--limit", 0), "--limit: expected 1 or more, found 0"),
        (
            ("--dim", 8, "--texts", texts, "--limit", 8),
            "expected more than 8 different texts (--dim), found 8",
        ),
        (("--layers", "0", "--sts", tmp_path / "gone.tsv"), "gone.tsv: no such file"),
    ):
        assert message in refused(shrink, *good, *arguments)
    assert "--output" in refused(shrink, "--model", tiny_model, "--layers", "0")


def test_embeddings_that_are_not_finite_leave_nothing(
    refused, tiny_model, texts, tmp_path, monkeypatch
):
    broken = embed_jax.load(str(tiny_model))
    monkeypatch.setattr(
        broken, "encode", lambda texts: np.full((len(texts), 32), np.nan, np.float32)
    )
    monkeypatch.setattr("embed_jax.load", lambda name, **options: broken)
    err = refused(
        shrink, "--model", tiny_model, "--dim", 8, "--texts", texts, "--output", tmp_path / "small"
    )
    assert "dim 8: the embedding of text 0, from 0, is not finite" in err
