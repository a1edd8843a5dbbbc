"""MS MARCO reranker distilled from another cross-encoder's margins.

    python -m experiments.cross_encoder \
        --config=configs/cross_encoder/msmarco_minilm_margin_mse.py \
        --workdir=runs/msmarco_minilm_margin_mse

`msmarco_scored.jsonl` has scored lists (query, passages, scores) of a teacher.
`msmarco_minilm_margin_mse.py:small` trains all-MiniLM-L6-v2 on Python's documentation with scores
of 1 for the positive and 0 for others.

Paper: Hofstaetter et al. (2020), "Improving Efficient Neural Ranking Models with Cross-Architecture
    Knowledge Distillation"; learning rate 8e-6 as in sentence-transformers.
Expected: nDCG@10 74.30 on TREC DL 2019 and MRR@10 39.01 on the development set for
    ms-marco-MiniLM-L6-v2 (sentence-transformers' documentation).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "nreimers/MiniLM-L6-H384-uncased"
    config.data.train = "msmarco_scored.jsonl"
    config.data.max_length = 512
    config.batch.size = 16
    config.batch.groups = 4
    config.loss.name = "margin_mse"
    config.optim.learning_rate = 8e-6
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
