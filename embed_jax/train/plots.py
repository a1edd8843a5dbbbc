"""Pictures of a run, from its metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from embed_jax.errors import require


def plot_curves(metrics_file: Path, output: Path) -> None:
    """Draws the training loss with the validation loss, similarities, and every evaluated metric by step.

    Raises:
        InputError: if matplotlib is missing.
    """
    require("matplotlib", "plots")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in metrics_file.read_text(encoding="utf-8").splitlines()]

    def series(name: str) -> tuple[list[int], list[float]]:
        found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        return [step for step, _ in found], [value for _, value in found]

    evaluated = [
        name for name in dict.fromkeys(name for line in lines for name in line) if "/" in name
    ]
    evaluated = [
        name for name in evaluated if not name.startswith(("validation/", "geometry/", "loss/"))
    ]
    figure, (losses, similarities, metrics) = pyplot.subplots(
        1, 3, figsize=(15, 4), layout="constrained"
    )

    losses.plot(*series("loss"), color="tab:blue", alpha=0.7, linewidth=1, label="training, batch")
    losses.plot(
        *series("validation/loss"), "o-", color="tab:orange", label="validation (no dropout)"
    )
    losses.set(title="Loss", xlabel="step", ylabel="nats per anchor")

    similarities.plot(*series("positive_similarity"), color="tab:green", label="positive")
    similarities.plot(
        *series("hardest_negative_similarity"), color="tab:red", label="hardest in-batch negative"
    )
    similarities.plot(*series("accuracy"), color="tab:gray", linewidth=1, label="in-batch accuracy")
    similarities.set(
        title="Similarity in the batch", xlabel="step", ylabel="cosine, share", ylim=(None, 1.02)
    )

    for name in evaluated:
        metrics.plot(*series(name), "o-", markersize=4, label=name)
    metrics.set(title="Evaluation", xlabel="step", ylabel="score")

    for axes in (losses, similarities, metrics):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
    figure.savefig(output, dpi=120)
    pyplot.close(figure)
