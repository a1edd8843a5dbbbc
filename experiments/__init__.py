"""Experiments: `python -m experiments.simcse --help` and the others beside it."""

import sys

from embed_jax.huge_pages import restart_with_huge_pages

if sys.argv[:1] == ["-m"]:  # Python is looking for the experiment: nothing slow is imported yet
    restart_with_huge_pages()
