"""LLM2Vec: a decoder made bidirectional in three steps.

    python -m experiments.llm --config=configs/llm/llm2vec.py --workdir=runs/llm2vec
    python -m experiments.llm --config=configs/llm/llm2vec.py --config.data.train=wikitext.txt

The run itself is masked next-token prediction with bidirectional attention (20 % of the tokens;
1,000 steps of 32 texts of 512 tokens), stage `simcse` unsupervised SimCSE with dropout 0.3 (1,000
steps of 128, learning rate 3e-5, scale 20, 128 tokens), stage `supervised` pairs with hard and
in-batch negatives (1,000 steps of 512, learning rate 2e-4, 300 warm-up steps, 512 tokens). Each
trains a LoRA of rank 16 and alpha 32 and merges it; mean pooling. The learning rate of the first
step is ours (the paper leaves the trainer's default), and so is the data of the third (the paper:
a replica of E5's, about 1.5 M pairs).

`llm2vec.py:small` is a random decoder on the embedded python_docs pairs: minutes on a CPU.
SimCSE's and the first step's texts must be set: --config.data.train=FILE
--config.stages.simcse.data.train=FILE

`llm2vec.py:table` is for tables/llm2vec.py: SimCSE for 60 batches of 64 sentences from the
decoder that `configs/mlm/decoder_small.py` makes in runs/decoder_small.

Paper: BehnamGhader et al. (COLM 2024), tables 1 and 2.
Expected: MTEB average over 56 tasks, Llama-3-8B: 56.23 after SimCSE (table 1), 65.01 after MNTP
    and supervised training, 64.90 after all three (table 2).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    if cut not in ("", "small", "table"):
        raise ValueError(f"unknown cut {cut!r}; known: small, table")
    config = adapted()
    config.model.name = "meta-llama/Meta-Llama-3-8B"
    config.data.train = "wikitext.txt"
    config.data.max_length = 512
    config.batch.size = 32
    config.batch.groups = 8
    config.loss.name = "mntp(rate=0.2)"
    config.optim.learning_rate = 5e-5
    config.train.steps = 1000

    config.stages.simcse = simcse = adapted()
    simcse.model.name = ""  # that of the stage before
    simcse.model.dropout = 0.3
    simcse.data.train = "wiki1m"
    simcse.data.max_length = 128
    simcse.batch.size = 128
    simcse.batch.groups = 8
    simcse.loss.temperature = 0.05
    simcse.optim.learning_rate = 3e-5
    simcse.train.steps = 1000

    config.stages.supervised = supervised = adapted()
    supervised.model.name = ""
    supervised.model.dropout = 0.0
    supervised.data.train = "msmarco"
    supervised.data.max_length = 512
    supervised.data.template = "{instruction}: "
    supervised.data.anchor_instruction = (
        "Given a web search query, retrieve relevant passages that answer the query"
    )
    supervised.data.pool_prompt = False
    supervised.batch.size = 512
    supervised.batch.groups = 64
    supervised.loss.temperature = 0.02
    supervised.optim.learning_rate = 2e-4
    supervised.optim.warmup = 0.3
    supervised.train.steps = 1000

    if cut == "table":
        simcse.model.name = "runs/decoder_small/model"
        simcse.model.remat = "none"
        simcse.lora.base = "float32"
        simcse.data.train = "wiki.txt"
        simcse.data.max_length = 32
        simcse.batch.size = 64
        simcse.batch.groups = 0
        simcse.optim.learning_rate = 1e-3
        simcse.train.steps = 60
        simcse.eval.sts = "stsb/dev.tsv"
        simcse.eval.every = 20
        simcse.eval.metric = "sts/spearman"
        return simcse
    if cut == "small":
        config.model.name = "random:decoder-small"
        config.model.tokenizer = "sentence-transformers/all-MiniLM-L6-v2"
        supervised.data.train = "python_docs"
        supervised.data.anchor_instruction = (
            "Given a description, retrieve the function that it describes"
        )
        supervised.eval.retrieval = "python_docs"
        for stage in (config, simcse, supervised):
            stage.lora.base = "float32"
            stage.data.max_length = 64
            stage.batch.size = 32
            stage.batch.groups = 0
            stage.optim.learning_rate = 1e-3
            stage.train.steps = 20
    return config


def adapted() -> Experiment:
    """Returns the settings that all steps share."""
    config = Experiment()
    config.model.attention = "bidirectional"
    config.model.pooling = "mean"
    config.model.remat = "layer"
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.lora.base = "bfloat16"
    config.lora.merge = True
    config.optim.schedule = "linear"
    return config
