"""Two-dimensional Matryoshka: every layer and every size.

    python -m experiments.matryoshka --config=configs/matryoshka/two_dimensions.py \
        --config.eval.sts=stsb/dev.tsv \
        --config.eval.test_sts=stsb/test.tsv --workdir=runs/two_dimensions

One layer and one size are drawn at each step; weights 1, the divergence at temperature 0.3: the
first version of the paper, and the defaults of sentence-transformers. Other settings as in
nli.py.

`two_dimensions.py:small` trains all-MiniLM-L6-v2 for 60 steps of 64, minutes on a CPU.

Paper: Li et al. (2024), "2D Matryoshka Sentence Embeddings"; sentence-transformers'
    documentation.
Expected: of adaptive layers (documentation): about 80 % of STS-B with one of twelve layers; half
    of the layers about twice as fast for about 15 % loss.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "microsoft/mpnet-base"
    config.model.pooling = "mean"
    config.data.train = "allnli"
    config.data.max_length = 128
    config.batch.size = 128
    config.loss.name = (
        "adaptive_layers(matryoshka(info_nce(), dims='768,512,256,128,64', sample=1), sample=1)"
    )
    config.loss.temperature = 0.05
    config.loss.mask_duplicates = False
    config.optim.learning_rate = 2e-5
    config.optim.warmup = 0.1
    config.train.epochs = 1.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.test_sts = "stsb/test.tsv"
    config.eval.layers = "12,9,6,3,1"
    config.eval.baseline = "info_nce"
    config.eval.every = 500
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 500
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.model.pooling = ""
        config.data.max_length = 32
        config.batch.size = 64
        config.loss.name = (
            "adaptive_layers(matryoshka(info_nce(), dims='384,128,32', sample=1), sample=1)"
        )
        config.train.steps = 60
        config.eval.layers = "6,4,2"
        config.eval.every = 30
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
