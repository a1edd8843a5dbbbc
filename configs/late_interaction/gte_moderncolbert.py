"""GTE-ModernColBERT: distilled from scores of 32 passages.

    python -m experiments.late_interaction --config=configs/late_interaction/gte_moderncolbert.py \
        --workdir=runs/gte_moderncolbert

`ms_marco_en_bge_gemma.jsonl` has scored lists (query, passages, scores) of bge-reranker-v2-gemma,
as lightonai/ms-marco-en-bge-gemma has them. `gte_moderncolbert.py:small` trains all-MiniLM-L6-v2
on Python's documentation with scores of 1 for the positive and 0 for others.

Paper: Chaffin (2025), "GTE-ModernColBERT"; PyLate's recipe: batch 16, learning rate 3e-5, 3
    epochs, documents of 300 tokens.
Expected: mean nDCG@10 54.67 over BEIR (PyLate's documentation).
Measured: not yet.
"""

from embed_jax.config import Experiment


def get_config(cut: str = "") -> Experiment:
    config = Experiment()
    config.model.name = "Alibaba-NLP/gte-modernbert-base"
    config.data.train = "ms_marco_en_bge_gemma.jsonl"
    config.data.max_length = 300
    config.batch.size = 16
    config.batch.groups = 16
    config.loss.name = "kl(normalization='min_max', student_normalization='min_max')"
    config.optim.learning_rate = 3e-5
    config.optim.schedule = "linear"
    config.train.epochs = 3.0
    config.eval.retrieval = "msmarco"
    config.eval.every = 5000
    config.eval.metric = "reranking/ndcg@10"
    config.checkpoint.every = 5000
    if cut == "small":
        config.model.name = "sentence-transformers/all-MiniLM-L6-v2"
        config.data.train = "python_docs"
        config.data.limit = 256
        config.data.max_length = 64
        config.batch.size = 8
        config.batch.groups = 0
        config.late.dim = 64
        config.mine.strategy = "bm25"
        config.mine.number = 3
        config.eval.retrieval = ""
        config.eval.metric = ""
        config.train.steps = 10
        config.eval.every = -1
        config.checkpoint.every = 0
    elif cut:
        raise ValueError(f"unknown cut {cut!r}; known: small")
    return config
