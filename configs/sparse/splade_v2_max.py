"""SPLADE v2 max: pairs with in-batch negatives, FLOPS of queries and documents.

    python -m experiments.sparse --config=configs/sparse/splade_v2_max.py \
        --workdir=runs/splade_v2_max

`msmarco_triples.jsonl` has anchor, positive and a negative of BM25. The factors of FLOPS are those
of the authors' configs for this form. `splade_v2_max.py:small` is ten steps on Python's
documentation from all-MiniLM-L6-v2, whose files have no masked language model's head: a new one is
trained. `splade_v2_max.py:scifact` is 300 steps on SciFact from the same model, for
tables/flops.py.

Paper: Formal et al. (2021), "SPLADE v2: Sparse Lexical and Expansion Model for Information
    Retrieval".
Expected: MRR@10 34.0 on MS MARCO's development set, nDCG@10 46.4 over 13 BEIR sets
    (sentence-transformers' documentation).
Measured: SciFact's test claims after 150 batches from all-MiniLM-L6-v2 with a head trained here,
    nDCG@10 0.499 [0.455, 0.545], BM25 0.666; see experiments/results/sparse.
"""

from embed_jax.config import Experiment

# The factors of FLOPS rise until `steps`.
LOSS = (
    "info_nce + "
    "'quadratic(0, 3e-4, {steps})' * flops(side='query') + "
    "'quadratic(0, 1e-4, {steps})' * flops(side='document')"
)


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "distilbert-base-uncased"
    config.model.sparse = "max"
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
        config.eval.retrieval = ""
        config.eval.metric = ""
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut == "scifact":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "beir:scifact"
        config.data.max_length = 128
        config.batch.size = 16
        config.batch.groups = 4
        config.loss.name = (
            "info_nce + "
            "'quadratic(0, 1e-3, 100)' * flops(side='query') + "
            "'quadratic(0, 1e-3, 100)' * flops(side='document')"
        )
        config.optim.learning_rate = 1e-4
        config.optim.warmup = 0.1
        config.train.steps = 300
        config.eval.retrieval = "scifact"
        config.eval.retrieval_split = ""
        config.eval.test_split = "test"
        config.eval.metric = ""
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, scifact")
    return config
