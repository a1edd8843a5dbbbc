"""Compares what half of the layers keep: with and without adaptive layers, and in two dimensions.

    python -m scripts.ablate configs/matryoshka/tables/layers.py --seeds 0,1 \
        --config.data.train=nli/triplets.tsv.gz \
        --config.data.exclude=stsb/dev.tsv,stsb/test.tsv --config.eval.test_sts=stsb/test.tsv

The first column is the share of the whole model's Spearman, in percent, that 3 of 6 layers keep, on
STS-B test after 40 batches of 64 from all-MiniLM-L6-v2.

Paper: sentence-transformers' documentation, "Adaptive Layers"; Li et al. (2024), "2D Matryoshka
    Sentence Embeddings".
Expected: about 85 % with half of twelve layers and 80 % with one (documentation, of adaptive
    layers).
Measured: one seed, kept by 3 layers and by 1: plain 67.3 and 68.3 %, adaptive layers 70.5 and 68.7,
    all layers at each step 70.1 and 68.8, two dimensions 70.8 and 68.9; see
    experiments/results/matryoshka_layers.
"""

EXPERIMENT = "matryoshka"
CONFIG = "configs/matryoshka/nli.py:table"
SCALE = 100
MINUTES = 7
SIZES = {"eval.layers": "6,3,2,1", "eval.dims": "384,128,32"}
ROWS: dict[str, dict[str, object]] = {
    "plain": {"loss.name": "info_nce"} | SIZES,
    "adaptive layers": {"loss.name": "adaptive_layers(info_nce(), sample=1)"} | SIZES,
    "all layers at each step": {"loss.name": "adaptive_layers(info_nce(), sample=0)"} | SIZES,
    "two dimensions": {
        "loss.name": "adaptive_layers(matryoshka(info_nce(), dims='384,128,32', sample=1), "
        "sample=1)"
    }
    | SIZES,
}
METRICS = (
    "kept/3/384",
    "kept/1/384",
    "kept/3/32",
    "by_size/6/384",
    "by_size/3/384",
    "by_size/1/384",
)
