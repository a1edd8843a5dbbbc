"""Qwen3-Embedding: all parameters trained, last token, the masked loss, instructions.

    python -m experiments.llm --config=configs/llm/qwen3_embedding.py --workdir=runs/qwen3_0.6b
    python -m experiments.llm --config=configs/llm/qwen3_embedding.py:4b --config.train.fsdp=8
    # the paper's third stage: slerp
    python -m scripts.merge --models runs/A/model,runs/B/model --output runs/merged

From the report: Qwen3 base models, causal attention, the end token appended and pooled, the
query's template, the contrastive loss whose false negatives are masked at a margin of 0.1, and a
last stage that merges checkpoints by spherical interpolation. The published models saw about 150
M synthetic and 19 M further pairs. Batch, learning rate, temperature and lengths are ours: the
report does not give them.

`qwen3_embedding.py:small` is a random decoder on the embedded python_docs pairs: minutes on a CPU.

Paper: Zhang et al. (2025), "Qwen3 Embedding".
Expected: of the published 0.6B model 70.70 on MTEB(eng, v2), 64.33 on MTEB(multilingual); of the
    4B one 74.60 and 69.45.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    if cut not in ("", "4b", "small"):
        raise ValueError(f"unknown cut {cut!r}; known: 4b, small")
    config = Experiment()
    config.model.name = "Qwen/Qwen3-4B-Base" if cut == "4b" else "Qwen/Qwen3-0.6B-Base"
    config.model.pooling = "last_token"
    config.model.append_eos = True
    config.model.remat = "layer"
    config.data.train = "msmarco"
    config.data.max_length = 512
    config.data.template = "Instruct: {instruction}\nQuery:"
    config.data.anchor_instruction = (
        "Given a web search query, retrieve relevant passages that answer the query"
    )
    config.batch.size = 1024
    config.batch.groups = 64
    config.loss.name = "qwen3"
    config.loss.temperature = 0.02
    config.optim.learning_rate = 1e-5
    config.optim.warmup = 0.05
    config.optim.weight_decay = 0.01
    config.train.epochs = 1.0
    config.checkpoint.every = 500
    if cut == "small":
        config.model.name = "random:decoder-small"
        config.model.tokenizer = "sentence-transformers/all-MiniLM-L6-v2"
        config.model.append_eos = False  # its tokenizer ends every text itself
        config.data.train = "python_docs"
        config.data.anchor_instruction = (
            "Given a description, retrieve the function that it describes"
        )
        config.data.max_length = 64
        config.batch.size = 32
        config.batch.groups = 0
        config.optim.learning_rate = 3e-4
        config.train.steps = 20
        config.checkpoint.every = 0
        config.eval.retrieval = "python_docs"
    return config
