"""A student that learns from a file with a larger teacher's embeddings, of another size.

    python -m scripts.encode --model sentence-transformers/all-mpnet-base-v2 \
        --input sentences.txt --output teacher.npy
    python -m experiments.distill --config=configs/distill/vectors.py \
        --config.data.train=sentences.txt \
        --config.data.teacher_vectors=teacher.npy --config.eval.sts=stsb/dev.tsv \
        --config.eval.test_sts=stsb/test.tsv --workdir=runs/student

Row n of the file is the embedding of sentence n: the teacher runs once, however many students and
epochs follow. The student has 384 dimensions, the teacher 768; the loss learns a linear map
between them, which is not part of the saved model.

The paper has the mean squared error for teachers and students of one size.

`vectors.py:small` is 200 steps with a batch of 32, minutes on a CPU; set `loss.name` for a
teacher of another size.

Paper: Reimers and Gurevych (2020), "Making Monolingual Sentence Embeddings Multilingual".
Expected: no published number for this pair of models.
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
    config.model.dropout = 0.0
    config.data.train = "sentences.txt"
    config.data.teacher_vectors = "teacher.npy"
    config.data.max_length = 64
    config.batch.size = 64
    config.loss.name = "embedding_mse(projection=768)"
    config.optim.learning_rate = 1e-4
    config.optim.schedule = "linear"
    config.optim.warmup = 0.1
    config.train.epochs = 1.0
    config.eval.sts = "stsb/dev.tsv"
    config.eval.every = 1000
    config.eval.metric = "sts/spearman"
    config.checkpoint.every = 1000
    if cut == "small":
        config.batch.size = 32
        config.train.steps = 200
        config.eval.every = 50
        config.checkpoint.every = 50
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
