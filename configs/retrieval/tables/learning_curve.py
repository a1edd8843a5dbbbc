"""Compares sizes of the training set and learning rates: how many pairs does fine-tuning need?

    python -m scripts.ablate configs/retrieval/tables/learning_curve.py --seeds 0 \
        --plot learning_curve.png

python_docs, batches of 32, validation recall@10 and MRR@10. A size N takes the first N training
pairs; small sets are seen several times, and of the whole set a third is seen once. Test scores
of the settings chosen here: `python -m scripts.evaluate run --task retrieval --data python_docs
--split test --model RUN/model`.

Paper: none; the data are made on your machine.
Expected: no published number.
Measured: test nDCG@10 from 0.6639: 0.7056 with 100 pairs, 0.7211 with all.
"""

EXPERIMENT = "retrieval"
CONFIG = "configs/retrieval/quickstart.py:curve"
ROWS = {
    f"{size if size < 10_000 else 'all'} pairs at {rate:.0e}".replace("e-0", "e-"): {
        "data.limit": size,
        "optim.learning_rate": rate,
        "train.steps": steps,
        "eval.every": steps // 4,
    }
    for size, steps in ((100, 16), (300, 24), (1000, 40), (10_000, 60))
    for rate in (1e-5, 2e-5, 3e-5, 5e-5)
}
METRICS = ("retrieval/recall@10", "retrieval/mrr@10", "best")
X, LINES = "data.limit", "optim.learning_rate"
