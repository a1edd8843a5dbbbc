"""The public API: like sentence-transformers', with types checked before and during a run."""

import copy
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

import embed_jax
from embed_jax import scores
from embed_jax.errors import InputError
from embed_jax.parallel.mesh import make_mesh
from embed_jax.scores import (
    SIMILARITIES,
    pairwise_similarity,
    similarity_matrix,
    truncate,
    unit_length,
)
from embed_jax.sentence import SentenceEncoder

ROOT = Path(__file__).parents[1]
TEXTS = ["the cat", "", "music in the city", "a red house " * 3]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Use one device: it compiles faster than eight and gives the same results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embed_jax.text_model.make_mesh", lambda devices=0: make_mesh(1))
        yield


@pytest.fixture(scope="module")
def model(tiny_model):
    return embed_jax.load(tiny_model)


def having(model, **attributes):
    """Returns the model with other attributes, and with its compiled functions."""
    own = copy.copy(model)
    own._warned, own._prompted = set(), False
    for name, value in attributes.items():
        setattr(own, name, value)
    return own


def test_each_public_name_is_there():
    for name in embed_jax.__all__:
        assert callable(getattr(embed_jax, name))
    assert embed_jax.SentenceEncoder is SentenceEncoder
    with pytest.raises(AttributeError, match="module 'embed_jax' has no attribute 'laod'"):
        _ = embed_jax.laod


# ---- similarities --------------------------------------------------------------------------------


def embeddings(rows, seed=0, size=24):
    return np.random.default_rng(seed).normal(0, 3, (rows, size)).astype(np.float32)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities_equal_sentence_transformers(name):
    """The tolerance is ten times float32's rounding error of values up to about 300."""
    SimilarityFunction = pytest.importorskip("sentence_transformers").SimilarityFunction
    a, b = embeddings(40), embeddings(30, seed=1)
    a[3], b[5] = 0, a[7]
    for x, y in ((a, b), (a[0], b), (a, b[0]), (a[0], b[0])):
        result, reference = (
            similarity_matrix(x, y, name),
            SimilarityFunction.to_similarity_fn(name)(x, y).numpy(),
        )
        assert result.dtype == np.float32 and result.shape == reference.shape
        # theirs are rounded where vectors are the same: to 0.01
        np.testing.assert_allclose(result, reference, atol=1e-4 if name != "euclidean" else 2e-2)
    result = pairwise_similarity(a[:30], b, name)
    reference = SimilarityFunction.to_similarity_pairwise_fn(name)(a[:30], b).numpy()
    assert result.dtype == np.float32 and result.shape == (30,)
    np.testing.assert_allclose(result, reference, atol=1e-4)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_all_pairs_and_pairs_alike_agree_whatever_the_blocks(name, monkeypatch):
    a, b = embeddings(21), embeddings(21, seed=1)
    whole = similarity_matrix(a, b, name)
    np.testing.assert_allclose(
        np.diagonal(whole), pairwise_similarity(a, b, name), rtol=1e-5, atol=1e-6
    )
    monkeypatch.setattr(scores, "BLOCK", 2 * 21 * 24)
    np.testing.assert_allclose(similarity_matrix(a, b, name), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(similarity_matrix(b, a, name), whole.T, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(scores, "BLOCK", 1)
    np.testing.assert_allclose(similarity_matrix(a, b, name), whole, rtol=1e-5, atol=1e-6)
    assert similarity_matrix(a[:0], b, name).shape == (0, 21) and similarity_matrix(
        a, b[:0], name
    ).shape == (21, 0)
    assert pairwise_similarity(a[:0], b[:0], name).shape == (0,)


def test_near_vectors_keep_their_distance():
    """|a|^2 + |b|^2 - 2 a b in float32 would have no correct digit here."""
    a = unit_length(embeddings(5))
    step = np.float32(1e-5)
    b = a + step * np.eye(5, 24, dtype=np.float32)
    exact = -np.linalg.norm(a.astype(np.float64) - b, axis=1)
    np.testing.assert_allclose(np.diagonal(similarity_matrix(a, b, "euclidean")), exact, rtol=1e-4)
    np.testing.assert_allclose(np.diagonal(similarity_matrix(a, b, "manhattan")), exact, rtol=1e-4)


@pytest.mark.parametrize(
    ("a", "b", "name", "message"),
    [
        ((2, 3), (2, 4), "cosine", "expected vectors of one size, found 3 and 4 numbers"),
        ((2, 3), (2, 3), "cosin", r"unknown similarity 'cosin' \(did you mean 'cosine'\?\)"),
        (
            (2, 3, 1),
            (2, 3),
            "dot",
            r"expected vectors \[N, D\] or one vector \[D\], found the shape \(2, 3, 1\)",
        ),
    ],
)
@pytest.mark.unchecked
def test_what_cannot_be_compared_is_said_in_one_line(a, b, name, message):
    with pytest.raises(InputError, match=message):
        similarity_matrix(np.zeros(a), np.zeros(b), name)
    with pytest.raises(InputError):
        pairwise_similarity(np.zeros(a), np.zeros(b), name)


def test_pairs_need_as_many_on_both_sides():
    with pytest.raises(
        InputError, match=r"as many vectors on both sides, of one size, found \(2, 3\), \(1, 3\)"
    ):
        pairwise_similarity(np.zeros((2, 3)), np.zeros(3))


# ---- a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_model_compares_as_it_is_meant_to(model, name):
    own = having(model, similarity_fn_name=name)
    result = own.encode(TEXTS)
    np.testing.assert_array_equal(
        own.similarity(result, result[:2]), similarity_matrix(result, result[:2], name)
    )
    np.testing.assert_array_equal(own.similarity_pairwise(result, result[::-1]),
                                  pairwise_similarity(result, result[::-1], name))  # fmt: skip
    assert own.similarity(result[0], result).shape == (1, 4)


@pytest.fixture(scope="module")
def reference(model, tmp_path_factory):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    having(model, similarity_fn_name="dot").save(
        directory := tmp_path_factory.mktemp("theirs") / "model"
    )
    return SentenceTransformer(str(directory), device="cpu")


@pytest.mark.parametrize(
    ("prompts", "default", "query", "document"),
    [
        ({}, None, None, None),
        ({"query": "find : ", "document": ""}, None, "query", "document"),
        (
            {"query": "find : ", "document": "read : ", "passage": "never"},
            "passage",
            "query",
            "document",
        ),
        ({"query": "", "document": "", "STS": "like : "}, "STS", "query", "document"),
        ({"query": "find : ", "passage": "read : ", "corpus": "never"}, None, "query", "passage"),
        ({"query": "find : ", "corpus": "read : "}, None, "query", "corpus"),
        ({"STS": "like : "}, "STS", "STS", "STS"),
    ],
)
def test_queries_and_documents_have_their_prompts_by_the_usual_names(
    model, reference, prompts, default, query, document
):
    ours = having(model, prompts=prompts, default_prompt_name=default, similarity_fn_name="dot")
    reference.prompts, reference.default_prompt_name = dict(prompts), default
    expected = [reference.encode(TEXTS, prompt_name=name) for name in (query, document)]
    result = [ours.encode_query(TEXTS), ours.encode_document(TEXTS)]
    np.testing.assert_allclose(result, expected, atol=1e-5)
    if prompts.keys() >= {"query", "document"} or not prompts:
        np.testing.assert_allclose(
            result, [reference.encode_query(TEXTS), reference.encode_document(TEXTS)], atol=1e-5
        )
    np.testing.assert_allclose(ours.similarity(*result), reference.similarity(*expected), atol=1e-5)
    np.testing.assert_allclose(
        ours.similarity_pairwise(*result), reference.similarity_pairwise(*expected), atol=1e-5
    )
    for arguments in ({"prompt": "see : "}, *({"prompt_name": name} for name in prompts)):
        expected = reference.encode_query(TEXTS, **arguments)
        np.testing.assert_allclose(ours.encode_query(TEXTS, **arguments), expected, atol=1e-5)
        np.testing.assert_allclose(ours.encode_document(TEXTS, **arguments), expected, atol=1e-5)
    assert (
        ours.encode_query("the cat").shape == ours.encode_document("the cat").shape == (ours.dim,)
    )


def test_documents_without_a_prompt_need_none_and_queries_warn(model):
    own = having(model, prompts={"STS": "like : "})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(own.encode_document(TEXTS), model.encode(TEXTS))
    own = having(model, prompts={"STS": "like : "})
    with pytest.warns(UserWarning, match=r"has prompts \(STS\), and none was given"):
        own.encode_query(TEXTS)


def test_queries_take_an_instruction_and_documents_none(model):
    own = having(
        model,
        prompts={"query": "find : ", "document": ""},
        template="task : {instruction} query : ",
    )
    result = own.encode_query(TEXTS, instruction="find the music")
    np.testing.assert_array_equal(
        result, own.encode(TEXTS, prompt="task : find the music query : ")
    )
    assert np.abs(result - own.encode_query(TEXTS)).max() > 1e-3
    with pytest.raises(InputError, match="instruction: queries take one, documents have none"):
        own.encode_document(TEXTS, instruction="find the music")
    with pytest.raises(InputError, match="found prompt_name and instruction"):
        own.encode_query(TEXTS, instruction="find the music", prompt_name="query")


def test_embeddings_are_made_length_one_on_request(tiny_model):
    model = embed_jax.load(tiny_model)
    spec = model.spec.__class__(model.spec.backbone, model.spec.pooling)
    plain = SentenceEncoder(spec, model.params, model.tokenizer)
    lengths = np.linalg.norm(plain.encode(TEXTS), axis=1)
    assert np.abs(lengths - 1).min() > 0.1
    for encode in (plain.encode, plain.encode_query, plain.encode_document):
        np.testing.assert_allclose(
            encode(TEXTS, normalize_embeddings=True), model.encode(TEXTS), atol=1e-6
        )
    with warnings.catch_warnings(action="ignore"):
        np.testing.assert_allclose(
            plain.encode(TEXTS, normalize_embeddings=True, dim=8),
            truncate(model.encode(TEXTS), 8),
            atol=1e-6,
        )


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("batch_size", 32, "batch_size: batches are counted in tokens: `batch_tokens`"),
        (
            "convert_to_tensor",
            True,
            "convert_to_tensor: embeddings are NumPy arrays always; `torch.from_numpy`",
        ),
        ("convert_to_numpy", False, "convert_to_numpy: embeddings are NumPy arrays always"),
        ("truncate_dim", 8, "truncate_dim: it is `dim`"),
        ("show_progress_bar", True, "show_progress_bar: it is `show_progress`"),
    ],
)
def test_arguments_of_sentence_transformers_that_are_others_here_are_one_line(
    model, argument, value, message
):
    for encode in (model.encode, model.encode_query, model.encode_document, model.encode_blocks):
        with pytest.raises(InputError, match=message) as error:
            encode(TEXTS, **{argument: value})
        assert "\n" not in str(error.value)


def test_no_other_argument_is_taken(model):
    with pytest.raises(TypeError, match="unexpected argument 'bach_tokens'; expected dim, layers"):
        model.encode(TEXTS, bach_tokens=3)


# ---- types ---------------------------------------------------------------------------------------


def test_annotated_shapes_are_those_of_the_arrays(model):
    beartype = pytest.importorskip("beartype").beartype
    checked = jaxtyping.jaxtyped(typechecker=beartype)
    a, b = embeddings(4), embeddings(3)
    for function in (similarity_matrix, pairwise_similarity):
        for x, y in ((a[:3], b), (a[0], b[0])):
            for name in SIMILARITIES:
                assert checked(function)(x, y, name).dtype == np.float32
        for wrong in ("text", a[None], a.astype(str)):
            with pytest.raises(jaxtyping.TypeCheckError):
                checked(function)(wrong, b)
    assert checked(truncate)(a, 3).shape == (4, 3) and checked(unit_length)(a[0]).shape == (24,)
    for name in ("encode", "encode_query", "encode_document"):
        encode = checked(getattr(SentenceEncoder, name))
        with warnings.catch_warnings(action="ignore"):
            assert encode(model, TEXTS, dim=8).shape == (4, 8)
        assert encode(model, "one").shape == (model.dim,) and encode(model, iter(TEXTS)).shape == (
            4,
            model.dim,
        )
        with pytest.raises(jaxtyping.TypeCheckError):
            encode(model, 3)
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(SentenceEncoder.similarity)(model, a, embeddings(3, size=23))


PROGRAM = """
    import embed_jax

    model = embed_jax.load("runs/mine", step=500)
    reveal_type(model)  # SentenceEncoder
    queries = model.encode_query(["a"], instruction="find", normalize_embeddings=True)
    documents = model.encode_document(("a", "b"), batch_tokens=512)
    reveal_type(queries)  # numpy.ndarray
    reveal_type(model.encode("a text", dim=64))  # numpy.ndarray
    reveal_type(model.similarity(queries, documents))  # numpy.ndarray
    reveal_type(embed_jax.load_cross_encoder("name").score(["a"], ["b"]))  # numpy.ndarray
    reveal_type(embed_jax.load_model("name"))  # EmbeddingModel
    reveal_type(embed_jax.finetune([("a", "b"), ("c", "d")]))  # SentenceEncoder
    for block in model.encode_blocks(iter(["a"])):
        reveal_type(block)  # numpy.ndarray
    model.encode(["a"], batch_size=3)  # Unexpected keyword argument "batch_size"
    model.encode([1])  # List item 0 has incompatible type "int"
    model.encode_document(["a"], instruction="x")  # Unexpected keyword argument "instruction"
    model.similarity("a", queries)  # incompatible type "str"
    embed_jax.load("x", step="last")  # incompatible type "str"
    embed_jax.laod("x")  # Module has no attribute "laod"
"""


@pytest.fixture(scope="module")
def type_errors(tmp_path_factory):
    """Runs mypy once, with our settings and with what `scripts/test.sh` has left in its cache.

    Returns its messages about the program, {line: text}, and about our files,
    {(file, line): text}.
    """
    pytest.importorskip("mypy")
    directory = tmp_path_factory.mktemp("mypy")
    (directory / "program.py").write_text(textwrap.dedent(PROGRAM))
    command = ["-m", "mypy", "--config-file", ROOT / "pyproject.toml"]
    done = subprocess.run(
        [sys.executable, *command, "--cache-dir", ROOT / ".mypy_cache", "program.py"],
        capture_output=True,
        text=True,
        cwd=directory,
        env={"MYPYPATH": str(ROOT)},
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    program, others = {}, {}
    for line in done.stdout.splitlines()[:-1]:
        file, number, message = line.split(":", 2)
        result, key = (
            (program, int(number)) if file == "program.py" else (others, (file, int(number)))
        )
        result[key] = result.get(key, "") + message
    return program, others


def test_a_users_program_is_checked_before_it_runs(type_errors):
    lines = textwrap.dedent(PROGRAM).splitlines()
    expected = {
        number: line.split("  # ")[1] for number, line in enumerate(lines, 1) if "  # " in line
    }
    result, _ = type_errors
    assert result.keys() == expected.keys(), result
    for number, text in expected.items():
        assert text in result[number] and ("error" in result[number]) == (number > 15), result[
            number
        ]


def test_what_is_public_keeps_to_its_own_types(type_errors):
    assert type_errors[1] == {}
    assert (ROOT / "embed_jax" / "py.typed").is_file() and "embed_jax = py.typed" in (
        ROOT / "setup.cfg"
    ).read_text()
