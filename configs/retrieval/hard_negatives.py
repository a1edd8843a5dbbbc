"""Your own domain: a corpus and pairs, hard negatives mined in it again as the model gets better.

    python -m experiments.retrieval --config=configs/retrieval/hard_negatives.py \
        --config.data.train=beir:scifact \
        --config.mine.corpus=scifact --config.eval.retrieval=scifact --workdir=runs/scifact

The data are a directory in BEIR's layout (`beir:DIRECTORY`), or a file of pairs beside a corpus
file with the field text. At the start and every 50 steps, each query's negatives are taken from
the passages that BM25 and the model rank highest, without known positives and what scores close
to them (ANCE, Xiong et al. 2021; the margin after NV-Retriever, Moreira et al. 2024). The run
ends with the model before, the model after and BM25 on the test split.

`hard_negatives.py:small` takes 20 steps of 16 pairs and re-mines once; `hard_negatives.py:table`
is for tables/negatives.py.

Paper: none has this setting.
Expected: no published number.
Measured: SciFact before training, nDCG@10: all-MiniLM-L6-v2 0.6451, BM25 0.6664; see
    tables/negatives.py.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "beir:data"
    config.data.max_length = 128
    config.batch.size = 32
    config.mine.strategy = "bm25,dense"
    config.mine.corpus = "data"
    config.mine.every = 50
    config.mine.number = 2
    config.mine.rank_max = 50
    config.mine.relative_margin = 0.05
    config.loss.temperature = 0.05
    config.optim.learning_rate = 2e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.steps = 100
    config.eval.retrieval = "data"
    config.eval.retrieval_split = ""
    config.eval.test_split = "test"
    config.checkpoint.every = 50
    # Of tables/negatives.py: a row says where the negatives come from, scripts.evaluate judges.
    if cut == "table":
        config.batch.size = 16
        config.mine.strategy = ""
        config.mine.every = 0
        config.mine.number = 1
        config.mine.relative_margin = -1.0
        config.optim.learning_rate = 5e-5
        config.train.steps = 30
        config.eval.retrieval = ""
        config.checkpoint.every = 0
    elif cut == "small":
        config.batch.size = 16
        config.mine.every = 10
        config.train.steps = 20
        config.checkpoint.every = 10
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, table")
    return config
