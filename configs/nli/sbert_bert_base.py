"""SBERT, BERT-base, on natural language inference.

    python -m experiments.nli --config=configs/nli/sbert_bert_base.py \
        --config.eval.sts=stsb/dev.tsv \
        --config.eval.test_sts=sts12,sts13,sts14,sts15,sts16,stsb,sick_r

Settings (section 3.1): three-way softmax over (u, v, |u-v|), SNLI and MultiNLI, 1 epoch, batch
16, Adam with learning rate 2e-5, linear warm-up over 10 % of the steps, mean pooling. Other rows
of Table 6: `--config.loss.name="softmax(concatenation='u,v,u*v')"`. Length 128 is ours; the paper
does not give one.

`sbert_bert_base.py:sts` continues with regression on STS-B (Table 2: 85.35 on STS-B test), as a
second stage: 4 epochs of mean squared error between the cosine and the score. Its fields are
`--config.stages.sts.FIELD`.
`sbert_bert_base.py:small` is softmax on all-MiniLM-L6-v2 for 200 steps of 32, in minutes on a CPU.

Paper: Reimers and Gurevych (EMNLP 2019), Tables 1 and 6.
Expected: 80.78 Spearman x100 on STS-B dev (Table 6, mean of 10 seeds), 77.03 on STS-B test (Table
    1).
Measured: not yet; see tables/objectives.py for short runs.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "bert-base-uncased"
    config.model.pooling = "mean"
    config.data.train = "allnli"
    config.data.max_length = 128
    config.batch.size = 16
    config.loss.name = "softmax(concatenation='u,v,|u-v|')"
    config.optim.learning_rate = 2e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.train.epochs = 1.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 1000
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 1000
    if cut == "sts":
        config.stages.sts = regression()
    elif cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.batch.size = 32
        config.train.steps = 200
        config.eval.every = 50
        config.checkpoint.every = 50
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: sts, small")
    return config


def regression() -> Experiment:
    """Cosine against STS-B's scores, from the model of the stage before."""
    config = Experiment()
    config.model.name = ""
    config.data.train = "stsb"
    config.batch.size = 16
    config.loss.name = "cosine_mse"
    config.optim.learning_rate = 2e-5
    config.optim.warmup = 0.1
    config.train.epochs = 4.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 360
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 360
    return config
