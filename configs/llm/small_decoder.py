"""A small decoder trained on inference triplets and on SciFact, each with its own instruction.

    python -m experiments.llm --config=configs/llm/small_decoder.py \
        --config.model.name=runs/decoder_small/model \
        --config.mixture.sources.nli.train=nli/triplets.tsv.gz \
        --config.mixture.sources.scifact.train=beir:scifact \
        --config.eval.test_sts=stsb/test.tsv --config.eval.retrieval=scifact \
        --config.eval.test_split=test

For the questions that the ablations of E5-Mistral and LLM2Vec ask of 7B models: which pooling,
which attention, with or without instructions (configs/llm/tables/pooling.py). Start from the
model of `experiments.mlm` with configs/mlm/decoder_small.py. Batches of 32 are taken in turn from
both sets; all parameters are trained.

`small_decoder.py:small` takes 10 steps.

Paper: none has this setting.
Expected: no published number.
Measured: see tables/pooling.py.
"""

from embed_jax.config import Experiment, Source


def get_config(cut: str = "") -> Experiment:
    if cut not in ("", "small"):
        raise ValueError(f"unknown cut {cut!r}; known: small")
    similar = "Retrieve semantically similar text"
    config = Experiment()
    config.model.name = "runs/decoder_small/model"
    config.model.attention = "causal"
    config.model.pooling = "last_token"
    config.data.max_length = 96
    config.data.template = "Instruct: {instruction}\nQuery: "
    config.data.anchor_instruction = (
        "Given a scientific claim, retrieve documents that support or refute the claim"
    )
    config.mixture.sources.nli = Source(train="nli/triplets.tsv.gz", max_length=64)
    config.mixture.sources.nli.anchor_instruction = similar
    config.mixture.sources.nli.candidate_instruction = similar
    config.mixture.sources.scifact = Source(train="beir:scifact")
    config.mixture.sampling = "round_robin"
    config.batch.size = 32
    config.loss.temperature = 0.05
    config.optim.learning_rate = 5e-4
    config.optim.warmup = 0.1
    config.train.steps = 10 if cut else 60
    config.eval.sts_instruction = similar
    config.eval.test_sts = "stsb/test.tsv"
    config.eval.retrieval = "scifact"
    config.eval.retrieval_split = ""
    config.eval.test_split = "test"
    return config
