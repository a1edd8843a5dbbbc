"""The page: what each list shows and why, and nothing forbidden or executable."""

import re

import pytest
from markupsafe import escape
from starlette.testclient import TestClient

from embed_jax.errors import InputError
from embed_jax.retrieval.search import search
from embed_jax.serve.app import make_app
from embed_jax.serve.explanations import Piece, find_words, highlight
from embed_jax.serve.searches import ServedSearch

from .conftest import ODD_ID

QUERY = "the cat and the river music"


@pytest.fixture(scope="module")
def client(served):
    with TestClient(make_app({"search": served}), base_url="http://localhost") as client:
        yield client


def ids_of(html, side):
    return re.findall(rf'<li id="{side}\d+".*?<a class="id"[^>]*>(.*?)</a>', html, re.DOTALL)


def test_two_stages_stand_side_by_side(client, served):
    response = client.get("/", params={"q": QUERY, "k": 5})
    assert response.status_code == 200
    html = response.text
    stages = search(served.pipeline, [QUERY], 50, allowed=served.allowed).stages
    for side, stage in (("l", "fused"), ("r", "reranked")):  # the last two stages, first
        expected = [str(escape(name)) for name in list(stages[stage][0])[:5]]
        assert ids_of(html, side) == expected
        assert f'<h2 id="{side}-name">{stage}</h2>' in html
    left, right = (list(stages[stage][0]) for stage in ("fused", "reranked"))
    for rank, document in enumerate(right[:5], 1):
        before = left.index(document) + 1
        row = html[html.index(f'<li id="r{rank}"') :]
        row = row[: row.index("</li>")]
        move = f"▲ {before - rank}" if before > rank else f"▼ {rank - before}"
        assert (move if before != rank else "same rank") in row
        assert (f'href="#l{before}"' in row) == (before <= 5)
        for stage in ("words", "dense", "sparse", "tokens", "fused", "reranked"):
            is_shown = re.search(rf'<span class="stage( here)?">{stage} <b>', row) is not None
            assert is_shown == (document in stages[stage][0])


@pytest.mark.parametrize(
    "stage, shown",
    [
        ("words", ["Score of words by its parts", '<th scope="row">cat</th>', "<mark"]),
        ("tokens", ["best match", "similarity", "<mark", "Markers and tokens"]),
        ("sparse", ["sparse reads the query as", "in the document", "product"]),
        ("dense", ['<span class="stage here">dense <b>']),
    ],
)
def test_each_kind_of_search_says_why(client, stage, shown):
    html = client.get("/", params={"q": QUERY, "left": stage, "right": ""}).text
    assert all(text in html for text in shown), [text for text in shown if text not in html]
    assert 'id="r1"' not in html


def test_parts_add_up_to_the_scores(served, corpus):
    (stages,) = served.search(False, [QUERY])
    for stage in ("words", "sparse", "tokens"):
        ids = list(stages[stage])[:6]
        (explained,) = served.explain(stage, [(QUERY, ids)])
        assert list(explained) == ids
        for name, explanation in explained.items():
            total = sum(row[-1] for row in explanation.rows)
            note = re.search(r"add (-?[\d.]+)\.$", explanation.note)
            total += float(note[1]) if note else 0
            # The index of tokens is compressed to 4 bits a number.
            rel = 0.1 if stage == "tokens" else 1e-3
            assert total == pytest.approx(stages[stage][name], rel=rel, abs=1e-3)
            for start, end in explanation.spans:
                assert 0 <= start < end <= len(corpus[name])


def test_two_pipelines_stand_side_by_side(make_pipeline, models):
    searches = {}
    for name in ("dense", "words"):
        pipeline, indexes = make_pipeline(name)
        searches[f"only {name}"] = ServedSearch(pipeline, indexes)
    with TestClient(make_app(searches), base_url="http://localhost") as client:
        html = client.get("/", params={"q": "the cat"}).text
        assert "only dense: dense</h2>" in html and "only words: words</h2>" in html
        assert "only words" in client.get("/").text
        assert ids_of(html, "l") and ids_of(html, "r")


def test_texts_and_ids_are_shown_as_text(client):
    hostile = {"q": "<script>alert(3)</script>", "left": "words", "right": ""}
    html = client.get("/", params=hostile).text
    assert "<script>alert" not in html and "&lt;script&gt;alert(3)" in html
    html = client.get("/", params={"q": QUERY}).text
    assert "<img src=x" not in html and "<b>é" not in html and "&lt;" in html
    html = client.get("/document", params={"id": "html", "q": "'\"><b>"}).text
    assert "&lt;script&gt;cat" in html and "<script>cat" not in html and "'\"><b>" not in html
    assert client.get("/document", params={"id": ODD_ID}).status_code == 200
    policy = client.get("/").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for name in ("page.css", "page.js"):
        assert client.get(f"/static/{name}").status_code == 200
    # Nothing that the policy would refuse.
    assert not re.search(r"<\w[^>]* (style|on\w+)=", client.get("/", params={"q": QUERY}).text)


def test_what_is_not_allowed_is_shown_nowhere(client, served):
    for stage in served.stages:
        html = client.get("/", params={"q": QUERY, "left": stage, "right": "", "k": 50}).text
        assert "secret" not in html
    forbidden, absent = (client.get("/document", params={"id": name}) for name in ("secret", "no"))
    assert forbidden.status_code == absent.status_code == 404
    assert forbidden.text == absent.text  # which of the two it is, nobody learns
    with pytest.raises(InputError, match="allowed ids: 2 in no index, the first: 'no'"):
        ServedSearch(served.pipeline, served.indexes, allowed=["d1", "no", "nor"])


@pytest.mark.parametrize(
    "params, status, message",
    [
        ({"q": "x" * 2001}, 413, "2,001 characters, at most 2,000"),
        ({"q": "a\0b"}, 400, "NUL character"),
        ({"q": "a", "left": "fussed"}, 400, "did you mean &#39;fused&#39;"),
        ({"q": "a", "k": "1000"}, 400, "k: expected a number from 1 to 50"),
        ({"q": "a", "k": "-1"}, 400, "k: expected"),
        ({"q": "a", "right": "<b>"}, 400, "unknown ranking &#39;&lt;b&gt;"),
    ],
)
def test_wrong_use_is_told_on_the_page(client, params, status, message):
    response = client.get("/", params=params)
    assert response.status_code == status and message in response.text
    assert "Content-Security-Policy" in response.headers and '<input id="q"' in response.text


def test_other_pages_and_methods(client):
    assert client.get("/other").status_code == 404
    assert client.get("/static/../app.py").status_code == 404
    assert client.post("/", content=b"x" * 1_000_000).status_code == 405
    assert "What is searched" in client.get("/", params={"q": "  "}).text
    html = client.get("/", params={"q": "no such word 0", "left": "words", "right": ""}).text
    assert "<h1" in html


def test_an_index_that_was_changed_is_not_searched(make_pipeline, tmp_path):
    pipeline, indexes = make_pipeline("words", folder=tmp_path)
    app = make_app({"search": ServedSearch(pipeline, indexes)})
    with TestClient(app, base_url="http://localhost") as client:
        assert client.get("/", params={"q": "cat"}).status_code == 200
        indexes["words"].delete(["secret"])
        response = client.get("/", params={"q": "cat"})
        assert response.status_code == 409 and "the index words was changed" in response.text
        assert client.get("/document", params={"id": "secret"}).status_code == 409


def test_highlights_are_cut_out_of_the_text():
    text = "x" * 50 + " one two " + "y " * 100
    pieces = highlight(text, {(51, 54): 2.0, (55, 58): 1.0, (52, 53): 0.5}, width=40)
    assert [piece for piece in pieces if piece.level] == [Piece("one", 4), Piece("two", 2)]
    assert len("".join(piece.text for piece in pieces)) < 60
    assert pieces[0].text == "… " and pieces[-1].text == " …"
    assert "".join(piece.text for piece in highlight(text, {(51, 54): 2.0})) == text
    assert highlight("", {}) == [] and highlight("a", {}) == [Piece("a")]
    spans = find_words("東京都", {"東京": 1.0, "京都": 2.0})
    assert spans == {(0, 2): 1.0, (1, 3): 2.0}
