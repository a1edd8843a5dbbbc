"""Compares rates of dropout in unsupervised SimCSE, and one mask for both copies.

    python -m scripts.ablate configs/simcse/tables/dropout.py --seeds 0,1 \
        --config.data.train=wiki.txt --config.eval.sts=stsb/dev.tsv

Spearman x100 on STS-B dev after 40 batches of 32 sentences. The base is all-MiniLM-L6-v2, whose
first token was never an embedding; the paper's is BERT-base, with 10^6 sentences.

Paper: Gao, Yao, Chen (EMNLP 2021), Table 3.
Expected: PAPER.
Measured: without dropout 83.68 ± 0.21, 0.1 84.17 ± 0.07, 0.2 84.43 ± 0.41, 0.5 81.94 ± 0.23, one
    mask 83.48 ± 0.11, from 79.74; after 150 batches at 3e-4 78.25 ± 6.39, 81.80 ± 0.84 and, with
    one mask, 82.78 ± 0.04 (two seeds).
"""

EXPERIMENT = "simcse"
CONFIG = "configs/simcse/unsup_bert_base.py:table"
FULL = "configs/simcse/unsup_bert_base.py"
SCALE = 100
SOURCE, CHECKED = "Gao et al. 2021, Table 3", "text"
MINUTES, GPU_HOURS = 12, 1.6
RATES = (0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.5)
ROWS = {f"p = {rate}": {"model.dropout": rate} for rate in RATES} | {
    "fixed 0.1": {"model.dropout": 0.1, "model.same_mask_columns": 2}
}
PAPER = dict(zip(ROWS, (71.1, 72.6, 81.1, 82.5, 81.4, 80.5, 71.0, 43.6), strict=True))
CLAIMS = {
    "dropout is needed": ("p = 0.1", ">", "p = 0.0"),
    "too much dropout hurts": ("p = 0.1", ">", "p = 0.5"),
    "two copies with one mask collapse": ("fixed 0.1", "<", "p = 0.0"),
}
METRICS = ("sts/spearman", "start")
