"""Compares poolings of SBERT, trained on graded similarity.

    python -m scripts.ablate configs/nli/tables/pooling_regression.py --seeds 0,1 \
        --config.data.train=stsb/train.tsv --config.data.score_max=5 --config.eval.sts=stsb/dev.tsv

Spearman x100 on STS-B dev after 100 batches of 32, from the small encoder that
`configs/mlm/bert_small.py:base` makes in runs/base; the paper's is of BERT-base, ten seeds.

Paper: Reimers, Gurevych (EMNLP 2019), Table 6, the column of STSb.
Expected: PAPER.
Measured: mean 58.03 ± 0.06, max 41.60 ± 3.48, first token 50.36 ± 1.74, from 52.10, 57.57 and 39.31
    (two seeds).
"""

EXPERIMENT = "nli"
CONFIG = "configs/nli/sts_regression.py:base"
FULL = "configs/nli/sts_regression.py"
SCALE = 100
SOURCE, CHECKED = "Reimers and Gurevych 2019, Table 6", "text"
MINUTES, GPU_HOURS = 5, 0.2
ROWS = {name: {"model.pooling": name} for name in ("mean", "max", "cls")}
PAPER = dict(zip(ROWS, (87.44, 69.92, 86.62), strict=True))
CLAIMS = {
    "the mean is best": ("mean", ">", "cls"),
    "the maximum falls far behind": ("max", "<", "cls"),
}
METRICS = ("sts/spearman", "start")
