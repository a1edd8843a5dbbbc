"""A student with three of its teacher's twelve layers, after sentence-transformers' documentation.

    python -m experiments.distill --config=configs/distill/layers.py \
        --config.eval.sts=stsb/dev.tsv \
        --config.eval.test_sts=stsb/test.tsv --workdir=runs/student

Settings of their example: layers spread evenly, mean squared error, batch 64, learning rate 1e-4,
10 % warm-up, one epoch, STS-B dev picks the model. They train on NLI and Wikipedia sentences;
only Wikipedia, and length 64, are ours.

`layers.py:small` makes a student of three of all-MiniLM-L6-v2's six layers in 300 steps, minutes
on a CPU. The three layers were chosen on STS-B dev before training; dropout off is ours.
`--config.data.train` may be any file of sentences: the nearer to the texts that the student is
meant for, the better.

Paper: sentence-transformers' documentation, "Model Distillation".
Expected: Spearman x100 on STS-B test of stsb-roberta-base and its students (sentences per second
    on a V100 in brackets): 12 layers 85.44 (2300), 8: 85.54 (3200), 6: 85.23 (4000), 4: 84.92
    (5300), 3: 84.39 (6500), 2: 83.32 (7700), 1: 80.86 (9200).
Measured: not yet; `:small`: 80.62 of the teacher's 82.03, 1.75 times as fast.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/stsb-roberta-base"
    config.model.layers = "3,7,11"
    config.model.teacher = "sentence-transformers/stsb-roberta-base"
    config.data.train = "wiki1m"
    config.data.max_length = 64
    config.batch.size = 64
    config.loss.name = "embedding_mse"
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.train.epochs = 1.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 1000
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 1000
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.model.layers = "0,3,5"
        config.model.teacher = "sentence-transformers/all-MiniLM-L6-v2"
        config.model.dropout = 0.0
        config.train.steps = 300
        config.eval.every = 50
        config.checkpoint.every = 50
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
