"""Two towers: a table of vectors encodes queries fast, a transformer encodes documents once.

    python -m scripts.static distil --model sentence-transformers/all-MiniLM-L6-v2 --dim 0 \
        --output runs/static
    python -m experiments.retrieval --config=configs/retrieval/two_towers.py \
        --workdir=runs/two_towers

The static tower begins as the teacher's vectors of single tokens and learns at 200 times the
learning rate of the transformer. Data: python_docs, as in quickstart.py. Compare with it:

    python -m scripts.bench queries --model runs/two_towers,runs/quickstart

`two_towers.py:small` takes 10 steps; `two_towers.py:frozen` trains only the tower of queries, so
that an index of documents stays valid (as in LiT, Zhai et al. 2022, "LiT: Zero-Shot Transfer with
Locked-image text Tuning").

Paper: none.

Expected: queries several times faster than the transformer's, at the cost of quality.

Measured: nDCG@10 on the test modules 0.362 before (95 % interval 0.331 to 0.389) and 0.580 after
(0.553 to 0.608), against 0.714 of the single tower of quickstart.py and 0.527 of BM25; a query
takes 1.5 ms against 12.6 ms, 32 queries 7.3 ms against 269 ms (two cores of an Intel Xeon).
"""

from embed_jax.config import Experiment, ParamGroup


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.model.query = "runs/static"
    config.data.train = "python_docs"
    config.data.validation_split = "validation"
    config.data.max_length = 128
    config.batch.size = 32
    config.loss.temperature = 0.05
    config.optim.learning_rate = 5e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.optim.groups.queries = ParamGroup(pattern="encoder/query", learning_rate_factor=200.0)
    config.train.steps = 120
    config.eval.retrieval = "python_docs"
    config.eval.retrieval_split = "validation"
    config.eval.test_split = "test"
    config.eval.every = 20
    config.eval.metric = "retrieval/ndcg@10"
    config.checkpoint.every = 20
    if cut == "frozen":
        config.optim.groups.documents = ParamGroup(
            pattern="encoder/document", learning_rate_factor=0.0
        )
    elif cut == "small":
        config.train.steps = 10
        config.eval.every = 5
        config.checkpoint.every = 5
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, frozen")
    return config
