"""ModernBERT as a reranker: binary cross entropy with five mined negatives.

    python -m experiments.cross_encoder --config=configs/cross_encoder/modernbert_bce.py \
        --workdir=runs/modernbert_bce

`gooaq.jsonl` has pairs (anchor, positive). `modernbert_bce.py:small` trains all-MiniLM-L6-v2 on
Python's documentation with negatives of BM25.

Paper: sentence-transformers' GooAQ recipe: batch 64, learning rate 2e-5, five negatives mined from
    the first 100, pos_weight 5, the first 30 reranked.
Expected: nDCG@10 0.7713 on its development set, 0.4575 over three NanoBEIR sets
    (sentence-transformers' documentation).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "answerdotai/ModernBERT-base"
    config.data.train = "gooaq.jsonl"
    config.data.holdout = 0.001
    config.data.max_length = 512
    config.mine.strategy = "dense"
    config.mine.number = 5
    config.mine.rank_max = 100
    config.mine.absolute_margin = 0.0
    config.mine.sampling = "random"
    config.batch.size = 64
    config.batch.groups = 4
    config.loss.name = "binary_cross_entropy(pos_weight=5)"
    config.optim.learning_rate = 2e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 1.0
    config.eval.every = 1000
    config.eval.depth = 30
    config.eval.metric = "reranking/ndcg@10"
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
        config.data.holdout = 0.0
        config.loss.name = "binary_cross_entropy(pos_weight=3)"
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
