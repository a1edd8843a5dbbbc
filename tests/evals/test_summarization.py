import math

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.summarization import evaluate_summarization, summarization_metrics


@pytest.fixture(scope="module")
def texts():
    """Twelve texts with several summaries by people and machines; of two, all ratings or all summaries are the same."""
    rng = np.random.default_rng(0)
    human, machine, relevance = [], [], []
    for n in range(12):
        words = [[f"w{word}" for word in rng.integers(30, size=5)] for _ in range(rng.integers(1, 5))]
        human.append([" ".join(summary) for summary in words])
        shares = rng.integers(0, 6, size=rng.integers(4, 9)).tolist()
        machine.append(
            [" ".join([*words[0][:share], *(f"x{n}{i}{j}" for j in range(3))]) for i, share in enumerate(shares)]
        )
        relevance.append([share + float(rng.integers(0, 3)) / 2 for share in shares])
    relevance[3] = [2.0] * len(relevance[3])
    machine[7] = machine[7][:1] * len(machine[7])
    return human, machine, relevance


def test_equals_mteb(texts, encode, mteb_scores):
    from datasets import Dataset

    human, machine, relevance = texts
    columns = {"text": ["a text"] * 12, "human_summaries": human, "machine_summaries": machine, "relevance": relevance}
    data = {"test": Dataset.from_dict(columns)}
    theirs = mteb_scores("AbsTaskSummarization", "Summarization", "cosine_spearman", data, min_score=0, max_score=5)
    with pytest.warns(UserWarning, match="2 of 12 texts left out"):
        ours = evaluate_summarization(encode, *texts)
    assert 0.1 < ours["cosine_spearman"] < 0.95
    for name, value in ours.items():
        assert value == pytest.approx(theirs[name], abs=1e-4), name


def test_by_hand():
    human = [np.array([[1.0, 0.0], [0.0, 1.0]])]
    machine = [np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0], [-1.0, -1.0]])]
    found = summarization_metrics(human, machine, [[4, 4, 3, 1]])
    assert found["cosine_spearman"] == pytest.approx(1)
    cosines = [1, 1, math.sqrt(1 / 2), -math.sqrt(1 / 2)]
    assert found["cosine_pearson"] == pytest.approx(np.corrcoef(cosines, [4, 4, 3, 1])[0, 1])
    assert found["dot_pearson"] == pytest.approx(np.corrcoef([2, 3, 1, -1], [4, 4, 3, 1])[0, 1])
    ranks = [[3, 4, 2, 1], [3.5, 3.5, 2, 1]]
    assert found["dot_spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_the_scale_of_ratings_changes_nothing(texts, encode):
    human, machine, relevance = (column[:3] for column in texts)
    scaled = [[(rating - 7) / 3 for rating in ratings] for ratings in relevance]
    found = evaluate_summarization(encode, human, machine, relevance)
    assert evaluate_summarization(encode, human, machine, scaled) == pytest.approx(found)


def test_each_distinct_text_is_encoded_once(texts, recorded):
    human, machine, relevance = (column[:3] for column in texts)
    evaluate_summarization(recorded, human, machine, relevance)
    assert sorted(recorded.seen) == sorted({*sum(human + machine, [])})


def test_collapsed_embeddings_are_not_a_number(texts):
    with pytest.warns(UserWarning, match="12 of 12"):
        found = evaluate_summarization(lambda texts: np.ones((len(texts), 3)), *texts)
    assert all(map(math.isnan, found.values()))


@pytest.mark.parametrize(
    "columns, message",
    [
        (([], [], []), r"lengths \[0, 0, 0\]"),
        (([["a"]], [["b"]], []), r"lengths \[1, 1, 0\]"),
        (([["a"]], [["b", "c"]], [[1]]), "number 0.*1 human and 2 machine summaries and 1 ratings"),
        (([["a"], []], [["b", "c"]] * 2, [[1, 2]] * 2), "number 1.*0 human"),
        (([["a"]], [["b", "c"]], [[1, math.nan]]), r"finite ratings, found \[1, nan\]"),
        (([["a"]], [["b", "c"]], [[1, 1]]), "one in each of 1 texts"),
    ],
)
def test_bad_input_is_one_line(columns, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate_summarization(pytest.fail, *columns)
    assert "\n" not in str(error.value)
