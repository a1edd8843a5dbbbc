"""Compares batches of one data set with batches of all of them.

    awk -F'\\t' -v OFS='\\t' 'NR == 1 {print "anchor", "positive"}
        $1 == 1 {print $2, $3}' qqp_20k/train.tsv > questions.tsv
    python -m scripts.ablate configs/nli/tables/batches.py --seeds 0,1 \
        --config.mixture.sources.nli.train=nli/triplets.tsv.gz --config.eval.sts=stsb/dev.tsv

Three data sets of pairs (inference, duplicate questions, docstrings and functions), 60 batches of
48: in-batch negatives of the same data set are harder to tell from the positive. The best Spearman
x100 on STS-B dev, and nDCG@10 on python_docs, from the small encoder that
`configs/mlm/bert_small.py:base` makes in runs/base; the paper's is the MTEB average of a 7B model.

Paper: Muennighoff et al. (ICLR 2025), GritLM, Table 6: no difference.
Expected: PAPER.
Measured: not yet.
"""

EXPERIMENT = "retrieval"
CONFIG = "configs/nli/mixture.py:batches"
SCALE = 100
SOURCE, CHECKED = "Muennighoff et al. 2025, Table 6", "text"
MINUTES = 5
ROWS = {
    "any data set": {"mixture.batches": "mixed"},
    "same data set": {"mixture.batches": "single"},
    "same data set by size": {"mixture.batches": "single", "mixture.sampling": "proportional"},
}
PAPER = {"any data set": 66.0, "same data set": 66.0}
METRICS = ("best", "retrieval/ndcg@10", "loss", "hardest_negative_similarity")
