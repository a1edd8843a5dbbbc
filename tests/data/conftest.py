"""A made vocabulary, and records of made words."""

import numpy as np
import pytest

WORDS = """the a of to and in is was on with cat dog house river music guitar plays runs quickly red
blue city road train apple bread science what who where : ? . , !""".split()


@pytest.fixture(scope="session")
def vocabulary():
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters[1:],
        *(f"##{letter}" for letter in letters),
    ]


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory, vocabulary):
    """A WordPiece tokenizer of BERT's form that keeps case."""
    from transformers import BertTokenizerFast

    directory = tmp_path_factory.mktemp("tokenizer")
    vocab = {piece: number for number, piece in enumerate(vocabulary)}
    BertTokenizerFast(vocab=vocab, do_lower_case=False).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def made_records():
    """Makes n pairs with different texts of 1 to 12 words; every third has a negative."""

    def make(count, seed=0):
        rng = np.random.default_rng(seed)

        def text(number):
            return " ".join([str(number), *rng.choice(WORDS[:20], rng.integers(1, 12))])

        records = [{"anchor": text(3 * i), "positive": text(3 * i + 1)} for i in range(count)]
        for i in range(0, count, 3):
            records[i]["negative"] = text(3 * i + 2)
        return records

    return make
