#!/usr/bin/env bash
# The table of rerankers: the shortlists of BM25 and all-MiniLM-L6-v2 on WikiQA, SciFact and NFCorpus; no reranker, and
# cross-encoders from all-MiniLM-L6-v2 by binary cross entropy, by LambdaLoss, and distilled from the first:
#   bash scripts/reranking_table.sh DATA runs/reranking_table [wikiqa] [scifact] [nfcorpus]
# DATA has wikiqa_rerank, scifact and nfcorpus_filtered. Every step is skipped where its result is there, or resumes: of
# more QUERIES or a larger DEPTH only new pairs are scored. Variables: LISTS, training lists of a data set; LENGTH, tokens
# of a pair; QUERIES, the size of a test sample; DEPTH, at most 100, that is reranked; STAGES, the searches; DTYPE, of the
# scores: bfloat16 is faster on processors with AMX; PYTHON, the interpreter; MINE, options of scripts.mine, such as
# "--margin 0", which leaves out pairs whose positive scores below the negatives; MORE, options of every training, such as
# --config.model.name=runs/reranking_table/wikiqa/lambda/model.
set -euo pipefail
data=$1 out=$2
shift 2
sets=("${@:-wikiqa scifact nfcorpus}")
python=${PYTHON:-python} queries=${QUERIES:-100} depth=${DEPTH:-100} lists=${LISTS:-600} length=${LENGTH:-128}
dtype=${DTYPE:-float32}
minilm=sentence-transformers/all-MiniLM-L6-v2
mkdir -p "$out"

train() { # train SET NAME CUT LISTS
    [ -e "$out/$1/$2/model" ] || "$python" -m experiments.cross_encoder \
        --config="configs/cross_encoder/mined_lists.py$3" --config.data.train="$4" \
        --config.data.max_length="$length" --workdir="$out/$1/$2" ${MORE:-}
}

for name in ${sets[*]}; do
    case $name in
    wikiqa) task=pool:$data/wikiqa_rerank split=train ;;
    scifact) task=$data/scifact split=train ;;
    nfcorpus) task=$data/nfcorpus_filtered split=dev ;; # it comes without the training split
    *) echo "unknown data set $name" >&2 && exit 2 ;;
    esac
    at=$out/$name
    mkdir -p "$at"

    # 1. Training lists: a sample of relevant pairs, each with seven passages that a search finds instead.
    [ -e "$at/mined.jsonl" ] || "$python" -m scripts.mine --beir "$task" --split "$split" --strategy bm25,dense \
        --model "$minilm" --number 7 --rank-max 50 --sampling random --output "$at/mined.jsonl" ${MINE:-}
    [ -e "$at/lists.jsonl" ] || shuf -n "$lists" --random-source="$at/mined.jsonl" "$at/mined.jsonl" > "$at/lists.jsonl"

    # 2. Rerankers; the first is the teacher of the third.
    train "$name" bce "" "$at/lists.jsonl"
    train "$name" lambda :lambda_rank "$at/lists.jsonl"
    "$python" -m scripts.annotate --data "$at/lists.jsonl" --model "$at/bce/model" --activation identity \
        --compute-dtype "$dtype" --scores "$at/scores.bce.jsonl" --output "$at/annotated.jsonl"
    train "$name" distilled :distilled "$at/annotated.jsonl"

    # 3. Shortlists of a sample of test queries.
    runs=() named=()
    for stage in ${STAGES:-BM25=bm25 MiniLM=$minilm}; do
        file=$at/${stage%%=*}.$queries.trec
        [ -e "$file" ] || "$python" -m scripts.rerank shortlist --data "$task" --first-stage "${stage#*=}" \
            --sample "$queries" --output "$file"
        runs+=(--run "$file") named+=(--run "${stage%%=*}=$file")
    done

    # 4. Scores of the union of the shortlists, once for each reranker, and what each makes of each shortlist.
    scores=()
    for reranker in BCE=bce LambdaLoss=lambda distilled=distilled; do
        model=${reranker#*=}
        "$python" -m scripts.annotate --beir "$task" --split test "${runs[@]}" --depth "$depth" \
            --model "$at/$model/model" --compute-dtype "$dtype" --activation identity --scores-only \
            --output "$at/scores.$model.jsonl"
        scores+=(--scores "${reranker%%=*}=$at/scores.$model.jsonl" --model "${reranker%%=*}=$at/$model/model")
    done
    "$python" -m scripts.rerank compare --data "$task" "${named[@]}" --depth "$depth" "${scores[@]}" \
        --output "$out/$name.json"
done
"$python" -m scripts.rerank table "$out"/*.json --output "$out/table.md"
