"""Matryoshka on NLI, MPNet: the example of sentence-transformers' documentation.

    python -m experiments.matryoshka --config=configs/matryoshka/nli.py \
        --config.eval.sts=stsb/dev.tsv \
        --config.eval.test_sts=stsb/test.tsv --workdir=runs/matryoshka

Settings of their script: dims 768, 512, 256, 128, 64 with weights 1, batch 128, one epoch of
AllNLI. Their values by size exist only as a figure.

`nli.py:small` trains all-MiniLM-L6-v2 at 384, 256, 128, 64, 32 and 16, 60 steps of 64, minutes on
a CPU; `nli.py:table` is for tables/: 40 steps, without a second training beside it.

Paper: sentence-transformers' documentation, "Matryoshka Embeddings".
Expected: on STS-B test, 64 of 768 dimensions keep 98.37 % of the whole embedding's Spearman,
    96.46 % without Matryoshka; better at every size.
Measured: not yet; `:small`: 64 of 384 dimensions keep 96.6 and 97.2 % (96.2 and 96.4 % without).
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "microsoft/mpnet-base"
    config.model.pooling = "mean"
    config.data.train = "allnli"
    config.data.max_length = 128
    config.batch.size = 128
    config.loss.name = "matryoshka(info_nce(), dims='768,512,256,128,64')"
    config.loss.temperature = 0.05
    config.loss.mask_duplicates = False
    config.optim.learning_rate = 2e-5
    config.optim.warmup = 0.1
    config.train.epochs = 1.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.test_sts = "stsb/test.tsv"
    config.eval.dims = "768,640,512,384,256,192,128,96,64,32"
    config.eval.baseline = "info_nce"
    config.eval.every = 500
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 500
    if cut in ("small", "table"):
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.model.pooling = ""
        config.data.max_length = 32
        config.batch.size = 64
        config.loss.name = "matryoshka(info_nce(), dims='384,256,128,64,32,16')"
        config.train.steps = 60
        config.eval.dims = "384,320,256,192,128,96,64,48,32,24,16,8"
        config.eval.every = 30
        config.checkpoint.every = 0
        if cut == "table":
            config.loss.name = "matryoshka(info_nce(), dims='384,256,128,64,32')"
            config.train.steps = 40
            config.eval.dims = "384,256,128,64,32,16,8"
            config.eval.sts = ""
            config.eval.baseline = ""
            config.eval.metric = ""
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small, table")
    return config
