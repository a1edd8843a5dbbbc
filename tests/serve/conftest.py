"""A small corpus with an index of each kind, served with tiny models; each is made once."""

import dataclasses
import socket
import threading

import jax
import pytest
import uvicorn

import embed_jax
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Normalize
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.vocabulary import Splade
from embed_jax.late_interaction import LateInteractionEncoder
from embed_jax.pipelines import model_reranker
from embed_jax.retrieval.indexes import build_index
from embed_jax.retrieval.search import Pipeline, index_retriever
from embed_jax.serve.searches import ServedSearch
from embed_jax.sparse import SparseEncoder

HOSTILE, ODD_ID = "<script>cat</script> <img src=x onerror=cat()>", '"><b>é/&?#'


@pytest.fixture(scope="session")
def corpus():
    """Documents by id: one has HTML, one an id with HTML, one is to be forbidden."""
    texts = ["the cat and the dog", "a red house by the river", "the river runs quickly", "bread"]
    corpus = {f"d{number}": text for number, text in enumerate(texts)}
    return corpus | {"html": HOSTILE, ODD_ID: "music and the river", "secret": "the cat"}


@pytest.fixture(scope="session")
def dense_model(tiny_model):
    """A model that was trained to be cut to 8 numbers."""
    model = embed_jax.load(str(tiny_model))
    model.matryoshka_dims = (8,)
    return model


@pytest.fixture(scope="session")
def late_model(dense_model):
    spec = dataclasses.replace(dense_model.spec, pooling="", heads=(Normalize(),))
    return LateInteractionEncoder(spec, dense_model.params, dense_model.tokenizer)


@pytest.fixture(scope="session")
def sparse_model(dense_model):
    spec = EncoderSpec(dense_model.spec.backbone, vocabulary=Splade())
    params = build_encoder(spec).init(jax.random.key(0))
    params["backbone"] = dense_model.params["backbone"]
    settings = EncodingSettings(similarity="dot")
    return SparseEncoder(spec, params, dense_model.tokenizer, settings)


@pytest.fixture(scope="session")
def models(dense_model, late_model, sparse_model):
    return {"words": None, "dense": dense_model, "sparse": sparse_model, "tokens": late_model}


@pytest.fixture(scope="session")
def make_pipeline(corpus, models, tmp_path_factory):
    """`(*stages, reranker=None) -> (pipeline, indexes)`; indexes are built once."""
    kinds = {"words": "bm25", "dense": "exact", "sparse": "sparse", "tokens": "multi-vector"}
    built = {}

    def index_of(stage, folder=None):
        model, texts = models[stage], list(corpus.values())
        vectors = texts if model is None else model.encode_document(texts)
        if stage == "sparse":
            vectors = [vectors[number : number + 1] for number in range(len(texts))]
        fields = [{"year": 2000 + number} for number in range(len(texts))]
        documents = zip(corpus, vectors, texts, fields, strict=True)
        folder = folder or tmp_path_factory.mktemp("indexes") / stage
        options = {"kind": kinds[stage], "store_texts": True, "identity": {}}
        return build_index(folder, documents, **options)

    def make(*stages, reranker=None, folder=None):
        for stage in stages:
            if folder is None and stage not in built:
                built[stage] = index_of(stage)
        indexes = {s: built[s] if folder is None else index_of(s, folder / s) for s in stages}
        retrievers = {
            stage: index_retriever(index, models[stage].encode_query if models[stage] else list)
            for stage, index in indexes.items()
        }
        scorer = None if reranker is None else model_reranker(reranker)
        first = indexes[stages[0]]
        pipeline = Pipeline(retrievers, first.texts, reranker=scorer, select=first.select)
        return pipeline, indexes

    return make


@pytest.fixture(scope="session")
def reranker(tiny_cross_encoder):
    return embed_jax.load_cross_encoder(tiny_cross_encoder())


@pytest.fixture(scope="session")
def start():
    """`start(app) -> address` of a server on loopback, which runs in a thread."""
    running = []

    def start(app):
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def served(make_pipeline, models, reranker, corpus):
    """Four searches, a fusion and a reranker; the document "secret" is forbidden."""
    pipeline, indexes = make_pipeline(*models, reranker=reranker)
    own = {stage: model for stage, model in models.items() if model is not None}
    names = dict.fromkeys(own, "tiny") | {"reranked": "ce"}
    allowed = [name for name in corpus if name != "secret"]
    return ServedSearch(pipeline, indexes, models=own, names=names, allowed=allowed)
