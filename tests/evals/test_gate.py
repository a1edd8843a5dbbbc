"""Release gates: the file, the checks, the report."""

import html.parser
import json

import pytest

from embed_jax.data.sources.trec import write_trec_run
from embed_jax.errors import InputError
from embed_jax.evals.gate import read_baseline, run_gate
from embed_jax.evals.gate_html import gate_html
from embed_jax.evals.gate_spec import parse_gate, read_gate
from embed_jax.retrieval.search import Pipeline, Retriever

DOCUMENTS = {f"d{number}": f"about {number}" for number in range(40)} | {"secret": "about money"}


def find_number(queries, k, allowed):
    """Serves "7": d7, d8, ...; "money": the secret first; "7 late": d8 before d7."""

    def ranked(query):
        number = query.split()[0]
        start = int(number) if number.isdecimal() else 0
        names = [f"d{(start + step) % 40}" for step in range(k)]
        if query.endswith("late"):
            names[:2] = names[1::-1]
        names = ["secret", *names] if "money" in query else names
        names = [name for name in names if allowed is None or name in allowed][:k]
        return {name: float(k - rank) for rank, name in enumerate(names)}

    return [ranked(query) for query in queries]


PIPELINE = Pipeline({"numbers": Retriever(find_number)})


def gate(cases, **content):
    content.setdefault("thresholds", {"recall@1": 1.0})
    return parse_gate({"cases": cases, **content})


def case(query, expected, **fields):
    return {"query": query, "expected": expected, "name": query, **fields}


def report_of(spec, **options):
    return run_gate(PIPELINE, spec, ids=DOCUMENTS, **options)


def results(report):
    return {check.name: check.passed for check in report.checks}


def test_thresholds_are_of_all_cases_and_name_what_lowers_them():
    cases = [case(str(number), f"d{number}") for number in range(9)]
    thresholds = {"recall@1": 1, "mrr@10": 0.9, "ndcg@2": 0.95, "p95_ms": 1000}
    report = report_of(gate(cases, thresholds=thresholds))
    assert report.passed and set(results(report)) == {"recall@1", "mrr@10", "ndcg@2", "p95"}
    report = report_of(gate([*cases, case("9 late", "d9")], thresholds=thresholds))
    assert results(report) == {"recall@1": False, "mrr@10": True, "ndcg@2": True, "p95": True}
    (check,) = [check for check in report.checks if not check.passed]
    assert check.problems == ["case '9 late': 0.000: 'd9' at rank 2"] and check.number == 0.9
    assert not report_of(gate(cases, thresholds={"p95_ms": 1e-6})).passed
    graded = [case("3 late", {"d3": 1, "d4": 2}), case("5 late", {"d5": 2, "d6": 1})]
    values = [report_of(gate([each], thresholds={"ndcg@2": 0})).checks[0].number for each in graded]
    assert values[0] == 1 and values[1] == pytest.approx((1 + 2 * 0.63093) / (2 + 0.63093), 1e-4)


def test_what_is_forbidden_must_not_be_served_whoever_asks():
    cases = [case("1", "d1"), case("money", [])]
    report = report_of(gate(cases, forbidden=["secret"]))
    assert results(report) == {
        "forbidden documents": False,
        "served where nothing may be": False,
        "recall@1": True,
    }
    assert report.checks[0].problems == ["case 'money': 'secret' is served at rank 1"]
    assert report.checks[1].problems == ["case 'money': 10 served, first 'secret'"]
    cases[1]["allowed"] = []
    assert report_of(gate(cases, forbidden=["secret"])).passed
    everything = [name for name in DOCUMENTS if name != "secret"]
    report = report_of(gate([case("money", "d0")], forbidden=["secret"], allowed=everything))
    assert report.passed and "secret" not in report.served["money"]
    own = report_of(gate([case("1", "d1", forbidden=["d2"])]))
    assert own.checks[0].problems == ["case '1': 'd2' is served at rank 2"]


def test_a_baseline_is_compared_on_the_same_cases(tmp_path):
    now = [
        case(f"{number} late" if number < 12 else str(number), f"d{number}") for number in range(30)
    ]
    before = [{**each, "query": each["query"].split()[0]} for each in now]
    thresholds = {"recall@10": 1}
    lower, same = (gate(cases, thresholds=thresholds) for cases in (now, before))
    better = report_of(same)
    report = report_of(lower, baseline=better.served)
    assert results(report)["ndcg@10 - baseline"] is False and not report.passed
    assert report.baseline.test.difference == pytest.approx(-12 / 30 * (1 - 0.63093), 1e-4)
    assert report.baseline.p_value < 0.01 and 0 <= report.baseline.power <= 1
    report = report_of(same, baseline=report.served)
    assert report.passed and report.baseline.p_value > 0.99
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(better.to_json()))
    assert read_baseline(path, same) == better.served
    write_trec_run(
        tmp_path / "run.trec", {n.replace(" ", "_"): r for n, r in better.served.items()}, "x"
    )
    renamed = gate(
        [{**each, "name": each["name"].replace(" ", "_")} for each in before], thresholds=thresholds
    )
    assert report_of(renamed, baseline=read_baseline(tmp_path / "run.trec", renamed)).passed
    with pytest.raises(
        InputError, match="a baseline of other cases: 12 of 30 are not there or dif"
    ):
        read_baseline(path, lower)
    with pytest.raises(InputError, match="a baseline of other cases: 1 of 31"):
        read_baseline(path, gate([*before, case("33", "d33")], thresholds=thresholds))
    for text in ("{}", "[1]", '{"format": "embed-jax gate 1", "cases": 3}'):
        path.write_text(text)
        with pytest.raises(InputError, match="not the JSON of a gate"):
            read_baseline(path, same)


def test_documents_that_are_not_there_mean_a_stale_index():
    for cases in ([case("1", "d99")], [case("1", "d1", allowed=["d1", "d99"])]):
        with pytest.raises(
            InputError, match="document 'd99' is not among the 41 that are searched"
        ):
            report_of(gate(cases))


class Tags(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_texts_as_texts_and_loads_nothing():
    bad = '<script>alert("x")</script><img src=http://a onerror=alert(1)>'
    cases = [
        {"query": f"1 {bad}", "expected": {"d1": 1}, "name": f"name {bad}"},
        case("2 late", "d2"),
    ]
    report = report_of(gate(cases, name=f"gate {bad}"), searched={"index": {"model": bad}})
    tags = Tags()
    page = gate_html(report)
    tags.feed(page)
    assert not {"script", "img", "link", "iframe"} & set(tags.tags)
    assert not {"src", "href", "onerror", "onclick"} & set(tags.attributes)
    assert tags.text.count(bad) >= 4 and "default-src 'none'" in page
    assert "What failed" in page and "about 1" not in page
    assert page.startswith("<!doctype html>") and '<html lang="en">' in page


GOOD = {"query": "q", "expected": "d1"}


@pytest.mark.parametrize(
    "message, content",
    [
        ("gate: expected keys and values, found 3", 3),
        ("gate: unknown key 'case' .did you mean 'cases'", {"case": [GOOD]}),
        ("cases: expected one or more", {"thresholds": {"mrr@1": 1}}),
        ("cases: expected a list, found 'a'", {"cases": "a"}),
        ("thresholds: expected one or more", {"cases": [GOOD]}),
        ("case 1: expected the key 'expected'", {"cases": [{"query": "a"}]}),
        ("case 1: unknown key 'expect'", {"cases": [{"query": "a", "expect": 1}]}),
        ("case 1: query 0: empty", {"cases": [{"query": " ", "expected": 1}]}),
        ("case 1: query 0: expected a text", {"cases": [{"query": 3, "expected": 1}]}),
        ("case 1.expected: expected a list of ids", {"cases": [{"query": "a", "expected": 0.5}]}),
        ("expected a grade from 1 up by id", {"cases": [{"query": "a", "expected": {"b": 0}}]}),
        ("case 1.allowed: expected a list of ids", {"cases": [{**GOOD, "allowed": "d1"}]}),
        ("case 1.where: expected keys and values", {"cases": [{**GOOD, "where": 3}]}),
        ("two have the name 'n'", {"cases": [{**GOOD, "name": "n"}, {**GOOD, "name": "n"}]}),
        ("metric: expected ndcg@K, mrr@K", {"cases": [GOOD], "thresholds": {"recal@2": 1}}),
        ("metric: expected ndcg@K, mrr@K", {"cases": [GOOD], "thresholds": {"recall@0": 1}}),
        ("mrr@2: expected a share from 0 to 1", {"cases": [GOOD], "thresholds": {"mrr@2": 100}}),
        ("p95_ms: expected milliseconds", {"cases": [GOOD], "thresholds": {"p95_ms": 0}}),
        ("k: expected 20 or more", {"cases": [GOOD], "k": 10, "thresholds": {"mrr@20": 1}}),
        ("baseline.level: expected a number", {"cases": [GOOD], "baseline": {"level": 5}}),
        ("baseline: unknown key 'alpha'", {"cases": [GOOD], "baseline": {"alpha": 0.1}}),
        ("expected one of corpus, documents and data", {"data": "a", "corpus": "b"}),
        ("documents: expected texts by id", {"documents": {"a": 3}}),
        ("corpus: expected a path, found 3", {"corpus": 3}),
    ],
)  # fmt: skip
@pytest.mark.unchecked
def test_a_wrong_gate_is_one_line(message, content):
    with pytest.raises(InputError, match=message) as caught:
        parse_gate(content)
    assert "\n" not in str(caught.value)


def test_a_file_with_a_key_twice_or_without_yaml_is_refused(tmp_path):
    path = tmp_path / "gate.yaml"
    for text, message in (
        ("forbidden: [a]\nforbidden: [b]\n", "line 2: the key 'forbidden' stands twice"),
        ("cases: [", "gate.yaml: not YAML"),
        ("[a, b]: c", "line 1: a list as a key"),
        ("a: &a [*a]\n" * 1, "gate.yaml: "),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            read_gate(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no.yaml: cannot be read: No such file"):
        read_gate(tmp_path / "no.yaml")


def test_thresholds_need_cases_with_expected_documents_and_a_baseline_two():
    with pytest.raises(InputError, match="thresholds.recall@1: no case has an expected document"):
        report_of(gate([case("1", [])]))
    only = gate([case("1", "d1")])
    with pytest.raises(InputError, match="two cases or more"):
        report_of(only, baseline={"1": {"d1": 1.0}})
