"""Embeddings that can be cut: Matryoshka representations (Kusupati et al. 2022), adaptive layers.

    python -m experiments.matryoshka --config=configs/matryoshka/nli.py --workdir=runs/matryoshka

The loss says which sizes are trained: `loss.name = "matryoshka(info_nce(), dims='384,128,32')"`,
and with `adaptive_layers(...)` around it also earlier layers. `eval.baseline` names a loss without
sizes, with which the same model is trained on the same batches, in WORKDIR/baseline. A loss
without sizes by itself is measured at those of `eval.dims`, too. Afterwards `eval.test_sts` is
measured at every size of `eval.dims` and number of layers of `eval.layers`, of both and of the
model before: a table, by_size.json, by_size.png.
"""

import copy
from pathlib import Path

from embed_jax import config as configs
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.evals.by_size import (
    numbers,
    plot_by_size,
    print_by_size,
    spearman_by_size,
    write_by_size,
)
from embed_jax.losses.expression import build_loss
from embed_jax.runtime import is_first_host, say
from embed_jax.sentence import load_sentence_encoder
from embed_jax.train import loop
from embed_jax.train.evaluation import sts_evaluators, sts_tests
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.model import model_before
from embed_jax.train.objective import training_loss

from .nli import read_data


def run(config: configs.Experiment, workdir: Path) -> loop.Result:
    # The loss says which sizes and layers are trained; a plain one is cut all the same.
    loss = training_loss(config)
    if not (loss.about.dims or loss.about.layers or config.eval.dims or config.eval.layers):
        raise InputError(
            "config.loss.name: expected matryoshka(...) or adaptive_layers(...), or sizes to "
            f"measure in config.eval.dims, found {loss.name}"
        )
    if config.eval.baseline:
        build_loss(config.eval.baseline)  # fail early
    tests = sts_tests(config)  # fail early: needed only at the end
    before = model_before(config)
    if before.routes:
        raise InputError("config.model: sizes are compared of one encoder, found two towers")
    depth, trained = before.spec.backbone.num_layers, loss.about.dims or (before.dim,)
    sizes = numbers(config.eval.dims or ",".join(map(str, trained)), "config.eval.dims", before.dim)
    layers = numbers(config.eval.layers or str(depth), "config.eval.layers", depth)
    sizes, layers = (
        sorted({before.dim, *sizes}, reverse=True),
        sorted({depth, *layers}, reverse=True),
    )
    if before.dim not in trained:
        say(f"the whole size {before.dim} is not among the trained ones")

    # Data and evaluation, as for any supervised training.
    sources, validation = read_data(config)
    evaluators = sts_evaluators(config)

    # Training, and the same without sizes.
    result = fit(config, workdir, sources=sources, evaluators=evaluators, validation=validation)
    models = {"before": before}
    if result.finished and config.eval.baseline:
        plain = copy.deepcopy(config)
        plain.loss.name = config.eval.baseline
        say(f"baseline: {config.eval.baseline}")
        sources, validation = read_data(plain)
        result = fit(
            plain,
            workdir / "baseline",
            sources=sources,
            evaluators=evaluators,
            validation=validation,
        )
        models["baseline"] = load_sentence_encoder(str(workdir / "baseline" / "model"))

    # Afterwards, at every size, on test.
    if result.finished and tests:
        models["trained"] = load_sentence_encoder(str(workdir / "model"))
        scores = {
            name: spearman_by_size(models[name].encode, tests, sizes, layers)
            for name in reversed(models)
        }
        if is_first_host():
            print_by_size(scores, trained)
            write_by_size(scores, trained, workdir / "by_size.json")
            plot_by_size(scores, trained, workdir / "by_size.png", title=", ".join(tests))
    return result


def main() -> None:
    launch(run, "matryoshka")


if __name__ == "__main__":
    exit_with_one_line(main)
