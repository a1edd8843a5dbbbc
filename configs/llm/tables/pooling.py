"""Compares pooling, attention and instructions of a small decoder.

    python -m experiments.mlm --config=configs/mlm/decoder_small.py \
        --config.data.train=corpus.txt \
        --config.model.tokenizer=DIR --workdir=runs/decoder_small
    python -m scripts.ablate configs/llm/tables/pooling.py --seeds 0,1

Spearman's correlation on STS-B test and nDCG@10 on SciFact test.

Paper: Wang et al. (ACL 2024), table 5; BehnamGhader et al. (COLM 2024), table 5.
Expected: of Mistral-7B, MTEB average (E5-Mistral): last token 64.5, mean 64.1, weighted mean
    64.0, without instruction 60.3; 15 tasks (LLM2Vec), last token, mean and weighted mean: causal
    + SimCSE 34.60, 52.04, 53.95, bidirectional + SimCSE 49.73, 60.29, 56.56.
Measured: 11 M parameters, causal, instructed, STS-B test: last token 28.8, mean 26.9, weighted
    mean 27.7.
"""

EXPERIMENT = "llm"
CONFIG = "configs/llm/small_decoder.py"
WITHOUT = {
    "data.anchor_instruction": "",
    "mixture.sources.nli.anchor_instruction": "",
    "mixture.sources.nli.candidate_instruction": "",
    "eval.sts_instruction": "",
}
ROWS = {
    f"{pooling} {attention} {instruction}": {"model.pooling": pooling, "model.attention": attention}
    | fields
    for attention in ("causal", "bidirectional")
    for instruction, fields in (("instructed", {}), ("plain", WITHOUT))
    for pooling in ("last_token", "mean", "weighted_mean")
}
METRICS = ("metrics/after/stsb", "metrics/test/ndcg@10", "metrics/before/stsb")
