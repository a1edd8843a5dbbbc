import math

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.summarization import open_task, summarization_outcome


@pytest.fixture(scope="module")
def texts():
    """Returns twelve texts with several summaries by people and machines.

    Two of them have equal ratings or equal summaries only.
    """
    rng = np.random.default_rng(0)
    made = []
    for n in range(12):
        words = [
            [f"w{word}" for word in rng.integers(30, size=5)] for _ in range(rng.integers(1, 5))
        ]
        shares = rng.integers(0, 6, size=rng.integers(4, 9)).tolist()
        machine = [
            " ".join([*words[0][:share], *(f"x{n}{i}{j}" for j in range(3))])
            for i, share in enumerate(shares)
        ]
        ratings = [share + float(rng.integers(0, 3)) / 2 for share in shares]
        human = [" ".join(summary) for summary in words]
        made.append(
            {
                "text": f"text {n}",
                "human_summaries": human,
                "machine_summaries": machine,
                "relevance": ratings,
            }
        )
    made[3]["relevance"] = [2.0] * len(made[3]["relevance"])
    made[7]["machine_summaries"] = made[7]["machine_summaries"][:1] * len(
        made[7]["machine_summaries"]
    )
    return made


def test_equals_mteb(texts, write, recorded, mteb_scores):
    from datasets import Dataset

    data = {"test": Dataset.from_list(texts)}
    reference = mteb_scores(
        "AbsTaskSummarization", "Summarization", "cosine_spearman", data, min_score=0, max_score=5
    )
    task = open_task(write(texts), name="Made")
    ours = task.evaluate(recorded)
    assert ours.notes == ("2 of 12 texts left out: all ratings or all summaries equal",)
    assert 0.1 < ours.score < 0.95
    for name, value in ours.metrics.items():
        assert value == pytest.approx(reference[name], abs=1e-4), name
    assert len(ours.metrics) == 4 and ours.intervals.keys() == ours.metrics.keys()
    assert ours.items.score() == pytest.approx(ours.score, abs=1e-12)
    scored_rows = [row for number, row in enumerate(texts) if number not in (3, 7)]
    assert (
        task.item_texts == [(row["text"], *row["human_summaries"]) for row in scored_rows]
        and len(ours.items) == 10
    )
    summaries = [
        text
        for row in scored_rows
        for side in ("human_summaries", "machine_summaries")
        for text in row[side]
    ]
    assert sorted(recorded.seen) == sorted({*summaries})
    assert recorded.uses == {("Made", "Summarization", "", "")}


def test_by_hand():
    human = [np.array([[1.0, 0.0], [0.0, 1.0]])]
    machine = [np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-1.0, -1.0]])]
    result = summarization_outcome(human, machine, [[4, 4, 3, 1]], own="euclidean").metrics
    assert result["cosine_spearman"] == pytest.approx(1)
    cosines = [1, 1, math.sqrt(1 / 2), -math.sqrt(1 / 2)]
    assert result["cosine_pearson"] == pytest.approx(np.corrcoef(cosines, [4, 4, 3, 1])[0, 1])
    assert result["dot_pearson"] == pytest.approx(np.corrcoef([2, 3, 1, -1], [4, 4, 3, 1])[0, 1])
    ranks = [[3, 4, 2, 1], [3.5, 3.5, 2, 1]]
    assert result["dot_spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    nearest = [-1, -2, -1, -math.sqrt(5)]
    assert result["euclidean_pearson"] == pytest.approx(np.corrcoef(nearest, [4, 4, 3, 1])[0, 1])


def test_the_scale_of_ratings_changes_nothing(texts, write, recorded):
    scaled = [
        row | {"relevance": [(rating - 7) / 3 for rating in row["relevance"]]} for row in texts[:3]
    ]
    result = open_task(write(texts[:3])).evaluate(recorded)
    assert open_task(write(scaled)).evaluate(recorded).metrics == pytest.approx(result.metrics)


def test_texts_without_a_correlation_do_not_count():
    rng = np.random.default_rng(0)
    human, machine = ([*rng.normal(size=(3, size, 4))] for size in (2, 5))
    ratings = rng.normal(size=(3, 5)).tolist()
    result = summarization_outcome(human, [*machine[:2], np.ones((5, 4))], ratings)
    expected = summarization_outcome(human[:2], machine[:2], ratings[:2])
    assert result.metrics == pytest.approx(expected.metrics)
    assert result.notes == ("1 of 3 texts do not count: all similarities equal",)
    assert len(result.items) == 3, "as many as for another model, to compare with"


def test_collapsed_embeddings_are_not_a_number(texts, write, recorded):
    collapsed = type(
        "Collapsed",
        (),
        {"similarity": "dot", "__call__": lambda self, t, use: np.ones((len(t), 3))},
    )()
    result = open_task(write(texts)).evaluate(collapsed)
    assert all(map(math.isnan, result.metrics.values())) and "10 of 10" in result.notes[1]


def test_no_text_left_is_refused(texts, write):
    with pytest.raises(
        InputError,
        match=r"test\.jsonl: expected a text with.*different ratings, found none among 1",
    ):
        open_task(write(texts[3:4]))
