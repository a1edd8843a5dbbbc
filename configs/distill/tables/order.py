"""Compares distillation before contrast, after it, both at once, and either by itself.

    python -m scripts.ablate configs/distill/tables/order.py --seeds 0,1 \
        --config.data.train=nli/triplets.tsv.gz --config.eval.sts=stsb/dev.tsv

All rows take 60 batches of 64 inference triplets. "distil" maps each embedding to the teacher's;
the other rows imitate the similarities of all texts of the batch. The best Spearman x100 on STS-B
dev, from the small encoder that `configs/mlm/bert_small.py:base` makes in runs/base; the teacher is
all-MiniLM-L6-v2.

Paper: none has this table; recent models distil first.
Expected: no published number.
Measured: from 53.5, contrast 58.3, both 58.5, contrast then distil 59.0, others no better than the
    start in 60 batches; in 300, similarities 62.7 and contrast 66.2 (one seed); see
    experiments/results/distill_order.
"""

EXPERIMENT = "distill"
CONFIG = "configs/distill/contrast.py:small"
SCALE = 100
MINUTES = 8
IMITATE, CONTRAST = "relational()", "info_nce()"
ROWS: dict[str, dict[str, object]] = {
    "contrast": {"loss.name": CONTRAST, "model.teacher": ""},
    "distil": {"loss.name": "embedding_cosine(projection=384)"},
    "distil similarities": {"loss.name": IMITATE},
    "both at once": {"loss.name": f"10 * {IMITATE} + {CONTRAST}"},
    "distil then contrast": {
        "loss.name": f"'switch(1, 0, 30)' * {IMITATE} + 'switch(0, 1, 30)' * {CONTRAST}"
    },
    "contrast then distil": {
        "loss.name": f"'switch(0, 1, 30)' * {IMITATE} + 'switch(1, 0, 30)' * {CONTRAST}"
    },
}
METRICS = ("best", "start", "loss")
