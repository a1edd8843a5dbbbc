"""How many pairs does fine-tuning need, and how fast may it learn? Size of the training set by learning rate.

    python -m scripts.ablate configs/retrieval/tables/learning_curve.py --seeds 0 --plot learning_curve.png

python_docs, batches of 32, validation recall@10 and MRR@10. Sizes are the first so many training pairs; small ones are
seen several times, of all of them a third are seen once. Test scores of the settings chosen here: `python -m
scripts.evaluate run --task retrieval --data python_docs --split test --model RUN/model`.
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
