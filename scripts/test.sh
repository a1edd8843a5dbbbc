#!/usr/bin/env bash
# Environment, lint, types, spelling and all tests except the slow ones. Arguments go to pytest:
#   bash scripts/test.sh                   bash scripts/test.sh tests/evals -k ndcg                bash scripts/test.sh -m slow
set -euo pipefail
source "$(dirname "$0")/setup_env.sh"
setup_env train,data,search,lance,eval,serve,plots,test
"$VENV_PYTHON" -m ruff check .
"$VENV_PYTHON" -m ruff format --check --quiet .
"$VENV_PYTHON" -m mypy
"$(dirname "$VENV_PYTHON")/typos" .
# Two processes: compiling is most of the work, and one of them compiles on one core. Files in the order of
# tests/conftest.py, the longest first.
"$VENV_PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" "$@"
