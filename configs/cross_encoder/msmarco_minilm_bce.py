"""MS MARCO reranker: binary cross entropy on judged passages and negatives from the data.

    python -m experiments.cross_encoder --config=configs/cross_encoder/msmarco_minilm_bce.py \
        --workdir=runs/msmarco_minilm_bce

`msmarco.jsonl` has pairs or n-tuples of a query, its passage and negatives (anchor, positive,
negative_1, ...). `msmarco_minilm_bce.py:small` trains all-MiniLM-L6-v2 on Python's documentation
with negatives of BM25, in minutes on a CPU.

Paper: Nogueira and Cho (2019), "Passage Re-ranking with BERT"; sentence-transformers' MS MARCO
    recipe (batch 16 lists of at most 20, learning rate 2e-5).
Expected: cross-encoder/ms-marco-MiniLM-L6-v2 has nDCG@10 74.30 on TREC DL 2019 and MRR@10 39.01 on
    the development set (sentence-transformers' documentation; it is distilled, see
    msmarco_minilm_margin_mse.py).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "nreimers/MiniLM-L6-H384-uncased"
    config.data.train = "msmarco.jsonl"
    config.data.max_length = 512
    config.batch.size = 16
    config.batch.groups = 4
    config.loss.name = "binary_cross_entropy"
    config.optim.learning_rate = 2e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 1.0
    config.eval.every = 1000
    config.eval.metric = "reranking/mrr@10"
    config.eval.retrieval = "msmarco"
    config.checkpoint.every = 1000
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.mine.strategy = "bm25"
        config.mine.number = 3
        config.eval.retrieval = ""
        config.eval.metric = ""
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
