"""A reranker trained on whole lists by LambdaLoss.

    python -m experiments.cross_encoder --config=configs/cross_encoder/lambda_rank.py \
        --workdir=runs/lambda_rank

Every list is a docstring's first sentence, its function, and seven functions that BM25 finds
instead. `lambda_rank.py:small` is ten steps of shorter texts; `lambda_rank.py:base` is for
tables/losses.py: 60 batches from the encoder that `configs/mlm/bert_small.py:base` makes in
runs/base.

Paper: Wang et al. (2018), "The LambdaLoss Framework for Ranking Metric Optimization", NDCG-Loss2++
    with mu 10.
Expected: better than BM25's order of the same candidates. sentence-transformers' documentation
    ranks LambdaLoss first among its losses of lists.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "python_docs"
    config.data.max_length = 128
    config.mine.strategy = "bm25"
    config.mine.number = 7
    config.mine.rank_max = 50
    config.mine.sampling = "random"
    config.batch.size = 16
    config.loss.name = "lambda_rank"
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
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.mine.number = 3
        config.eval.retrieval = ""
        config.eval.metric = ""
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut == "base":
        config.model.name = "runs/base/model"
        config.data.limit = 1200
        config.data.holdout = 0.1
        config.data.max_length = 64
        config.optim.learning_rate = 3e-4
        config.train.steps = 60
        config.eval.retrieval = ""
        config.eval.test_split = ""
        config.eval.depth = 10
        config.eval.with_positives = True
        config.eval.every = 30
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, base")
    return config
