"""E5's two stages: consistent weak pairs, then labelled pairs with hard negatives and a teacher.

    python -m experiments.retrieval --config=configs/retrieval/e5.py --workdir=runs/e5
    python -m experiments.retrieval --config=configs/retrieval/e5.py \
        --config.data.train=weak_pairs.jsonl \
        --config.stages.finetune.data.train=pairs.jsonl \
        --config.stages.finetune.mine.corpus=corpus.jsonl

A weak pair stays if its passage is among the best 2 for its query; contrastive training with
"query: " and "passage: "; then KL divergence to a cross-encoder's scores over mined negatives,
plus the contrastive loss. Batch, learning rates and the weights of the two losses below are ours.

`e5.py:small` starts from all-MiniLM-L6-v2 and takes 20 steps of 16 pairs in each stage, minutes
on a CPU.

Paper: Wang et al. (2022), "Text Embeddings by Weakly-Supervised Contrastive Pre-training".
Expected: of the published e5-base after both stages and 270 M pairs, as later papers quote it:
    48.7 nDCG@10 averaged over BEIR, 43.1 on MS MARCO.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    if cut not in ("", "small"):
        raise ValueError(f"unknown cut {cut!r}; known: small")
    config = prefixed()
    config.model.name = "bert-base-uncased"
    config.model.pooling = "mean"
    config.data.train = "stackexchange"
    config.data.consistency = 2
    config.data.max_length = 128
    config.batch.size = 1024
    config.batch.groups = 16
    config.loss.temperature = 0.01
    config.optim.learning_rate = 2e-4
    config.train.epochs = 1.0
    config.stages.finetune = stage = prefixed()
    stage.model.name = ""  # that of the first stage
    stage.data.train = "natural_questions"
    stage.data.max_length = 192
    stage.batch.size = 256
    stage.batch.groups = 16
    stage.mine.strategy = "dense"
    stage.mine.number = 7
    stage.mine.rank_min = 5
    stage.mine.rank_max = 100
    stage.mine.sampling = "random"
    stage.mine.cross_encoder = "cross-encoder/ms-marco-MiniLM-L6-v2"
    stage.loss.name = "kl() + 0.2 * info_nce(temperature=0.01)"
    stage.optim.learning_rate = 2e-5
    stage.train.epochs = 3.0
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        for part in (config, stage):
            part.batch.size = 16
            part.batch.groups = 0
            part.data.max_length = 64
            part.optim.learning_rate = 2e-5
            part.train.steps = 20
            part.mine.number = 3
    return config


def prefixed() -> Experiment:
    """Returns the settings that both stages share."""
    config = Experiment()
    config.data.anchor_prompt = "query: "
    config.data.candidate_prompt = "passage: "
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.optim.weight_decay = 0.01
    config.checkpoint.every = 500
    return config
