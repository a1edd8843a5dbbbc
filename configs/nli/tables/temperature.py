"""Compares temperatures of supervised SimCSE, and the dot product.

    python -m scripts.ablate configs/nli/tables/temperature.py --seeds 0,1 \
        --config.data.train=nli/triplets.tsv.gz --config.eval.sts=stsb/dev.tsv

Spearman x100 on STS-B dev after 40 batches of 32, from the first token of
all-MiniLM-L6-v2, which was never an embedding; the paper's is of BERT-base. The row of the dot
product is for `--full`: all-MiniLM-L6-v2 brings its embeddings to length 1, where the dot product
is the cosine at a temperature of 1.

Paper: Gao, Yao, Chen (EMNLP 2021), Table D.1.
Expected: PAPER.
Measured: 0.01 85.03 ± 0.48, 0.05 85.57 ± 0.27, 0.1 83.06 ± 0.20, 1 69.71 ± 2.66, from 79.46 (two
    seeds).
"""

EXPERIMENT = "nli"
CONFIG = "configs/nli/sup_simcse_bert_base.py:base"
FULL = "configs/nli/sup_simcse_bert_base.py"
SCALE = 100
SOURCE, CHECKED = "Gao et al. 2021, Table D.1", "text"
MINUTES, GPU_HOURS = 6, 1
ROWS: dict[str, dict[str, object]] = {
    "dot product": {"loss.similarity": "dot", "loss.temperature": 1.0}
}
ROWS |= {f"{t:g}": {"loss.temperature": t} for t in (0.001, 0.01, 0.05, 0.1, 1.0)}
PAPER = dict(zip(ROWS, (85.9, 84.9, 85.4, 86.2, 82.0, 64.0), strict=True))
CLAIMS = {
    "0.05 beats 1": ("0.05", ">", "1"),
    "0.05 beats 0.001": ("0.05", ">", "0.001"),
    "0.05 beats the dot product": ("0.05", ">", "dot product"),
}
METRICS = ("sts/spearman", "start")
