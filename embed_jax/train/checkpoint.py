"""Checkpoints of a training state. The only file that imports orbax, whose names still move."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from embed_jax.errors import InputError, RunError, one_line
from embed_jax.types import Params, TrainState


class Checkpoints:
    """The checkpoints of one run, in `directory/STEP`, the newest `keep` of them.

    Saving is asynchronous and atomic: a checkpoint is either whole or not there. Use it as a
    context manager, or call `close`, so that the last save is finished.
    """

    def __init__(self, directory: Path, keep: int):
        from orbax.checkpoint import v1 as ocp

        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax tells every save in several lines
        self._ocp = ocp
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            # When to save is the loop's decision.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: TrainState, notes: dict[str, Any]) -> None:
        """Starts saving; waits first until an earlier save has ended.

        `notes` is JSON beside the arrays.
        """
        # The step that follows gives the state's buffers away while they are being written: write
        # from a copy.
        copy = jax.tree.map(jnp.copy, _as_dict(state))
        try:
            self._checkpointer.wait()
            about = {"notes": notes, "shapes": _shapes(state)}
            self._checkpointer.save_async(
                step, copy, force=True, overwrite=True, custom_metadata=about
            )
        except OSError as error:
            raise RunError(
                f"could not save a checkpoint at step {step}: {one_line(error)}"
            ) from error

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]] | None:
        """Reads the newest checkpoint that can be read, and its notes; None without a checkpoint.

        A damaged checkpoint is named on stderr and skipped.

        Args:
            like: a state of the expected structure, shapes, dtypes and shardings.

        Raises:
            InputError: if a checkpoint is of another architecture or optimiser.
            RunError: if there are checkpoints and every one is damaged.
        """
        targets = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
            _as_dict(like),
        )
        steps = sorted((metadata.step for metadata in self._checkpointer.checkpoints), reverse=True)
        for step in steps:
            try:
                about = self._checkpointer.metadata(step).custom_metadata
                _refuse_mismatch(
                    about["shapes"], _shapes(like), self._checkpointer.directory / str(step)
                )
                state = self._checkpointer.load(step, targets)
            except InputError:
                raise
            except Exception as error:  # whatever a damaged file makes orbax or tensorstore raise
                # Else it prints the other readers' tracebacks.
                logging.getLogger("asyncio").setLevel(logging.CRITICAL)
                print(
                    f"checkpoint {step} is damaged and passed over: {one_line(error)[:200]}",
                    file=sys.stderr,
                )
                continue
            for newer in steps[: steps.index(step)]:
                self._checkpointer.delete(newer, missing_ok=True)
            return like.replace(**state), about["notes"]
        if steps:
            raise RunError(
                f"{self._checkpointer.directory}: none of the checkpoints {steps} can be read"
            )
        return None

    def latest_step(self) -> int | None:
        """Returns the step of the newest whole checkpoint."""
        self._checkpointer.wait()
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def close(self) -> None:
        """Waits until the last save is on disk."""
        self._checkpointer.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def saved_steps(directory: Path) -> list[int]:
    """Returns the steps of the whole checkpoints in a directory, ascending.

    It changes nothing: a run there may go on.
    """
    return sorted(int(path.name) for path in directory.glob("[0-9]*") if path.name.isdecimal())


def read_encoder(directory: Path, step: int, like: Params) -> Params:
    """Reads the encoder's trained parameters in a checkpoint, as NumPy arrays.

    Nothing else of the state is read, nothing is changed.

    Args:
        directory: of the checkpoints.
        step: of the checkpoint.
        like: arrays of the expected structure, shapes and dtypes.

    Raises:
        InputError: if the checkpoint is of another architecture.
        RunError: if it cannot be read.
    """
    from orbax.checkpoint import v1 as ocp

    place = directory.absolute() / str(step)
    expected = {
        "params": {"encoder": jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), like)}
    }
    shapes = _leaf_shapes(expected["params"])
    try:
        stored = ocp.metadata(place).custom_metadata["shapes"]
        stored = {path: shape for path, shape in stored.items() if path.startswith("encoder/")}
        _refuse_mismatch(
            stored, shapes, place, "config.json, or the model that it names, has changed"
        )
        loading = ocp.options.PyTreeOptions.Loading(partial_load=True)
        with ocp.Context(pytree_options=ocp.options.PyTreeOptions(loading=loading)):
            return ocp.load(place, expected)["params"]["encoder"]
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file makes orbax or tensorstore raise
        raise RunError(
            f"{place}: the checkpoint cannot be read: {one_line(error)[:200]}"
        ) from error


def read_state(place: Path, like: TrainState) -> TrainState:
    """Reads the whole training state of one checkpoint, of any run.

    It is step, parameters and optimiser state.

    Args:
        place: the checkpoint, RUN/checkpoints/STEP.
        like: a state of the expected structure, shapes, dtypes and shardings.

    Raises:
        InputError: if there is no checkpoint, or it is of another architecture or optimiser.
    """
    from orbax.checkpoint import v1 as ocp

    field, place = "config.train.from_checkpoint", place.absolute()
    if not (place.is_dir() and place.name.isdecimal()):
        raise InputError(f"{field}: expected a checkpoint, RUN/checkpoints/STEP, found {place}")
    targets = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding),
        _as_dict(like),
    )
    try:
        shapes = ocp.metadata(place).custom_metadata["shapes"]
        _refuse_mismatch(shapes, _shapes(like), place, "use a config of the same model")
        return like.replace(**ocp.load(place, targets))
    except InputError:
        raise
    except Exception as error:  # whatever a damaged file, or another optimiser's state, makes raise
        raise InputError(
            f"{field}: {place} cannot be read as a state of this config's optimiser: "
            f"{one_line(error)[:200]}"
        ) from None


def _as_dict(state: TrainState) -> dict[str, Any]:
    extra = {"extra": state.extra} if state.extra else {}
    return {"step": state.step, "params": state.params, "opt_state": state.opt_state, **extra}


def _shapes(state: TrainState) -> dict[str, list[int]]:
    """The shapes of the parameters and of what a step carries to the next, by path."""
    return _leaf_shapes({**state.params, "extra": state.extra} if state.extra else state.params)


def _leaf_shapes(tree: Params) -> dict[str, list[int]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
        for path, leaf in leaves
    }


def _refuse_mismatch(
    shapes: dict[str, list[int]],
    expected: dict[str, list[int]],
    where: Any,
    advice: str = "use another --workdir",
) -> None:
    for path in sorted(shapes.keys() | expected.keys()):
        if shapes.get(path) != expected.get(path):
            raise InputError(
                f"{where}: checkpoint of another architecture: {path} has shape "
                f"{shapes.get(path, 'none')}, "
                f"this model's has {expected.get(path, 'none')}; {advice}"
            )
