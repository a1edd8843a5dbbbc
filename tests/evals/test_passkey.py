import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.passkey import FORMS, make_document, make_facts, open_task


def reader(limit):
    """Makes a model that counts the words among the first `limit` words of a text."""
    numbers = {}

    def embed(texts, use):
        vectors = np.zeros((len(texts), 1200), np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().replace("?", " ").replace(".", " ").split()[:limit]:
                vectors[row, numbers.setdefault(word, len(numbers))] += word not in (
                    "the",
                    "is",
                    "in",
                )
        embed.uses.add((use.task, use.kind, use.side, use.instruction))
        return vectors

    embed.similarity, embed.uses = "dot", set()
    return embed


def per_length(outcome, lengths):
    return outcome.items.values.reshape(lengths, -1)


def test_accuracy_is_the_share_of_facts_that_are_read():
    task = open_task("64,256", name="Passkey", documents=40, queries=20)
    assert (task.kind, task.unit) == ("Retrieval", "queries") and len(task.item_texts) == 2 * 20
    everything, beginning = reader(256), reader(128)
    all_read, half_read = (task.evaluate(model) for model in (everything, beginning))
    assert everything.uses == {("Passkey", "Retrieval", side, "") for side in ("query", "document")}
    assert (
        set(all_read.metrics)
        == {"accuracy@1", "accuracy@1_64", "accuracy@1_256"}
        == set(all_read.intervals)
    )
    assert set(all_read.metrics.values()) == {1.0}
    assert half_read.metrics["accuracy@1_64"] == 1.0
    assert 0.4 <= half_read.metrics["accuracy@1_256"] <= 0.6
    assert half_read.score == pytest.approx((1 + half_read.metrics["accuracy@1_256"]) / 2)
    longer = per_length(half_read, 2)[1]
    assert longer[:8].all() and not longer[12:].any(), (
        "queries ask for facts in the order of their depth"
    )


def test_passages_find_what_lies_beyond_the_beginning():
    options = {"documents": 30, "queries": 15}
    whole = open_task("256", **options).evaluate(reader(64))
    passages = open_task("256", passage_words=64, passage_overlap=32, **options).evaluate(
        reader(64)
    )
    assert whole.score < 0.4 and passages.score == 1.0


@pytest.mark.parametrize("form", FORMS)
def test_documents_have_their_length_their_fact_and_one_filler(form):
    facts, questions = make_facts(form, 50)
    assert len(set(facts)) == len(set(questions)) == 50
    for length in (30, 100, 1000):
        for number, depth in enumerate((0.0, 0.25, 0.5, 1.0)):
            document = make_document(length, facts[number], depth)
            assert len(document.split()) == length and document.count(facts[number]) == 1
            before, after = document.split(facts[number])
            assert (
                abs(len(before.split()) / (length - len(facts[number].split())) - depth)
                < 15 / length
            )
            assert (
                " ".join([before.strip(), after.strip()]).split()
                == make_document(length - len(facts[number].split()), "", 0).split()
            )
    subject = questions[0].removesuffix("?").removesuffix(" kept").split()[-2:]
    assert sum(" ".join(subject) in fact for fact in facts) == 1 and " ".join(subject) in facts[0]


def test_the_same_seed_makes_the_same_texts():
    def texts(seed):
        seen = []

        def embed(texts, use):
            seen.extend(texts)
            return np.ones((len(texts), 1), np.float32)

        embed.similarity = "cosine"
        outcome = open_task("64", documents=10, queries=5, seed=seed, form="needle").evaluate(embed)
        assert outcome.score == 1 / 5, "equal embeddings are right by chance"
        return seen

    assert texts(0) == texts(0) != texts(1)
    assert not set(texts(0)[5:]) & set(texts(1)[5:])


@pytest.mark.parametrize(
    "data, options, message",
    [
        ("256,x", {}, "expected lengths in words, separated by commas, found '256,x'"),
        ("8", {}, "expected lengths of .* words or more, found 8"),
        ("64", {"form": "nedle"}, "unknown form 'nedle' .did you mean 'needle'"),
        (
            "64",
            {"documents": 10},
            "expected 1 to 300 documents and as many queries at most, found 10 and 50",
        ),
        ("64", {"documents": 301}, "found 301 and 50"),
        ("64", {"queries": 0}, "found 100 and 0"),
        ("64", {"passage_words": 4, "passage_overlap": 4}, "expected an overlap below"),
        ("64", {"passage_overlap": 4}, "expected an overlap below"),
    ],
)
def test_impossible_options_are_refused(data, options, message):
    with pytest.raises(InputError, match=message) as error:
        open_task(data, **options)
    assert "\n" not in str(error.value)
