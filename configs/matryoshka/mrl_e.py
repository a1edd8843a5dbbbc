"""MRL and MRL-E on labelled inference pairs: sizes halved, one classifier each or a shared one.

    python -m experiments.matryoshka --config=configs/matryoshka/mrl_e.py \
        --config.eval.test_sts=stsb/test.tsv

Sizes of BERT-base 768, 384, ..., 12, weights 1 each; MRL-E shares the weights of the classifier
among the sizes. The paper's tasks are images and masked words; this is its loss on SBERT's
objective (batch 16, learning rate 2e-5, 10 % warm-up, one epoch; Reimers and Gurevych 2019).
`--config.loss.name="matryoshka(softmax(), dims='768,384,192,96,48,24,12')"` is MRL, with a
classifier for each size.

`mrl_e.py:small` trains all-MiniLM-L6-v2 for 60 steps of 64, minutes on a CPU.

Paper: Kusupati et al. (NeurIPS 2022).
Expected: no published number for this task.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "bert-base-uncased"
    config.model.pooling = "mean"
    config.data.train = "allnli"
    config.data.max_length = 128
    config.batch.size = 16
    config.loss.name = "matryoshka(softmax(), dims='768,384,192,96,48,24,12', shared_head=True)"
    config.optim.learning_rate = 2e-5
    config.optim.warmup = 0.1
    config.train.epochs = 1.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.test_sts = "stsb/test.tsv"
    config.eval.baseline = "softmax"
    config.eval.every = 2000
    config.checkpoint.every = 2000
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.model.pooling = ""
        config.data.max_length = 32
        config.batch.size = 64
        config.loss.name = "matryoshka(softmax(), dims='384,192,96,48,24,12', shared_head=True)"
        config.train.steps = 60
        config.eval.every = 30
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
