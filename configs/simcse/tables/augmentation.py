"""Compares changes of the second copy in unsupervised SimCSE with only dropout.

    python -m scripts.ablate configs/simcse/tables/augmentation.py --seeds 0,1 \
        --config.data.train=wiki.txt --config.eval.sts=stsb/dev.tsv

Spearman x100 on STS-B dev after 40 batches of 32 sentences. The base is all-MiniLM-L6-v2, whose
first token was never an embedding; the paper's is BERT-base, with 10^6 sentences.

Paper: Gao, Yao, Chen (EMNLP 2021), Table 1.
Expected: PAPER.
Measured: only dropout 84.17 ± 0.07, cropped by 10 % 85.17 ± 0.19 and 30 % 85.37 ± 0.50, a word
    deleted 84.48 ± 0.24, from 79.74 (two seeds).
"""

EXPERIMENT = "simcse"
CONFIG = "configs/simcse/unsup_bert_base.py:table"
FULL = "configs/simcse/unsup_bert_base.py"
SCALE = 100
SOURCE, CHECKED = "Gao et al. 2021, Table 1", "text"
MINUTES, GPU_HOURS = 12, 1.8
ROWS: dict[str, dict[str, object]] = {"none (dropout only)": {}}
ROWS |= {f"crop {rate:.0%}": {"data.augment": f"crop(rate={rate})"} for rate in (0.1, 0.2, 0.3)}
ROWS |= {
    f"delete {rate:.0%} of the words": {"data.augment": f"delete_words(rate={rate})"}
    for rate in (0.1, 0.2, 0.3)
}
ROWS |= {
    "delete one word": {"data.augment": "delete_one_word()"},
    "delete one word without dropout": {
        "data.augment": "delete_one_word()",
        "model.dropout": 0.0,
    },
}
PAPER = dict(zip(ROWS, (82.5, 77.8, 71.4, 63.6, 75.9, 72.2, 68.2, 75.9, 74.2), strict=True))
CLAIMS = {
    "only dropout beats cropping": ("none (dropout only)", ">", "crop 10%"),
    "only dropout beats deletion": ("none (dropout only)", ">", "delete one word"),
    "more cropping hurts more": ("crop 30%", "<", "crop 10%"),
}
METRICS = ("sts/spearman", "start")
