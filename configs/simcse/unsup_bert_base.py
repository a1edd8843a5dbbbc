"""Unsupervised SimCSE, BERT-base.

    python -m experiments.simcse --config=configs/simcse/unsup_bert_base.py \
        --config.eval.sts=stsb/dev.tsv

Settings: batch 64, learning rate 3e-5, one epoch over 10^6 Wikipedia sentences, temperature 0.05
(Table A.1); length 32, linear decay, no weight decay (released scripts); evaluated on STS-B dev
every 125 steps (scripts; the paper says 250), the best model is kept; MLP over [CLS] in training
only (Table 6).

`unsup_bert_base.py:small` is the same experiment with a random 2-layer encoder of BERT's form, in
minutes on a CPU. It needs `--config.model.tokenizer=DIR` (a directory with a BERT vocabulary) or
another model name. `unsup_bert_base.py:table` is for tables/: 40 batches of 32 from the first token
of all-MiniLM-L6-v2, which was trained with the mean of all tokens. The encoder that
`configs/mlm/bert_small.py:base` makes in half an hour is too weak for it: it tells two copies of a
sentence from other sentences at once, and gets worse on STS-B with and without dropout.

Paper: Gao, Yao, Chen (EMNLP 2021), Table 5.
Expected: 76.25 average Spearman x100 over the seven STS test sets, 76.85 on STS-B test, 82.5 on
    STS-B dev.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "bert-base-uncased"
    config.model.pooling = "cls"
    config.model.mlp = "training"
    config.data.train = "wiki1m"
    config.data.max_length = 32
    config.batch.size = 64
    config.loss.temperature = 0.05
    config.loss.mask_duplicates = False  # as in the paper
    config.optim.learning_rate = 3e-5
    config.optim.schedule = "linear"
    config.train.epochs = 1.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 125
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 125
    if cut == "small":
        config.model.name = "random:tiny"
        config.data.limit = 2048
        config.optim.learning_rate = 1e-3
        config.eval.every = 16
        config.checkpoint.every = 16
    elif cut == "table":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.batch.size = 32
        config.optim.learning_rate = 1e-4
        config.train.steps = 40
        config.eval.every = 40
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, table")
    return config
