"""A reranker from all-MiniLM-L6-v2, trained on lists of three data sets: of reranking_table.sh.

    python -m experiments.cross_encoder --config=configs/cross_encoder/three_sets.py \
        --config.data.train=lists.jsonl --workdir=runs/three_sets

`lists.jsonl` has a query, a relevant passage and seven that BM25 and all-MiniLM-L6-v2 find instead;
`scripts/reranking_table.sh` makes it of WikiQA, SciFact and NFCorpus, and trains with each of three
losses: binary cross entropy, LambdaLoss (`three_sets.py:lambda_rank`), and distillation, by the
margins of another cross-encoder (`three_sets.py:distilled`, for lists with scores).
`three_sets.py:small` is ten steps of short texts.

Paper: none has this mixture.
Expected: no published number.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "lists.jsonl"
    config.data.max_length = 128
    config.batch.size = 16
    config.batch.groups = 2
    config.loss.name = "binary_cross_entropy"
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 1.0
    config.checkpoint.every = 50
    if cut == "lambda_rank":
        config.loss.name = "lambda_rank"
    elif cut == "distilled":
        config.loss.name = "margin_mse"
    elif cut == "small":
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.mine.strategy = "bm25"
        config.mine.number = 3
        config.train.steps = 10
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, lambda_rank, distilled")
    return config
