"""Windows of texts: every token is in one slot of one batch, few slots are padding, few shapes."""

import numpy as np
import pytest

from embed_jax.data.window import SMALL_WINDOW, pack_window

BATCH_TOKENS = 2048


def made_ids(count, median, spread, most, seed=0):
    """Makes texts of log-normal length; each token says which text it is of."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(median), spread, count).round().astype(int).clip(3, most)
    return [np.full(length, number + 1, np.int32) for number, length in enumerate(lengths)]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 60, 128, 129, 300, 4000])
def test_every_text_is_whole_in_one_batch(count):
    ids = made_ids(count, median=40, spread=0.8, most=256)
    ids[3:4] = [np.zeros(0, np.int32)]  # in no batch
    segments = [np.arange(len(text), dtype=np.int32) % 2 for text in ids]
    seen = []
    for numbers, batch in pack_window(ids, 2, BATCH_TOKENS, segments):
        assert batch.token_ids.size <= BATCH_TOKENS and len(numbers) <= batch.sentences
        seen += numbers.tolist()
        for sentence, number in enumerate(numbers):
            rows, slots = np.nonzero(batch.sentence == sentence)
            assert len(set(rows.tolist())) == 1
            where = rows, slots
            assert batch.token_ids[where].tolist() == ids[number].tolist()
            assert batch.position[where].tolist() == list(range(len(ids[number])))
            assert batch.segment[where].tolist() == segments[number].tolist()
            assert batch.pooled[where].tolist() == [False, False, *[True] * (len(rows) - 2)]
    assert sorted(seen) == [number for number, text in enumerate(ids) if len(text)]


@pytest.mark.parametrize(
    ("median", "most", "most_shapes"), [(12, 30, 5), (35, 256, 12), (35, 512, 15)]
)
@pytest.mark.unchecked
def test_windows_of_few_texts_take_the_same_few_shapes(median, most, most_shapes):
    shapes, tokens, slots = set(), 0, 0
    for count in [*range(1, 18), *range(20, SMALL_WINDOW + 1, 12)]:
        ids = made_ids(count, median, spread=1.0, most=most, seed=count)
        for numbers, batch in pack_window(ids, 0, BATCH_TOKENS):
            shapes.add((batch.token_ids.shape, batch.sentences))
            tokens += sum(len(ids[number]) for number in numbers)
            slots += batch.token_ids.size
    assert len(shapes) <= most_shapes
    assert tokens / slots > 0.75


@pytest.mark.parametrize(
    ("name", "count", "median", "spread", "least_fill", "most_shapes"),
    [
        ("sentences", 4000, 12, 0.45, 0.96, 4),
        ("pairs", 500, 75, 0.4, 0.9, 10),
        ("pairs", 8000, 75, 0.4, 0.95, 50),
        ("abstracts", 500, 200, 0.2, 0.92, 10),
        ("abstracts", 4000, 200, 0.2, 0.96, 40),
    ],
)
def test_few_slots_are_padding(name, count, median, spread, least_fill, most_shapes):
    ids = made_ids(count, median, spread, most=256)
    batches = [batch for _, batch in pack_window(ids, 0, BATCH_TOKENS)]
    slots = sum(batch.token_ids.size for batch in batches)
    assert sum(map(len, ids)) / slots > least_fill
    assert len({(batch.token_ids.shape, batch.sentences) for batch in batches}) <= most_shapes
