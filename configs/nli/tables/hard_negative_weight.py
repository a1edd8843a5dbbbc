"""Compares weights of the hard negatives of supervised SimCSE.

    python -m scripts.ablate configs/nli/tables/hard_negative_weight.py --seeds 0,1 \
        --config.data.train=nli/triplets.tsv.gz --config.eval.sts=stsb/dev.tsv

Spearman x100 on STS-B dev after 40 batches of 32, from the first token of
all-MiniLM-L6-v2, which was never an embedding; the paper's is of BERT-base.

Paper: Gao, Yao, Chen (EMNLP 2021), Table 7.
Expected: PAPER.
Measured: 85.43 ± 0.27 at 0.5, 85.57 ± 0.27 at 1, 85.66 ± 0.27 at 2, from 79.45 (two seeds).
"""

EXPERIMENT = "nli"
CONFIG = "configs/nli/sup_simcse_bert_base.py:base"
FULL = "configs/nli/sup_simcse_bert_base.py"
SCALE = 100
SOURCE, CHECKED = "Gao et al. 2021, Table 7", "text"
MINUTES, GPU_HOURS = 5, 0.5
ROWS = {f"alpha {alpha:g}": {"loss.hard_negative_weight": alpha} for alpha in (0.5, 1.0, 2.0)}
PAPER = dict(zip(ROWS, (86.1, 86.2, 86.2), strict=True))
METRICS = ("sts/spearman", "start")
