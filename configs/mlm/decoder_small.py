"""A small decoder from scratch: a causal language model on your own text.

    python -m experiments.mlm --config=configs/mlm/decoder_small.py \
        --config.data.train=corpus.txt --config.model.tokenizer=DIR

`corpus.txt` has one document per line (or name any other data set whose records have a text), DIR
a tokenizer. The result is an encoder that pools the last token's state; `experiments.llm` starts
from it. All settings are ours: 4 layers of 256 numbers, length 256, Adam with learning rate 1e-3
and b2 0.95, cosine decay after a warm-up of 2 %.

`decoder_small.py:small` is the same with 2 layers of 64 numbers, in minutes on a CPU.

Paper: none has this setting.
Expected: no published number.
Measured: the base of tables/pooling.py.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "random:decoder-small"
    config.model.pooling = "last_token"
    config.data.max_length = 256
    config.data.holdout = 0.01
    config.batch.size = 64
    config.loss.name = "next_token()"
    config.optim.learning_rate = 1e-3
    config.optim.b2 = 0.95
    config.optim.weight_decay = 0.1
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.02
    config.train.steps = 10_000
    config.eval.every = 500
    config.checkpoint.every = 500
    if cut == "small":
        config.model.name = "random:decoder-tiny"
        config.data.max_length = 128
        config.data.holdout = 0.05
        config.data.limit = 20_000
        config.train.steps = 1000
        config.eval.every = 200
        config.checkpoint.every = 200
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
