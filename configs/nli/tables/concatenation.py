"""Compares what SBERT's classifier sees of two sentences.

    python -m scripts.ablate configs/nli/tables/concatenation.py --seeds 0,1 \
        --config.data.train=nli/pairs.tsv.gz --config.eval.sts=stsb/dev.tsv

Spearman x100 on STS-B dev after 40 batches of 32, from the first token of
all-MiniLM-L6-v2, which was never an embedding; the paper's is of BERT-base.

Paper: Reimers, Gurevych (EMNLP 2019), Table 6.
Expected: PAPER.
Measured: u v 78.79 ± 0.78, |u-v| 78.80 ± 2.01, u v |u-v| 79.57 ± 0.72, with u*v 79.57 ± 0.73, from
    79.45 (two seeds).
"""

EXPERIMENT = "nli"
CONFIG = "configs/nli/sup_simcse_bert_base.py:base"
FULL = "configs/nli/sbert_bert_base.py"
SCALE = 100
SOURCE, CHECKED = "Reimers and Gurevych 2019, Table 6", "text"
MINUTES, GPU_HOURS = 10, 1
PARTS = ("u,v", "|u-v|", "u*v", "|u-v|,u*v", "u,v,u*v", "u,v,|u-v|", "u,v,|u-v|,u*v")
ROWS = {
    parts.replace(",", " "): {
        "loss.name": f"softmax(concatenation='{parts}')",
        "loss.temperature": -1.0,
        "loss.mask_duplicates": True,
    }
    for parts in PARTS
}
PAPER = dict(zip(ROWS, (66.04, 69.78, 70.54, 78.37, 77.44, 80.78, 80.44), strict=True))
CLAIMS = {
    "the difference is the part that matters": ("u v |u-v|", ">", "u v"),
    "a product adds nothing to it": ("u v |u-v|", ">", "u v |u-v| u*v"),
}
METRICS = ("sts/spearman", "start")
