"""Similarity of two sentences as a probability, on STS-B.

    python -m experiments.cross_encoder --config=configs/cross_encoder/stsb.py \
        --workdir=runs/stsb_pairs

The data set "stsb" has scores from 0 to 1; for your own directory with train.tsv and dev.tsv (score
sentence1 sentence2) and scores from 0 to 5 set `--config.data.train=./stsb
--config.data.validation_split=dev --config.data.score_max=5`. `stsb.py:small` trains
all-MiniLM-L6-v2 for ten steps.

Paper: sentence-transformers' STS-B recipe: binary cross entropy of score / 5.
Expected: Spearman's correlation x100 on the test set 87.92 for distilroberta-base, 90.17 for
    roberta-base (sentence-transformers' documentation).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "distilbert/distilroberta-base"
    config.data.train = "stsb"
    config.data.max_length = 128
    config.data.validation_split = "validation"
    config.batch.size = 16
    config.loss.name = "binary_cross_entropy"
    config.optim.learning_rate = 2e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 4.0
    config.eval.every = 80
    config.eval.metric = ""
    config.checkpoint.every = 500
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.max_length = 64
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
