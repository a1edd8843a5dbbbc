"""Pairs of query and passage in packed batches, and negatives from the whole batch."""

import dataclasses

import numpy as np
import pytest

from embed_jax.data.pair_rows import draw_negatives
from embed_jax.data.pipeline import make_batch_maker
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import RecordFields
from embed_jax.data.tokenizer_files import load_tokenizer

RECORDS = [
    {
        "query": f"music {number}",
        "passages": [f"red house {number}", f"blue river {number}"][: 1 + number % 2],
        "scores": [1.0, 0.5][: 1 + number % 2],
        "group": str(number // 6),
    }
    for number in range(24)
]


@pytest.fixture
def make(tiny_tokenizer):
    fields = RecordFields(
        lambda record: (record["query"], *record["passages"]),
        score=lambda record: record["scores"],
        keys=lambda record: (record["group"],),
    )
    # Lists of unequal length: the widest record decides the number of columns.
    source = RecordSource(RECORDS[1::2], fields)

    def maker(**options):
        defaults = {"batch_size": 8, "groups": 4, "row_length": 32, "rows": 6}
        tokenizer = load_tokenizer(tiny_tokenizer, 20)
        defaults["pairs"] = tokenizer.encode_pairs
        return tokenizer, make_batch_maker(
            [source], tokenizers={"encoder": tokenizer}, **defaults | options
        )

    return maker


def texts_of(tokenizer, batch):
    """Returns {(group, sentence): decoded text} of a batch's view of the encoder."""
    view, texts = batch.tokens["encoder"], {}
    for group in range(view.token_ids.shape[0]):
        for sentence in range(view.sentences):
            ids = view.token_ids[group][view.sentence[group] == sentence]
            texts[group, sentence] = tokenizer.hf.decode(ids) if len(ids) else ""
    return texts


def test_a_pair_is_a_sentence_and_the_query_by_itself_is_none(make):
    tokenizer, maker = make()
    batch = maker(np.arange(8), 0)
    view = batch.tokens["encoder"]
    texts, examples = texts_of(tokenizer, batch), batch.record.shape[1]
    for group, members in enumerate(batch.record):
        for place, record in enumerate(members):
            query, passages = RECORDS[1 + 2 * record]["query"], RECORDS[1 + 2 * record]["passages"]
            assert texts[group, place] == ""
            for column, passage in enumerate(passages, 1):
                sentence = column * examples + place
                assert texts[group, sentence] == f"[CLS] {query} [SEP] {passage} [SEP]"
                mine = view.sentence[group] == sentence
                tokens = view.token_ids[group][mine]
                after = np.cumsum(tokens == tokenizer.hf.sep_token_id) - (
                    tokens == tokenizer.hf.sep_token_id
                )
                np.testing.assert_array_equal(view.segment[group][mine], after)
    np.testing.assert_array_equal(batch.score[0, 0], [1.0, 0.5])
    assert batch.present.all()


@pytest.mark.parametrize("number", [0, 3])
def test_hosts_together_make_the_batch_of_one(make, number):
    _, whole = make(in_batch_negatives=number, shares=2)
    hosts = [make(in_batch_negatives=number, shares=2, shard=(host, 2))[1] for host in range(2)]
    expected = whole(np.arange(8), 5)
    parts = [host(np.arange(8), 5) for host in hosts]
    for name in ("present", "text_hash", "record", "score"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(expected, name), err_msg=name)
    for field in dataclasses.fields(expected.tokens["encoder"]):
        values = [getattr(part.tokens["encoder"], field.name) for part in parts]
        if isinstance(values[0], np.ndarray):
            np.testing.assert_array_equal(
                np.concatenate(values), getattr(expected.tokens["encoder"], field.name)
            )


def test_negatives_are_a_function_of_seed_and_step(make):
    def hashes(step, **options):
        return make(in_batch_negatives=2, **options)[1](np.arange(8), step).text_hash[:, 3:]

    assert np.array_equal(hashes(4), hashes(4))
    assert not np.array_equal(hashes(4), hashes(5))
    assert not np.array_equal(hashes(4), hashes(4, seed=1))


def test_scores_of_drawn_negatives_are_zero(make):
    batch = make(in_batch_negatives=2)[1](np.arange(8), 0)
    assert batch.score.shape[-1] == 4 and not batch.score[..., 2:].any()


def test_no_known_positive_is_drawn():
    rng = np.random.default_rng(0)
    queries, positives, groups = rng.integers(12, size=(3, 40))
    rows = [
        [f"query {query}", f"passage {positive}", f"passage {(positive + 1) % 12}"]
        for query, positive in zip(queries, positives, strict=True)
    ]
    keys = [[str(group) if group else ""] for group in groups]
    drawn = draw_negatives(rows, keys, number=4, seed=0, step=3)
    assert any(None not in texts for texts in drawn), "some examples have enough"
    for example, texts in enumerate(drawn):
        texts = [text for text in texts if text is not None]
        assert len(set(texts)) == len(texts) and not set(texts) & set(rows[example])
        known = {row[1] for row in rows if row[0] == rows[example][0]}
        assert not set(texts) & known
        others = {
            row[1]
            for number, row in enumerate(rows)
            if number != example and (not keys[example][0] or keys[number] != keys[example])
        }
        assert set(texts) <= others
