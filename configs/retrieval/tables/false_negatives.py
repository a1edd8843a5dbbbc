r"""Compares batches with and without the mask of false negatives: what is it worth, by batch size?

    python -m scripts.pairs groups --input banking77/train.tsv --group-field label \
        --max-per-group 60 --output intents.jsonl
    mkdir -p intents/qrels
    awk -F'\t' -v OFS='\t' -v folder=intents '
        NR == 1 {print "query-id", "corpus-id", "score" > folder "/qrels/test.tsv"; next}
        {n[$2]++; gsub(/\\/, "&&", $1); gsub(/"/, "\\\"", $1)}
        {line = "{\"_id\": \"" $2 "-" n[$2] "\", \"text\": \"" $1 "\"}"}
        n[$2] <= 20 {print line > folder "/corpus.jsonl"}
        n[$2] > 20 && n[$2] <= 25 {
            print line > folder "/queries.jsonl"
            for (i = 1; i <= 20; i++)
                print $2 "-" n[$2], $2 "-" i, 1 > folder "/qrels/test.tsv"}' banking77/test.tsv
    python -m scripts.ablate configs/retrieval/tables/false_negatives.py --seeds 0,1

Banking77's 77 intents: two questions of one intent are a pair, and its intent is its group. In a
batch of B pairs another one has the same intent with probability 1/77, so a query has (B - 1)/77
false negatives: 0.2, 0.8 and 3.3. All rows read 8,192 pairs. nDCG@10 x100 of searching test
questions of the same intent, 385 queries and 1,540 texts, from the small encoder that
`configs/mlm/bert_small.py:base` makes in runs/base.

Paper: none has this table.
Expected: no published number; the mask is worth more in larger batches.
Measured: masked and not, 16 64.60 and 63.64, 64 60.22 and 59.12, 256 47.69 and 47.13: worth 0.87
    [0.52, 1.22] over six pairs of runs, and not more in larger batches.
"""

EXPERIMENT = "retrieval"
CONFIG = "configs/retrieval/quickstart.py:base"
SCALE = 100
MINUTES = 8
SHARED: dict[str, object] = {
    "data.train": "intents.jsonl",
    "eval.retrieval": "intents",
    "eval.retrieval_split": "test",
    "eval.every": -1,
}
ROWS: dict[str, dict[str, object]] = {
    f"{size} {name}": SHARED
    | {"batch.size": size, "train.steps": 8192 // size, "loss.mask_duplicates": mask}
    for size in (16, 64, 256)
    for name, mask in (("as they are", False), ("masked", True))
}
METRICS = ("best", "retrieval/recall@10", "start")
