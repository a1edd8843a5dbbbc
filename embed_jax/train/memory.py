"""Plans the memory of a training step: assembled from shapes and compiled, nothing is allocated.

    plan = plan_memory(config, columns=3, tokens=128, shape="mistral-7b")
    plan.peak / 2**30  # GiB of one device

`python -m scripts.bench memory --config FILE` prints it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

from embed_jax.config import Experiment
from embed_jax.errors import InputError

if TYPE_CHECKING:
    from embed_jax.train.assembly import Assembly

SHAPE_OF = {  # of models on the hub
    "mistralai/Mistral-7B-v0.1": "mistral-7b",
    "meta-llama/Llama-2-7b-hf": "llama2-7b",
    "meta-llama/Meta-Llama-3-8B": "llama3-8b",
    "meta-llama/Llama-3.2-1B": "llama3.2-1b",
    "princeton-nlp/Sheared-LLaMA-1.3B": "sheared-llama-1.3b",
    "Qwen/Qwen2-1.5B": "qwen2-1.5b",
    "Qwen/Qwen2-7B": "qwen2-7b",
    "Qwen/Qwen3-0.6B-Base": "qwen3-0.6b",
    "Qwen/Qwen3-4B-Base": "qwen3-4b",
    "Qwen/Qwen3-8B-Base": "qwen3-8b",
    "google/gemma-2b": "gemma-2b",
    "google/gemma-2-2b": "gemma2-2b",
    "bert-base-uncased": "bert-base",
}


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """Memory that a training step takes of one device, in bytes, by the compiler's plan.

    Attributes:
        run: the abstract run.
        sizes: bytes by what they hold: parameters, optimiser, batch, and what the step also needs.
        embeddings: bytes of the gathered embeddings, which are a part of the last of `sizes`.
        peak: the sum of `sizes`.
        seconds: time of the compilation.
    """

    run: Assembly
    sizes: dict[str, int]
    embeddings: int
    peak: int
    seconds: float


def plan_memory(config: Experiment, columns: int, tokens: int, shape: str = "") -> MemoryPlan:
    """Compiles the training step of a run on the present devices, and returns its memory.

    Args:
        config: see `plan_run`.
        columns: see `plan_run`.
        tokens: see `plan_run`.
        shape: see `plan_run`.

    Raises:
        InputError: see `plan_run`.
    """
    run, arguments = plan_run(config, columns, tokens, shape)
    began = time.perf_counter()
    plan = compiled_bytes(run.step.lower(*arguments).compile())
    seconds = time.perf_counter() - began
    sizes = {
        "parameters, trained": local_bytes(run.state.params),
        "parameters, frozen": local_bytes(run.state.frozen),
        "optimiser": local_bytes(run.state.opt_state),
        "batch": local_bytes(arguments[1]),
        "gradients, activations, gathered": plan["temporaries"] + plan["outputs"],
    }
    embeddings = config.batch.size * columns * run.model.encoder.dim * 4
    return MemoryPlan(run, sizes, embeddings, sum(plan.values()), seconds)


def shape_of(name: str, shape: str = "") -> str:
    """Returns the shape of a model by its name.

    Raises:
        InputError: for a name with an unknown shape.
    """
    shape = (
        shape or name.removeprefix("random:") * name.startswith("random:") or SHAPE_OF.get(name, "")
    )
    if not shape:
        raise InputError(
            f"config.model.name: the shape of {name!r} is not known; name a shape (--shape)"
        )
    return shape


def plan_run(
    config: Experiment, columns: int, tokens: int, shape: str = ""
) -> tuple[Assembly, tuple[Any, Any, Any]]:
    """Assembles a run of the model's shape with nothing allocated.

    Args:
        config: of the run.
        columns: texts per example, if the objective takes that many.
        tokens: per text.
        shape: replaces the shape that is known for the model's name.

    Returns:
        The run, and the abstract arguments of its step: state, batch and key.

    Raises:
        InputError: for a loss that needs labels, scores, or another model's embeddings.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from embed_jax.parallel.mesh import BATCH_AXES, place_abstract
    from embed_jax.train.assembly import assemble
    from embed_jax.train.data import abstract_batch, row_length
    from embed_jax.train.model import abstract_model

    model = abstract_model(config, shape_of(config.model.name, shape))
    run = assemble(config, model=model, abstract=True)
    if needs := run.objective.about.needs:
        raise InputError(
            f"config.loss.name: {config.loss.name!r} needs a {needs[0]}; a plan is only for "
            "losses of texts"
        )
    columns = min(columns, run.objective.about.columns[1] or columns)
    length = row_length(config, config.data.max_length)
    examples = config.batch.size // run.groups
    rows = config.batch.rows or -(-columns * examples // max(length // tokens, 1))
    batch = abstract_batch(run.groups, columns, examples, rows, length)
    by_group = NamedSharding(run.mesh, PartitionSpec(BATCH_AXES))
    whole = NamedSharding(run.mesh, PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    jnp.zeros(())  # the backend exists before the first lowering
    return run, (run.state, place_abstract(batch, by_group), place_abstract(key, whole))


def local_bytes(tree: Any) -> int:
    """Returns the bytes of a device's shards of all leaves."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def compiled_bytes(compiled: Any) -> dict[str, int]:
    """Returns the bytes that a compiled program needs on a device, by the compiler's plan.

    Returns:
        "arguments", "outputs" (without those that reuse a donated argument's place), "temporaries".
    """
    plan = compiled.memory_analysis()
    return {
        "arguments": plan.argument_size_in_bytes,
        "outputs": plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "temporaries": plan.temp_size_in_bytes,
    }
