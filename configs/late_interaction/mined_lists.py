"""ColBERT from all-MiniLM-L6-v2 on lists of mined negatives: of late_interaction_table.sh.

    python -m experiments.late_interaction --config=configs/late_interaction/mined_lists.py \
        --config.data.train=lists.jsonl --workdir=runs/mined_lists

`lists.jsonl` has a query, a relevant passage and seven that BM25 and all-MiniLM-L6-v2 find instead;
`scripts/reranking_table.sh` makes it of SciFact or NFCorpus. With a cross-encoder's scores in it,
`--config.loss.name="info_nce + kl"` distils them, too. `mined_lists.py:small` is ten steps of short
texts.

Paper: Khattab and Zaharia (2020), "ColBERT", with negatives of the whole batch.
Expected: no published number.
Measured: nDCG@10 of SciFact's test claims: BM25 0.666, all-MiniLM-L6-v2 0.645, after one epoch of
    500 lists 0.664 [0.619, 0.708], with "info_nce + kl" 0.663; see
    experiments/results/late_interaction.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "lists.jsonl"
    config.data.max_length = 128
    config.batch.size = 8
    config.optim.learning_rate = 5e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.train.epochs = 1.0
    config.eval.metric = ""
    config.checkpoint.every = 100
    if cut == "small":
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.late.dim = 64
        config.mine.strategy = "bm25"
        config.mine.number = 3
        config.train.steps = 10
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
