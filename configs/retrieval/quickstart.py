"""The quickstart: all-MiniLM-L6-v2 learns to find Python functions from what they are said to do.

    python -m experiments.retrieval --config=configs/retrieval/quickstart.py --workdir=runs/quickstart

Data: python_docs, 5,300 to 6,500 pairs from the standard library of the Python that runs: first sentence of a
docstring, and the function's source without it; split by module. Expected on two CPU cores: about two minutes of
training, and on the test modules an nDCG@10 from about 0.65 to about 0.71 (Python 3.11). Learning rate: chosen on
the validation split.

`quickstart.py:small` takes 10 steps, to see that everything runs; `quickstart.py:curve` is that of the table
tables/learning_curve.py.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.train = "python_docs"
    config.data.validation_split = "validation"
    config.data.max_length = 128
    config.batch.size = 32
    config.loss.temperature = 0.05
    config.optim.learning_rate = 5e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.steps = 60
    config.eval.retrieval = "python_docs"
    config.eval.retrieval_split = "validation"
    config.eval.test_split = "test"
    config.eval.every = 20
    config.eval.metric = "retrieval/ndcg@10"
    config.checkpoint.every = 20
    if (
        cut == "curve"
    ):  # of tables/learning_curve.py: short texts, and no test before the settings are chosen
        config.data.max_length = 64
        config.data.validation_split = ""
        config.eval.test_split = ""
        config.eval.metric = "retrieval/mrr@10"
        config.checkpoint.every = 0
    elif cut == "small":
        config.train.steps = 10
        config.eval.every = 5
        config.checkpoint.every = 5
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, curve")
    return config
