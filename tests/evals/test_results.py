import json
import math

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.head_to_head import compare_results
from embed_jax.evals.leaderboard import (
    cell,
    markdown,
    plot,
    ranking,
    ranking_table,
    read_board,
    task_table,
)
from embed_jax.evals.results import TaskResult, read_result, read_results, seen_in_training
from embed_jax.evals.task import Items, Outcome, Task, mean_outcome


def made(model, name, values, task="retrieval", print_="d", gold=None, **details):
    values = np.asarray(values, float)
    if gold is None:
        outcome = mean_outcome("ndcg@10", {"ndcg@10": values})
    else:
        items = Items(values, np.asarray(gold, float), "spearman")
        outcome = Outcome(
            "spearman", {"spearman": items.score()}, {"spearman": items.interval()}, items
        )
    return TaskResult(
        model, name, task, "queries", outcome, {"fingerprint": ["m", print_], **details}
    )


@pytest.fixture(scope="module")
def systems():
    """Results of a good and a poor model on two tasks, and of two seeds of the good one."""
    rng = np.random.default_rng(1)
    base, gold = rng.uniform(0.2, 0.8, size=200), rng.normal(size=300)
    near = gold + rng.normal(size=300)

    def model(name, shift, noise):
        scores = np.clip(base + shift + 0.05 * rng.normal(size=200), 0, 1)
        similarities = near + noise * rng.normal(size=300)
        return {
            "find": made(name, "find", scores),
            "pairs": made(name, "pairs", similarities, "sts", gold=gold),
        }

    return {
        "good-seed0": model("good-seed0", 0.1, 0.3),
        "good-seed1": model("good-seed1", 0.1, 0.3),
        "poor": model("poor", 0, 2),
    }


def test_files_hold_all_of_a_result(systems, tmp_path):
    result = systems["poor"]["pairs"]
    result.write(tmp_path / "x.json")
    read = read_result(tmp_path / "x.json")
    assert (
        read.outcome.metrics == result.outcome.metrics
        and read.outcome.intervals == result.outcome.intervals
    )
    assert read.outcome.items.score() == pytest.approx(result.outcome.score, abs=1e-9)
    assert np.allclose(read.outcome.items.gold, result.outcome.items.gold, rtol=1e-6)
    assert (read.model, read.name, read.task, read.unit) == ("poor", "pairs", "sts", "queries")
    read.write(tmp_path / "y.json")
    assert (tmp_path / "y.json").read_bytes() == (tmp_path / "x.json").read_bytes()


def test_what_is_undefined_is_null(tmp_path):
    items = Items(np.ones(3), np.arange(3.0), "spearman")
    outcome = Outcome("spearman", {"spearman": math.nan}, {"spearman": (math.nan, math.nan)}, items)
    TaskResult("m", "flat", "sts", "pairs", outcome).write(tmp_path / "flat.json")
    assert json.loads((tmp_path / "flat.json").read_text())["metrics"] == {"spearman": None}
    assert cell(read_result(tmp_path / "flat.json")) == "undefined"


def test_a_true_difference_is_told_and_seeds_are_not(systems):
    comparison = compare_results(systems["good-seed0"], systems["poor"], ("good", "poor"))
    assert [comparison.outcome(task) for task in comparison.tasks] == ["A", "A"]
    assert comparison.verdict().startswith("good is better than poor")
    back = compare_results(systems["poor"], systems["good-seed0"], ("poor", "good"))
    assert [back.outcome(task) for task in back.tasks] == ["B", "B"]
    seeds = compare_results(systems["good-seed0"], systems["good-seed1"], ("0", "1"))
    assert {seeds.outcome(task) for task in seeds.tasks} <= {"same", "open"}
    assert "not told apart" in seeds.verdict()
    for task, difference in comparison.tasks.items():
        assert difference.p_value <= comparison.adjusted[task] <= 1
        assert difference.difference == pytest.approx(systems["good-seed0"][task].outcome.score
                                               - systems["poor"][task].outcome.score)  # fmt: skip


def test_a_small_difference_does_not_count_however_sure_it_is():
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=2000)
    a, b = ({"x": made(name, "x", scores + shift)} for name, shift in (("a", 0.004), ("b", 0)))
    comparison = compare_results(a, b, ("a", "b"))
    assert (
        comparison.adjusted["x"] < 0.001
        and comparison.outcome("x") == "same"
        and "which is within 0.01" in comparison.verdict()
    )
    assert compare_results(a, b, ("a", "b"), margin=0.001).outcome("x") == "A"


def test_tasks_that_disagree_are_no_sample_that_tells(systems):
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=(8, 500))
    signs = [0.05, 0.05, 0.05, 0.05, -0.05, -0.05, 0.05, -0.05]
    a = {f"t{n}": made("a", f"t{n}", scores[n] + sign) for n, sign in enumerate(signs)}
    b = {f"t{n}": made("b", f"t{n}", scores[n]) for n in range(8)}
    comparison = compare_results(a, b, ("a", "b"))
    assert comparison.overall.p_value < 0.01 and comparison.over_tasks > 0.3
    assert "As a sample of tasks, p = 0.7" in comparison.verdict()


def test_only_the_same_data_are_compared(systems):
    other = {"find": made("x", "find", np.ones(200), print_="other")}
    with pytest.raises(InputError, match="find: good and x were not scored on the same data"):
        compare_results(systems["good-seed0"], other, ("good", "x"))
    with pytest.raises(InputError, match="no task in common"):
        compare_results(systems["poor"], {"else": made("x", "else", np.ones(4))}, ("poor", "x"))
    some = {"find": systems["poor"]["find"]}
    assert compare_results(systems["good-seed0"], some, ("good", "poor")).left_out == ("pairs",)


def test_seeds_are_one_row_with_mean_and_spread(systems):
    rows = ranking(systems)
    assert [(row.model, row.seeds) for row in rows] == [("good", 2), ("poor", 1)]
    means = [
        np.mean([result.outcome.score for result in systems[f"good-seed{n}"].values()])
        for n in range(2)
    ]
    assert rows[0].average == pytest.approx(np.mean(means)) and rows[0].spread == pytest.approx(
        np.std(means, ddof=1)
    )
    assert (
        math.isnan(rows[1].spread)
        and rows[1].by_kind["sts"] == systems["poor"]["pairs"].outcome.score
    )
    _, table = ranking_table(rows)
    assert table[0][:2] == ["1", "good"] and "(2 seeds)" in table[0][2] and "+-" not in table[1][2]


def test_averages_are_of_the_tasks_that_all_have(systems):
    board = dict(systems) | {"poor": {"find": systems["poor"]["find"]}}
    header, rows = task_table(board)
    assert header == ["task", "kind", "score", "n", *board]
    assert rows[0][:4] == ["find", "retrieval", "ndcg@10", "200"] and rows[1][-1] == ""
    assert len(rows) == 2  # one task in common is its own average
    assert ranking(board)[-1].average == systems["poor"]["find"].outcome.score
    board["other"] = {"else": made("other", "else", np.ones(4))}
    with pytest.raises(InputError, match="no task is common to all 4 models"):
        ranking(board)


def test_models_scored_on_different_things_are_not_ranked(systems):
    board = {"poor": systems["poor"], "x": {"find": made("x", "find", np.ones(7))}}
    with pytest.raises(
        InputError,
        match="find: the models were scored on different things: ndcg@10 of 7, ndcg@10 of",
    ):
        ranking(board)


def test_a_folder_is_a_board(systems, tmp_path):
    for model, results in systems.items():
        (tmp_path / model).mkdir()
        for name, result in results.items():
            result.write(tmp_path / model / f"{name}.json")
    board = read_board(tmp_path)
    assert {model: list(results) for model, results in board.items()} == {
        m: ["find", "pairs"] for m in systems
    }
    assert list(read_board(tmp_path / "poor")) == ["poor"]
    plot(board, tmp_path / "scores.png")
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_escapes_its_bars():
    assert markdown(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |\n"


@pytest.mark.unchecked
def test_the_score_without_what_training_has_seen():
    texts = [
        (f"the number of this sentence is {n} and no other number", "short") for n in range(10)
    ]
    task = Task("t", "STS", "pairs", texts, None)
    outcome = mean_outcome("accuracy", {"accuracy": np.array([1.0] * 4 + [0.0] * 6)})
    overlap = seen_in_training(
        task, outcome, [f"and {texts[n][0]}" for n in range(3)] + ["short words"], words=8
    )
    assert (overlap["items"], overlap["share"]) == (3, 0.3) and overlap["clean"] == pytest.approx(
        1 / 7
    )
    assert (
        overlap["interval"][0] <= overlap["clean"] <= overlap["interval"][1]
        and len(overlap["examples"]) == 3
    )
    result = TaskResult("m", "t", "sts", "pairs", outcome, {"overlap": overlap})
    assert result.cautions() == [
        "only 10 pairs: its interval is wide, and too narrow still below some thirty",
        "3 of 10 pairs share 8 words in a row with the training data: 0.1429 without them",
    ]
    unseen = seen_in_training(task, outcome, ["nothing of the kind is here at all , no"])
    assert (
        "0 of 10 pairs share 8 words in a row with the training data"
        in TaskResult("m", "t", "sts", "pairs", outcome, {"overlap": unseen}).cautions()
    )
    all_seen = seen_in_training(task, outcome, [text for text, _ in texts])
    assert math.isnan(all_seen["clean"]) and all_seen["items"] == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "no results of a task"),
        ("{", "no results of a task"),
        ('{"task": "sts"}', "no results of a task: Key"),
    ],
)
def test_files_that_are_no_results_are_refused(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_result(tmp_path / "x.json")


def test_folders_that_are_no_results_are_refused(systems, tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        read_results(tmp_path)
    with pytest.raises(InputError, match="no such directory"):
        read_board(tmp_path / "nowhere")
    for name in "ab":
        systems["poor"]["find"].write(tmp_path / f"{name}.json")
    with pytest.raises(InputError, match="b.json: a second result of the task 'find'"):
        read_results(tmp_path)
