"""answerai-colbert-small: a small model with vectors of 96 numbers.

    python -m experiments.late_interaction --config=configs/late_interaction/answerai_small.py \
        --workdir=runs/answerai_small

`msmarco_scored.jsonl` has scored lists (query, passages, scores) of a reranker. Prefixes of 48 and
64 numbers are trained too. `answerai_small.py:small` trains all-MiniLM-L6-v2 on Python's
documentation with scores of 1 for the positive and 0 for others.

Paper: Clavie (2024), "Small but Mighty: Introducing answerai-colbert-small"; distillation of
    normalised scores (JaColBERTv2.5, Clavie 2024). The setting here is this repository's.
Expected: mean nDCG@10 0.6550 over NanoBEIR.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "microsoft/MiniLM-L12-H384-uncased"
    config.data.train = "msmarco_scored.jsonl"
    config.data.max_length = 300
    config.late.dim = 96
    config.batch.size = 16
    config.batch.groups = 16
    config.loss.name = (
        "matryoshka(kl(normalization='min_max', student_normalization='min_max'), dims='96,64,48')"
    )
    config.optim.learning_rate = 1e-5
    config.optim.schedule = "linear"
    config.train.epochs = 1.0
    config.eval.retrieval = "msmarco"
    config.eval.every = 5000
    config.eval.metric = "reranking/ndcg@10"
    config.checkpoint.every = 5000
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.batch.groups = 0
        config.late.dim = 64
        config.loss.name = (
            "matryoshka(kl(normalization='min_max', student_normalization='min_max'), dims='64,48')"
        )
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
