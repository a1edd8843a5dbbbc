"""Masked next-token prediction of a decoder that sees both ways: LLM2Vec's first step.

    python -m experiments.mlm --config=configs/mlm/mntp.py \
        --config.data.train=wikitext.txt --config.model.name=princeton-nlp/Sheared-LLaMA-1.3B

`wikitext.txt` has wikitext-103's paragraphs, one per line (or name any other data set whose
records have a text). Settings of the paper: attention both ways; 20 % of the tokens, masked as
BERT's are ("_" where there is no mask token; Mistral: `--config.loss.name="mntp(rate=0.8,
mask=1.0, random=0.0)"`), each predicted from the state before it; LoRA of rank 16 and alpha 32;
1000 steps of 32 texts of 512 tokens, in bfloat16 on a GPU; mean pooling. Ours: the learning rate
5e-5 with linear decay (the paper leaves it to its trainer's default), and that the adapter is
merged into the result.

`mntp.py:small` is the same with a random decoder of 2 layers, in minutes on a CPU. It needs
`--config.model.tokenizer=DIR` (a directory with a tokenizer) or another model name.

Paper: BehnamGhader et al. (COLM 2024), tables 1 and 5.
Expected: of S-LLaMA-1.3B, unsupervised: 41.43 MTEB average after MNTP, 35.05 before (table 1).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "princeton-nlp/Sheared-LLaMA-1.3B"
    config.model.attention = "bidirectional"
    config.model.pooling = "mean"
    config.lora.rank = 16
    config.lora.alpha = 32.0
    config.lora.merge = True
    config.data.max_length = 512
    config.data.holdout = 0.005
    config.batch.size = 32
    config.loss.name = "mntp(rate=0.2)"
    config.optim.learning_rate = 5e-5
    config.optim.schedule = "linear"
    config.train.steps = 1000
    config.eval.every = 100
    config.checkpoint.every = 100
    if cut == "small":
        config.model.name = "random:decoder-tiny"
        config.data.max_length = 64
        config.data.holdout = 0.1
        config.data.limit = 5000
        config.optim.learning_rate = 1e-3
        config.train.steps = 200
        config.eval.every = 50
        config.checkpoint.every = 50
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
