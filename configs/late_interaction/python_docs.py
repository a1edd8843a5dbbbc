"""ColBERT on Python's own documentation: from all-MiniLM-L6-v2, with BM25's errors as negatives.

    python -m experiments.late_interaction --config=configs/late_interaction/python_docs.py \
        --workdir=runs/late_interaction

InfoNCE by MaxSim over each docstring's function, two that BM25 finds instead, and those of the
whole batch. Needs no data but Python. `python_docs.py:small` is ten steps.

Paper: Khattab and Zaharia (2020), "ColBERT".
Expected: better than BM25's order of the same 30 candidates.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "python_docs"
    config.data.max_length = 128
    config.mine.strategy = "bm25"
    config.mine.number = 2
    config.mine.rank_max = 50
    config.mine.sampling = "random"
    config.batch.size = 32
    config.late.dim = 64
    config.optim.learning_rate = 5e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.train.steps = 100
    config.eval.retrieval = "python_docs"
    config.eval.test_split = "test"
    config.eval.depth = 30
    config.eval.every = 50
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
