"""Compares losses of rerankers on lists of 4, 8 and 16 passages.

    python -m scripts.ablate configs/cross_encoder/tables/losses.py --seeds 0,1

Each list is a docstring's first sentence, its function, and functions that BM25 finds instead; all
rows read 64 pairs a batch, 60 batches. nDCG@10 x100 of ten functions with the right one among them,
for held-out sentences, from the small encoder that `configs/mlm/bert_small.py:base` makes in
runs/base.

Paper: none has this table; sentence-transformers' documentation orders its losses of lists.
Expected: no published number.
Measured: lists of 8, two seeds, from 46.8: all six losses have 56.6 to 57.5, and no order of them
    can be told; see experiments/results/cross_encoder_losses.
"""

EXPERIMENT = "cross_encoder"
CONFIG = "configs/cross_encoder/lambda_rank.py:base"
SCALE = 100
SOURCE = "sentence-transformers' documentation, in words"
MINUTES = 17
LOSSES = {
    "LambdaLoss": "lambda_rank",
    "PListMLE": "list_mle(by_position=True)",
    "ListNet": "list_net",
    "RankNet": "rank_net",
    "ListMLE": "list_mle",
    "binary cross entropy": "binary_cross_entropy(pos_weight={others})",
}


def row(loss: str, length: int) -> dict[str, object]:
    return {
        "loss.name": LOSSES[loss].format(others=length - 1),
        "mine.number": length - 1,
        "batch.size": 64 // length,
    }


ROWS = {f"{loss} of 8": row(loss, 8) for loss in LOSSES}
ROWS |= {
    f"{loss} of {length}": row(loss, length)
    for length in (4, 16)
    for loss in ("LambdaLoss", "ListNet", "binary cross entropy")
}
CLAIMS = {
    "LambdaLoss beats PListMLE": ("LambdaLoss of 8", ">", "PListMLE of 8"),
    "PListMLE beats ListNet": ("PListMLE of 8", ">", "ListNet of 8"),
    "ListNet beats RankNet": ("ListNet of 8", ">", "RankNet of 8"),
    "RankNet beats ListMLE": ("RankNet of 8", ">", "ListMLE of 8"),
}
METRICS = ("best", "reranking/mrr@10", "start")
