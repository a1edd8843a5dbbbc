"""Compares weights of masked language modelling beside supervised SimCSE.

    python -m scripts.ablate configs/nli/tables/mlm.py --seeds 0,1 \
        --config.data.train=nli/triplets.tsv.gz --config.eval.sts=stsb/dev.tsv

Spearman x100 on STS-B dev after 40 batches of 32, from the small encoder that
`configs/mlm/bert_small.py:base` makes in runs/base; the paper's is of BERT-base.

Paper: Gao, Yao, Chen (EMNLP 2021), Table D.2.
Expected: PAPER.
Measured: 34.34 ± 1.03, 34.40 ± 0.97, 34.77 ± 0.61, 36.26 ± 1.20, from 43.05 (two seeds).
"""

EXPERIMENT = "nli"
CONFIG = "configs/nli/sup_simcse_bert_base.py:base"
FULL = "configs/nli/sup_simcse_bert_base.py"
SCALE = 100
SOURCE, CHECKED = "Gao et al. 2021, Table D.2", "text"
MINUTES, GPU_HOURS = 7, 0.8
BASE = {"model.name": "runs/base/model"}  # with the head of a masked language model
ROWS = {f"lambda {weight:g}": BASE | {"loss.mlm": weight} for weight in (0.0, 0.01, 0.1, 1.0)}
PAPER = dict(zip(ROWS, (86.2, 85.7, 85.7, 85.1), strict=True))
CLAIMS = {"masked language modelling costs similarity": ("lambda 0", ">", "lambda 1")}
METRICS = ("sts/spearman", "start")
