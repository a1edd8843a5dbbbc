"""A reranker of Python's own documentation: from all-MiniLM-L6-v2, with BM25's errors as negatives.

    python -m experiments.cross_encoder --config=configs/cross_encoder/python_docs.py \
        --workdir=runs/cross_encoder

Binary cross entropy on each docstring's function, four passages that BM25 finds instead, and two of
other examples of the batch. Needs no data but Python. `python_docs.py:small` is ten steps.

Paper: Nogueira and Cho (2019), "Passage Re-ranking with BERT", the pointwise loss.
Expected: better than BM25's order of the same 100 candidates.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "python_docs"
    config.data.max_length = 128
    config.mine.strategy = "bm25"
    config.mine.number = 4
    config.mine.rank_max = 50
    config.mine.sampling = "random"
    config.batch.size = 16
    config.batch.in_batch_negatives = 2
    config.loss.name = "binary_cross_entropy(pos_weight=6)"
    config.optim.learning_rate = 5e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.steps = 150
    config.eval.retrieval = "python_docs"
    config.eval.test_split = "test"
    config.eval.depth = 30
    config.eval.every = 50
    config.eval.metric = "reranking/ndcg@10"
    config.checkpoint.every = 50
    if cut == "small":
        config.data.limit = 512
        config.train.steps = 10
        config.eval.every = -1
        config.eval.depth = 10
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
