"""SciFact: a reranker of scientific abstracts from all-MiniLM-L6-v2, with mined negatives.

    python -m experiments.cross_encoder --config=configs/cross_encoder/scifact.py \
        --workdir=runs/scifact_reranker

`scifact` is a directory in BEIR's layout. Every claim is read with its abstract, four abstracts
that all-MiniLM-L6-v2 finds instead, and one of another claim of the batch. `scifact.py:lambda_rank`
has LambdaLoss instead of binary cross entropy; `scifact.py:small` is ten steps of short texts.

Paper: Nogueira and Cho (2019), "Passage Re-ranking with BERT", the pointwise loss.
Expected: not stated for this recipe.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "beir:scifact"
    config.data.max_length = 256
    config.mine.strategy = "dense"
    config.mine.corpus = "scifact"
    config.mine.number = 4
    config.mine.rank_max = 50
    config.mine.sampling = "random"
    config.batch.size = 16
    config.batch.groups = 2
    config.batch.in_batch_negatives = 1
    config.loss.name = "binary_cross_entropy(pos_weight=5)"
    config.optim.learning_rate = 5e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 3.0
    config.eval.retrieval = "scifact"
    config.eval.retrieval_split = ""
    config.eval.test_split = "test"
    config.checkpoint.every = 50
    if cut == "lambda_rank":
        config.loss.name = "lambda_rank"
    elif cut == "small":
        config.data.max_length = 64
        config.data.limit = 64
        config.eval.test_split = ""
        config.train.steps = 10
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, lambda_rank")
    return config
