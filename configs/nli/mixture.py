"""Several data sets in one run, each with the loss that suits it: NLI, duplicate questions, scores.

    python -m experiments.nli --config=configs/nli/mixture.py --config.eval.sts=stsb/dev.tsv \
        --workdir=runs/mixture

Each batch is from one data set (`mixture.batches`), drawn by size^(1/2) (`mixture.sampling`,
`mixture.temperature`), so that the small one is seen more often than its share.

`mixture.py:small` is all-MiniLM-L6-v2 for 60 steps of 32, in minutes on a CPU; `mixture.py:batches`
is for tables/batches.py: pairs of three kinds with one loss, 60 batches of 48 from the encoder that
`configs/mlm/bert_small.py:base` makes in runs/base.

Paper: none has this mixture.
Expected: no published number.
Measured: not yet.
"""

from embed_jax.config import Experiment, Mixture, Source


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "bert-base-uncased"
    config.model.pooling = "mean"
    config.mixture.sources.nli = Source("allnli")
    config.mixture.sources.questions = Source("qqp", loss="online_contrastive", loss_weight=0.5)
    config.mixture.sources.sts = Source("stsb", loss="cosent")
    config.mixture.sampling = "temperature"
    config.mixture.temperature = 2.0
    config.data.max_length = 64
    config.batch.size = 128
    config.batch.no_duplicates = True
    config.loss.temperature = 0.05
    config.optim.learning_rate = 2e-5
    config.optim.warmup = 0.1
    config.train.epochs = 1.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 500
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 500
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.batch.size = 32
        config.train.steps = 60
        config.eval.every = 20
        config.checkpoint.every = 20
    elif cut == "batches":
        config.model.name = "runs/base/model"
        config.mixture = Mixture()
        nli, limit = "nli/triplets.tsv.gz", 3000
        config.mixture.sources.nli = Source(nli, columns="anchor,positive", limit=limit)
        config.mixture.sources.questions = Source("questions.tsv", limit=limit)
        config.mixture.sources.functions = Source("python_docs", limit=limit)
        config.mixture.sampling = "round_robin"
        config.batch.size = 48
        config.optim.learning_rate = 2e-4
        config.train.steps = 60
        config.eval.retrieval = "python_docs"
        config.eval.every = 30
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, batches")
    return config
