"""Compares poolings of SBERT, trained to classify inference pairs.

    python -m scripts.ablate configs/nli/tables/pooling.py --seeds 0,1 \
        --config.data.train=nli/pairs.tsv.gz --config.eval.sts=stsb/dev.tsv

Spearman x100 on STS-B dev after 40 batches of 32, from all-MiniLM-L6-v2,
whose mean was trained before; the paper's is of BERT-base, ten seeds.

Paper: Reimers, Gurevych (EMNLP 2019), Table 6, the column of NLI.
Expected: PAPER.
Measured: mean 86.17 ± 0.50, max 81.42 ± 0.86, first token 80.24 ± 1.00, from 86.73, 82.59 and
    79.74 (two seeds).
"""

EXPERIMENT = "nli"
CONFIG = "configs/nli/sup_simcse_bert_base.py:base"
FULL = "configs/nli/sbert_bert_base.py"
SCALE = 100
SOURCE, CHECKED = "Reimers and Gurevych 2019, Table 6", "text"
MINUTES, GPU_HOURS = 5, 0.5
SOFTMAX = {
    "model.mlp": "",
    "loss.name": "softmax(concatenation='u,v,|u-v|')",
    "loss.temperature": -1.0,
    "loss.mask_duplicates": True,
}
ROWS = {name: SOFTMAX | {"model.pooling": name} for name in ("mean", "max", "cls")}
PAPER = dict(zip(ROWS, (80.78, 79.07, 79.80), strict=True))
CLAIMS = {
    "the mean is best": ("mean", ">", "cls"),
    "the maximum is worst": ("max", "<", "cls"),
}
METRICS = ("sts/spearman", "start")
