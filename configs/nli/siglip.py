"""SigLIP's sigmoid loss on inference pairs: where temperature and bias begin.

    python -m experiments.nli --config=configs/nli/siglip.py --config.eval.sts=stsb/dev.tsv

Temperature 0.1 (t' = log 10) and bias -10 at the start, both learnt, and b2 0.95 are the paper's;
the other settings are those of sup_simcse_bert_base.py, without its hard negatives' weight.
`--config.optim.groups.bias.learning_rate_factor=0` leaves the bias where it begins.

`siglip.py:small` is for tables/siglip.py: 60 batches of 64 from the encoder that
`configs/mlm/bert_small.py:base` makes in runs/base.

Paper: Zhai et al. (ICCV 2023), "Sigmoid Loss for Language Image Pre-Training".
Expected: no published number for text.
Measured: not yet.
"""

from embed_jax.config import Experiment, ParamGroup


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "bert-base-uncased"
    config.model.pooling = "cls"
    config.model.mlp = "kept"
    config.data.train = "allnli"
    config.data.max_length = 32
    config.batch.size = 512
    config.loss.name = "siglip(temperature=0.1, bias=-10.0)"
    config.optim.learning_rate = 5e-5
    config.optim.b2 = 0.95
    config.optim.groups.bias = ParamGroup(pattern="loss/bias$")
    config.train.epochs = 3.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 125
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 125
    if cut == "small":
        config.model.name = "runs/base/model"
        config.batch.size = 64
        config.optim.learning_rate = 1e-4
        config.train.steps = 40
        config.eval.every = 40
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
