"""Routes: texts go through the modules that sentence-transformers would choose."""

import itertools
import json
import shutil
import types
import warnings

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import embed_jax
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.data.word_vectors import word_tokenizer
from embed_jax.encoders.heads import Dense, Truncate
from embed_jax.encoders.router import read_router
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.static import StaticConfig
from embed_jax.errors import InputError
from embed_jax.evals.embedder import Embedder, prompt_options
from embed_jax.evals.retrieval import open_task
from embed_jax.evals.task import DOCUMENT, QUERY, Use
from embed_jax.routed import RoutedEncoder
from embed_jax.sentence import SentenceEncoder, load_sentence_encoder

TEXTS = ["the Cat", "a red house by the water", "", "music " * 60]
PROMPTS = {"query": "find the ", "document": "read "}
OLD = "sentence_transformers.models."


@pytest.fixture(autouse=True)
def quiet():
    """Ignores warnings of long texts and unused prompts, which are on purpose."""
    with warnings.catch_warnings(action="ignore"):
        yield


@pytest.fixture(scope="module")
def parts(tiny_tokenizer, tmp_path_factory):
    """Makes random modules of sentence-transformers with 16 dimensions.

    They are a transformer, a table, and Dense layers by number.
    """
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("parts")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = transformers.BertConfig(
        vocab_size=240, max_position_embeddings=40, initializer_range=0.3, **sizes
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    shutil.copytree(tiny_tokenizer, directory, dirs_exist_ok=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)

    def transformer(include_prompt=True):
        return [
            modules.Transformer(str(directory)),
            modules.Pooling(16, include_prompt=include_prompt),
        ]

    return types.SimpleNamespace(
        modules=modules,
        transformer=transformer,
        table=lambda: modules.StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=16),
        dense=lambda size=16: modules.Dense(16, size),
    )


@pytest.fixture(scope="module")
def layouts(parts, tmp_path_factory):
    """Returns {layout: (model of sentence-transformers, its directory)}."""
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer

    Router, normalize = parts.modules.Router, parts.modules.Normalize
    result = {}
    for name, modules in {
        "encoders": [
            Router.for_query_document([parts.table()], [*parts.transformer(False), parts.dense()]),
            normalize(),
        ],
        "heads": [
            *parts.transformer(),
            Router({"query": [parts.dense(8)], "document": [parts.dense(8)]}),
            normalize(),
        ],
        "poolings": [
            Router({"query": parts.transformer(), "document": parts.transformer()}, "query"),
            parts.dense(8),
        ],
        "rules": [
            Router(
                {"small": [parts.table()], "large": parts.transformer()},
                route_mappings={
                    ("query", "text"): "small",
                    ("query", None): "large",
                    (None, None): "large",
                },
            )
        ],
        "asym": [
            *parts.transformer(),
            Router({"query": [parts.dense(8)], "doc": [parts.dense(8), normalize()]}),
        ],
    }.items():
        directory = tmp_path_factory.mktemp(name) / "model"
        model = SentenceTransformer(
            modules=modules, prompts=PROMPTS, similarity_fn_name="dot", device="cpu"
        )
        model.save(str(directory))
        if name == "asym":
            as_version_2(directory)
        result[name] = model, directory
    return result


def as_version_2(directory):
    """Rewrites a directory as versions 2 to 4 wrote an Asym.

    Types are class names only, and folders are numbers.
    """
    place = (directory / "2_Router").rename(directory / "2_Asym")
    config = json.loads((place / "router_config.json").read_text())
    (place / "router_config.json").unlink()
    new = {name: f"{13990 + i}_{name.split('_')[-1]}" for i, name in enumerate(config["types"])}
    for name in new:
        (place / name).rename(place / new[name])
    types = {new[name]: OLD + name.split("_")[-1] for name in new}
    structure = {
        route: [new[name] for name in names] for route, names in config["structure"].items()
    }
    write(
        place / "config.json",
        {"types": types, "structure": structure, "parameters": {"allow_empty_key": True}},
    )
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Asym", "2_Asym")]
    write(directory / "modules.json", [{"idx": i, "name": str(i), "path": path, "type": OLD + kind}
                                       for i, (kind, path) in enumerate(kinds)])  # fmt: skip


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


NAMES = ("encoders", "heads", "poolings", "rules", "asym")


def near(a, b):
    return np.abs(a - b).max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_loaded_encodes_as_sentence_transformers_and_goes_out_again(name, layouts, tmp_path):
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer

    reference, directory = layouts[name]
    ours = embed_jax.load(directory)
    assert (
        isinstance(ours, RoutedEncoder)
        and ours.prompts == PROMPTS
        and ours.similarity_fn_name == "dot"
    )
    ours.save(tmp_path / "ours")
    ours.save(tmp_path / "ours")  # over itself
    back, in_theirs = (
        embed_jax.load(tmp_path / "ours"),
        SentenceTransformer(str(tmp_path / "ours"), device="cpu"),
    )

    document = (
        {"task": "doc"} if name == "asym" else {"task": "document"}
    )  # which is no route of theirs
    expected = [
        reference.encode(TEXTS),
        reference.encode_query(TEXTS),
        reference.encode(TEXTS, **document, prompt_name="document"),
        reference.encode(TEXTS, **document, prompt="the river : "),
    ]
    assert not near(expected[1], expected[2])
    result = [
        ours.encode(TEXTS),
        ours.encode_query(TEXTS),
        ours.encode_document(TEXTS),
        ours.encode(iter(TEXTS), **document, prompt="the river : "),
    ]
    assert all(map(near, result, expected)) and result[0].shape == (4, ours.dim)
    assert near(in_theirs.encode_query(TEXTS), expected[1]) and near(
        in_theirs.encode(TEXTS), expected[0]
    )
    assert near(in_theirs.encode(TEXTS, **document, prompt_name="document"), expected[2])
    assert near(
        ours.similarity(result[1], result[2]),
        np.asarray(reference.similarity(expected[1], expected[2])),
    )
    assert near(
        ours.similarity_pairwise(result[1], result[2]), (expected[1] * expected[2]).sum(axis=1)
    )

    for attribute in (
        "default_route",
        "tasks",
        "prompts",
        "default_prompt_name",
        "similarity_fn_name",
        "template",
    ):
        assert getattr(back, attribute) == getattr(ours, attribute)
    assert back.encoders.keys() == ours.encoders.keys()
    for route, encoder in ours.encoders.items():
        again = back.encoders[route]
        jax.tree.map(np.testing.assert_array_equal, encoder.params, again.params)
        assert (encoder.spec, encoder.max_length) == (again.spec, again.max_length)
        assert (
            encoder.tokenizer.encode(TEXTS, "a ").ids[1].tolist()
            == again.tokenizer.encode(TEXTS, "a ").ids[1].tolist()
        )
        assert (
            encoder.include_prompt
            == again.include_prompt
            == (name != "encoders" or route == "query")
        )


def test_what_routes_share_is_held_and_written_once(layouts, tmp_path):
    model = embed_jax.load(layouts["heads"][1])
    for saved in (model, None):
        model = saved or embed_jax.load(tmp_path / "model")
        query, document = (model.encoders[route] for route in ("query", "document"))
        assert query.tokenizer is document.tokenizer
        of_query, of_document = (
            jax.tree.leaves(encoder.params["backbone"]) for encoder in (query, document)
        )
        assert all(a is b for a, b in zip(of_query, of_document, strict=True))
        assert query.params["heads"]["0"]["kernel"] is not document.params["heads"]["0"]["kernel"]
        model.save(tmp_path / "model")
    result = {path.parent.name: path for path in (tmp_path / "model").rglob("model.safetensors")}
    assert sorted(result) == ["document_2_Dense", "query_0_Transformer", "query_2_Dense"]
    original = load_file(
        layouts["heads"][1] / "2_Router" / "document_0_Dense" / "model.safetensors"
    )
    jax.tree.map(np.testing.assert_array_equal, original, load_file(result["document_2_Dense"]))

    # Equal numbers do not make two modules one: they may be trained apart.
    apart = RoutedEncoder(
        {"query": query, "document": document.with_params(jax.device_get(document.params))}
    )
    apart.save(tmp_path / "apart")
    assert len(list((tmp_path / "apart").rglob("model.safetensors"))) == 4


# ---- which route


RULES = [
    ("query", "text"),
    ("query", None),
    (None, "text"),
    (None, None),
    ("document", "image"),
    (None, "image"),
]


@pytest.mark.unchecked
def test_tasks_go_the_routes_that_sentence_transformers_takes(parts, tmp_path):
    """Compares names of routes, defaults and rules; our "document" accepts more names."""
    torch = pytest.importorskip("torch")

    class Mark(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, features):
            return {**features, "route": self.name}

    def outcome(call, *arguments, **options):
        """Returns the route's name; InputError is a ValueError."""
        try:
            result = call(*arguments, **options)
        except ValueError:
            return "refused"
        return result["route"] if isinstance(result, dict) else result.route

    write(tmp_path / "modules.json", [{"path": "", "type": OLD + "Router"}])
    names = [("query", "document"), ("a", "query"), ("text", "b"), ("a", "b")]
    rules = [
        {},
        *({rule: 1} for rule in RULES),
        *({rule: 0, other: 1} for rule, other in itertools.combinations(RULES, 2)),
    ]
    seen = set()
    for routes, empty, default, rule in itertools.product(names, (True, False), (None, 1), rules):
        options = {
            "default_route": default and routes[default],
            "allow_empty_key": empty,
            "route_mappings": {key: routes[number] for key, number in rule.items()},
        }
        reference = parts.modules.Router(
            {route: [Mark(route)] for route in routes}, **options
        ).eval()
        options["route_mappings"] = {
            str(key): route for key, route in options["route_mappings"].items()
        }
        config = {
            "types": {f"{route}_0": OLD + "StaticEmbedding" for route in routes},
            "structure": {route: [f"{route}_0"] for route in routes},
            "parameters": options,
        }
        write(tmp_path / "router_config.json", config)
        read = read_router(tmp_path)
        ours = RoutedEncoder(
            {
                route: types.SimpleNamespace(dim=3, route=route, settings=EncodingSettings())
                for route in read.modules
            },
            default_route=read.default,
            tasks=read.tasks,
        )
        for task in (None, "query", "document", "b", "other"):
            expected = outcome(reference, {}, task=task, modality="text")
            result = outcome(ours.encoder, task)
            assert result == expected, (routes, options, task)
            seen.add(expected)
    assert seen == {"query", "document", "text", "a", "b", "refused"}


def table(dim, seed=0, rows=240, tokenizer=None, cut=0):
    """A static encoder of random vectors; by default its tokenizer knows one word."""
    tokenizer = tokenizer or word_tokenizer(["word"], 40, lower_case=False)
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    spec = EncoderSpec(
        StaticConfig(vocab_size=rows, hidden_size=dim), heads=(Truncate(cut),) if cut else ()
    )
    return SentenceEncoder(spec, {"backbone": {"token": vectors}, "heads": {}}, tokenizer)


@pytest.mark.parametrize("name", ["doc", "passage", "corpus"])
def test_documents_find_their_route_by_its_usual_names(name):
    encoders = {"query": table(4), name: table(4, seed=1)}
    model = RoutedEncoder(encoders, default_route="query")
    assert (
        model.encoder("document") is model.encoders[name]
        and model.encoder() is model.encoders["query"]
    )
    assert model.encoder("document").params is encoders[name].params


# ---- evaluation


@pytest.fixture
def search(tiny_tokenizer, tmp_path):
    """Returns (model, words, directory in BEIR's layout) of a search that needs both routes.

    The vector of a word as a document is that of the word before it as a query.
    """
    tokenizer = load_tokenizer(tiny_tokenizer, 40, special_tokens=False)
    words = (tiny_tokenizer / "vocab.txt").read_text().split()[5:45]
    query = table(48, tokenizer=tokenizer)
    rolled = np.roll(query.params["backbone"]["token"], 1, axis=0)
    document = query.with_params({"backbone": {"token": rolled}, "heads": {}})
    RoutedEncoder({"query": query, "document": document}, default_route="document").save(
        tmp_path / "model"
    )
    model = embed_jax.load(tmp_path / "model")

    for name, kind in (("corpus", words[1:]), ("queries", words[:-1])):
        lines = (json.dumps({"_id": f"{name}{i}", "text": word}) for i, word in enumerate(kind))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels").mkdir()
    rows = (f"queries{i}\tcorpus{i}\t1" for i in range(len(words) - 1))
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows]))
    return model, words, str(tmp_path)


def test_the_official_harness_takes_both_routes(search):
    pytest.importorskip("mteb")
    from embed_jax.evals.mteb import mteb_model, revision
    from embed_jax.evals.mteb_tasks import local_task

    model, _, data = search
    result = local_task("retrieval", data, name="made").evaluate(
        mteb_model(model), "test", encode_kwargs={}
    )
    assert [scores["main_score"] for scores in result.values()] == [1.0]
    assert revision(model) != revision(model.encoders["query"])


def test_a_search_takes_both_routes(search):
    model, words, data = search
    task = open_task(data, name="made", k="1,10")
    embed = Embedder(
        "model", model.encode, prompt_options(model), similarity=model.similarity_fn_name
    )
    assert task.evaluate(embed).metrics["ndcg@10"] == 1.0
    document_encoder = model.encoders["document"]
    document_embedder = Embedder(
        "one",
        document_encoder.encode,
        prompt_options(document_encoder),
        similarity=model.similarity_fn_name,
    )
    assert task.evaluate(document_embedder).metrics["ndcg@10"] < 0.5

    for side, encode in (
        (QUERY, model.encode_query),
        (DOCUMENT, model.encode_document),
        ("", model.encode),
    ):
        result = embed(words[:3], Use("made", "Retrieval" if side else "STS", side))
        np.testing.assert_array_equal(result, encode(words[:3]))
    for route, side in (("query", QUERY), ("document", DOCUMENT), (None, "")):
        blocks = model.encode_blocks(iter(words[:3]), task=route)
        np.testing.assert_array_equal(
            np.concatenate(list(blocks)), embed(words[:3], Use(side=side))
        )
    assert model.encode(words[0], task="query").shape == (48,)


def test_the_models_prompts_and_options_are_those_of_all_routes(tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer, 40, special_tokens=False)
    first = table(8, tokenizer=tokenizer)
    first.prompts = {"query": "music "}
    encoders = {"query": first, "document": table(8, seed=1, tokenizer=tokenizer)}
    model = RoutedEncoder(
        encoders,
        settings=EncodingSettings(
            prompts={"query": "red "}, template="{instruction} ", similarity="euclidean"
        ),
    )
    np.testing.assert_array_equal(model.encode_query("cat"), first.encode("red cat"))
    np.testing.assert_array_equal(
        model.encode_query("cat", instruction="dog"), first.encode("dog cat")
    )
    np.testing.assert_array_equal(
        model.encode_document("cat", dim=3), encoders["document"].encode("cat", dim=3)
    )
    assert (
        first.prompts == {"query": "music "} and first.template == ""
    )  # given encoders stay as they were
    assert (
        model.similarity([[0.0, 3.0]], [[4.0, 0.0]])
        == -5
        == model.similarity_pairwise([[0.0, 3.0]], [[4.0, 0.0]])
    )
    assert (model.dim, model.max_length) == (8, 40)
    assert prompt_options(model)(Use("", "Retrieval", QUERY, "find")) == {
        "task": "query",
        "instruction": "find",
    }
    for options, message in (
        ({"batch_size": 3}, "batch_size: batches are counted"),
        ({"dim": 9}, "dim: expected 1"),
    ):
        with pytest.raises(InputError, match=message):
            model.encode_query("cat", **options)


# ---- what is refused


@pytest.fixture
def asym(layouts, tmp_path):
    """Returns a copy of the directory with an Asym, and `change(function of its config)`."""
    shutil.copytree(layouts["asym"][1], tmp_path / "model")
    path = tmp_path / "model" / "2_Asym" / "config.json"

    def change(edit):
        config = json.loads(path.read_text())
        edit(config)
        write(path, config)
        return tmp_path / "model"

    return change


def refused(directory, message, load=embed_jax.load):
    with pytest.raises(InputError, match=message) as error:
        load(directory)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


def names(config, route="doc"):
    return config["structure"][route][0]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c["types"].update({names(c): OLD + "CNN"}),
            "2_Asym/config.json: unknown module 'CNN'.*Dense",
        ),
        (
            lambda c: c["types"].update({names(c): "my_code.Dense"}),
            "'my_code.Dense' is code of the model's own, which",
        ),
        (
            lambda c: c["types"].update({names(c): OLD + "Asym"}),
            "doc: a route within a route is not supported",
        ),
        (
            lambda c: c["types"].update({names(c): OLD + "Pooling"}),
            "found Transformer, Pooling, Pooling, Norm.*; expected",
        ),
        (lambda c: c["types"].pop(names(c)), 'expected "types" of modules, a "structure"'),
        (lambda c: c.update(structure={}), 'expected "types" of modules, a "structure"'),
        (lambda c: c.update(parameters=[]), 'expected "types" of modules, a "structure"'),
        (lambda c: c["structure"].update(doc=["../1_Pooling"]), 'expected "types"'),
        (
            lambda c: (
                c["types"].update({"../1_Dense": OLD + "Dense"}),
                c["structure"].update(doc=["../1_Dense"]),
            ),
            "path: expected a folder in the model's directory, found '../1_Dense'",
        ),
        (
            lambda c: c["parameters"].update(default_route="docs"),
            "default_route: unknown route 'docs'.*doc",
        ),
        (
            lambda c: c["parameters"].update(route_mappings={"(None, None)": "x"}),
            "route_mappings: unknown route 'x'",
        ),
        (
            lambda c: c["parameters"].update(route_mappings={"query": "doc"}),
            "route_mappings: expected routes by",
        ),
        (
            lambda c: c["parameters"].update(temperature=2),
            "parameters: unknown field 'temperature'",
        ),
    ],
)
@pytest.mark.unchecked
def test_routes_that_are_refused(edit, message, asym):
    refused(asym(edit), message)


def test_modules_that_do_not_fit_are_refused(asym):
    directory = asym(lambda config: None)
    (dense,) = (directory / "2_Asym").glob("*0_Dense")
    config = json.loads((dense / "config.json").read_text())
    weights = dense / "model.safetensors"
    head = embed_jax.load(directory).encoders["query"].spec.heads[0]
    assert head == Dense(16, 8)

    modules = json.loads((directory / "modules.json").read_text())
    write(directory / "modules.json", [*modules, {**modules[2], "path": "2_Asym"}])
    refused(directory, "modules.json: found 2 modules with routes, expected one")
    write(directory / "modules.json", modules)

    original = weights.read_bytes()
    save_file({name: value[:4] for name, value in load_file(weights).items()}, weights)
    write(dense / "config.json", config | {"out_features": 4})
    refused(directory, "routes: expected embeddings of one size, found query 4, doc 8")
    write(dense / "config.json", config)
    weights.write_bytes(original)
    refused(
        directory, "modules.json: Asym: an encoder for each route, where one", load_sentence_encoder
    )
    weights.rename(dense / "pytorch_model.bin")
    refused(directory, "_Dense: only pickled weights; pickled ones .* are never opened")


def test_texts_without_a_route_are_refused(asym, tmp_path):
    model = embed_jax.load(asym(lambda config: config["parameters"].update(allow_empty_key=False)))
    for again in (model, None):
        model = again or embed_jax.load(tmp_path / "again")
        with pytest.raises(
            InputError, match="^no route without a task: name it, or use .*; known: query, doc$"
        ):
            model.encode(TEXTS)
        with pytest.raises(InputError, match="^no route for the task 'image'; known: query, doc$"):
            model.encode(TEXTS, task="image")
        model.save(tmp_path / "again")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RoutedEncoder({}), "routes: expected embeddings of one size, found none"),
        (lambda: RoutedEncoder({"a": table(3), "b": table(4)}), "of one size, found a 3, b 4"),
        (lambda: RoutedEncoder({"a": table(3)}, default_route="b"), "unknown route 'b'"),
        (lambda: RoutedEncoder({"a": table(3)}, tasks={"query": "b"}), "unknown route 'b'"),
        (
            lambda: RoutedEncoder({"a": table(3), "b": table(4, cut=3)}).save("no/where"),
            "no/where: .*cut only after some",
        ),
    ],
)
def test_encoders_that_make_no_model_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
