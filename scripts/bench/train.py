"""Bench of training: pairs per second of whole steps, also beside sentence-transformers."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .measure import (
    MIB,
    alternate,
    count,
    count_or_none,
    in_fresh_process,
    peak_resident,
    print_json,
    result,
    share_device,
)
from .peers import PEER, as_peer, load_peer, peer_autocast
from .speed import (
    RANDOM_LENGTH,
    add_model_options,
    add_text_options,
    open_model,
    print_rates,
    read_texts,
)

if TYPE_CHECKING:
    from embed_jax.encoders.spec import EncoderSpec
    from embed_jax.sentence import SentenceEncoder
    from embed_jax.types import Batch, Params

DESCRIPTION = """Pairs per second of training steps, with packing, dropout, clipping and AdamW.

"fill_rate" is the share of slots that hold tokens, here and where every column of a batch is as
long as its longest text. Also tokens per second, the model's TFLOP/s (6 FLOPs a trained parameter
and token, 4 a frozen one; recomputation does not count), and their share of the device's peak where
that is known (MFU)."""
EXAMPLES = """examples:
  python -m scripts.bench train --init random --shape minilm-l6 --dtype bfloat16
  python -m scripts.bench train --batch-size 128 --against sentence-transformers --json
  python -m scripts.bench train --shape qwen3-0.6b --lora 16 --base bfloat16 --dtype bfloat16 \\
      --remat layer \\
      --words 100 --max-length 512 --row-length 512 --batch-size 512 --groups 8
  python -m scripts.bench train --loss "matryoshka(info_nce(), dims='384,256,128,64,32')" \\
      --against info_nce"""


def add_options(command: argparse.ArgumentParser) -> None:
    add_model_options(command)
    add_text_options(command)
    command.add_argument(
        "--against",
        help=f"measured side by side: {PEER}, the same model and InfoNCE there; or another loss, "
        "here",
    )
    command.add_argument(
        "--loss", default="info_nce", help="loss, as in config.loss.name (default: %(default)s)"
    )
    command.add_argument(
        "--batch-size", type=count, default=128, help="pairs in a batch (default: %(default)s)"
    )
    command.add_argument(
        "--groups",
        type=count_or_none,
        default=0,
        help="groups of a batch (default: one per device)",
    )
    command.add_argument(
        "--row-length",
        type=count_or_none,
        default=0,
        help="slots of a packed row (default: as in training)",
    )
    command.add_argument(
        "--steps", type=count, default=3, help="steps of one repetition (default: %(default)s)"
    )
    command.add_argument(
        "--lora", type=count_or_none, default=0, help="train an adapter of this rank (default: all)"
    )
    command.add_argument(
        "--base",
        choices=("float32", "bfloat16", "int8"),
        default="float32",
        help="what --lora freezes",
    )
    command.add_argument(
        "--remat", choices=("none", "dots", "layer"), default="none", help="default: %(default)s"
    )
    command.add_argument(
        "--memory",
        action="store_true",
        help="also the peak memory of a process of each side, not of an accelerator",
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns None: any options can be used."""
    return None


def bench_train(args: argparse.Namespace) -> None:
    import jax

    from embed_jax.train.speed import model_flops_utilization

    if args.against == PEER:
        share_device()
    work = Work(args)
    others = [args.against] if args.against else []
    ours = work.trainer(args.loss)
    sides = [work.steps_by(ours), *map(work.steps_of, others)]
    seconds = alternate(sides, args.repeat)
    size = args.batch_size
    rates = [[size * args.steps / second for second in side] for side in seconds]
    tokens, fills = zip(*map(_count_tokens, map(work.pack, work.batches)), strict=True)
    details = {
        "fill_rate": round(statistics.mean(fills), 3),
        "fill_rate_if_padded": round(statistics.mean(map(work.padded_fill, work.batches)), 3),
        "rows_of": work.row_length,
        "groups": work.groups,
    }
    per_second = statistics.median(rates[0]) / size * statistics.mean(tokens)
    flops = ours.flops_per_token
    details |= {"tokens_per_s": round(per_second), "tflops": round(per_second * flops / 1e12, 3)}
    mfu = model_flops_utilization(per_second, flops, jax.devices())
    details |= {} if mfu is None else {"mfu": round(mfu, 3)}
    name = f"train/{Path(args.data or 'made').name}/batch={size}" + (
        "" if args.loss == "info_nce" else f"/{args.loss}"
    )
    by_name = dict(zip(others, rates[1:], strict=True))
    print_rates(name, "pairs/s", rates[0], by_name, as_json=args.json, **details)
    if args.memory:
        _print_peaks(name, others, work, args)


def _print_peaks(name: str, others: Sequence[str], work: Work, args: argparse.Namespace) -> None:
    """Prints the peak memory of each side, which takes its steps twice in a fresh process."""
    options = {key: value for key, value in vars(args).items() if not callable(value)}

    def peak_of(side: str) -> float:
        if side != PEER:
            return in_fresh_process(__name__, "measure_peak", {"side": side, "options": options})
        with tempfile.TemporaryDirectory() as folder:
            work.model.save(Path(folder) / "model")
            peer = {"directory": f"{folder}/model", "dtype": args.dtype, "batches": work.batches}
            return in_fresh_process(__name__, "measure_peer_peak", peer)

    mine = peak_of("")
    for side, peak in [(side, peak_of(side)) for side in others] or [("", 0.0)]:
        ratio = mine / peak if peak else None
        if args.json:
            against = {"against": side} if side else {}
            print_json(result(f"{name}/peak", "MiB", mine, peak or None, ratio, 1, **against))
        else:
            than = f", {side} {peak:,.0f} MiB, ratio {ratio:.2f}" if peak else ""
            print(f"{name}, peak memory of a process: {mine:,.0f} MiB{than}")


def measure_peak(side: str, options: dict[str, Any]) -> float:
    """Returns the most MiB that this process has held, after the steps of one side here.

    Args:
        side: "" for ours, or another loss.
        options: of the command.
    """
    return _peak_after(Work(argparse.Namespace(**options)).steps_of(side))


def measure_peer_peak(directory: str, batches: list[list[str]], dtype: str) -> float:
    """Returns the most MiB that a process of sentence-transformers has held."""
    return _peak_after(their_steps(load_peer(Path(directory)), batches, dtype))


def _peak_after(steps: Callable[[], None]) -> float:
    for _ in range(2):
        steps()
    return peak_resident() / MIB


class Work:
    """A model and batches of pairs, the same for all sides.

    Attributes:
        model: the model before training.
        batches: of each step the first texts of all pairs, then the second ones.
        row_length: slots of a packed row.
        groups: groups of a batch.
    """

    def __init__(self, args: argparse.Namespace):
        from embed_jax.parallel.mesh import make_mesh, num_groups

        self._args = args
        self.model = open_model(
            args.model, args.shape, args.max_length or RANDOM_LENGTH, args.dtype
        )
        size = 2 * args.batch_size
        texts = read_texts(args.data, size * args.steps, args.words)
        self.batches = [texts[size * step : size * (step + 1)] for step in range(args.steps)]
        self.groups = num_groups(args.groups, args.batch_size, make_mesh())
        self.row_length = args.row_length or _row_length(self.model, texts)

    def pack(self, texts: Sequence[str]) -> Batch:
        """Tokenises and packs the texts of a batch."""
        return pack_pairs(self.model, texts, groups=self.groups, row_length=self.row_length)

    def padded_fill(self, texts: Sequence[str]) -> float:
        """Returns the share of tokens in a batch where each column is as long as its longest."""
        lengths = np.array([len(ids) for ids in self.model.tokenizer.encode(texts).ids])
        columns = lengths.reshape(2, -1)
        return float(lengths.sum() / (columns.max(axis=1) * columns.shape[1]).sum())

    def trainer(self, loss: str) -> Trainer:
        """Returns our training by a loss."""
        import jax

        args, model = self._args, self.model
        params = jax.tree.map(np.array, model.params)
        spec, params = add_bench_adapter(model.spec, params, args.lora, args.base)
        return Trainer(spec, params, loss, dtype=args.dtype, remat=args.remat)

    def steps_of(self, side: str) -> Callable[[], None]:
        """Returns the steps of sentence-transformers, of another loss here, or of ours for ""."""
        if side == PEER:
            return their_steps(as_peer(self.model), self.batches, self._args.dtype)
        return self.steps_by(self.trainer(side or self._args.loss))

    def steps_by(self, trainer: Trainer) -> Callable[[], None]:
        return lambda: trainer.take_all(map(self.pack, self.batches))


def _row_length(model: SentenceEncoder, texts: Sequence[str]) -> int:
    """Returns the slots of rows that training takes for these texts."""
    from embed_jax.data.pipeline import roomy_row_length, suitable_row_length

    longest = max(map(len, model.tokenizer.encode(texts).ids))
    return min(suitable_row_length(longest), roomy_row_length(model.max_length))


# ---- our steps -----------------------------------------------------------------------------------


def add_bench_adapter(
    spec: EncoderSpec, params: Params, rank: int, base: str
) -> tuple[EncoderSpec, Params]:
    """Returns a model with an adapter of a rank beside a base stored as `base`; 0: as it is."""
    import jax

    from embed_jax.config import Lora
    from embed_jax.train.model_changes import add_adapter, store_frozen

    # To be merged: not each adapter can be written by itself, and none is here.
    adapter = Lora(rank=rank, base=base, merge=True)
    return add_adapter(spec, store_frozen(params, adapter), adapter, jax.random.key(0))


class Trainer:
    """A model in training: its state, and the compiled step that changes it.

    Attributes:
        encoder: the encoder that is trained.
        flops_per_token: of a step, without attention; see `training_flops_per_token`.
        optimizer: AdamW with clipping, see `config.Optim`.
        mesh: all devices, or as many as were asked for.
        state: the present state.
        step: `(state, batch, key) -> (state, metrics)`.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        params: Params,
        expression: str,
        *,
        dtype: str = "float32",
        remat: str = "none",
        devices: int = 0,
    ):
        import jax

        from embed_jax.config import Optim
        from embed_jax.encoders.build import build_encoder
        from embed_jax.encoders.lora import split_trainable
        from embed_jax.losses.expression import build_loss
        from embed_jax.parallel.gather import global_loss
        from embed_jax.parallel.mesh import make_mesh, replicate
        from embed_jax.train.optim import make_optimizer
        from embed_jax.train.speed import training_flops_per_token
        from embed_jax.train.step import init_state, make_train_step
        from embed_jax.types import BASE

        self.optimizer = make_optimizer(
            Optim(learning_rate=1e-5, schedule="constant", weight_decay=0.01), 1000
        )
        self.mesh, self._key = make_mesh(devices), jax.random.key(0)
        trained, base = split_trainable(params, spec)
        self.flops_per_token = training_flops_per_token(trained, base)
        self.encoder = build_encoder(spec, compute_dtype=dtype, remat=remat)
        loss = build_loss(expression)
        objective = global_loss(self.encoder, loss.on_world, self.mesh, layers=loss.about.layers)
        self.step: Any = make_train_step(objective, self.optimizer)
        every = {"encoder": trained, "loss": loss.init(self.encoder.dim, self._key)}
        frozen = {BASE: base} if base else {}
        self.state = replicate(
            init_state(replicate(every, self.mesh), self.optimizer, replicate(frozen, self.mesh)),
            self.mesh,
        )

    def place(self, batch: Batch) -> Batch:
        """Puts a batch on the devices."""
        from embed_jax.parallel.mesh import split_groups

        return split_groups(batch, self.mesh)

    def compile(self, placed: Batch) -> Any:
        """Compiles the step for the shapes of a batch, and returns the program."""
        self.step = self.step.lower(self.state, placed, self._key).compile()
        return self.step

    def take(self, placed: Batch) -> dict[str, Any]:
        """Takes a step, and returns its metrics before they are computed."""
        self.state, metrics = self.step(self.state, placed, self._key)
        return metrics

    def take_all(self, batches: Any) -> None:
        """Takes a step with each batch, and waits for the last."""
        import jax

        for batch in batches:
            metrics = self.take(self.place(batch))
        jax.block_until_ready(metrics)


def pack_pairs(
    model: SentenceEncoder, texts: Sequence[str], *, groups: int, row_length: int
) -> Batch:
    """Tokenises and packs a batch whose second half are the positives of the first."""
    from embed_jax.data.pack import pack_batch

    ids, size = model.tokenizer.encode(texts).ids, len(texts) // 2
    tokens, order = pack_batch([ids[:size], ids[size:]], groups=groups, row_length=row_length)
    return batch_of_pairs(tokens, order)


def batch_of_pairs(tokens: Any, order: np.ndarray) -> Batch:
    """Returns the batch of packed pairs, all of whose texts are different.

    Args:
        tokens: leaves `[G, R, T]`, of two texts an example.
        order: `[G, E]`, the examples of each group.
    """
    from embed_jax.types import Batch

    groups, examples = order.shape
    present = np.ones((groups, 2, examples), bool)
    text_hash = np.random.default_rng(0).integers(0, 2**32, (*present.shape, 2), np.uint32)
    return Batch({"encoder": tokens}, present, text_hash, order)


def _count_tokens(batch: Batch) -> tuple[int, float]:
    """Returns the tokens of a batch, and their share of its slots."""
    from embed_jax.data.pack import fill_rate

    tokens = batch.tokens["encoder"]
    fill = fill_rate(tokens)
    return round(fill * tokens.sentence.size), fill


# ---- sentence-transformers' ----------------------------------------------------------------------


def their_steps(other: Any, batches: Sequence[Sequence[str]], dtype: str) -> Callable[[], None]:
    """Returns the same steps of a model in sentence-transformers.

    MultipleNegativesRankingLoss, clipping, AdamW, dropout on.
    """
    import torch
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    other.train()
    loss = MultipleNegativesRankingLoss(other)
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-5, weight_decay=0.01)
    device = other.device
    autocast = peer_autocast(device.type, dtype)

    def steps() -> None:
        for batch in batches:
            size = len(batch) // 2
            columns = [other.preprocess(batch[:size]), other.preprocess(batch[size:])]
            columns = [
                {
                    name: value.to(device) if hasattr(value, "to") else value
                    for name, value in column.items()
                }
                for column in columns
            ]
            with autocast:
                value = loss(columns, None)
            value.backward()
            torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        value.item()

    return steps
