"""LateOn: a sharp student of normalised scores, with a residual head.

    python -m experiments.late_interaction --config=configs/late_interaction/lateon.py \
        --workdir=runs/lateon

`ms_marco_en_bge_gemma.jsonl` has scored lists of 32 passages, see gte_moderncolbert.py. The
student's temperature is 0.25, the teacher's 1 over scores from 0 to 1. `lateon.py:small` trains
all-MiniLM-L6-v2 on Python's documentation with scores of 1 for the positive and 0 for others.

Paper: Chaffin et al. (2026), "DenseOn and LateOn"; of its stages the distillation: 32 passages a
    query, batch 4, learning rate 3e-5, documents of 180 tokens.
Expected: mean nDCG@10 57.22 over BEIR (LightOn's documentation; after all its stages).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "Alibaba-NLP/gte-modernbert-base"
    config.data.train = "ms_marco_en_bge_gemma.jsonl"
    config.data.max_length = 180
    config.late.head = "residual"
    config.batch.size = 16
    config.batch.groups = 16
    config.loss.name = (
        "kl(teacher_temperature=1, normalization='min_max', student_normalization='min_max')"
    )
    config.loss.temperature = 0.25
    config.optim.learning_rate = 3e-5
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
