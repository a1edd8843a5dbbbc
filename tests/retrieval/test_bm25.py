import math
import sys

import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval.bm25 import bm25_search, text_words

CORPUS = {"d1": "red house", "d2": "blue house house", "d3": "the red red car", "d4": "red house"}


def test_scores_equal_lucenes_formula():
    pytest.importorskip("bm25s")
    run = bm25_search(CORPUS, {"q": "Red"}, 10, k1=1.2, b=0.5)
    lengths = {"d1": 2, "d2": 3, "d3": 3, "d4": 2}  # "the" is a stop word
    mean = sum(lengths.values()) / 4
    idf = math.log(1 + (4 - 3 + 0.5) / (3 + 0.5))

    def score(document, count):
        return idf * count / (count + 1.2 * (1 - 0.5 + 0.5 * lengths[document] / mean))

    expected = {"d3": score("d3", 2), "d1": score("d1", 1), "d4": score("d4", 1)}
    assert list(run["q"]) == list(
        expected
    )  # d1 before d4: equal scores in the corpus' order; d2 has no such word
    assert run["q"] == pytest.approx(expected, rel=1e-5)


def test_cuts_at_k_with_ties_in_order():
    pytest.importorskip("bm25s")
    corpus = {f"d{n}": "same words" for n in range(20)}
    assert list(bm25_search(corpus, {"q": "words"}, 3)["q"]) == ["d0", "d1", "d2"]


def test_queries_and_corpora_without_known_words_find_nothing():
    pytest.importorskip("bm25s")
    assert bm25_search(CORPUS, {"q1": "zebra", "q2": ""}, 2) == {"q1": {}, "q2": {}}
    assert bm25_search({"d": "", "e": "the"}, {"q": "zebra"}, 2) == {"q": {}}


def test_without_bm25s_one_line_says_what_to_install(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "bm25s", raising=False)
    with pytest.raises(InputError, match=r'pip install "embed-jax\[search\]"'):
        bm25_search(CORPUS, {"q": "red"}, 2)


def test_parts_of_an_identifier_are_words():
    pytest.importorskip("bm25s")
    assert list(
        bm25_search({"d": "def read_csv(path): ...", "e": "other"}, {"q": "Read a CSV"}, 2)["q"]
    ) == ["d"]


# ---- scripts without blanks, and marks -----------------------------------------------------------

UNSPACED = {  # documents, and a query that stands within the first
    "Chinese": ("我喜欢吃苹果和香蕉。", "今天天气很好。", "苹果"),
    "Japanese": ("東京は日本の首都です。", "猫が好きです。", "日本の首都"),
    "kana": ("コーヒーを飲みたい", "さようなら", "コーヒー"),
    "Thai": ("กรุงเทพเป็นเมืองหลวงของไทย", "แมวกินปลา", "เมืองหลวง"),
    "Lao": ("ວຽງຈັນເປັນນະຄອນຫຼວງ", "ແມວກິນປາ", "ນະຄອນຫຼວງ"),
    "Khmer": ("ភ្នំពេញជារាជធានី", "ឆ្មាស៊ីត្រី", "រាជធានី"),
    "Burmese": ("နေပြည်တော်သည်မြို့တော်ဖြစ်သည်", "ကြောင်", "မြို့တော်"),
}


@pytest.mark.parametrize("language", UNSPACED)
def test_finds_words_in_scripts_without_blanks(language):
    pytest.importorskip("bm25s")
    first, second, query = UNSPACED[language]
    run = bm25_search({"d2": second, "d1": first}, {"q": query, "other": second}, 2)
    assert list(run["q"]) == ["d1"] and list(run["other"])[0] == "d2"


def test_marks_stay_in_words():
    pytest.importorskip("bm25s")
    assert text_words(["हिन्दी में किताब", "cafe\u0301 caf\u00e9", "İstanbul", "മലയാള\u200dം"]) == [
        ["हिन्दी", "में", "किताब"],
        ["caf\u00e9", "caf\u00e9"],
        ["i\u0307stanbul"],
        ["മലയാള\u200dം"],
    ]
    # Cut at its vowel signs, the first would share "क" and "त" with the second.
    assert bm25_search({"d": "कतार"}, {"q": "किताब"}, 1) == {"q": {}}


def test_characters_keep_their_marks_and_other_scripts_are_apart():
    pytest.importorskip("bm25s")
    assert text_words(["我的iPhone手机。水", "ไม่มี", "か\u3099く"]) == [
        ["我的", "iphone", "手机", "水"],
        ["ไม่", "ม่มี"],
        ["\u304cく"],
    ]


def test_words_of_scripts_with_blanks_are_as_they_were():
    bm25s = pytest.importorskip("bm25s")
    texts = [
        "The U.S. naïve Ωmega read_csv(x2), m² ½ Ⅳ",
        "Привет, мир! שלום عالم 안녕 세계",
        "don't 1️⃣",
    ]
    before = bm25s.tokenize(
        texts, token_pattern=r"[^\W_]+", stopwords="en", return_ids=False, show_progress=False
    )
    assert text_words(texts) == before
