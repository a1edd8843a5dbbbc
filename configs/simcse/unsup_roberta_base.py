"""Unsupervised SimCSE, RoBERTa-base.

    python -m experiments.simcse --config=configs/simcse/unsup_roberta_base.py \
        --config.eval.sts=stsb/dev.tsv

Settings: batch 512, learning rate 1e-5 (Table A.1); otherwise as BERT-base. On one small GPU,
`--config.batch.groups=8` keeps the activations of 64 sentences at a time; the gradient is the
same.

`unsup_roberta_base.py:small` is the same experiment with a random 2-layer encoder, in minutes on a
CPU. It needs `--config.model.tokenizer=DIR` (a directory with a tokenizer) or another model name.

Paper: Gao, Yao, Chen (EMNLP 2021), Table 5.
Expected: 76.57 average Spearman x100 over the seven STS test sets, 80.22 on STS-B test.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "roberta-base"
    config.model.pooling = "cls"
    config.model.mlp = "training"
    config.data.train = "wiki1m"
    config.data.max_length = 32
    config.batch.size = 512
    config.loss.temperature = 0.05
    config.loss.mask_duplicates = False  # as in the paper
    config.optim.learning_rate = 1e-5
    config.optim.schedule = "linear"
    config.train.epochs = 1.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 125
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 125
    if cut == "small":
        config.model.name = "random:tiny"
        config.data.limit = 4096
        config.batch.size = 128
        config.optim.learning_rate = 1e-3
        config.eval.every = 8
        config.checkpoint.every = 8
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
