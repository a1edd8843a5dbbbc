"""DPR: two BERT encoders of questions and passages, in-batch negatives and one of BM25 each.

    python -m experiments.retrieval --config=configs/retrieval/dpr.py --workdir=runs/dpr

`nq` is Natural Questions in BEIR's layout with a train split, its nq-train. Settings of the
paper: BERT-base twice, [CLS], dot product, batch 128 with one BM25 negative for each question
that all share, learning rate 1e-5, 40 epochs, 10 % dropout. Its passages are 100 words with the
title; length 256 is that of the released code. Warm-up is ours.

`dpr.py:small` is for tables/dpr.py: one encoder, an epoch of 1,024 pairs of python_docs, from
the encoder that `configs/mlm/bert_small.py:base` makes in runs/base.

Paper: Karpukhin et al. (EMNLP 2020), tables 2 and 3.
Expected: 78.4 % of NQ's test questions with an answer in the first 20 passages of Wikipedia (table
    2), which BEIR's judgements do not measure.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "bert-base-uncased"
    config.model.query = "bert-base-uncased"
    config.model.pooling = "cls"
    config.data.train = "beir:nq"
    config.data.max_length = 256
    config.batch.size = 128
    config.batch.groups = 8
    config.mine.strategy = "bm25"
    config.mine.corpus = "nq"
    config.loss.similarity = "dot"
    config.loss.temperature = 1.0
    config.optim.learning_rate = 1e-5
    config.optim.warmup = 0.05
    config.train.epochs = 40.0
    config.eval.retrieval = "nq"
    config.eval.retrieval_split = ""
    config.eval.test_split = "test"
    config.checkpoint.every = 1000
    if cut == "small":
        config.model.name = "runs/base/model"
        config.model.query = ""
        config.model.pooling = ""
        config.data.train = "python_docs"
        config.data.limit = 1024
        config.data.max_length = 48
        config.batch.groups = 0
        config.mine.corpus = ""
        config.loss.similarity = ""
        config.loss.temperature = 0.05
        config.optim.learning_rate = 3e-4
        config.train.epochs = 1.0
        config.eval.retrieval = "python_docs"
        config.eval.retrieval_split = "validation"
        config.eval.test_split = ""
        config.eval.every = -1
        config.eval.metric = "retrieval/recall@10"
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
