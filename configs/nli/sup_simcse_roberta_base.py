"""Supervised SimCSE, RoBERTa-base.

    python -m experiments.nli --config=configs/nli/sup_simcse_roberta_base.py \
        --config.eval.sts=stsb/dev.tsv \
        --config.eval.test_sts=sts12,sts13,sts14,sts15,sts16,stsb,sick_r

Data: SNLI and MultiNLI; an entailed hypothesis is the positive, a contradicted one the hard
negative. Settings: batch 512, learning rate 5e-5, 3 epochs, temperature 0.05 (Table A.1); length
32 (released scripts); MLP over [CLS] kept (Table 6); alpha 1.0 (Table 7); STS-B dev picks the
model every 125 steps.

`sup_simcse_roberta_base.py:small` fine-tunes all-MiniLM-L6-v2, its own pooling kept, for 100 steps
of 64.

Paper: Gao, Yao, Chen (EMNLP 2021), Table 5.
Expected: 82.52 average Spearman x100 over the seven STS test sets, 85.83 on STS-B test.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "roberta-base"
    config.model.pooling = "cls"
    config.model.mlp = "kept"
    config.data.train = "allnli"
    config.data.max_length = 32
    config.batch.size = 512
    config.loss.name = "info_nce"
    config.loss.temperature = 0.05
    config.loss.hard_negative_weight = 1.0
    config.loss.mask_duplicates = False  # as in the paper
    config.optim.learning_rate = 5e-5
    config.optim.schedule = "linear"
    config.train.epochs = 3.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 125
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 125
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.model.pooling = ""
        config.model.mlp = ""
        config.batch.size = 64
        config.optim.learning_rate = 2e-5
        config.train.steps = 100
        config.eval.every = 25
        config.checkpoint.every = 50
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
