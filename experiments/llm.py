"""Embedding models from language models: E5-Mistral, Qwen3-Embedding, LLM2Vec, NV-Embed.

    python -m experiments.llm --config=configs/llm/e5_mistral.py --workdir=runs/e5_mistral

A decoder's last (or mean) token state becomes the embedding. `lora.rank` trains an adapter beside
frozen parameters, 0 trains all parameters; queries get `data.anchor_instruction` in
`data.template`. The kind of data says what a stage does: an objective on tokens
(`loss.name="mntp"`) is `experiments.mlm`, single texts are `experiments.simcse`, and pairs with or
without hard negatives are trained on as they are. So LLM2Vec's three steps are one config with two
more stages.
"""

import dataclasses
from pathlib import Path

from embed_jax import config as configs
from embed_jax.embedding_model import TextEncoder
from embed_jax.encoders.token_objectives import is_token_objective
from embed_jax.errors import exit_with_one_line
from embed_jax.routed import load_routed
from embed_jax.runtime import say
from embed_jax.train import loop
from embed_jax.train.evaluation import (
    report_sts,
    search_evaluators,
    sts_evaluators,
    sts_tests,
    write_results,
)
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.sources import read_records

from . import mlm, retrieval, simcse


def run(config: configs.Experiment, workdir: Path) -> loop.Result:
    if is_token_objective(config.loss.name):
        return mlm.run(config, workdir)
    if (
        not vars(config.mixture.sources)
        and "text" in read_records(dataclasses.replace(config.data, limit=1))[0]
    ):
        return simcse.run(config, workdir)

    # Data: pairs or n-tuples, each data set of a mixture with its own instruction; negatives may be
    # mined.
    sources, validation, tasks = retrieval.read_data(config, workdir)

    # Evaluation: queries have the instruction of the training.
    evaluators = sts_evaluators(config)
    if "validation" in tasks:
        evaluators |= search_evaluators(config, tasks["validation"])
    tests = sts_tests(config)  # fail early: needed only at the end
    search = search_evaluators(config, tasks["test"])["retrieval"] if "test" in tasks else None

    # Training.
    result = fit(config, workdir, sources=sources, evaluators=evaluators, validation=validation)

    # Afterwards, once, on test data.
    results = {}
    if result.finished and tests:
        results = report_sts(tests, config, workdir, result.unchanged)
    if result.finished and search:
        scores = search(TextEncoder(load_routed(workdir / "model")))
        say("test: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items()))
        write_results(
            workdir,
            "llm",
            results | {f"test/{name}": value for name, value in scores.items()},
            result.unchanged,
        )
    return result


def main() -> None:
    launch(run, "llm")


if __name__ == "__main__":
    exit_with_one_line(main)
