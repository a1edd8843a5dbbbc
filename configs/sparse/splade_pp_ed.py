"""SPLADE++ EnsembleDistil: margins of an ensemble of cross-encoders, from CoCondenser.

    python -m experiments.sparse --config=configs/sparse/splade_pp_ed.py \
        --workdir=runs/splade_pp_ed

`msmarco_scored.jsonl` has scored lists (query, passages, scores) of the teachers. The factors of
FLOPS, learning rate, steps and 6,000 steps of warm-up are those of the authors' configs.
`splade_pp_ed.py:small` is ten steps on Python's documentation, with scores of 1 for the positive
and 0 for others.

Paper: Formal et al. (2022), "From Distillation to Hard Negative Sampling: Making Sparse Neural IR
    Models More Effective".
Expected: MRR@10 38.0 to 38.3 on MS MARCO's development set, nDCG@10 50.5 over 13 BEIR sets
    (sentence-transformers' documentation).
Measured: not yet.
"""

from embed_jax.config import Experiment

# The factors of FLOPS rise until `steps`.
LOSS = (
    "margin_mse + "
    "'quadratic(0, 0.5, {steps})' * flops(side='query') + "
    "'quadratic(0, 0.4, {steps})' * flops(side='document')"
)


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "Luyu/co-condenser-marco"
    config.model.sparse = "max"
    config.data.train = "msmarco_scored.jsonl"
    config.data.max_length = 256
    config.batch.size = 128
    config.batch.groups = 8
    config.loss.name = LOSS.format(steps=50_000)
    config.loss.similarity = "dot"
    config.loss.temperature = 1.0
    config.optim.learning_rate = 2e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.04
    config.optim.weight_decay = 0.01
    config.train.steps = 150_000
    config.eval.every = 10_000
    config.eval.metric = "retrieval/mrr@10"
    config.eval.retrieval = "msmarco"
    config.checkpoint.every = 10_000
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.batch.groups = 2
        config.loss.name = LOSS.format(steps=10)
        config.mine.strategy = "bm25"
        config.mine.number = 3
        config.optim.warmup = 0.1
        config.train.steps = 10
        config.eval.retrieval = ""
        config.eval.metric = ""
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
