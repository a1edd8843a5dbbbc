"""Compares poolings and heads of unsupervised SimCSE.

    python -m scripts.ablate configs/simcse/tables/pooling.py --seeds 0,1 \
        --config.data.train=wiki.txt --config.eval.sts=stsb/dev.tsv

Spearman x100 on STS-B dev after 40 batches of 32 sentences. The base is all-MiniLM-L6-v2, whose
first token was never an embedding; the paper's is BERT-base, with 10^6 sentences.

Paper: Gao, Yao, Chen (EMNLP 2021), Table 6.
Expected: PAPER.
Measured: MLP kept 83.57 ± 0.11, in training only 84.17 ± 0.07, none 84.05 ± 0.09, first-last
    average 86.52 ± 0.03, from 79.45, 79.74, 79.74 and 86.66 (two seeds).
"""

EXPERIMENT = "simcse"
CONFIG = "configs/simcse/unsup_bert_base.py:table"
FULL = "configs/simcse/unsup_bert_base.py"
SCALE = 100
SOURCE, CHECKED = "Gao et al. 2021, Table 6", "text"
MINUTES, GPU_HOURS = 5, 0.8
ROWS = {
    "[CLS] with MLP": {"model.mlp": "kept"},
    "[CLS] with MLP in training only": {"model.mlp": "training"},
    "[CLS] without MLP": {"model.mlp": ""},
    "first-last average": {"model.mlp": "", "model.pooling": "first_last_mean"},
}
PAPER = dict(zip(ROWS, (81.7, 82.5, 80.9, 81.2), strict=True))
CLAIMS = {
    "the MLP belongs to training only": (
        "[CLS] with MLP in training only",
        ">",
        "[CLS] with MLP",
    )
}
METRICS = ("sts/spearman", "start")
