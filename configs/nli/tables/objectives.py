"""Compares two objectives on the same inference data, from a trained and from a random encoder.

    python -m scripts.ablate configs/nli/tables/objectives.py --seeds 0,1 \
        --config.data.train=nli/pairs.tsv.gz \
        --config.data.exclude=stsb/dev.tsv,stsb/test.tsv --config.eval.sts=stsb/dev.tsv \
        --config.model.tokenizer=DIRECTORY_OF_BERT_VOCABULARY \
        --evaluate "--task sts --data sts12,sts13,sts14,sts15,sts16,stsb,sick_r"

60 batches of 64: supervised SimCSE on triplets (Gao, Yao, Chen 2021), SBERT's softmax on labelled
pairs (Reimers and Gurevych 2019). The same runs by sentence-transformers: `python -m
scripts.replicate --help`.

Paper: none has this table.
Expected: no published number.
Measured: average of seven STS sets from 78.87: SimCSE 80.28 ± 0.05, softmax 78.99 ± 0.14.
"""

EXPERIMENT = "nli"
CONFIG = "configs/nli/sup_simcse_bert_base.py:table"
SOFTMAX = {
    "loss.name": "softmax(concatenation='u,v,|u-v|')",
    "loss.temperature": -1.0,
    "loss.mask_duplicates": True,
}
RANDOM = {"model.name": "random:mini", "optim.learning_rate": 5e-4}
ROWS = {
    "SimCSE from MiniLM": {},
    "softmax from MiniLM": SOFTMAX,
    "SimCSE from random": RANDOM,
    "softmax from random": SOFTMAX | RANDOM,
}
METRICS = ("loss", "sts/spearman", "evaluated/stsb/spearman", "evaluated/average/spearman")
