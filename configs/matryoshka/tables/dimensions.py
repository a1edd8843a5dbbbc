"""Compares what a cut embedding keeps: with and without Matryoshka, and with a shared head (MRL-E).

    python -m scripts.ablate configs/matryoshka/tables/dimensions.py --seeds 0,1 \
        --config.data.train=nli/pairs.tsv.gz --config.data.exclude=stsb/dev.tsv,stsb/test.tsv \
        --config.eval.test_sts=stsb/test.tsv --plot dimensions.png

The first column is the share of the whole embedding's Spearman, in percent, that a twelfth of its
numbers keeps, on STS-B test: 32 of 384 after 40 batches of 64 from all-MiniLM-L6-v2, 64 of 768
after an epoch of AllNLI from MPNet. The first three rows contrast triplets, the others classify
pairs, with one head for each size (MRL) or a shared one. From the same encoder with random
weights: `--config.model.name=random:minilm-l6
--config.model.tokenizer=sentence-transformers/all-MiniLM-L6-v2
--config.optim.learning_rate=5e-4`.

Paper: sentence-transformers' documentation, "Matryoshka Embeddings"; Kusupati et al. (NeurIPS
    2022).
Expected: PAPER.
Measured: 32 of 384 numbers keep 92.98 ± 0.05 % without Matryoshka, 93.32 ± 0.07 % with it, 93.25 ±
    0.17 % with one size a step (batches of 32, two seeds).
"""

EXPERIMENT = "matryoshka"
CONFIG = "configs/matryoshka/nli.py:table"
SCALE = 100
SOURCE, CHECKED = "sentence-transformers' documentation, 64 of 768 dimensions", "repository"
MINUTES = 12
DIMS = "dims='384,256,128,64,32'"
CLASSIFIED = {"loss.temperature": -1.0, "loss.mask_duplicates": True}
ROWS: dict[str, dict[str, object]] = {
    "plain": {"loss.name": "info_nce"},
    "Matryoshka": {"loss.name": f"matryoshka(info_nce(), {DIMS})"},
    "Matryoshka one size a step": {"loss.name": f"matryoshka(info_nce(), {DIMS}, sample=1)"},
    "softmax plain": {"loss.name": "softmax"} | CLASSIFIED,
    "softmax MRL": {"loss.name": f"matryoshka(softmax(), {DIMS})"} | CLASSIFIED,
    "softmax MRL-E": {"loss.name": f"matryoshka(softmax(), {DIMS}, shared_head=True)"} | CLASSIFIED,
}
PAPER = {"plain": 96.46, "Matryoshka": 98.37}
CLAIMS = {"Matryoshka keeps more of a cut embedding": ("Matryoshka", ">", "plain")}
METRICS = ("kept/6/32", *(f"by_size/6/{size}" for size in (384, 128, 64, 32, 16, 8)))
X = "by_size/"
