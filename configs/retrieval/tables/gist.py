"""Compares margins by which a guide drops false negatives.

    python -m scripts.ablate configs/retrieval/tables/gist.py --seeds 0,1

The guide, all-MiniLM-L6-v2, drops candidates that it finds closer than the positive less the
margin; in the first row nobody does, in the last the trained model itself. nDCG@10 x100 on the
validation modules of python_docs of 60 batches of 48 at temperature 0.01, from the small encoder
that `configs/mlm/bert_small.py:base` makes in runs/base.

Paper: Solatorio (2024), GISTEmbed, has no table of margins.
Expected: no published number; the guide helps.
Measured: from 4.0, no guide 13.7 ± 0.3, margin 0 14.5 ± 0.1, margin 0.1 14.9 ± 0.1, the model
    itself 10.7 ± 1.4 (two seeds); see experiments/results/retrieval_gist.
"""

EXPERIMENT = "retrieval"
CONFIG = "configs/retrieval/quickstart.py:base"
SCALE = 100
SOURCE = "Solatorio 2024, in words"
MINUTES = 9
GUIDE = {"loss.temperature": 0.01, "model.guide": "sentence-transformers/all-MiniLM-L6-v2"}
ROWS: dict[str, dict[str, object]] = {
    "no guide": {"loss.temperature": 0.01, "loss.name": "info_nce(terms='qp,qq,pp')"}
}
ROWS |= {
    f"margin {margin:g}": {"loss.name": f"gist(mask_margin={margin})"} | GUIDE
    for margin in (0.0, 0.05, 0.1, 0.2)
}
ROWS["margin 5 % of the positive"] = {
    "loss.name": "gist(mask_margin=0.05, mask_strategy='relative')"
} | GUIDE
ROWS["the model itself"] = {"loss.temperature": 0.01, "loss.name": "gist(mask_by='model')"}
CLAIMS = {"the guide helps": ("margin 0", ">", "no guide")}
METRICS = ("best", "retrieval/mrr@10", "retrieval/recall@10", "start")
