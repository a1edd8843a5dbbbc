"""Qwen3-Reranker with a LoRA adapter: the logit of "yes" less that of "no".

    python -m experiments.cross_encoder --config=configs/cross_encoder/qwen3_reranker.py \
        --workdir=runs/qwen3_reranker

`pairs.jsonl` has pairs or n-tuples (anchor, positive, negative_1, ...). `qwen3_reranker.py:small`
trains an adapter of all-MiniLM-L6-v2 on Python's documentation.

Paper: Zhang et al. (2025), "Qwen3 Embedding", section 3 (supervised fine-tuning of the reranker).
Expected: not stated for this recipe.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "Qwen/Qwen3-Reranker-0.6B"
    config.data.train = "pairs.jsonl"
    config.data.max_length = 1024
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.lora.base = "bfloat16"
    config.mine.strategy = "dense"
    config.mine.number = 7
    config.mine.sampling = "random"
    config.batch.size = 16
    config.batch.groups = 16
    config.loss.name = "binary_cross_entropy(pos_weight=7)"
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 1.0
    config.checkpoint.every = 200
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.mine.strategy = "bm25"
        config.mine.number = 3
        config.eval.retrieval = ""
        config.eval.metric = ""
        config.lora.base = "float32"
        config.loss.name = "binary_cross_entropy(pos_weight=3)"
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
