#!/usr/bin/env bash
# The table of late interaction: searches by BM25, all-MiniLM-L6-v2 and two ColBERTs made from it, one trained with mined
# negatives and one also on the scores of a cross-encoder of scripts/reranking_table.sh, whose lists it takes too (KL divergence
# beside in-batch cross entropy, as in ColBERTv2):
#   bash scripts/late_interaction_table.sh DATA runs/reranking_table runs/late_interaction_table [scifact] [nfcorpus]
# Every step is skipped where its result is there, or resumes. Variables: LENGTH, tokens of a document in training; EPOCHS;
# DTYPE, of the teacher's scores and the searches: bfloat16 is faster on processors with AMX; PYTHON, the interpreter.
set -euo pipefail
data=$1 rerankers=$2 out=$3
shift 3
sets=("${@:-scifact nfcorpus}")
python=${PYTHON:-python} length=${LENGTH:-128} epochs=${EPOCHS:-1} dtype=${DTYPE:-float32}
minilm=sentence-transformers/all-MiniLM-L6-v2

train() { # train SET NAME LISTS OPTIONS...
    local at=$out/$1/$2 lists=$3
    shift 3
    [ -e "$at/model" ] || "$python" -m experiments.late_interaction --config=configs/late_interaction/mined_lists.py \
        --config.data.train="$lists" --config.data.max_length="$length" --config.train.epochs="$epochs" \
        --workdir="$at" "$@"
}

for name in ${sets[*]}; do
    case $name in
    scifact) task=$data/scifact ;;
    nfcorpus) task=$data/nfcorpus_filtered ;;
    *) echo "unknown data set $name" >&2 && exit 2 ;;
    esac
    at=$out/$name
    mkdir -p "$at"

    # 1. The lists of the rerankers, and the scores that the one by LambdaLoss gives them.
    lists=$rerankers/$name/lists.jsonl
    "$python" -m scripts.annotate --data "$lists" --model "$rerankers/$name/lambda/model" --activation identity \
        --compute-dtype "$dtype" --scores "$at/scores.jsonl" --output "$at/annotated.jsonl"

    # 2. Two ColBERTs.
    train "$name" mined "$lists"
    train "$name" distilled "$at/annotated.jsonl" --config.loss.name="info_nce + kl"

    # 3. Searches of the whole corpus by the test queries.
    "$python" -m scripts.evaluate searches --data "$task" --split test --model BM25=bm25 --model MiniLM=$minilm \
        --model "ColBERT=$at/mined/model" --model "ColBERT, distilled=$at/distilled/model" \
        --metrics ndcg@10,recall@100 --compute-dtype "$dtype" --output "$out/$name.json"
done
