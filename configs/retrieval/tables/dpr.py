"""Compares negatives of dense retrieval: own and in-batch ones, of other questions and of BM25.

    python -m scripts.ablate configs/retrieval/tables/dpr.py --seeds 0,1

Recall@10 x100 on the validation modules of python_docs after one epoch of 1,024 pairs, from the
small encoder that `configs/mlm/bert_small.py:base` makes in runs/base; the paper has the share of
NQ's dev questions with an answer in 20 of 21 million passages, after 40 epochs. All rows read the
same pairs, so a large batch takes few steps: `--grid optim.learning_rate=3e-4,1e-3` lets
validation choose a row's rate. The paper's row of random passages is left out: each passage here
answers some question. With `--full` the first column is recall@10 on NQ's test questions: BEIR's NQ
has no validation split.

Paper: Karpukhin et al. (EMNLP 2020), Table 3.
Expected: PAPER.
Measured: in-batch 22.45 ± 0.80 with batches of 8, 15.35 ± 0.67 of 32, 14.66 ± 0.55 of 128, with a
    BM25 negative each 11.25 ± 1.35 of 32 and 9.21 ± 0.18 of 128, from 6.14; with the 128 updates of
    8 (`--config.train.epochs=4`) batches of 32 have 33.52 ± 0.80 and 30.97 ± 0.00 (two seeds).
"""

EXPERIMENT = "retrieval"
CONFIG = "configs/retrieval/dpr.py:small"
FULL = "configs/retrieval/dpr.py"
SCALE = 100
SOURCE, CHECKED = "Karpukhin et al. 2020, Table 3, top-20", "text"
MINUTES, GPU_HOURS = 12, 50
OWN = {"batch.size": 8, "batch.groups": 1, "loss.name": "own_candidates", "mine.number": 7}
GOLD = {
    "mine.strategy": "dense",
    "mine.corpus": "",
    "mine.sampling": "random",
    "mine.rank_max": 1000,
}
NONE = {"mine.strategy": ""}
ROWS: dict[str, dict[str, object]] = {
    "7 BM25": OWN,
    "7 gold": OWN | GOLD,
    "7 gold in-batch": {"batch.size": 8, "batch.groups": 1} | NONE,
    "31 gold in-batch": {"batch.size": 32} | NONE,
    "127 gold in-batch": {"batch.size": 128} | NONE,
    "31 gold and 32 BM25": {"batch.size": 32},
    "31 gold and 64 BM25": {"batch.size": 32, "mine.number": 2},
    "127 gold and 128 BM25": {"batch.size": 128},
}
PAPER = dict(zip(ROWS, (63.3, 63.1, 69.1, 70.8, 73.0, 77.3, 76.4, 78.0), strict=True))
CLAIMS = {
    "in-batch negatives beat one's own": ("7 gold in-batch", ">", "7 gold"),
    "more in-batch negatives are better": ("127 gold in-batch", ">", "7 gold in-batch"),
    "a BM25 negative helps": ("31 gold and 32 BM25", ">", "31 gold in-batch"),
    "a second one does not": ("31 gold and 64 BM25", "<", "31 gold and 32 BM25"),
}
METRICS = ("best", "retrieval/ndcg@10", "start")
FULL_METRICS = ("test/recall@10", "test/ndcg@10", "test/before/recall@10")
