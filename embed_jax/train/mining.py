"""Hard negatives that a run mines at its start and again with the trained model (ANCE).

Xiong et al. (2021), "Approximate Nearest Neighbor Negative Contrastive Learning for Dense Text
Retrieval". The negatives are recorded in the work directory, and a resumed run reads it instead of
searching again.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax import cross_encoder
from embed_jax.atomic import replaced
from embed_jax.config import Experiment
from embed_jax.data.pairs import CARRIED, rename_columns
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import pair_columns, record_fields
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.retrieval.copies import Fold, token_fold
from embed_jax.retrieval.mine import (
    Mined,
    Report,
    bm25_searcher,
    corpus_with,
    dense_searcher,
    mine_negatives,
)
from embed_jax.retrieval.mined import n_tuple, scored_list
from embed_jax.retrieval.mining_candidates import Mining, Searcher
from embed_jax.retrieval.round_trip import round_trip_filter
from embed_jax.retrieval.topk import Encode, prompted
from embed_jax.runtime import is_first_host, say
from embed_jax.train.prompts import given_prompts
from embed_jax.train.sources import ONLY
from embed_jax.train.workdir import settings_digest

STRATEGIES = ("bm25", "dense")


def mined_sources(
    records: Sequence[Mapping[str, Any]],
    corpus: Sequence[str],
    config: Experiment,
    workdir: Path,
    *,
    lists: bool,
) -> Callable[[int, Encode], dict[str, RecordSource]]:
    """Returns the data of `fit` with mined negatives, as a function of step and model.

    The pairs that are consistent, with hard negatives as the model finds them.

    Args:
        records: pairs; negatives that they have already are replaced if there is a strategy.
        corpus: texts to look among, beside the positives.
        config: see `config.MiningSettings` and `data.consistency`.
        workdir: `mined/STEP-DIGEST.jsonl` is written there, and read if it is there already.
        lists: as scored lists, by the cross-encoder or else by the searcher, for losses that need
            scores; pairs with fewer negatives than asked for are then left out. Otherwise a pair
            without a negative stays a pair.

    Raises:
        InputError: for settings that cannot be, or if every pair or candidate is filtered out.
    """
    names = _strategies(config, lists)
    options = mining_options(config)
    pairs = rename_columns(records, pair_columns(records), CARRIED)
    lacking = Report()
    texts = corpus_with(pairs, corpus, lacking)
    score = (
        cross_encoder.load_cross_encoder(config.mine.cross_encoder).score
        if config.mine.cross_encoder
        else None
    )
    prompts = given_prompts(config)
    bm25 = functools.cache(lambda: bm25_searcher(texts))
    made_of = settings_digest(config, itertools.chain(pairs, texts))

    def searcher(name: str, encode: Encode) -> Searcher:
        if name == "bm25":
            return bm25()
        queries, documents = prompted(encode, *prompts)
        return dense_searcher(
            queries, documents, texts, similarity=config.loss.similarity or "cosine"
        )

    def consistent(encode: Encode) -> Sequence[Mapping[str, Any]]:
        search = searcher("dense", encode).search
        consistent_pairs = list(round_trip_filter(pairs, search, config.data.consistency, texts))
        say(
            f"consistent: {len(consistent_pairs)} of {len(pairs)} pairs have their positive among "
            f"{config.data.consistency}"
        )
        if not consistent_pairs:
            raise InputError(
                f"config.data.consistency: none of {len(pairs)} pairs has its positive among the "
                "found"
            )
        return consistent_pairs

    def negatives(
        chosen: Sequence[Mapping[str, Any]], encode: Encode, step: int
    ) -> list[dict[str, Any]]:
        report = Report(lacking=lacking.lacking, positives=lacking.positives)
        blocks = mine_negatives(
            chosen,
            texts,
            [searcher(name, encode) for name in names],
            options,
            score=score,
            report=report,
            fold=_fold(encode),
        )
        mined_records = [
            record for block in blocks for record in _records(block, config.mine.number, lists)
        ]
        say(f"hard negatives at step {step}: {report}")
        if not mined_records:
            raise InputError(f"config.mine.number: no pair has {config.mine.number} negatives")
        return mined_records

    def recorded(
        name: str, make: Callable[[], Sequence[Mapping[str, Any]]]
    ) -> Sequence[Mapping[str, Any]]:
        """Reads records from the file of that name, or makes them and writes it."""
        file = workdir / "mined" / f"{name}-{made_of}.jsonl"
        if file.exists():
            return [json.loads(line) for line in file.open(encoding="utf-8")]
        made = make()
        if is_first_host():
            _write(file, made)
        return made

    def sources_at(step: int, encode: Encode) -> dict[str, RecordSource]:
        # Consistency is the first model's judgement; what is written at step 0 is read afterwards.
        current = (
            recorded("pairs", lambda: consistent(encode)) if config.data.consistency else pairs
        )
        if names:
            current = recorded(str(step), lambda: negatives(current, encode, step))
        return {ONLY: RecordSource(current, record_fields(current))}

    return sources_at


def _strategies(config: Experiment, lists: bool) -> list[str]:
    names = [name.strip() for name in config.mine.strategy.split(",") if name.strip()]
    for name in names:
        if name not in STRATEGIES:
            raise InputError(unknown("config.mine.strategy", name, STRATEGIES))
    if lists and len(names) > 1 and not config.mine.cross_encoder:
        raise InputError(
            "config.mine.cross_encoder: scores of several strategies cannot be compared, name a "
            "model"
        )
    return names


def mining_options(config: Experiment) -> Mining:
    """Returns the options of `config.mine` for `retrieval.mine_negatives`.

    Raises:
        InputError: naming the field.
    """
    mine = config.mine
    margins = {
        name: value
        for name in ("absolute_margin", "relative_margin")
        if (value := getattr(mine, name)) != -1
    }
    if mine.score_max != -1:
        margins["score_max"] = mine.score_max
    try:
        return Mining(
            number=mine.number,
            rank_min=mine.rank_min,
            rank_max=mine.rank_max,
            sampling=mine.sampling,
            seed=config.train.seed,
            **margins,
        )
    except InputError as error:
        raise InputError(f"config.mine: {error}") from None


def _fold(encode: Encode) -> Fold | None:
    """Returns the fold of the tokenizer of a `TextEncoder`; None for a plain function."""
    tokenizer = getattr(encode, "tokenizer", None)
    return token_fold(tokenizer) if tokenizer is not None else None


def _records(block: Sequence[Mined], number: int, lists: bool) -> list[dict[str, Any]]:
    if not lists:
        return [n_tuple(pair) for pair in block]
    return [
        {**scored_list(pair), **pair.carried} for pair in block if len(pair.negatives) == number
    ]


def _write(file: Path, records: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced(file) as beside, beside.open("w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
