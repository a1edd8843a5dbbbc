"""Regression on STS-B with one of three losses: mean squared error, CoSENT, AnglE.

    python -m experiments.nli --config=configs/nli/sts_regression.py \
        --config.eval.sts=stsb/dev.tsv \
        --config.eval.test_sts=stsb/test.tsv --config.loss.name=cosent

Settings: 4 epochs of batch 16, mean pooling. CoSENT (Su 2022) and AnglE (Li and Li 2023) have no
published table for this setting. The data set "stsb" has scores from 0 to 1; for a file with
scores from 0 to 5 set `--config.data.score_max=5`.

`sts_regression.py:small` is all-MiniLM-L6-v2 for 100 steps, in minutes on a CPU;
`sts_regression.py:base` is for tables/: 200 batches of 32 from the encoder that
`configs/mlm/bert_small.py:base` makes in runs/base.

Paper: Reimers and Gurevych (EMNLP 2019), Table 2.
Expected: 84.67 Spearman x100 on STS-B test with `cosine_mse` (mean of 10 seeds).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "bert-base-uncased"
    config.model.pooling = "mean"
    config.data.train = "stsb"
    config.batch.size = 16
    config.loss.name = "cosine_mse"
    config.optim.learning_rate = 2e-5
    config.optim.warmup = 0.1
    config.train.epochs = 4.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 360
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 360
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.batch.size = 32
        config.train.steps = 100
        config.eval.every = 25
        config.checkpoint.every = 50
    elif cut == "base":
        config.model.name = "runs/base/model"
        config.data.max_length = 64
        config.batch.size = 32
        config.optim.learning_rate = 1e-4
        config.train.steps = 100
        config.eval.every = 100
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, base")
    return config
