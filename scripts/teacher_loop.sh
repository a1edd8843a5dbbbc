#!/usr/bin/env bash
# From an embedder to a better one by way of a cross-encoder, on a directory in BEIR's layout that has the splits train
# and test:
#   bash scripts/teacher_loop.sh scifact runs/teacher_loop
# A third argument goes to every training, such as --config.train.steps=2. Every step is skipped where its result is there,
# or resumes. Variables: LISTS, how many training lists, all without it; EMBEDDER; TEACHER, the cross-encoder or embedder that
# the teacher is trained from; TEACHER_CONFIG; STUDENT_OPTIONS and TEACHER_OPTIONS, of their trainings; DEPTH, how many results
# the teacher reranks; PYTHON, the interpreter.
set -euo pipefail
data=$1 runs=$2 more=${3:-}
python=${PYTHON:-python}
embedder=${EMBEDDER:-sentence-transformers/all-MiniLM-L6-v2}
teacher=${TEACHER:-$embedder} teacher_config=${TEACHER_CONFIG:-configs/cross_encoder/scifact.py}
mkdir -p "$runs"

train() { # train EXPERIMENT NAME OPTIONS...
    local experiment=$1 name=$2
    shift 2
    [ -e "$runs/$name/model" ] || "$python" -m "experiments.$experiment" --workdir="$runs/$name" "$@" \
        --config.eval.retrieval= --config.eval.test_split= --config.eval.metric= $more
}

evaluate() { # evaluate NAME MODEL OPTIONS...
    [ -e "$runs/$1.json" ] || "$python" -m scripts.evaluate run --model "$2" --task retrieval --data "$data" --split test \
        --output "$runs/$1.json" "${@:3}"
}

# 1. Hard negatives: abstracts that the embedder finds.
[ -e "$runs/mined.jsonl" ] || "$python" -m scripts.mine --beir "$data" --split train --strategy dense --model "$embedder" \
    --number 7 --rank-max 50 --sampling random --output "$runs/mined.jsonl"
lists=$runs/lists.jsonl
[ -e "$lists" ] || shuf -n "${LISTS:-1000000}" --random-source="$runs/mined.jsonl" "$runs/mined.jsonl" > "$lists"

# 2. The embedder, trained on them as they are.
train retrieval embedder_mined --config=configs/retrieval/hard_negatives.py \
    --config.model.name="$embedder" --config.data.train="$lists" --config.mine.strategy= --config.mine.every=0 \
    ${STUDENT_OPTIONS:-}

# 3. A cross-encoder, trained on them.
train cross_encoder teacher --config="$teacher_config" --config.model.name="$teacher" --config.data.train="$lists" \
    --config.mine.strategy= ${TEACHER_OPTIONS:-}

# 4. Its scores of every list.
"$python" -m scripts.annotate --data "$lists" --model "$runs/teacher/model" --activation identity \
    --scores "$runs/scores.jsonl" --output "$runs/annotated.jsonl"

# 5. The embedder, distilled from these scores: logits, so a gap of 3 is to be one of 3 * 0.05 between cosines at the config's
# temperature. Scores brought to 0 .. 1 would ask for gaps of 0.05 at most.
train retrieval embedder_distilled --config=configs/retrieval/hard_negatives.py \
    --config.model.name="$embedder" --config.data.train="$runs/annotated.jsonl" --config.mine.strategy= \
    --config.mine.every=0 --config.loss.name="kl(teacher_temperature=1.0)" \
    ${STUDENT_OPTIONS:-}

# 6. The embedder before, after mined negatives and after distillation, and the two stages.
evaluate before "$embedder"
evaluate embedder_mined "$runs/embedder_mined/model"
evaluate embedder_distilled "$runs/embedder_distilled/model"
evaluate two_stages "$embedder" --rerank "$runs/teacher/model" --depth "${DEPTH:-50}"
