"""Natural language inference: three classes of a premise with a hypothesis.

    python -m experiments.cross_encoder --config=configs/cross_encoder/nli.py \
        --workdir=runs/nli_pairs

`nli.tsv` has the fields premise, hypothesis and label. `nli.py:small` trains all-MiniLM-L6-v2 for
ten steps on the same file.

Paper: Devlin et al. (2019), "BERT", section 4.1.
Expected: not stated for this recipe.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "distilbert/distilroberta-base"
    config.data.train = "nli.tsv"
    config.data.max_length = 128
    config.batch.size = 64
    config.loss.name = "pair_cross_entropy(num_labels=3)"
    config.optim.learning_rate = 2e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 1.0
    config.checkpoint.every = 500
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.max_length = 64
        config.batch.size = 16
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
