"""Compares batches of all data sets, of one, and of one k-means cluster.

    awk -F'\\t' -v OFS='\\t' 'NR == 1 {print "anchor", "positive"}
        $1 == 1 {print $2, $3}' qqp_20k/train.tsv > questions.tsv
    python -m scripts.ablate configs/nli/tables/batches.py --seeds 0,1 \
        --config.mixture.sources.nli.train=nli/triplets.tsv.gz --config.eval.sts=stsb/dev.tsv

Three data sets of 3,000 pairs (inference, duplicate questions, docstrings and functions), 60
batches of 48 in turns: in-batch negatives of the same data set, and of the same of its 10 or 30
k-means clusters, are harder to tell from the positive. The best Spearman x100 on STS-B dev, and
nDCG@10 on python_docs, from the small encoder that `configs/mlm/bert_small.py:base` makes in
runs/base; the paper's is the MTEB average of a 7B model.

Paper: Muennighoff et al. (ICLR 2025), GritLM, Table 6: no difference.
    Merrick (2024): 10 clusters of MS MARCO's queries help its search, in words.
Expected: PAPER.
Measured: STS-B dev from 53.5: any data set 56.7 ± 0.2, the same 59.3 ± 0.6, 10 clusters 61.7 ± 0.2
    and 61.7 ± 0.7, 30 clusters 61.3 ± 0.4 (three seeds); see experiments/results/nli_batches.
"""

EXPERIMENT = "retrieval"
CONFIG = "configs/nli/mixture.py:batches"
SCALE = 100
SOURCE, CHECKED = "Muennighoff et al. 2025, Table 6", "text"
MINUTES = 5
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
ROWS = {
    "any data set": {"mixture.batches": "mixed"},
    "same data set": {},
    "10 clusters by the encoder itself": {"batch.clusters": 10},
    "10 clusters by MiniLM": {"batch.clusters": 10, "batch.cluster_model": MINILM},
    "30 clusters by MiniLM": {"batch.clusters": 30, "batch.cluster_model": MINILM},
}
PAPER = {"any data set": 66.0, "same data set": 66.0}
CLAIMS = {"clusters help": ("10 clusters by MiniLM", ">", "same data set")}
METRICS = ("best", "retrieval/ndcg@10", "loss", "hardest_negative_similarity")
