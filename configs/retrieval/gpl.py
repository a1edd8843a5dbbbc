"""GPL: a corpus without queries. A language model writes them, negatives are mined.

    python -m scripts.synthesize --help    # writes synthetic.jsonl from corpus.jsonl
    python -m experiments.retrieval --config=configs/retrieval/gpl.py \
        --config.data.train=synthetic.jsonl \
        --config.mine.corpus=corpus.jsonl --config.eval.retrieval=scifact \
        --config.eval.retrieval_split= \
        --config.eval.test_split=test --workdir=runs/gpl

MarginMSE on (query, positive, mined negative) with the margins of a cross-encoder, dot products.
Batch, learning rate and steps below are ours.

`gpl.py:small` starts from all-MiniLM-L6-v2 and takes 20 steps of 16, minutes on a CPU.

Paper: Wang, Thakur, Reimers, Gurevych (NAACL 2022), "GPL"; numbers: sentence-transformers'
    documentation.
Expected: on SciFact 65.2 nDCG@10 (57.1 zero-shot), 67.3 with TSDAE before it.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/msmarco-distilbert-base-tas-b"
    config.data.train = "synthetic.jsonl"
    config.data.max_length = 350
    config.batch.size = 32
    config.mine.strategy = "dense"
    config.mine.number = 1
    config.mine.rank_max = 50
    config.mine.sampling = "random"
    config.mine.cross_encoder = "cross-encoder/ms-marco-MiniLM-L6-v2"
    config.loss.name = "margin_mse"
    config.loss.similarity = "dot"
    config.optim.learning_rate = 2e-5
    config.optim.warmup = 0.1
    config.train.steps = 10_000
    config.checkpoint.every = 1000
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.max_length = 64
        config.batch.size = 16
        config.train.steps = 20
        config.checkpoint.every = 10
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
