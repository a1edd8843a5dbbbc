"""SciFact: ColBERT from all-MiniLM-L6-v2, with mined negatives.

    python -m experiments.late_interaction --config=configs/late_interaction/scifact.py \
        --workdir=runs/scifact

`scifact` is a directory in BEIR's layout. Every claim is compared with its abstract, two that
all-MiniLM-L6-v2 finds instead, and those of the batch. `scifact.py:small` is ten steps of short
texts on Python's documentation.

Paper: Khattab and Zaharia (2020), "ColBERT", with negatives of the whole batch.
Expected: not stated for this recipe; ColBERT trained on MS MARCO has nDCG@10 67.1 on SciFact
    (Santhanam et al. 2022, "ColBERTv2", table 5a).
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
    config.mine.number = 2
    config.mine.rank_max = 50
    config.mine.sampling = "random"
    config.batch.size = 32
    config.batch.groups = 4
    config.optim.learning_rate = 3e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.05
    config.train.epochs = 3.0
    config.eval.retrieval = "scifact"
    config.eval.retrieval_split = ""
    config.eval.test_split = "test"
    config.checkpoint.every = 50
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.batch.groups = 0
        config.late.dim = 64
        config.mine.strategy = ""
        config.eval.test_split = ""
        config.eval.retrieval = ""
        config.eval.metric = ""
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
