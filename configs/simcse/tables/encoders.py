"""Compares one encoder for both copies with two, with only dropout and with a deleted word.

    python -m experiments.mlm --config=configs/mlm/bert_small.py:base \
        --config.data.train=corpus.txt --config.model.tokenizer=DIR --workdir=runs/base
    python -m scripts.ablate configs/simcse/tables/encoders.py --seeds 0,1,2 \
        --config.data.train=wiki.txt --config.eval.sts=stsb/dev.tsv

The best Spearman x100 on STS-B dev of 60 batches of 64 sentences, from a small encoder
pre-trained here, without the MLP, which two encoders cannot have; the paper's is of BERT-base and
10^6 sentences. The paper's rows of following sentences need text in order.

Paper: Gao, Yao, Chen (EMNLP 2021), Table 2.
Expected: PAPER.
Measured: not yet.
"""

EXPERIMENT = "simcse"
CONFIG = "configs/simcse/unsup_bert_base.py:table"
SCALE = 100
SOURCE, CHECKED = "Gao et al. 2021, Table 2", "text"
MINUTES = 3
TWO = {"model.query": "runs/base/model"}
DELETED = {"model.mlp": "", "data.augment": "delete_one_word()"}
ROWS: dict[str, dict[str, object]] = {
    "delete one word": DELETED,
    "delete one word with two encoders": DELETED | TWO,
    "only dropout": {"model.mlp": ""},
    "only dropout with two encoders": {"model.mlp": ""} | TWO,
}
PAPER = dict(zip(ROWS, (75.9, 73.1, 82.5, 80.7), strict=True))
CLAIMS = {
    "one encoder beats two": ("only dropout", ">", "only dropout with two encoders"),
    "so it does with a deleted word": ("delete one word", ">", "delete one word with two encoders"),
    "only dropout beats a deleted word": ("only dropout", ">", "delete one word"),
}
