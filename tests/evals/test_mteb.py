"""The adapter chooses prompts as mteb does, and scores like sentence-transformers' models."""

import json
from pathlib import Path

import numpy as np
import pytest

mteb = pytest.importorskip("mteb")

import jax  # noqa: E402
from mteb.abstasks.abstask import get_abstask_prompt  # noqa: E402
from mteb.models.abs_encoder import get_prompt_name  # noqa: E402
from mteb.models.models_protocols import (  # noqa: E402
    CrossEncoderProtocol,
    EncoderProtocol,
    SearchProtocol,
)
from mteb.types import PromptType  # noqa: E402

from embed_jax.cross_encoder import load_cross_encoder  # noqa: E402
from embed_jax.encoders.settings import EncodingSettings  # noqa: E402
from embed_jax.errors import InputError  # noqa: E402
from embed_jax.evals.embedder import Embedder, prompt_options  # noqa: E402
from embed_jax.evals.mteb import (  # noqa: E402
    mteb_cross_encoder,
    mteb_model,
    revision,
)
from embed_jax.evals.mteb_tasks import KINDS, local_task  # noqa: E402
from embed_jax.evals.reranker import cross_encoder_reranker  # noqa: E402
from embed_jax.prompts import fill_template  # noqa: E402
from embed_jax.registry import lookup  # noqa: E402
from embed_jax.sentence import SentenceEncoder, load_sentence_encoder  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mteb", "ignore::FutureWarning:mteb"),
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning:mteb"),
]

TEMPLATE = "Instruct: {instruction}\nQuery: "
SIDES = (None, PromptType.query, PromptType.document)


# ---- data ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def columns(sentences):
    """Makes the columns of each kind of task.

    Texts with common words belong together more often than not.
    """
    rng = np.random.default_rng(0)
    topics = ["dog cat house", "river water road", "music guitar plays", "language model learns"]

    def texts(labels):
        return [f"{topics[label]} {sentences[rng.integers(200)]}" for label in labels]

    first = texts(rng.integers(4, size=40))
    second = [f"{text} {sentences[number]}" for number, text in enumerate(first)]
    train, test = rng.integers(4, size=60).tolist(), rng.integers(4, size=30).tolist()
    corpus = {f"d{number}": text for number, text in enumerate(texts(rng.integers(4, size=50)))}
    queries = {f"q{number}": sentences[number] for number in range(12)}
    qrels = {
        query: {f"d{d}": int(rng.integers(3)) for d in rng.choice(50, 8, replace=False)}
        for query in queries
    }
    return {
        "sts": (first, second[1:] + second[:1], rng.integers(0, 6, size=40).tolist()),
        "pairs": (first, second[:20] + second[:20], [1] * 20 + [0] * 20),
        "bitext": (first, second),
        "classification": (texts(train), train, texts(test), test),
        "clustering": (texts(test), test),
        "sets": ([texts(train), texts(test)], [train, test]),
        "levels": (texts(train), [[label % 2, label] for label in train]),
        "retrieval": (corpus, queries, qrels),
        "reranking": (
            sentences[:15],
            [sentences[n : n + 3] for n in range(15)],
            # Not the query itself: libraries order equal texts by rounding errors.
            [sentences[n + 9 : 99 : 9] for n in range(15)],
        ),
        "summarization": (
            [sentences[n : n + 2] for n in range(10)],
            [sentences[n + 20 : n + 26] for n in range(10)],
            rng.permuted(np.tile(np.arange(6.0), (10, 1)), axis=1).tolist(),
        ),
    }


def write_jsonl(path, names, columns):
    rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def data(columns, tmp_path_factory):
    """Returns {kind: path of its files}."""
    root, pair = tmp_path_factory.mktemp("data"), ["sentence1", "sentence2"]
    corpus, queries, qrels = columns["retrieval"]
    for name, texts in (("corpus", corpus), ("queries", queries)):
        write_jsonl(root / "beir" / f"{name}.jsonl", ["_id", "text"], (list(texts), texts.values()))
    judged = [
        f"{query}\t{document}\t{grade}"
        for query in qrels
        for document, grade in qrels[query].items()
    ]
    (root / "beir/qrels").mkdir()
    (root / "beir/qrels/test.tsv").write_text(
        "\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n"
    )
    for name, part in (("train", slice(0, 2)), ("test", slice(2, 4))):
        write_jsonl(
            root / f"labelled/{name}.jsonl", ["text", "label"], columns["classification"][part]
        )
    files = {
        "sts": [*pair, "score"],
        "pairs": [*pair, "label"],
        "bitext": ["english", "german"],
        "clustering": ["text", "label"],
        "sets": ["sentences", "labels"],
        "levels": ["text", "label"],
        "reranking": ["query", "positive", "negative"],
    }
    paths = {
        kind: write_jsonl(root / f"{kind}.jsonl", names, columns[kind])
        for kind, names in files.items()
    }
    summaries = ["text", "human_summaries", "machine_summaries", "relevance"]
    paths["summarization"] = write_jsonl(
        root / "summaries.jsonl", summaries, (["a text"] * 10, *columns["summarization"])
    )
    return paths | {"retrieval": str(root / "beir"), "classification": str(root / "labelled")}


@pytest.fixture
def task(data):
    """`task(kind, **options)`: a small task of mteb on the made data."""

    def make(kind, **options):
        made = local_task(
            "clustering" if kind in ("sets", "levels") else kind,
            data[kind],
            name=f"Made{kind}",
            **options,
        )
        made.max_documents_per_cluster = 100
        return made

    return make


def scores(model, task):
    """Scores of mteb, by name."""
    [result] = mteb.evaluate(model, [task], cache=None, show_progress_bar=False).task_results
    [scores_of_subset] = result.scores["test"]
    return scores_of_subset


# ---- prompts -------------------------------------------------------------------------------------


class Recorder(SentenceEncoder):
    """Keeps the prompts that it is called with, and returns meaningless vectors."""

    def encode(self, texts, *, show_progress, prompt_name=None, prompt=None, instruction=None):
        name = prompt_name or (self.default_prompt_name if prompt is None else None)
        named = self.prompts[name] if name else prompt or ""
        self.asked.append(fill_template(self.template, instruction) if instruction else named)
        return (
            np.random.default_rng(len(self.asked))
            .normal(size=(len(texts), self.dim))
            .astype(np.float32)
        )


@pytest.fixture
def recorder(tiny_model):
    """`recorder(**options)`: a Recorder with these prompts."""

    def make(**options):
        model = load_sentence_encoder(str(tiny_model))
        made = Recorder(model.spec, model.params, model.tokenizer, EncodingSettings(**options))
        made.asked = []
        return made

    return make


ALL = [
    "Madests",
    "STS",
    "Maderetrieval",
    "Maderetrieval-query",
    "Retrieval",
    "Retrieval-document",
    "query",
    "document",
]
ALL += ["Classification", "Clustering"]


@pytest.mark.parametrize(
    "seed", [0, 1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))]
)
def test_prompts_are_those_that_mteb_chooses(task, recorder, seed):
    """Prompts of all names are compared under mteb itself."""
    rng = np.random.default_rng(seed)
    names = rng.choice(ALL, size=rng.integers(1, 9), replace=False).tolist()
    prompts = {name: f"{name}: " for name in names}
    model = recorder(prompts=prompts)
    for kind, sides in (
        ("sts", [None, None]),
        ("retrieval", list(SIDES[1:])),
        ("classification", [None, None]),
    ):
        made = task(kind)
        model.asked.clear()
        scores(mteb_model(model), made)
        assert model.asked == [
            prompts.get(get_prompt_name(prompts, made.metadata, side), "") for side in sides
        ]


@pytest.mark.unchecked
def test_documents_take_the_prompt_called_passage_and_the_default_counts_last(task, recorder):
    model = recorder(
        prompts={"query": "q: ", "passage": "p: ", "other": "o: "}, default_prompt_name="other"
    )
    scores(mteb_model(model), task("retrieval"))
    scores(mteb_model(model), task("sts"))
    assert model.asked == ["q: ", "p: ", "o: ", "o: "]
    model = recorder(prompts={"query": "q: "})
    scores(mteb_model(model), task("reranking"))
    assert model.asked == ["q: ", ""]


@pytest.mark.parametrize(
    "prompts, instruction, kind, expected",
    [
        ({"query": "q: "}, "find it", "retrieval", ["Instruct: find it\nQuery: ", ""]),
        ({"query": "q: "}, "", "retrieval", ["q: ", ""]),
        ({"query": "q: ", "Retrieval": "r: "}, "find it", "retrieval", ["r: ", "r: "]),
        ({"query": "q: "}, "sort it", "classification", ["Instruct: sort it\nQuery: "] * 2),
        ({"Classification": "c: "}, "sort it", "classification", ["c: "] * 2),
        ({}, "", "sts", [f"Instruct: {mteb.abstasks.AbsTaskSTS.abstask_prompt}\nQuery: "] * 2),
    ],
)
def test_instructions_of_the_task_fill_the_models_template(
    task, recorder, prompts, instruction, kind, expected
):
    model = recorder(prompts=prompts, template=TEMPLATE)
    scores(mteb_model(model), task(kind, instruction=instruction))
    assert model.asked == expected


@pytest.mark.parametrize("name", ["SciFact", "STSBenchmark", "Banking77Classification", "ArguAna"])
def test_instructions_of_mtebs_tasks_are_its_own(recorder, name):
    model = recorder(template=TEMPLATE)
    wrapped = mteb_model(model)
    metadata = mteb.get_task(name).metadata
    sides = SIDES[1:] if metadata.type == "Retrieval" else SIDES[:1]
    for side in sides:
        wrapped.encode([{"text": ["a text"]}], task_metadata=metadata, prompt_type=side)
    stated = metadata.prompt["query"] if isinstance(metadata.prompt, dict) else metadata.prompt
    instruction = stated or get_abstask_prompt(name)
    assert instruction and model.asked == [f"Instruct: {instruction}\nQuery: ", ""][: len(sides)]


# ---- scores --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    """A directory of the tiny model with prompts by side and by type, all of which mteb accepts."""
    model = load_sentence_encoder(str(tiny_model))
    prompts = {
        "query": "find : ",
        "document": "read : ",
        "STS": "is like : ",
        "Classification": "sort : ",
    }
    directory = tmp_path_factory.mktemp("prompted") / "model"
    SentenceEncoder(model.spec, model.params, model.tokenizer, EncodingSettings(prompts)).save(
        directory
    )
    return directory


@pytest.fixture(scope="module")
def model(saved):
    return load_sentence_encoder(str(saved))


@pytest.fixture(scope="module")
def reference(saved):
    return pytest.importorskip("sentence_transformers").SentenceTransformer(
        str(saved), device="cpu"
    )


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge", "ignore:this model has prompts")
@pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sets", "levels"))]
)
@pytest.mark.unchecked
def test_equals_sentence_transformers_under_mteb_and_our_evaluators(
    kind, task, data, model, reference
):
    ours, made = mteb_model(model), task(kind)
    score = scores(ours, made)["main_score"]
    assert 0.02 < abs(score) < 0.98
    assert score == pytest.approx(scores(reference, task(kind))["main_score"], abs=1e-4)
    options = {"protocol": "fast", "sample_size": 100} if kind == "levels" else {}
    known = lookup("task", "clustering" if kind in ("sets", "levels") else kind)
    embedder = Embedder("tiny", model.encode, prompt_options(model))
    assert score == pytest.approx(
        known(data[kind], name=f"Made{kind}", **options).evaluate(embedder).score, abs=1e-4
    )


@pytest.fixture
def candidates(columns, tmp_path):
    """`(number) -> path` of the made reranking data with other negatives for each number."""

    def write(number):
        queries, positives, negatives = columns["reranking"]
        moved = negatives[number:] + negatives[:number]
        names = ["query", "positive", "negative"]
        path = tmp_path / f"{number}.jsonl"
        return write_jsonl(path, names, (queries, positives, moved))

    return write


@pytest.mark.parametrize("number", [0, 3])
def test_a_cross_encoder_equals_sentence_transformers_under_mteb_and_our_task(
    candidates, number, tiny_cross_encoder
):
    peer, directory = pytest.importorskip("sentence_transformers"), str(tiny_cross_encoder())
    ours, data = load_cross_encoder(directory), candidates(number)
    results = [
        scores(model, local_task("reranking", data, name="Made"))
        for model in (mteb_cross_encoder(ours, "tiny"), peer.CrossEncoder(directory, device="cpu"))
    ]
    assert 0.1 < results[0]["main_score"] < 0.9
    for metric in ("main_score", "map_at_1000", "ndcg_at_10", "mrr_at_10", "recall_at_5"):
        assert results[0][metric] == pytest.approx(results[1][metric], abs=1e-4)
    outcome = lookup("task", "reranking")(data).evaluate_pairs(cross_encoder_reranker(ours, "tiny"))
    assert outcome.score == pytest.approx(results[1]["main_score"], abs=1e-4)
    assert outcome.metrics["ndcg@10"] == pytest.approx(results[1]["ndcg_at_10"], abs=1e-4)


def test_what_mteb_records_of_a_cross_encoder(tiny_cross_encoder):
    model = load_cross_encoder(str(tiny_cross_encoder()))
    wrapped = mteb_cross_encoder(model, "mine")
    assert isinstance(wrapped, CrossEncoderProtocol) and not isinstance(wrapped, EncoderProtocol)
    meta = wrapped.mteb_model_meta
    assert (meta.name, meta.max_tokens) == ("embed-jax/mine", model.max_length)
    assert meta.model_type == ["cross-encoder"]
    assert revision(model) == revision(load_cross_encoder(str(tiny_cross_encoder())))
    shorter = load_cross_encoder(str(tiny_cross_encoder()), max_length=20)
    several = load_cross_encoder(str(tiny_cross_encoder(2)))
    assert len({revision(model), revision(shorter), revision(several)}) == 3
    with pytest.raises(InputError, match="two: expected a cross-encoder with one label"):
        mteb_cross_encoder(several, "two")


@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean", "manhattan"])
def test_similarities_equal_sentence_transformers(recorder, similarity):
    SimilarityFunction = pytest.importorskip("sentence_transformers").SimilarityFunction
    model = mteb_model(recorder(similarity=similarity))
    a, b = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
    expected = SimilarityFunction.to_similarity_fn(similarity)(a, b[:4])
    np.testing.assert_allclose(model.similarity(a, b[:4]), expected, atol=1e-5)
    np.testing.assert_allclose(model.similarity(a[0], b[0]), expected[:1, :1], atol=1e-5)
    expected = SimilarityFunction.to_similarity_pairwise_fn(similarity)(a, b)
    np.testing.assert_allclose(model.similarity_pairwise(a, b), expected, atol=1e-5)
    assert model.mteb_model_meta.similarity_fn_name.value == similarity


# ---- names and revisions -------------------------------------------------------------------------


def test_what_mteb_records_of_a_model(model):
    wrapped = mteb_model(model, "mine")
    assert isinstance(wrapped, EncoderProtocol) and not isinstance(wrapped, SearchProtocol)
    meta = wrapped.mteb_model_meta
    assert (meta.name, meta.embed_dim, meta.max_tokens) == ("embed-jax/mine", model.dim, 40)
    assert meta.n_parameters == sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert meta.use_instructions and meta.framework == ["JAX"]
    assert mteb_model(model, "me/mine").mteb_model_meta.name == "me/mine"
    json.dumps(meta.to_dict(), default=str)


def test_a_revision_is_the_content(model, saved, tiny_model):
    assert revision(model) == revision(load_sentence_encoder(str(saved)))
    others = [
        load_sentence_encoder(str(tiny_model)),
        load_sentence_encoder(str(saved), max_length=20),
    ]
    first, *rest = jax.tree.leaves(model.params)
    changed = jax.tree.unflatten(jax.tree.structure(model.params), [first + 1e-6, *rest])
    others.append(SentenceEncoder(model.spec, changed, model.tokenizer, model.settings))
    assert len({revision(model), *map(revision, others)}) == 4


def test_kept_results_are_those_of_the_data_and_the_model(data, recorder, tmp_path):
    """Cached results belong to data and model; mteb itself compares names only."""
    cache, model, other = (
        mteb.ResultCache(tmp_path / "cache"),
        recorder(),
        recorder(prompts={"query": "q: "}),
    )

    def evaluated(model, path, **options):
        model.asked.clear()
        task = local_task("sts", str(path), name="Kept", **options)
        mteb.evaluate(mteb_model(model, "mine"), [task], cache=cache, show_progress_bar=False)
        return len(model.asked) > 0

    copy = tmp_path / "copy.jsonl"
    copy.write_text(Path(data["sts"]).read_text())
    assert evaluated(model, data["sts"]) and not evaluated(model, copy)
    assert evaluated(other, copy) and not evaluated(other, copy) and not evaluated(model, copy)
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[:-1]))
    assert evaluated(model, copy) and not evaluated(model, copy)
    assert evaluated(model, copy, instruction="compare")


# ---- refusals ------------------------------------------------------------------------------------


def test_what_mteb_cannot_take_is_one_line(data, tmp_path):
    with pytest.raises(InputError, match="unknown kind of task that mteb has 'st'.*'sts'"):
        local_task("st", data["sts"], name="Made")
    with pytest.raises(InputError, match="classification: expected a directory"):
        local_task("classification", data["clustering"], name="Made")
    path = write_jsonl(
        tmp_path / "several.jsonl",
        ["query", "positive", "negative"],
        ([["a", "b"]], [["c"]], [["d"]]),
    )
    with pytest.raises(
        InputError, match="several.jsonl: record 0: mteb takes one query a record, found 2"
    ):
        local_task("reranking", path, name="Made")
    path = write_jsonl(
        tmp_path / "levels.jsonl", ["text", "label"], ([["a", "b"]] * 2, [[["x", "y"], ["x"]]] * 2)
    )
    with pytest.raises(InputError, match="one label a text where there are several sets, found 2"):
        local_task("clustering", path, name="Made")


def test_records_without_a_side_are_left_out_with_a_warning(tmp_path):
    rows = (["a", "b"], [["c"], []], [["d"], ["e"]])
    path = write_jsonl(tmp_path / "sides.jsonl", ["query", "positive", "negative"], rows)
    with pytest.warns(UserWarning, match="1 of 2 records left out"):
        made = local_task("reranking", path, name="Made")
    [split] = made.dataset.values()
    assert list(split["test"]["queries"]["text"]) == ["a"]
