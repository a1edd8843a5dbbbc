"""Compares what an in-batch contrastive loss counts as a negative.

    python -m scripts.ablate configs/retrieval/tables/terms.py --seeds 0,1

Terms of the denominator beside the positive: "qp" other passages of the query, "pq" other queries
of the passage, "qq" and "pp" texts of one side; then Qwen3-Embedding's mask of likely positives,
and weights that grow with a negative's similarity (EmbeddingGemma's hardness is 5). nDCG@10 x100
on the validation modules of python_docs of 60 batches of 48, from the small encoder that
`configs/mlm/bert_small.py:base` makes in runs/base.

Paper: Li et al. (2023), GTE; Zhang et al. (2025), Qwen3-Embedding. Neither has numbers by term.
Expected: no published number; GTE's four terms beat "qp".
Measured: from 4.0, "qp" 17.7 ± 0.6, with "qq" 18.4, with "pq" 15.8, with "pp" 4.5 ± 0.7, all four
    13.1, Qwen3's 11.8, hardness 5 18.0: an encoder that has seen no code finds all functions alike;
    see experiments/results/retrieval_terms.
"""

EXPERIMENT = "retrieval"
CONFIG = "configs/retrieval/quickstart.py:base"
SCALE = 100
SOURCE = "Li et al. 2023, in words"
MINUTES = 9
ROWS = {
    terms.replace(",", " "): {"loss.name": f"info_nce(terms='{terms}')"}
    for terms in ("qp", "qp,pq", "qp,qq", "qp,pp", "qp,qq,pp", "qp,qq,pq,pp")
}
ROWS["qp qq pp masked (Qwen3)"] = {"loss.name": "qwen3"}
ROWS |= {
    f"qp hardness {strength}": {
        "loss.name": f"info_nce(hardness='in_batch_negatives', hardness_strength={strength}.0)"
    }
    for strength in (3, 5, 9)
}
CLAIMS = {"all terms beat one": ("qp qq pq pp", ">", "qp")}
METRICS = ("best", "retrieval/mrr@10", "retrieval/recall@10", "start")
