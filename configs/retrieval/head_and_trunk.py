"""A new head on a trained model: the head at 1e-3, the trunk at 1e-5 and less in its lower layers.

    python -m experiments.retrieval --config=configs/retrieval/head_and_trunk.py \
        --workdir=runs/head_and_trunk

The embeddings are frozen. Each group has a regular expression of parameters' paths
(embed_jax/train/groups.py); the factors of a parameter's groups multiply. A trunk that stays as
it is, so that only the head learns (as in LiT):

    --config.optim.groups.trunk.learning_rate_factor=0

The rate is stable and falls over the last fifth of the steps (WSD). For a decay from a checkpoint
of a run that is stable to its end, set another directory, the checkpoint, and as `decay` the
share of the steps after it. Warm-up is a share of all steps: it has to end before the checkpoint
in both runs.

    --config.optim.schedule=constant --config.checkpoint.every=40 --workdir=runs/stable
    --config.train.from_checkpoint=runs/stable/checkpoints/40 --config.train.steps=60 \
        --config.optim.decay=0.333 \\
        --workdir=runs/decay

Data: python_docs, as in quickstart.py. `head_and_trunk.py:small` takes 10 steps.

Paper: Zhai et al. (CVPR 2022), "LiT", for the frozen trunk.
Expected: no published number.
Measured: not yet.
"""

from embed_jax.config import Experiment, ParamGroup


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.model.mlp = "kept"
    config.data.train = "python_docs"
    config.data.max_length = 128
    config.batch.size = 32
    config.loss.temperature = 0.05
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "wsd"
    config.optim.decay = 0.2
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.optim.groups.trunk = ParamGroup(
        pattern="backbone", learning_rate_factor=0.01, layer_decay=0.9
    )
    config.optim.groups.table = ParamGroup(pattern="embeddings", learning_rate_factor=0.0)
    config.train.steps = 60
    config.eval.retrieval = "python_docs"
    config.eval.every = 20
    config.checkpoint.every = 20
    if cut == "small":
        config.train.steps = 10
        config.eval.every = 5
        config.checkpoint.every = 5
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
