"""The command that makes static encoders."""

import pytest

import embed_jax
from scripts import static
from scripts.evaluate import __main__ as evaluate

VECTORS = "the 1 0\ndog 0 1\nplays 1 1\nmusic -1 2\n"


@pytest.fixture
def vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text(VECTORS)
    return path


def test_words_make_a_model_that_other_commands_take(run, vectors, sts, tmp_path):
    output = tmp_path / "models" / "words"
    assert run(static, "words", "--vectors", vectors, "--output", output) == (
        0,
        f"{output}: 4 tokens, 2 dimensions\n",
        "",
    )
    assert embed_jax.load(str(output)).encode("The dog").tolist() == [0.5, 0.5]
    status, out, _ = run(evaluate, "--model", output, "--task", "sts", "--data", sts)
    assert status == 0 and "spearman" in out.lower()
    arguments = ("words", "--vectors", vectors, "--output", output, "--no-lower-case", "--sif", 0.5)
    assert run(static, *arguments)[0] == 0
    assert embed_jax.load(str(output)).encode("The dog")[0] == 0


def test_distil_takes_the_teachers_tokens(run, tiny_model, tmp_path):
    status, out, err = run(
        static, "distil", "--model", tiny_model, "--dim", 8, "--output", tmp_path / "static"
    )
    assert (status, err) == (0, "")
    model = embed_jax.load(str(tmp_path / "static"))
    assert out == f"{tmp_path / 'static'}: {model.tokenizer.vocab_size} tokens, 8 dimensions\n"
    assert model.tokenizer.vocab_size == embed_jax.load(str(tiny_model)).tokenizer.vocab_size


def test_what_cannot_be_used_is_refused_and_nothing_written(refused, vectors, tmp_path):
    out = tmp_path / "out"
    arguments = ("words", "--vectors", vectors, "--output")
    assert "vectors.txt: expected a directory, found a file" in refused(static, *arguments, vectors)
    assert "is not empty, and has no model" in refused(static, *arguments, tmp_path)
    assert "no such file" in refused(
        static, "words", "--vectors", tmp_path / "none", "--output", out
    )
    assert "sif: expected a finite number" in refused(static, *arguments, out, "--sif", "-1")
    assert "nobody/nothing" in refused(
        static, "distil", "--model", "nobody/nothing", "--output", out
    )
    vectors.write_text(VECTORS + "cat 1\n")
    assert "vectors.txt:5: expected a word and 2 numbers" in refused(static, *arguments, out)
