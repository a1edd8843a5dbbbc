"""Your own pairs: is a fine-tuned model better on them than the one you have, and than BM25?

    python -m experiments.retrieval --config=configs/retrieval/own_data.py \
        --config.data.train=pairs.jsonl \
        --config.data.corpus=corpus.jsonl --workdir=runs/own_data

`pairs.jsonl` (or .tsv, .csv; .gz) has the fields anchor and positive, and optionally negative_1,
negative_2, ...; set `--config.data.corpus` if there are more texts to search among (field: text).
A tenth of the pairs is held out for validation and a tenth for test, so that no query and no
passage stands on two sides; the learning rate and the number of steps are worth a second try. The
run ends with a table and one sentence: adopt it or not.

`own_data.py:small` is one epoch of batches of 16.

Paper: none.
Expected: depends on your data.
Measured: depends on your data.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "pairs.jsonl"
    config.data.holdout = 0.1
    config.data.max_length = 256
    config.batch.size = 64
    config.loss.temperature = 0.05
    config.loss.symmetric = True
    config.optim.learning_rate = 2e-5
    config.optim.schedule = "cosine"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 3.0
    config.eval.metric = "retrieval/ndcg@10"
    config.eval.patience = 4
    config.checkpoint.every = 50
    if cut == "small":
        config.data.max_length = 64
        config.batch.size = 16
        config.train.epochs = 1.0
        config.checkpoint.every = 10
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
