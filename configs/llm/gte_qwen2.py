"""GTE-Qwen2's form: a bidirectional Qwen2, last token, instructions, GTE's loss.

    python -m experiments.llm --config=configs/llm/gte_qwen2.py --workdir=runs/gte_qwen2
    python -m experiments.llm --config=configs/llm/gte_qwen2.py:1.5b

From the model cards: Qwen2 with bidirectional attention, last-token pooling, instructions on
queries only in E5-Mistral's template. The loss and its temperature 0.01 are those of GTE's paper
(all four kinds of pairs in one softmax). Batch, learning rate, adapter and data are ours: no
paper gives them for these models.

`gte_qwen2.py:small` is a random decoder on the embedded python_docs pairs: minutes on a CPU.

Paper: Li et al. (2023), and the model cards of 2024.
Expected: no published number for this data.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    if cut not in ("", "1.5b", "small"):
        raise ValueError(f"unknown cut {cut!r}; known: 1.5b, small")
    config = Experiment()
    config.model.name = "Qwen/Qwen2-1.5B" if cut == "1.5b" else "Qwen/Qwen2-7B"
    config.model.attention = "bidirectional"
    config.model.pooling = "last_token"
    config.model.append_eos = True
    config.model.remat = "layer"
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.lora.base = "bfloat16"
    config.data.train = "msmarco"
    config.data.max_length = 512
    config.data.template = "Instruct: {instruction}\nQuery: "
    config.data.anchor_instruction = (
        "Given a web search query, retrieve relevant passages that answer the query"
    )
    config.batch.size = 1024
    config.batch.groups = 128
    config.loss.name = "gte"
    config.loss.temperature = 0.01
    config.optim.learning_rate = 5e-5
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.train.epochs = 1.0
    config.checkpoint.every = 500
    if cut == "small":
        config.model.name = "random:decoder-small"
        config.model.tokenizer = "sentence-transformers/all-MiniLM-L6-v2"
        config.model.append_eos = False  # its tokenizer ends every text itself
        config.lora.base = "float32"
        config.data.train = "python_docs"
        config.data.anchor_instruction = (
            "Given a description, retrieve the function that it describes"
        )
        config.data.max_length = 64
        config.batch.size = 32
        config.batch.groups = 0
        config.optim.learning_rate = 1e-3
        config.train.steps = 20
        config.checkpoint.every = 0
        config.eval.retrieval = "python_docs"
    return config
