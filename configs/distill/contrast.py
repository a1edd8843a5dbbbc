"""A student that imitates a teacher first and contrasts pairs afterwards.

    python -m experiments.distill --config=configs/distill/contrast.py \
        --config.eval.sts=stsb/dev.tsv --workdir=runs/contrast

Half of the steps bring each embedding to the teacher's by the cosine, the other half train with
in-batch and hard negatives; `--config.loss.name="embedding_cosine() + info_nce()"` does both at
once. All settings are ours; recent models are made in this order, from larger teachers.

`contrast.py:small` is for tables/order.py: 60 batches of 64 inference triplets, from the encoder
that `configs/mlm/bert_small.py:base` makes in runs/base; its 256 numbers are mapped to the
teacher's 384.

Paper: none has this setting.
Expected: no published number.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "bert-base-uncased"
    config.model.pooling = "mean"
    config.model.teacher = "sentence-transformers/all-mpnet-base-v2"
    config.data.train = "allnli"
    config.data.max_length = 64
    config.batch.size = 256
    config.loss.name = (
        "'switch(1, 0, 1000)' * embedding_cosine() + 'switch(0, 1, 1000)' * info_nce()"
    )
    config.loss.temperature = 0.05
    config.optim.learning_rate = 5e-5
    config.optim.warmup = 0.1
    config.train.steps = 2000
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 250
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 500
    if cut == "small":
        config.model.name = "runs/base/model"
        config.model.teacher = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "nli/triplets.tsv.gz"
        config.data.max_length = 32
        config.batch.size = 64
        config.loss.name = (
            "'switch(1, 0, 30)' * embedding_cosine(projection=384) + "
            "'switch(0, 1, 30)' * info_nce()"
        )
        config.optim.learning_rate = 3e-4
        config.train.steps = 60
        config.eval.every = 15
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
