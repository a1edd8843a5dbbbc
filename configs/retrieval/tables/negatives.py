"""Compares hard negatives on SciFact: rows differ only in where the negatives come from.

    python -m scripts.mine --beir scifact --split train --strategy bm25 --number 1 \
        --rank-max 50 --output mined/bm25.jsonl
    (the same with --strategy dense and --model, and with --relative-margin 0.05)
    python -m scripts.ablate configs/retrieval/tables/negatives.py --config.mine.corpus=scifact \
        --evaluate "--task retrieval --data scifact --k 10"

30 steps of 16 pairs of the train split, one negative per pair. The model before and BM25 are
`python -m scripts.evaluate run --model sentence-transformers/all-MiniLM-L6-v2 --task retrieval
--data scifact --baseline bm25`.

Paper: none has this table.
Expected: no published number.
Measured: nDCG@10 from 0.6239: in-batch only 0.6486 ± 0.0097, BM25 0.6673 ± 0.0072, the model's
    own 0.6605 ± 0.0199.
"""

EXPERIMENT = "retrieval"
CONFIG = "configs/retrieval/hard_negatives.py:table"
ROWS = {
    "in-batch only": {"data.train": "beir:scifact"},
    "BM25": {"data.train": "mined/bm25.jsonl"},
    "dense": {"data.train": "mined/dense.jsonl"},
    "dense with margin": {"data.train": "mined/dense_margin.jsonl"},
    "both and re-mining": {
        "data.train": "beir:scifact",
        "mine.strategy": "bm25,dense",
        "mine.every": 15,
    },
}
METRICS = ("evaluated/ndcg@10", "evaluated/recall@10", "loss")
