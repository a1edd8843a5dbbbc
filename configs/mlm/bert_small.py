"""A small BERT from scratch by masked language modelling, on your own text.

    python -m experiments.mlm --config=configs/mlm/bert_small.py \
        --config.data.train=corpus.txt --config.model.tokenizer=DIR

`corpus.txt` has one document per line (or name any other data set whose records have a text), DIR
a BERT tokenizer. Settings of the paper: 15 % of the tokens, of which 80 % become the mask, 10 % a
random token; Adam with weight decay 0.01, 1 % of the steps for warm-up, then linear decay. Ours:
6 layers of 384 numbers, length 128, learning rate 3e-4, batch 256, 20,000 steps, no next-sentence
prediction.

`bert_small.py:small` is the same with 2 layers, in minutes on a CPU. `bert_small.py:base` makes the
encoder of the tables in configs/*/tables: 4 layers of 256 numbers, 3,000 batches of 64 sentences
at most 64 tokens long.

Paper: Devlin et al. (2019), section 3.1.
Expected: no published number for this size.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "random:minilm-l6"
    config.model.pooling = "mean"
    config.data.max_length = 128
    config.data.holdout = 0.01
    config.batch.size = 256
    config.loss.name = "mlm(rate=0.15)"
    config.optim.learning_rate = 3e-4
    config.optim.weight_decay = 0.01
    config.optim.warmup = 0.01
    config.train.steps = 20_000
    config.eval.every = 1000
    config.checkpoint.every = 1000
    if cut == "small":
        config.model.name = "random:tiny"
        config.data.holdout = 0.05
        config.data.limit = 20_000
        config.batch.size = 64
        config.optim.learning_rate = 1e-3
        config.train.steps = 1000
        config.eval.every = 200
        config.checkpoint.every = 200
    elif cut == "base":
        config.model.name = "random:mini"
        config.data.max_length = 64
        config.batch.size = 64
        config.optim.learning_rate = 1e-3
        config.optim.warmup = 0.05
        config.train.steps = 3000
        config.eval.every = 500
        config.checkpoint.every = 500
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, base")
    return config
