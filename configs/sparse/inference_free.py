"""Inference-free queries: weights of a table, which starts from document frequencies.

    python -m experiments.sparse --config=configs/sparse/inference_free.py \
        --workdir=runs/inference_free

Only documents are read by a transformer; a query's words have a trained table's weights. FLOPS is
of documents. The table starts from the corpus that is searched, or from `data.corpus`; it may have
its own learning rate (`optim.groups`, pattern "encoder/query"). `inference_free.py:small` is ten
steps on Python's documentation.

Paper: Geng et al. (2024), "Towards Competitive Search Relevance For Inference-Free Learned Sparse
    Retrievers".
Expected: of OpenSearch's published models nDCG@10 on BEIR 52.8 (v2-distil) and 54.6 (doc-v3-gte)
    (sentence-transformers' documentation).
Measured: not yet.
"""

from embed_jax.config import Experiment

# The factors of FLOPS rise until `steps`.
LOSS = "info_nce + 'quadratic(0, 1e-3, {steps})' * flops(side='document')"


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "distilbert-base-uncased"
    config.model.sparse = "max"
    config.model.query = "token_weights"
    config.data.train = "msmarco_triples.jsonl"
    config.data.max_length = 256
    config.batch.size = 128
    config.batch.groups = 8
    config.loss.name = LOSS.format(steps=50_000)
    config.loss.similarity = "dot"
    config.loss.temperature = 1.0
    config.optim.learning_rate = 2e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.04
    config.optim.weight_decay = 0.01
    config.train.steps = 150_000
    config.eval.every = 10_000
    config.eval.metric = "retrieval/mrr@10"
    config.eval.retrieval = "msmarco"
    config.checkpoint.every = 10_000
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.batch.groups = 2
        config.loss.name = LOSS.format(steps=10)
        config.optim.warmup = 0.1
        config.train.steps = 10
        config.eval.retrieval = "python_docs"
        config.eval.test_split = "test"
        config.eval.metric = ""
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
