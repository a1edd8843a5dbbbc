"""Matryoshka fine-tuning of a NomicBERT with hard negatives, as nomic-embed-text-v1.5.

    python -m experiments.matryoshka --config=configs/matryoshka/nomic.py \
        --config.data.train=triplets.jsonl \
        --config.eval.sts=stsb/dev.tsv --config.eval.test_sts=stsb/test.tsv --workdir=runs/nomic

Settings of the released configuration: dims 768, 512, 256, 128, 64 with weights 1, batch 256,
learning rate 2e-5, 400 warm-up steps then linear, length 512, 7 hard negatives, one epoch of 1.6
M examples (so about 6,250 steps; warm-up is a share here), temperature 0.02. Their data are not
public in one piece: pass your own pairs with mined negatives, with the model's prompts. Released
v1.5 layer-normalises before cutting, without parameters; here cut embeddings are scaled to length
1.

`nomic.py:small` trains a random NomicBERT of two layers, 30 steps of 32; it needs a tokenizer,
`--config.model.tokenizer=DIR`.

Paper: Nussbaum et al. (2024); v1.5: model card.
Expected: of the published model, MTEB (56 data sets) at 768, 512, 256, 128, 64 dimensions: 62.28,
    61.96, 61.04, 59.34, 56.10.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "nomic-ai/nomic-embed-text-v1-unsupervised"
    config.data.train = "triplets.jsonl"
    config.data.max_length = 512
    config.data.anchor_prompt = "search_query: "
    config.data.candidate_prompt = "search_document: "
    config.batch.size = 256
    config.loss.name = "matryoshka(info_nce(), dims='768,512,256,128,64')"
    config.loss.temperature = 0.02
    config.optim.learning_rate = 2e-5
    config.optim.warmup = 400 / 6250
    config.optim.weight_decay = 0.01
    config.train.epochs = 1.0
    config.eval.dims = "768,512,256,128,64"
    config.checkpoint.every = 500
    if cut == "small":
        config.model.name = "random:nomic-tiny"
        config.data.max_length = 64
        config.batch.size = 32
        config.loss.name = "matryoshka(info_nce(), dims='32,16,8')"
        config.optim.learning_rate = 5e-4
        config.train.steps = 30
        config.eval.dims = "32,24,16,8"
        config.eval.baseline = "info_nce"
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
