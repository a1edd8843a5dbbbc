"""ColBERT on MS MARCO triples.

    python -m experiments.late_interaction --config=configs/late_interaction/colbert.py \
        --workdir=runs/colbert

`msmarco_triples.jsonl` has a query, a passage that answers it and one that does not. The softmax is
over these two passages only, as in the paper. `colbert.py:small` trains all-MiniLM-L6-v2 on
Python's documentation.

Paper: Khattab and Zaharia (2020), "ColBERT"; vectors of 128 numbers, queries of 32 tokens. The
    learning rate and batch are those of the authors' code.
Expected: MRR@10 36.0 on the development set (Santhanam et al. 2022, "ColBERTv2", table 4).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "google-bert/bert-base-uncased"
    config.data.train = "msmarco_triples.jsonl"
    config.data.max_length = 180
    config.batch.size = 32
    config.loss.name = "own_candidates"
    config.optim.learning_rate = 3e-6
    config.optim.schedule = "constant"
    config.train.steps = 200_000
    config.eval.retrieval = "msmarco"
    config.eval.every = 10_000
    config.eval.metric = "reranking/mrr@10"
    config.checkpoint.every = 10_000
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.batch.groups = 0
        config.late.dim = 64
        config.mine.strategy = "bm25"
        config.mine.number = 1
        config.eval.retrieval = ""
        config.eval.metric = ""
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
