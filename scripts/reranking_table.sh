#!/usr/bin/env bash
# The table of rerankers: WikiQA, SciFact and NFCorpus; the shortlists of BM25 and all-MiniLM-L6-v2; no reranker, and
# cross-encoders from all-MiniLM-L6-v2 by binary cross entropy, by LambdaLoss, and distilled:
#   bash scripts/reranking_table.sh DATA runs/reranking_table
# DATA has wikiqa_rerank, scifact and nfcorpus_filtered. A third argument goes to every training. PYTHON names the
# interpreter; QUERIES is the size of each test sample, DEPTH the length of the shortlists. Every step is skipped where
# its result is there, or resumes: with more QUERIES than before only new pairs are scored.
set -euo pipefail
data=$1 out=$2 more=${3:-}
python=${PYTHON:-python} queries=${QUERIES:-100} depth=${DEPTH:-100}
minilm=sentence-transformers/all-MiniLM-L6-v2
names=(wikiqa scifact nfcorpus)
declare -A task=([wikiqa]="pool:$data/wikiqa_rerank" [scifact]="$data/scifact" [nfcorpus]="$data/nfcorpus_filtered")
declare -A train_split=([wikiqa]=train [scifact]=train [nfcorpus]=dev)
lists=${LISTS:-600} # of each data set
mkdir -p "$out"

# 1. Training lists: of each data set a sample of relevant pairs, each with seven passages that a search finds instead.
for name in "${names[@]}"; do
    [ -e "$out/mined.$name.jsonl" ] || "$python" -m scripts.mine --beir "${task[$name]}" --split "${train_split[$name]}" \
        --strategy bm25,dense --model "$minilm" --number 7 --rank-max 50 --sampling random \
        --output "$out/mined.$name.jsonl"
done
[ -e "$out/lists.jsonl" ] || for name in "${names[@]}"; do
    shuf -n "$lists" --random-source="$out/mined.$name.jsonl" "$out/mined.$name.jsonl"
done > "$out/lists.jsonl"

# 2. Rerankers by two losses; the first is the teacher of the third.
train() { # train NAME CUT LISTS
    [ -e "$out/$1/model" ] || "$python" -m experiments.cross_encoder \
        --config="configs/cross_encoder/three_sets.py$2" --config.data.train="$3" --workdir="$out/$1" $more
}
train bce "" "$out/lists.jsonl"
train lambda :lambda_rank "$out/lists.jsonl"
"$python" -m scripts.annotate --data "$out/lists.jsonl" --model "$out/bce/model" --activation identity \
    --scores "$out/teacher.jsonl" --output "$out/annotated.jsonl"
train distilled :distilled "$out/annotated.jsonl"

# 3. Shortlists of a sample of test queries, and the scores of the union of both, once for each reranker.
for name in "${names[@]}"; do
    for stage in "BM25=bm25" "MiniLM=$minilm"; do
        file="$out/$name.${stage%%=*}.$queries.trec"
        [ -e "$file" ] || "$python" -m scripts.rerank shortlist --data "${task[$name]}" --first-stage "${stage#*=}" \
            --depth "$depth" --sample "$queries" --output "$file"
    done
    for model in bce lambda distilled; do
        "$python" -m scripts.annotate --beir "${task[$name]}" --split test --run "$out/$name.BM25.$queries.trec" \
            --run "$out/$name.MiniLM.$queries.trec" --model "$out/$model/model" --activation identity --scores-only \
            --output "$out/scores.$model.jsonl"
    done
done

# 4. The comparison on each data set, with milliseconds per query, and one table.
for name in "${names[@]}"; do
    "$python" -m scripts.rerank compare --data "${task[$name]}" --run "BM25=$out/$name.BM25.$queries.trec" \
        --run "MiniLM=$out/$name.MiniLM.$queries.trec" --scores "BCE=$out/scores.bce.jsonl" \
        --scores "LambdaLoss=$out/scores.lambda.jsonl" --scores "distilled=$out/scores.distilled.jsonl" \
        --model "BCE=$out/bce/model" --model "LambdaLoss=$out/lambda/model" \
        --model "distilled=$out/distilled/model" --output "$out/$name.json"
done
"$python" -m scripts.rerank table "$out"/{wikiqa,scifact,nfcorpus}.json --output "$out/table.md"
