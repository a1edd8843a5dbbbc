"""The list of false negatives equals that of a comparison of all rows."""

import itertools
import json
import random
import re

import numpy as np
import pytest

import embed_jax
from embed_jax.retrieval import audit as false_negatives
from scripts import audit

SUMMARY = re.compile(
    r"(\d+) rows, (\d+) pairs of rows \((.*)\), (\S+) % of rows affected; "
    r"expected number of false negatives in a batch of (\d+): (\S+)"
)
HARD = re.compile(
    r"(\d+) hard negatives: (\d+) times .*, (\d+) times .*; expected in a batch of \d+: (\S+)"
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def listed(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def made_rows(seed, count=40):
    """Rows of few different texts, ids and groups, with white space, gaps and hard negatives."""
    chance = random.Random(seed)

    def text(kinds):
        return (
            chance.choice(["", " "]) + f"text {chance.randrange(kinds)}" + chance.choice(["", "\n"])
        )

    rows = []
    for _ in range(count):
        row = {"anchor": text(60), "positive": text(60)}
        if chance.random() < 0.1:
            row["positive"] = row["anchor"]
        if rows and chance.random() < 0.1:  # both texts of another row
            other = chance.choice(rows)
            row = {"anchor": other["positive"], "positive": other["anchor"]}
        if chance.random() < 0.8:
            row["id"] = chance.randrange(9)
        if chance.random() < 0.8:
            row["group"] = chance.choice(["", " ", "a", "b ", "b", "c", "d", "e"])
        if chance.random() < 0.7:
            row["negatives"] = [text(120) for _ in range(chance.randrange(1, 3))]
        rows.append(row)
    return rows


def compared(rows, by):
    """Compares all rows with all.

    Returns {(row, negative, column, occurrence): reasons, in order}.
    """
    result = {}
    pairs = [{row["anchor"].strip(), row["positive"].strip()} for row in rows]
    keys = {name: [str(row.get(name, "")).strip() for row in rows] for name in ("id", "group")}
    for i, j in itertools.product(range(len(rows)), repeat=2):
        why = {"text": bool(pairs[i] & pairs[j])}
        why |= {name: bool(values[i]) and values[i] == values[j] for name, values in keys.items()}
        reasons = [name for name in by if why[name]]
        if i != j and reasons:
            result[i, j, "positive"] = reasons
        for k, text in enumerate(rows[j].get("negatives", ()), 1):
            if "text" in by and text.strip() in pairs[i]:
                result[i, j, f"negative_{k}"] = ["text"]
    return result


def test_two_of_three_rows_share_a_group(run, tmp_path):
    rows = [
        {"anchor": f"a{n}", "positive": f"p{n}", "group": group} for n, group in enumerate("ggh")
    ]
    output = tmp_path / "audit.jsonl"
    status, out, err = run(
        audit, "--data", write(tmp_path / "rows.jsonl", rows), "--output", output
    )
    assert (status, err) == (0, "")
    shared = {"why": "group", "value": "g", "column": "positive"}
    assert listed(output) == [
        {"row": 0, "negative": 1, **shared},
        {"row": 1, "negative": 0, **shared},
    ]
    assert re.findall(r"\d+->\d+", out) == ["0->1", "1->0"]
    assert "3 rows, 2 pairs of rows (text 0, id 0, group 2), 66.67 % of rows affected" in out


@pytest.mark.parametrize("by", ["text,id,group", "group,text", "id", "group,id"])
@pytest.mark.parametrize("seed", range(3))
def test_the_list_is_that_of_comparing_all_rows(run, tmp_path, by, seed):
    rows, output = made_rows(seed), tmp_path / "audit.jsonl"
    path = write(tmp_path / "rows.jsonl", rows)
    status, out, _ = run(audit, "--data", path, "--by", by, "--output", output, "--batch-size", 8)
    expected_pairs = compared(rows, by.split(","))
    assert status == 0 and len(expected_pairs) > 20
    assert "," not in by or any(len(reasons) > 1 for reasons in expected_pairs.values())
    result = {(line["row"], line["negative"], line["column"]): line for line in listed(output)}
    assert len(result) == len(listed(output)) and result.keys() == expected_pairs.keys()
    for place, line in result.items():
        row, why = rows[place[0]], line["why"]
        assert why == expected_pairs[place][0]
        mine = (
            {row["anchor"].strip(), row["positive"].strip()}
            if why == "text"
            else {str(row[why]).strip()}
        )
        assert line["value"] in mine
        if why == "text":  # and the other row has it too
            other = rows[place[1]]
            reference = (
                [other["anchor"], other["positive"]]
                if place[2] == "positive"
                else other["negatives"]
            )
            assert line["value"] in map(str.strip, reference)
    assert [line["row"] for line in listed(output)] == sorted(
        line["row"] for line in listed(output)
    )

    # The counts, which are computed without the list.
    pairs = [place for place in expected_pairs if place[2] == "positive"]
    counts = ", ".join(
        f"{name} {sum(name in expected_pairs[place] for place in pairs)}" for name in by.split(",")
    )
    rows_found, pairs_found, counts_found, share, batch, expected = SUMMARY.search(out).groups()
    assert (int(rows_found), int(pairs_found), counts_found, int(batch)) == (
        len(rows),
        len(pairs),
        counts,
        8,
    )
    assert float(share) == pytest.approx(
        100 * len({place[0] for place in expected_pairs}) / len(rows)
    )
    assert float(expected) == pytest.approx(len(pairs) * 8 * 7 / (40 * 39), rel=1e-3)
    hard = [place for place in expected_pairs if place[2] != "positive"]
    assert bool(hard) == bool(HARD.search(out)) == ("text" in by)
    if hard:
        own = sum(place[0] == place[1] for place in hard)
        total = sum(len(row.get("negatives", ())) for row in rows)
        assert [int(number) for number in HARD.search(out).groups()[:3]] == [
            total,
            own,
            len(hard) - own,
        ]


def test_a_hard_negative_that_contains_a_positive_of_its_anchor_is_a_false_one(run, tmp_path):
    first, second = "the river runs past a red house", "a passage about something else"
    rows = [
        {"anchor": "q", "positive": first, "negatives": [f"River. {first}", "the river"]},
        {"anchor": "q\u00a0", "positive": second, "negatives": [first[:25], second + "\u00a0 "]},
        {"anchor": "other", "positive": second.upper(), "negatives": [f"River {first}"]},
    ]
    output = tmp_path / "audit.jsonl"
    _, out, _ = run(audit, "--data", write(tmp_path / "rows.jsonl", rows), "--output", output)
    hard = [line for line in listed(output) if line["column"] != "positive"]
    result = [(line["row"], line["negative"], line["column"], line["value"]) for line in hard]
    assert result == [
        (0, 0, "negative_1", first),
        (0, 1, "negative_1", first),
        (1, 1, "negative_2", second),
    ]
    assert "5 hard negatives: 2 times their own row's anchor or positive, 1 times another" in out


def test_expected_numbers_are_means_over_all_batches(run, tmp_path):
    rows = made_rows(5, count=8)
    for row in rows[:4]:
        row["positive"] = "the same"
    rows[0]["negatives"] = ["the same", rows[5]["anchor"]]
    _, out, _ = run(audit, "--data", write(tmp_path / "rows.jsonl", rows), "--batch-size", 3)
    expected = compared(rows, ("text", "id", "group"))
    batches = [set(batch) for batch in itertools.combinations(range(8), 3)]
    inside = [[{place[0], place[1]} <= batch for batch in batches] for place in expected]
    for hard, result in ((False, SUMMARY.search(out)[6]), (True, HARD.search(out)[4])):
        chosen = [
            flags
            for flags, place in zip(inside, expected, strict=True)
            if (place[2] != "positive") == hard
        ]
        assert chosen and float(result) == pytest.approx(np.sum(chosen) / len(batches), rel=1e-3)


def test_similar_positives(run, tmp_path, tiny_model, sentences):
    texts = sentences[:60]
    rows = [{"anchor": f"a{n}", "positive": text} for n, text in enumerate(texts)]
    rows[1]["anchor"] = rows[2]["anchor"] = "the same"
    path, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "audit.jsonl"
    units = embed_jax.load(str(tiny_model)).encode(texts).astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    cosines = units @ units.T
    ranked = np.sort(cosines[np.triu_indices(60, 1)])[-200:]
    cut = np.argmax(np.diff(ranked))  # no rounding decides there
    threshold = (ranked[cut] + ranked[cut + 1]) / 2
    status, out, _ = run(
        audit, "--data", path, "--model", tiny_model, "--threshold", threshold, "--output", output
    )
    assert status == 0
    above = {(int(i), int(j)) for i, j in np.argwhere(cosines > threshold) if i != j}
    result = {(line["row"], line["negative"]): line for line in listed(output)}
    assert len(result) == len(listed(output))
    assert result.keys() == above | {(1, 2), (2, 1)}
    assert result[1, 2]["why"] == "text"
    for place in above - {(1, 2), (2, 1)}:
        assert result[place]["why"] == "similarity"
        assert result[place]["value"] == pytest.approx(cosines[place], abs=1e-4)
    assert SUMMARY.search(out)[3] == f"text 2, id 0, group 0, similarity {len(above)}"
    assert int(SUMMARY.search(out)[2]) == len(result)


def test_similarities_in_blocks(run, tmp_path, tiny_model, sentences, monkeypatch):
    rows = [{"anchor": f"a{n}", "positive": text} for n, text in enumerate(sentences[:50])]
    path = write(tmp_path / "rows.jsonl", rows)

    def result(name):
        output = tmp_path / name
        assert (
            run(
                audit, "--data", path, "--model", tiny_model, "--threshold", 0.5, "--output", output
            )[0]
            == 0
        )
        return sorted(tuple(line.values())[:2] for line in listed(output))

    whole = result("whole.jsonl")
    monkeypatch.setattr(false_negatives, "ROW_BLOCK", 7)
    monkeypatch.setattr(false_negatives, "COLUMN_BLOCK", 16)
    assert len(whole) > 50 and result("blocks.jsonl") == whole


def test_a_text_that_all_share_is_counted_and_not_listed(run, tmp_path):
    rows = [{"anchor": f"a{n}", "positive": "the same"} for n in range(3000)]
    path, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "audit.jsonl"
    status, out, _ = run(
        audit, "--data", path, "--output", output, "--lines", 30, "--batch-size", 3000
    )
    assert status == 0 and len(listed(output)) == 30
    pairs = 3000 * 2999
    assert f"3000 rows, {pairs} pairs of rows" in out and "100.00 % of rows" in out
    assert f"and {pairs - 20} more" in out and f"the first 30 of {pairs}" in out
    assert float(SUMMARY.search(out)[6]) == pytest.approx(pairs, rel=1e-3)
    assert len(re.findall(r"\d+->\d+", out)) == 20


def test_limit_and_other_names(run, tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("question\tanswer\nq\ta\nr\ta\ns\tb\na\tc\n")
    assert "3 rows, 2 pairs of rows" in run(audit, "--data", path, "--limit", 3)[1]
    assert (
        "4 rows, 6 pairs of rows" in run(audit, "--data", path)[1]
    )  # row 3 asks what rows 0 and 1 answer
    assert "1 rows, 0 pairs of rows" in run(audit, "--data", path, "--limit", 1)[1]


def test_what_cannot_be_used_is_one_line(refused, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"anchor": "a", "positive": "p"}, {"anchor": "b"}])
    output = ("--output", tmp_path / "audit.jsonl")
    assert "rows.jsonl:2: no field 'positive'" in refused(audit, "--data", path, *output)
    good = write(tmp_path / "good.jsonl", [{"anchor": "a", "positive": "p"}] * 2)
    assert "no row has the field 'group'" in refused(
        audit, "--data", good, "--by", "text,group", *output
    )
    assert "--by: expected some of text,id,group, found 'texts'" in refused(
        audit, "--data", good, "--by", "texts"
    )
    assert "no pairs: found the fields text" in refused(
        audit, "--data", write_text(tmp_path), *output
    )
    assert "no such file" in refused(audit, "--data", tmp_path / "gone.jsonl", *output)
    assert "--threshold needs --model" in refused(audit, "--data", good, "--threshold", "0.5")
    model = ("--model", "nobody/nothing")
    assert "--threshold: expected a cosine" in refused(
        audit, "--data", good, *model, "--threshold", "90"
    )
    assert "--batch-size: expected 2 or more" in refused(audit, "--data", good, "--batch-size", "1")
    assert "--data" in refused(audit, *output)
    assert "cannot be written" in refused(
        audit, "--data", good, "--output", tmp_path / "gone" / "audit.jsonl"
    )


def write_text(directory):
    path = directory / "texts.txt"
    path.write_text("one\ntwo\n")
    return path


def test_an_unknown_model_leaves_no_output(run, tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"anchor": "a", "positive": "p"}] * 2)
    status, _, err = run(
        audit, "--data", path, "--model", "nobody/nothing", "--output", tmp_path / "audit.jsonl"
    )
    assert status == 2 and err.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_help_is_complete(run):
    status, out, _ = run(audit, "--help")
    assert status == 0 and "examples:" in out and "--output audit.jsonl" in out
    for option in (
        "--data",
        "--split",
        "--limit",
        "--by",
        "--model",
        "--threshold",
        "--batch-size",
        "--lines",
    ):
        assert option in out
