"""Documents in pieces: no token is lost, no piece is too long, words stay whole if they can."""

import numpy as np
import pytest

from embed_jax.data.chunks import TOGETHER, cut_records
from embed_jax.data.stream import open_stream
from embed_jax.data.tokenizer_files import from_transformers, load_tokenizer
from embed_jax.errors import InputError


def text_of(record):
    return record["text"]


@pytest.fixture(scope="module")
def wordpiece(tiny_tokenizer):
    return load_tokenizer(tiny_tokenizer, 16)


@pytest.fixture(scope="module")
def byte_level():
    """`(trim) -> tokenizer`: byte pairs with few merges, like RoBERTa's (trimmed) or GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(max_length, trim=False, special=True):
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [
            ("t", "h"),
            ("th", "e"),
            ("Ġ", "the"),
            ("a", "n"),
            ("Ġ", "an"),
            ("r", "i"),
            ("ri", "v"),
        ]
        vocabulary = {
            token: number
            for number, token in enumerate([*letters, *map("".join, merges), "<s>", "</s>"])
        }
        backend = Tokenizer(models.BPE(vocabulary, merges))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim)
        backend.decoder = decoders.ByteLevel()
        if special:
            ends = [(name, vocabulary[name]) for name in ("<s>", "</s>")]
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
            )
        hf = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
        return from_transformers(hf, max_length)

    return make


def documents(sentences):
    rng = np.random.default_rng(3)
    made = [" ".join(rng.choice(sentences, n)) for n in rng.integers(1, 30, 40)]
    return made + [
        "",
        "   ",
        "a",
        "cat",
        "  dog \n\n house\t",
        "antidisestablishmentarianism" * 3,
        "x" * 200,
    ]


def inner(tokenizer, text):
    """Returns all token ids without special ones."""
    whole = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    whole.no_truncation()
    return whole.encode(text, add_special_tokens=False).ids


def by_document(pieces):
    result = {}
    for number, piece in zip(pieces.document, pieces, strict=True):
        result.setdefault(int(number), []).append(piece["text"])
    return result


def test_pieces_make_the_document_and_none_is_cut_short(wordpiece, sentences):
    records = [{"text": text} for text in documents(sentences)]
    pieces = cut_records(records, text_of, wordpiece)
    parts = by_document(pieces)
    assert [number for number in range(len(records)) if number not in parts] == [40, 41], (
        "those without a token"
    )
    assert wordpiece.encode([piece["text"] for piece in pieces]).truncated == 0
    for number, texts in parts.items():
        assert "".join(texts) == records[number]["text"]
    assert max(map(len, parts.values())) > 20
    assert (np.diff(pieces.document) >= 0).all() and len(pieces) == sum(map(len, parts.values()))


def test_no_token_is_lost_or_changed_where_words_can_stay_whole(wordpiece, sentences):
    """Pieces end between words, keep the document's tokens, and have no room for another word."""
    records = [{"text": text} for text in documents(sentences)[:40]]
    room = 14
    for number, texts in by_document(cut_records(records, text_of, wordpiece)).items():
        tokens = [inner(wordpiece, text) for text in texts]
        assert sum(tokens, []) == inner(wordpiece, records[number]["text"])
        for ids, text in zip(tokens, texts[1:], strict=False):
            assert len(ids) <= room < len(ids) + len(inner(wordpiece, text.split()[0]))


def test_a_word_longer_than_a_piece_is_cut_between_tokens(wordpiece):
    pieces = [
        piece["text"]
        for piece in cut_records([{"text": "a " + "cat" * 30 + " dog"}], text_of, wordpiece)
    ]
    assert "".join(pieces) == "a " + "cat" * 30 + " dog" and len(pieces) > 6
    assert wordpiece.encode(pieces).truncated == 0


@pytest.mark.parametrize("trim", [False, True])
def test_bytes_and_spaces(byte_level, sentences, trim):
    """Characters of several tokens stay whole; a word keeps the space before it in its tokens."""
    tokenizer = byte_level(12, trim)
    texts = [
        *documents(sentences)[:20],
        "the river, \u00fcber \u6c34 \U0001f600\U0001f600 the\u0301 " * 4,
        "\u6c34" * 40,
    ]
    for text in texts:
        pieces = [piece["text"] for piece in cut_records([{"text": text}], text_of, tokenizer)]
        assert "".join(pieces) == text
        assert tokenizer.encode(pieces).truncated == 0
        assert sum((inner(tokenizer, piece) for piece in pieces), []) == inner(tokenizer, text)


def test_a_character_that_fits_into_no_piece(byte_level):
    assert len(cut_records([{"text": "\U0001f600 \U0001f600"}], text_of, byte_level(7))) == 2
    with pytest.raises(
        InputError, match="max_length: no room for a character of 4 tokens, as in '\U0001f600'"
    ):
        cut_records([{"text": "a \U0001f600 b"}], text_of, byte_level(5))


def test_pieces_that_grow_when_they_stand_alone_are_made_smaller(wordpiece):
    """The tokenizer's word pieces are longer inside a word.

    "##ab..." is one token, "ab..." is several.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"[UNK]": 0, "a": 1, "b": 2, "##a": 3, "##b": 4, "##bab": 5}
    backend = Tokenizer(
        models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=1000)
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = from_transformers(
        PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"), 4
    )
    text = "a" + "bab" * 12
    assert len(inner(tokenizer, text)) == 13 and len(inner(tokenizer, "bab" * 4)) == 6
    pieces = [piece["text"] for piece in cut_records([{"text": text}], text_of, tokenizer)]
    assert "".join(pieces) == text and tokenizer.encode(pieces).truncated == 0 and len(pieces) > 4


def test_a_stream_is_cut_as_it_is_read(wordpiece, sentences):
    texts = documents(sentences) * 8
    assert len(texts) > TOGETHER
    records = [{"text": text} for text in texts]
    read = []

    def opened():
        read.append(0)
        for record in records:
            read[-1] += 1
            yield record

    stream = cut_records(open_stream(opened, "there"), text_of, wordpiece)
    assert stream.name == "there"
    expected = list(cut_records(records, text_of, wordpiece))
    assert list(stream.open()) == expected == list(stream.open())
    first = next(stream.open())
    assert first == expected[0] and read[-1] <= TOGETHER, "no more than is tokenised at once"


def test_slices_and_what_cannot_be(wordpiece):
    records = [{"text": "the cat plays music " * 9}, {"text": "red house"}]
    pieces = cut_records(records, text_of, wordpiece)
    assert list(pieces[1:]) == list(pieces)[1:] and pieces[-1] == {"text": "red house"}
    with pytest.raises(InputError, match="2 records have no token to train on"):
        cut_records([{"text": ""}, {"text": " "}], text_of, wordpiece)
    with pytest.raises(InputError, match="record 1: no text here"):
        cut_records(
            records, lambda record: refuse() if record is records[1] else record["text"], wordpiece
        )
    with pytest.raises(InputError, match="not valid Unicode"):
        cut_records([{"text": "a \ud800"}], text_of, wordpiece)


def refuse():
    raise InputError("no text here")
