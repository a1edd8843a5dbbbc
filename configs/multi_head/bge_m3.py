"""BGE-M3: dense, sparse and multi-vector heads that learn from the sum of their scores.

    python -m experiments.multi_head --config=configs/multi_head/bge_m3.py --workdir=runs/bge_m3

`m3_pairs.jsonl` has anchor, positive and 7 negatives of each query. The weights of the scores and
of the losses are the paper's; learning rate, batch and lengths are those of its authors' examples
of fine-tuning, in which the sum teaches from the first step on. `bge_m3.py:small` is ten steps of
all-MiniLM-L6-v2 with new heads on Python's documentation.

Paper: Chen et al. (2024), "M3-Embedding: Multi-Linguality, Multi-Functionality, Multi-Granularity
    Text Embeddings Through Self-Knowledge Distillation", section 3.3.
Expected: no number at hand for fine-tuning from XLM-R.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "FacebookAI/xlm-roberta-large"
    config.model.heads = "sparse, multi_vector"
    config.model.pooling = "cls"
    config.late.dim = 1024
    config.data.train = "m3_pairs.jsonl"
    config.data.max_length = 512
    config.batch.size = 64
    config.batch.groups = 16
    config.loss.name = "self_distillation(factors='dense + 0.1 * sparse + multi_vector')"
    config.loss.similarity = "dense + 0.3 * sparse + multi_vector"
    config.loss.temperature = 0.02
    config.optim.learning_rate = 1e-5
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.train.epochs = 1
    config.eval.every = -1
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.model.pooling = ""
        config.late.dim = 64
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.batch.groups = 2
        config.train.steps = 10
        config.eval.retrieval = "python_docs"
        config.eval.test_split = "test"
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
