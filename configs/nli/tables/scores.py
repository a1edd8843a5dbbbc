"""Compares losses of graded pairs: SBERT's classifier and regression, CoSENT, AnglE.

    awk -F'\\t' -v OFS='\\t' 'NR == 1 {print "score", "label", "sentence1", "sentence2"}
        NR > 1 {print $1, int($1 + 0.5), $2, $3}' stsb/train.tsv > graded.tsv
    python -m scripts.ablate configs/nli/tables/scores.py --seeds 0,1 \
        --config.data.train=graded.tsv --config.data.score_max=5 --config.eval.sts=stsb/dev.tsv

The label of the classifier is the rounded score. Spearman x100 on STS-B dev after 100
batches of 32, from the small encoder that `configs/mlm/bert_small.py:base` makes in runs/base;
the published ones are of a Chinese BERT-base, trained and tested on the Chinese STS-B.

Paper: Su (2022), CoSENT; Li and Li (ACL 2024), AnglE, whose numbers are of other data.
Expected: PAPER.
Measured: Sentence-BERT 49.32 ± 0.21, regression 58.03 ± 0.06, CoSENT 63.10 ± 0.37, AnglE 58.82 ±
    0.37, all three 61.01 ± 0.42, from 52.10 (two seeds).
"""

EXPERIMENT = "nli"
CONFIG = "configs/nli/sts_regression.py:base"
FULL = "configs/nli/sts_regression.py"
SCALE = 100
SOURCE, CHECKED = "Su 2022, bojone/CoSENT, Chinese STS-B", "repository"
MINUTES, GPU_HOURS = 7, 0.4
ROWS = {
    "Sentence-BERT": {"loss.name": "softmax(num_labels=6, concatenation='u,v,|u-v|')"},
    "cosine regression": {"loss.name": "cosine_mse"},
    "CoSENT": {"loss.name": "cosent"},
    "AnglE": {"loss.name": "angle"},
    "AnglE with CoSENT and in-batch negatives": {"loss.name": "angle_combined"},
}
PAPER = {"Sentence-BERT": 66.41, "CoSENT": 80.14}
CLAIMS = {"ranking scores beats classifying them": ("CoSENT", ">", "Sentence-BERT")}
METRICS = ("sts/spearman", "start")
