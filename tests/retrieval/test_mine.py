import collections
import math
import zlib

import numpy as np
import pytest

from embed_jax.data.pairs import join_title
from embed_jax.data.sources import open_records, record_fields
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.errors import InputError, RunError
from embed_jax.retrieval.copies import token_fold
from embed_jax.retrieval.mine import (
    Report,
    corpus_with,
    dense_searcher,
    mine_negatives,
    mine_records,
    records_of,
)
from embed_jax.retrieval.mining_candidates import Mining
from embed_jax.scores import unit_length

WORDS = "red blue green house car dog cat river stone apple".split()


def encode(texts):
    """Returns sums of made word vectors: texts that share words are similar."""
    vectors = [sum(word_vector(word) for word in text.split()) for text in texts]
    return np.array(vectors, np.float32).reshape(len(texts), 16)


def word_vector(word):
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=16)


def cosine(query, passage):
    return float(unit_length(encode([query]))[0] @ unit_length(encode([passage]))[0])


def made(seed=0, queries=12, passages=60, most=3):
    """Makes pairs, some of which share their anchor, and a corpus."""
    rng = np.random.default_rng(seed)

    def text(tag, number, words):
        return " ".join([*rng.choice(WORDS, words), f"{tag}{number}"])

    corpus = [text("p", number, 4) for number in range(passages)]
    pairs = []
    for number in range(queries):
        anchor = text("q", number, 3)
        for row in rng.choice(passages, 1 + number % most, replace=False):
            pairs.append(
                {"anchor": anchor, "positive": corpus[row], "negative_1": "old", "id": f"i{number}"}
            )
    return pairs, corpus


class Table:
    """A searcher with given similarities."""

    def __init__(self, queries, similarities):
        self.rows = dict(zip(queries, np.asarray(similarities, np.float32), strict=True))

    def search(self, queries, k):
        table = np.stack([self.rows[query] for query in queries])
        rows = np.argsort(-table, axis=1, kind="stable")[:, :k]
        missing = ((0, 0), (0, k - rows.shape[1]))
        scores = np.take_along_axis(table, rows, axis=1)
        rows = np.where(np.isinf(scores), -1, rows)  # -inf: not found
        return np.pad(scores, missing, constant_values=-np.inf), np.pad(
            rows, missing, constant_values=-1
        )

    def score(self, queries, rows):
        table = np.stack([self.rows[query] for query in queries])
        return np.where(rows >= 0, np.take_along_axis(table, rows, axis=1), -np.inf)


def dense(corpus):
    return dense_searcher(encode, encode, corpus)


def mined(pairs, corpus, searchers, *arguments, **options):
    blocks = mine_negatives(pairs, corpus, searchers, *arguments, **options)
    return {
        (mined_pair.anchor, mined_pair.positive): mined_pair
        for block in blocks
        for mined_pair in block
    }


def negatives(*arguments, **options):
    return {pair: mined_pair.negatives for pair, mined_pair in mined(*arguments, **options).items()}


CORPUS = ["a", "b", "c", "d", "e", "f"]


def table(*scores):
    return Table(["q"], [scores])


def of_q(searchers, options, positive="a", **arguments):
    """Returns the negatives of the query "q" whose positive is a passage of CORPUS."""
    pairs = [{"anchor": "q", "positive": positive}]
    return "".join(negatives(pairs, CORPUS, searchers, options, **arguments)["q", positive])


# ---- which passages become negatives -------------------------------------------------------------

OPTIONS = [
    Mining(number=3, rank_max=20),
    Mining(number=2, rank_min=4, rank_max=12),
    Mining(number=5, rank_max=30, score_max=0.5),
    Mining(number=4, rank_min=2, rank_max=30, score_min=0.2, score_max=0.6),
    Mining(number=3, rank_max=25, absolute_margin=0.1),
    Mining(number=3, rank_max=25, relative_margin=0.2),
    Mining(
        number=3, rank_min=3, rank_max=25, absolute_margin=-0.2, relative_margin=0.05, score_max=0.7
    ),
]


@pytest.mark.parametrize("options", OPTIONS, ids=repr)
def test_equals_sentence_transformers(options):
    mine_hard_negatives = pytest.importorskip("sentence_transformers.util").mine_hard_negatives
    pairs, corpus = made(most=1)
    margins = {
        "absolute_margin": options.absolute_margin,
        "relative_margin": options.relative_margin,
    }
    their_rows = mine_hard_negatives(
        of_columns(pairs),
        Peer(),
        corpus=corpus,
        range_min=options.rank_min,
        range_max=options.rank_max,
        min_score=None if math.isinf(options.score_min) else options.score_min,
        max_score=None if math.isinf(options.score_max) else options.score_max,
        num_negatives=options.number,
        verbose=False,
        output_scores=True,
        **margins,
    )
    reference = collections.defaultdict(list)
    for row in their_rows:
        reference[row["anchor"], row["positive"]].append((row["negative"], *row["scores"]))
    ours = {
        pair: mined_pair
        for pair, mined_pair in mined(pairs, corpus, [dense(corpus)], options).items()
        if mined_pair.negatives
    }
    assert reference and set(ours) == set(reference)
    for pair, mined_negatives in ours.items():
        assert list(mined_negatives.negatives) == [negative for negative, _, _ in reference[pair]]
        expected = [(positive, score) for _, positive, score in reference[pair]]
        np.testing.assert_allclose(
            [(mined_negatives.positive_score, score) for score in mined_negatives.scores],
            expected,
            atol=1e-5,
        )


@pytest.mark.parametrize("options", OPTIONS[:4], ids=repr)
def test_equals_sentence_transformers_with_several_positives(options):
    mine_hard_negatives = pytest.importorskip("sentence_transformers.util").mine_hard_negatives
    pairs, corpus = made(most=3)
    their_rows = mine_hard_negatives(
        of_columns(pairs),
        Peer(),
        corpus=corpus,
        range_min=options.rank_min,
        range_max=options.rank_max,
        min_score=None if math.isinf(options.score_min) else options.score_min,
        max_score=None if math.isinf(options.score_max) else options.score_max,
        num_negatives=options.number,
        verbose=False,
    )
    reference = {(row["anchor"], row["positive"], row["negative"]) for row in their_rows}
    records, _ = mine_records(pairs, corpus, [dense(corpus)], options, "triplets")
    assert {(row["anchor"], row["positive"], row["negative"]) for row in records} == reference


def of_columns(pairs):
    from datasets import Dataset

    return Dataset.from_dict(
        {name: [pair[name] for pair in pairs] for name in ("anchor", "positive")}
    )


class Peer:
    """The methods that `mine_hard_negatives` calls on a SentenceTransformer."""

    device = "cpu"

    def encode_query(self, texts, **options):
        return unit_length(encode(texts))

    encode_document = encode_query

    def similarity(self, left, right):
        torch = pytest.importorskip("torch")

        return torch.as_tensor(left) @ torch.as_tensor(right).T

    def similarity_pairwise(self, left, right):
        torch = pytest.importorskip("torch")

        return (torch.as_tensor(left) * torch.as_tensor(right)).sum(-1)


def test_known_positives_own_text_and_repeated_texts_are_never_negatives():
    pairs, corpus = made()
    rng = np.random.default_rng(1)
    corpus += [f"  {corpus[row]}\n" for row in range(0, 60, 2)]  # the same texts again
    corpus += [pairs[0]["anchor"] + " ", pairs[5]["anchor"]]
    corpus = [corpus[row] for row in rng.permutation(len(corpus))]
    for options in (Mining(number=40), Mining(number=40, sampling="random")):
        result = mined(pairs, corpus, [dense(corpus)], options)
        assert len(result) == len(pairs)
        for mined_pair in result.values():
            texts = [text.strip() for text in mined_pair.negatives]
            positives = {
                pair["positive"].strip() for pair in pairs if pair["anchor"] == mined_pair.anchor
            }
            assert len(set(texts)) == len(texts) == 40
            assert not set(texts) & (positives | {mined_pair.anchor})


BODY = "the river runs past a house of red stone"


@pytest.mark.parametrize(
    "passage",
    [
        join_title("River", "short text"),
        "short\u00a0 text",
        "River - " + BODY,
        BODY.upper() + "\nand more",
        BODY[:30],
    ],
)
def test_a_positive_with_a_title_or_cut_otherwise_is_no_negative(passage):
    """Each is the most similar passage, and the report counts it."""
    positive = BODY if len(passage) > 25 else "short text"
    pairs, corpus = [{"anchor": "q", "positive": positive}], [passage, "b", "c"]
    report = Report()
    corpus = corpus_with(pairs, corpus, report)
    scores = Table(["q"], [[0.9, 0.3, 0.2, 0.8][: len(corpus)]])
    records, result = mine_records(pairs, corpus, [scores], Mining(number=2))
    assert [records[0][f"negative_{n}"] for n in (1, 2)] == ["b", "c"]
    lacking = positive is BODY
    assert (report.lacking, report.positives) == (lacking, 1) and len(corpus) == 3 + lacking
    assert result.candidates["contained"] == lacking
    result.lacking, result.positives = report.lacking, report.positives
    message = (
        "warning: the corpus lacks 1 of 1 positives, which were added to it; it has their texts"
    )
    assert (message in str(result)) == lacking


def test_a_corpus_of_other_texts_is_suspected():
    report = Report()
    pairs = [{"anchor": "q", "positive": text} for text in "abc"]
    assert corpus_with(pairs, ["a", "x"], report) == ["a", "x", "b", "c"]
    assert "lacks 2 of 3 positives" in report.warning() and "is it the corpus" in report.warning()
    assert corpus_with(pairs, CORPUS, report) == CORPUS and report.warning() is None


def test_what_the_tokenizer_cannot_tell_apart_is_no_negative(tiny_tokenizer):
    pairs = [{"anchor": "A dog?", "positive": "a dog"}, {"anchor": "a dog?", "positive": "a cat"}]
    corpus = ["A DOG", "a dog", "A Cat", "a cat", "a man", "A man"]
    scores = Table(["A dog?"], [[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    result = negatives(
        pairs,
        corpus,
        [scores],
        Mining(number=4),
        fold=token_fold(load_tokenizer(tiny_tokenizer, 8)),
    )
    assert list(result.values()) == [("a man",), ("a man",)]


def test_ranks_do_not_count_known_positives():
    scores = table(0.5, 0.9, 0.8, 0.7, 0.6, 0.4)
    assert of_q([scores], Mining(number=2), positive="b") == "cd"
    assert of_q([scores], Mining(number=2, rank_min=1, rank_max=3), positive="b") == "de"
    assert of_q([scores], Mining(number=5), positive="b") == "cdeaf"
    assert of_q([scores], Mining(number=3, rank_max=3), positive="f") == "bcd"


def test_a_margin_compares_with_the_pairs_own_positive():
    pairs = [{"anchor": "q", "positive": text} for text in "ab"]
    result = negatives(
        pairs, CORPUS, [table(0.9, 0.5, 0.7, 0.6, 0.4, 0.3)], Mining(number=4, absolute_margin=0.1)
    )
    assert {positive: "".join(texts) for (_, positive), texts in result.items()} == {
        "a": "cdef",
        "b": "ef",
    }


def test_a_relative_margin_lies_below_a_negative_positive():
    scores = [table(-0.5, -0.45, -0.52, -0.55, -0.56, -0.9)]
    assert of_q(scores, Mining(number=5, relative_margin=0.1)) == "def"  # at most -0.55
    assert of_q(scores, Mining(number=5, relative_margin=0.0)) == "cdef"


def test_searchers_are_interleaved_and_compared_with_themselves():
    left, right = table(0.5, 0.9, 0.8, 0.4, 0.3, 0.2), table(50, 1, 60, 70, 40, -np.inf)
    assert of_q([left, right], Mining(number=5)) == "bdcef"
    assert of_q([right, left], Mining(number=5)) == "dbcef"
    # b and c (by left) are above left's positive; d (by right) above right's.
    assert of_q([left, right], Mining(number=5, absolute_margin=0.0)) == "ef"
    assert of_q([left, right], Mining(number=3, rank_max=3)) == "bdc"


def test_a_cross_encoder_decides_limits_and_order():
    scores = {"a": 2.0, "b": 5.0, "c": 1.5, "d": -1.0, "e": 1.0, "f": 0.0}
    requests = []

    def score(queries, passages):
        requests.append(list(zip(queries, passages, strict=True)))
        return np.array([scores[passage] for passage in passages])

    left, right = table(0.5, 0.9, 0.8, 0.4, 0.3, 0.2), table(50, 1, 60, 70, 40, 30)
    for options, expected in (
        (Mining(number=5, absolute_margin=0.5), "cefd"),
        (Mining(number=5, score_min=0.0, score_max=1.5), "cef"),
        (Mining(number=1, rank_min=1, relative_margin=0.5), "f"),
    ):
        requests.clear()
        (mined_pair,) = mined(
            [{"anchor": "q", "positive": "a"}], CORPUS, [left, right], options, score=score
        ).values()
        assert "".join(mined_pair.negatives) == expected
        assert (mined_pair.positive_score, list(mined_pair.scores)) == (
            2.0,
            [scores[text] for text in expected],
        )
        assert sorted(sum(requests, [])) == [("q", text) for text in CORPUS]
    # Without limits it does not choose, and scores only what was chosen.
    requests.clear()
    (mined_pair,) = mined(
        [{"anchor": "q", "positive": "a"}], CORPUS, [left, right], Mining(number=2), score=score
    ).values()
    assert (mined_pair.negatives, mined_pair.scores, mined_pair.positive_score) == (
        ("b", "d"),
        (5.0, -1.0),
        2.0,
    )
    assert sorted(sum(requests, [])) == [("q", "a"), ("q", "b"), ("q", "d")]


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_block_size_and_order_change_nothing(sampling):
    pairs, corpus = made()
    options = Mining(
        number=3, rank_min=2, rank_max=10, absolute_margin=0.0, sampling=sampling, seed=3
    )
    whole = negatives(pairs, corpus, [dense(corpus)], options)
    for block in (1, 5):
        assert negatives(pairs, corpus, [dense(corpus)], options, block=block) == whole
    assert negatives(pairs[::-1], corpus, [dense(corpus)], options, block=4) == whole
    some = negatives(pairs[:7], corpus, [dense(corpus)], options)
    assert some == {pair: whole[pair] for pair in some if pair in whole}


def test_random_sampling_depends_on_the_seed_and_takes_every_rank():
    pairs, corpus = made(most=1)
    window = negatives(pairs, corpus, [dense(corpus)], Mining(number=8, rank_min=2, rank_max=10))
    counts = collections.Counter()
    for seed in range(200):
        result = negatives(
            pairs,
            corpus,
            [dense(corpus)],
            Mining(number=2, rank_min=2, rank_max=10, sampling="random", seed=seed),
        )
        for pair, texts in result.items():
            places = [window[pair].index(text) for text in texts]
            assert places == sorted(set(places)) and len(places) == 2
            counts.update(places)
    expected = 200 * len(pairs) * 2 / 8
    # A binomial count: five standard deviations.
    assert all(abs(counts[place] - expected) < 5 * math.sqrt(expected) for place in range(8)), (
        counts
    )


def test_queries_are_searched_in_blocks():
    pairs, corpus = made(queries=10)
    sizes = []

    class Counting(Table):
        def search(self, queries, k):
            sizes.append(len(queries))
            return super().search(queries, k)

    queries = list(dict.fromkeys(pair["anchor"] for pair in pairs))
    searcher = Counting(queries, encode(queries) @ encode(corpus).T)
    blocks = list(mine_negatives(pairs, corpus, [searcher], Mining(), block=4))
    assert sizes == [4, 4, 2]
    assert [len({mined_pair.anchor for mined_pair in block}) for block in blocks] == sizes


# ---- the report ----------------------------------------------------------------------------------


def test_the_report_accounts_for_every_candidate():
    pairs = [{"anchor": "q", "positive": text} for text in "ab"]
    corpus = [*CORPUS, "b ", "q"]
    scores = Table(["q"], [[0.9, 0.5, 0.8, 0.7, 0.4, 0.3, 0.5, 1.0]])
    options = Mining(number=1, rank_min=1, rank_max=4, absolute_margin=0.05, score_max=0.75)
    records, report = mine_records(pairs, corpus, [scores], options)
    # For a: c above 0.75; of d e f, d is skipped and f not needed. For b: c again, d too close; e
    # skipped.
    assert [record.get("negative_1") for record in records] == ["e", "f"]
    assert report.pairs == {1: 2}
    expected = {
        "positive": 6,
        "duplicate": 2,
        "score": 2,
        "margin": 1,
        "rank": 2,
        "surplus": 1,
        "kept": 2,
    }
    assert +report.candidates == expected
    assert report.candidates.total() == 2 * len(corpus)
    assert str(report).startswith("2 pairs, 16 candidates") and "2  pairs with 1 negatives" in str(
        report
    )
    report.pairs.update(range(100))
    assert len(str(report).splitlines()) < 24


def test_pairs_without_negatives_are_counted_and_left_out_of_the_records():
    pairs = [{"anchor": "q", "positive": "a"}, {"anchor": "r", "positive": "b"}]
    table = Table(["q", "r"], [[0.1, 0.9, 0.9, 0.9, 0.9, 0.9], [0.1, 0.9, 0.2, 0.3, 0.95, 0.95]])
    options = Mining(number=3, absolute_margin=0.1)
    assert negatives(pairs, CORPUS, [table], options) == {
        ("q", "a"): (),
        ("r", "b"): ("d", "c", "a"),
    }
    records, report = mine_records(pairs, CORPUS, [table], options)
    assert [record["anchor"] for record in records] == ["r"]
    assert report.pairs == {0: 1, 3: 1}
    assert "1  pairs with 0 negatives, left out" in str(report)


def test_if_everything_is_dropped_one_line_says_by_what():
    pairs = [{"anchor": "q", "positive": "a"}]
    with pytest.raises(
        InputError, match=r"1 pairs .* all 6 .* 1 known positive .* 5 outside score_min"
    ) as error:
        mine_records(pairs, CORPUS, [table(*[0.5] * 6)], Mining(score_max=0.2))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="5 too close"):
        mine_records(pairs, CORPUS, [table(*[0.5] * 6)], Mining(absolute_margin=0.1))
    with pytest.raises(InputError, match="finds nothing"):
        mine_records(pairs, CORPUS, [table(*[-np.inf] * 6)], Mining())


# ---- records -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["triplets", "n-tuples", "labelled-pairs", "scored-lists"])
def test_training_reads_every_form(tmp_path, form):
    import json

    pairs, corpus = made()
    records, _ = mine_records(pairs, corpus, [dense(corpus)], Mining(number=2, score_max=0.6), form)
    path = tmp_path / "mined.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    read = open_records(str(path))
    fields = record_fields(read)
    assert len(read) == len(records) and "old" not in path.read_text()
    known = {(pair["anchor"], pair["positive"]) for pair in pairs}
    for record in read:
        anchor, *texts = fields.columns(record)
        if form == "labelled-pairs":
            assert fields.label(record) == int((anchor, texts[0]) in known)
            continue
        assert (anchor, texts[0]) in known and not {(anchor, text) for text in texts[1:]} & known
        assert len(texts) >= 2
        if form == "scored-lists":
            expected = [cosine(anchor, text) for text in texts]
            np.testing.assert_allclose(fields.score(record), expected, atol=1e-5)
        else:
            assert record["id"].startswith("i")  # id and group stay


def test_forms():
    pairs = [{"anchor": "q", "positive": text} for text in "ab"]
    block = next(
        mine_negatives(pairs, CORPUS, [table(0.9, 0.8, 0.5, 0.25, 0.75, 0.0)], Mining(number=2))
    )
    assert list(records_of(block, "triplets")) == [
        {"anchor": "q", "positive": positive, "negative": negative}
        for positive in "ab"
        for negative in "ec"
    ]
    assert list(records_of(block, "n-tuples")) == [
        {"anchor": "q", "positive": positive, "negative_1": "e", "negative_2": "c"}
        for positive in "ab"
    ]
    labels = {
        record["sentence2"]: record["label"] for record in records_of(block, "labelled-pairs")
    }
    assert labels == {"a": 1, "b": 1, "e": 0, "c": 0}
    assert len(list(records_of(block, "labelled-pairs"))) == 4
    first, _ = records_of(block, "scored-lists")
    assert (first["query"], first["passages"]) == ("q", ["a", "e", "c"])
    np.testing.assert_allclose(first["scores"], [0.9, 0.75, 0.5], atol=1e-6)
    with pytest.raises(InputError, match="triplet"):
        records_of(block, "triplet")


def test_scores_of_several_searchers_make_no_scored_lists():
    pairs, tables = [{"anchor": "q", "positive": "a"}], [table(*range(6)), table(*range(6))]
    with pytest.raises(InputError, match="cross-encoder"):
        mine_records(pairs, CORPUS, tables, Mining(), "scored-lists")
    records, _ = mine_records(
        pairs, CORPUS, tables, Mining(), "scored-lists", score=lambda q, p: np.arange(len(p))
    )
    assert records[0]["scores"] == [0, 1]


# ---- input ---------------------------------------------------------------------------------------


def test_the_corpus_gets_the_positives_it_lacks_and_each_text_once():
    pairs = [{"anchor": "q", "positive": " c"}, {"anchor": "q", "positive": "a "}]
    assert corpus_with(pairs, ["a", "b", " a"]) == ["a", "b", " c"]
    assert corpus_with(pairs) == [" c", "a "]
    with pytest.raises(InputError, match="passage 1 of the corpus is empty"):
        corpus_with(pairs, ["a", " \n"])
    with pytest.raises(InputError, match="pair 0: positive"):
        corpus_with([{"anchor": "q"}])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"number": 0}, "number"),
        ({"rank_min": -1}, "rank_min"),
        ({"rank_min": 99, "number": 2}, "no room for number=2"),
        ({"score_min": 0.5, "score_max": 0.4}, "leave no score"),
        ({"score_max": math.nan}, "leave no score"),
        ({"absolute_margin": math.inf}, "absolute_margin"),
        ({"relative_margin": math.nan}, "relative_margin"),
        ({"sampling": "rand"}, "did you mean 'random'"),
    ],
)
def test_impossible_options_are_refused(options, match):
    with pytest.raises(InputError, match=match) as error:
        Mining(**options)
    assert "\n" not in str(error.value)


def test_bad_input_is_refused_before_any_search():
    searcher, good = table(*range(6)), [{"anchor": "q", "positive": "a"}]
    for pairs, corpus, searchers, match in (
        (good, CORPUS, [], "searchers"),
        ([], CORPUS, [searcher], "none"),
        (
            [*good, {"anchor": "q", "positive": "z"}],
            CORPUS,
            [searcher],
            "pair 1: its positive is not in the corpus",
        ),
        ([{"anchor": " ", "positive": "a"}], CORPUS, [searcher], "pair 0: anchor"),
        ([{"anchor": "q", "positive": None}], CORPUS, [searcher], "pair 0: positive"),
        (good, [*CORPUS, ""], [searcher], "passage 6"),
    ):
        with pytest.raises(InputError, match=match):
            mine_negatives(pairs, corpus, searchers, Mining())
    with pytest.raises(InputError, match="one score for each"):
        mine_records(good, CORPUS, [searcher], Mining(), score=lambda q, p: np.zeros(1))
    with pytest.raises(RunError, match="no finite score"):
        mine_records(good, CORPUS, [searcher], Mining(), score=lambda q, p: np.full(len(p), np.nan))
