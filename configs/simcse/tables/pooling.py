"""Compares poolings and heads of unsupervised SimCSE.

    python -m experiments.mlm --config=configs/mlm/bert_small.py:base \
        --config.data.train=corpus.txt --config.model.tokenizer=DIR --workdir=runs/base
    python -m scripts.ablate configs/simcse/tables/pooling.py --seeds 0,1,2 \
        --config.data.train=wiki.txt --config.eval.sts=stsb/dev.tsv

The best Spearman x100 on STS-B dev of 60 batches of 64 sentences, from a small encoder pre-trained
here; the paper's is of BERT-base and 10^6 sentences.

Paper: Gao, Yao, Chen (EMNLP 2021), Table 6.
Expected: PAPER.
Measured: not yet.
"""

EXPERIMENT = "simcse"
CONFIG = "configs/simcse/unsup_bert_base.py:table"
FULL = "configs/simcse/unsup_bert_base.py"
SCALE = 100
SOURCE, CHECKED = "Gao et al. 2021, Table 6", "text"
MINUTES, GPU_HOURS = 2, 0.8
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
