"""Compares factors of FLOPS: what a search costs, and how well it finds (SPLADE on SciFact).

    python -m scripts.ablate configs/sparse/tables/flops.py --seeds 0 \
        --output flops.json --plot flops.png

The rows' factor is that of documents and of queries, reached after a third of 300 steps of 16
pairs. The picture has nDCG@10 and active weights of a document against the measured FLOPS: the mean
number of words that a query and a document share. The encoder and the data are others with
`--config.model.name`, `--config.data.train=beir:DIRECTORY` and `--config.eval.retrieval=DIRECTORY`.

Paper: Formal et al. (2021), "SPLADE: Sparse Lexical and Expansion Model for First Stage Ranking",
    draw this picture for MS MARCO.
Expected: no published number.
Measured: nDCG@10 0.407 at 0 and 0.001, 0.419 at 0.01, 0.429 at 0.1 and 0.345 at 1, with FLOPS of
    13.8, 11.6, 7.4, 2.3 and 0.3, after 100 batches from a head trained here (one seed).
"""

EXPERIMENT = "sparse"
CONFIG = "configs/sparse/splade_v2_max.py:scifact"
MINUTES = 15
FACTORS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
ROWS = {
    f"{factor:g}": {
        "loss.name": "info_nce + "
        f"'quadratic(0, {factor}, 100)' * flops(side='query') + "
        f"'quadratic(0, {factor}, 100)' * flops(side='document')"
    }
    for factor in FACTORS
}
METRICS = (
    "sparse/ndcg@10",
    "bm25/ndcg@10",
    "sparse/flops",
    "sparse/active_documents",
    "sparse/active_queries",
)
X = "sparse/flops"
