"""ColBERTv2: a cross-encoder's scores of 64 passages, and the passages of the batch.

    python -m experiments.late_interaction --config=configs/late_interaction/colbertv2.py \
        --workdir=runs/colbertv2

`msmarco_64way.jsonl` has scored lists (query, passages, scores) of a MiniLM cross-encoder, whose
first passage is the positive. `colbertv2.py:small` trains all-MiniLM-L6-v2 on Python's
documentation with scores of 1 for the positive and 0 for others.

Paper: Santhanam et al. (2022), "ColBERTv2", sections 3.2 and 4: KL divergence and cross entropy
    in the batch.
Expected: MRR@10 39.7 on the development set (table 4); nDCG@10 69.3 on SciFact, 33.8 on NFCorpus
    (table 5a).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "google-bert/bert-base-uncased"
    config.data.train = "msmarco_64way.jsonl"
    config.data.max_length = 220
    config.batch.size = 32
    config.batch.groups = 32
    config.loss.name = "kl + info_nce(hard_negatives='own')"
    config.optim.learning_rate = 3e-6
    config.optim.schedule = "linear"
    config.train.steps = 400_000
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
        config.mine.number = 3
        config.eval.retrieval = ""
        config.eval.metric = ""
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
