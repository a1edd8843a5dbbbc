"""Experiments: `python -m experiments.simcse --help` and the others beside it."""

from embed_jax.huge_pages import restart_module_with_huge_pages

restart_module_with_huge_pages()
