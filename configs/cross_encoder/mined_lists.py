"""A reranker from all-MiniLM-L6-v2, trained on lists of mined negatives: of reranking_table.sh.

    python -m experiments.cross_encoder --config=configs/cross_encoder/mined_lists.py \
        --config.data.train=lists.jsonl --workdir=runs/mined_lists

`lists.jsonl` has a query, a relevant passage and seven that BM25 and all-MiniLM-L6-v2 find instead.
`scripts/reranking_table.sh` makes it of WikiQA, SciFact or NFCorpus, and trains with each of three
losses: binary cross entropy, LambdaLoss (`mined_lists.py:lambda_rank`), and MarginMSE on the scores
of another cross-encoder (`mined_lists.py:distilled`). Batches are small, since a few hundred lists
need many steps; positives weigh as much as all negatives, since else the first hundred steps teach
little but their share. `mined_lists.py:small` is ten steps of short texts.

Paper: none has this setting.
Expected: no published number.
Measured: WikiQA, nDCG@10 of BM25's first 100 sentences, 800 lists of 96 tokens: BM25 0.404, binary
    cross entropy 0.556, LambdaLoss 0.577, distilled 0.552; of all-MiniLM-L6-v2's, which is 0.706
    itself, 0.604, 0.633, 0.588; see experiments/results/cross_encoder.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "lists.jsonl"
    config.data.max_length = 128
    config.batch.size = 4
    config.loss.name = "binary_cross_entropy(pos_weight=7)"
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 1.0
    config.checkpoint.every = 100
    if cut == "lambda_rank":
        config.loss.name = "lambda_rank"
    elif cut == "distilled":
        config.loss.name = "margin_mse"
    elif cut == "small":
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.mine.strategy = "bm25"
        config.mine.number = 3
        config.train.steps = 10
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, lambda_rank, distilled")
    return config
