"""Token ids are those of sentence-transformers."""

import concurrent.futures
import json
import shutil

import numpy as np
import pytest

from embed_jax.data.tokenizer_files import from_transformers, load_tokenizer
from embed_jax.errors import InputError

ODD = [
    "",
    "   ",
    "\t\n",
    "the cat runs quickly",
    "  THE Cat  ",
    "😀 the 👩‍👩‍👧 dog",
    "שלום the עולם",
    "مرحبا بالعالم",
    "中文字符",
    "Ünïcödé",
    "a\u0000b\u200b",
    "[CLS] the [SEP] cat [MASK]",
    "the cat " * 500,
    "x" * 5000,
]


def test_ids_equal_transformers(tokenizer_directory):
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(tokenizer_directory)
    encoded = load_tokenizer(tokenizer_directory, 16).encode(ODD)
    assert len({id for ids in encoded.ids for id in ids.tolist()}) > 10  # not all of it is unknown
    for text, ids in zip(ODD, encoded.ids, strict=True):
        assert ids.tolist() == hf(text, truncation=True, max_length=16)["input_ids"]
        assert ids.dtype == np.int32
    assert encoded.skip == 0
    assert encoded.truncated == sum(len(hf(text)["input_ids"]) > 16 for text in ODD) >= 1


@pytest.mark.parametrize("lower_case", [False, True])
def test_ids_and_prompt_length_equal_sentence_transformers(
    tokenizer_directory, tmp_path, lower_case
):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import BertConfig, BertModel

    shutil.copytree(tokenizer_directory, tmp_path, dirs_exist_ok=True)
    ours = load_tokenizer(tmp_path, 32, lower_case=lower_case)
    assert (
        ours.encode(["THE"]).ids[0].tolist() == ours.encode(["the"]).ids[0].tolist()
    ) == lower_case
    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    BertModel(
        BertConfig(vocab_size=ours.vocab_size, max_position_embeddings=64, **sizes)
    ).save_pretrained(tmp_path)
    reference = Transformer(str(tmp_path), max_seq_length=32, do_lower_case=lower_case)
    for prompt in ("", "what is: ", "the the "):
        encoded = ours.encode(ODD, prompt, include_prompt=False)
        for text, ids in zip(ODD, encoded.ids, strict=True):
            expected = reference.preprocess([text], prompt=prompt or None)
            assert ids.tolist() == expected["input_ids"][0].tolist(), (prompt, text)
            assert encoded.skip == expected.get("prompt_length", 0)
    assert ours.encode(ODD, "what is: ").skip == 0


def test_threads_share_a_tokenizer(tokenizer_directory):
    tokenizer = load_tokenizer(tokenizer_directory, 16)
    expected = [ids.tolist() for ids in tokenizer.encode(ODD).ids]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda _: [ids.tolist() for ids in tokenizer.encode(ODD).ids], range(16))
    assert all(result == expected for result in results)


def test_saved_tokenizer_is_the_same(tokenizer_directory, tmp_path):
    tokenizer = load_tokenizer(tokenizer_directory, 16)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path, 16)
    assert [ids.tolist() for ids in again.encode(ODD).ids] == [
        ids.tolist() for ids in tokenizer.encode(ODD).ids
    ]
    assert again.vocab_size == tokenizer.vocab_size and again.pad_id == tokenizer.pad_id == 0


@pytest.mark.unchecked
def test_texts_are_checked(tokenizer_directory):
    tokenizer = load_tokenizer(tokenizer_directory, 16)
    with pytest.raises(InputError, match="must be a string, found int"):
        tokenizer.encode(["a", 3])
    with pytest.raises(InputError, match="not valid Unicode"):
        tokenizer.encode(["a", "\ud800"])
    assert tokenizer.encode([]).ids == []


def test_bad_directories_are_one_line(tokenizer_directory, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InputError, match="no tokenizer there"):
        load_tokenizer(tmp_path, 16)
    (tmp_path / "tokenizer.json").write_text(
        (tokenizer_directory / "tokenizer.json").read_text()[:500]
    )
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_tokenizer(tmp_path, 16)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no room for text"):
        from_transformers(load_tokenizer(tokenizer_directory, 16).hf, 2)


# ---- tokenizers of language models ---------------------------------------------------------------

CLASSES = [
    "PreTrainedTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "GemmaTokenizer",
]


def processors(name):
    from tokenizers import processors as made

    bytes_alone = made.ByteLevel(trim_offsets=False)
    bos = made.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    eos = made.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)]
    )
    pad = made.TemplateProcessing(
        single="$A <pad>", pair="$A <pad> $B <pad>", special_tokens=[("<pad>", 0)]
    )
    return {
        "none": None,
        "bytes": bytes_alone,
        "bos": bos,
        "bytes, bos": made.Sequence([bytes_alone, bos]),
        "eos": eos,
        "bytes, eos": made.Sequence([bytes_alone, eos]),
        # As Qwen3-Embedding, which ends texts with <|endoftext|> where its eos_token is <|im_end|>
        "another end": pad,
    }[name]


@pytest.mark.parametrize(
    "name", ["none", "bytes", "bos", "bytes, bos", "eos", "bytes, eos", "another end"]
)
@pytest.mark.parametrize("kind", CLASSES)
def test_eos_is_appended_once_and_written_down(bpe_tokenizer, tmp_path, kind, name):
    """A saved tokenizer appends the same tokens in transformers.

    Bos token and padding side stay as they were.
    """
    from transformers import AutoTokenizer

    directory = bpe_tokenizer(processors(name), tokenizer_class=kind, padding_side="left")
    before, ours = load_tokenizer(directory, 12), load_tokenizer(directory, 12, append_eos=True)
    texts = ["the cat", "", "a dog runs " * 9, "river </s>"]
    hf = AutoTokenizer.from_pretrained(directory)
    assert [x.tolist() for x in before.encode(texts).ids] == hf(
        texts, truncation=True, max_length=12
    )["input_ids"]
    ends = name.endswith(("eos", "another end"))
    ids_of_texts = [x.tolist() for x in ours.encode(texts).ids]
    for ids, plain in zip(
        ids_of_texts, load_tokenizer(directory, 12 if ends else 11).encode(texts).ids, strict=True
    ):
        assert ids == plain.tolist() + [2] * (not ends)
    assert max(map(len, ids_of_texts)) == 12
    ours.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(texts, truncation=True, max_length=12)["input_ids"] == ids_of_texts
    assert again.padding_side == "left"
    assert [
        x.tolist() for x in load_tokenizer(tmp_path, 12, append_eos=True).encode(texts).ids
    ] == ids_of_texts


def test_eos_after_both_texts_of_a_pair(bpe_tokenizer):
    """Pairs are tokenised as with transformers' own `add_eos_token`."""
    from transformers import AutoTokenizer

    directory = bpe_tokenizer(processors("bos"))
    hf = AutoTokenizer.from_pretrained(directory)
    hf.add_bos_token, hf.add_eos_token = True, True
    encoded = load_tokenizer(directory, 32, append_eos=True).encode_pairs(["the cat"], ["a dog"])
    assert encoded.ids[0].tolist() == hf("the cat", "a dog")["input_ids"]


@pytest.mark.parametrize("flag", [True, False])
def test_add_eos_token_is_honoured_as_transformers_honours_it(bpe_tokenizer, flag):
    """A tokenizer made from a vocabulary follows add_eos_token.

    With a tokenizer.json only its post-processor counts.
    """
    from transformers import AutoTokenizer

    directory = bpe_tokenizer(
        processors("bos"), tokenizer_class="Qwen2Tokenizer", add_eos_token=flag
    )
    assert load_tokenizer(directory, 9).encode(["the"]).ids[0].tolist()[-1] != 2
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    (directory / "tokenizer.json").unlink()
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    ids = load_tokenizer(directory, 9).encode(["the"]).ids[0].tolist()
    assert (ids[-1] == 2) == flag
    assert ids == AutoTokenizer.from_pretrained(directory)("the")["input_ids"]
    assert (
        load_tokenizer(directory, 9, append_eos=True).encode(["the"]).ids[0].tolist()[-2:].count(2)
        == 1
    )


def test_what_cannot_be_appended_is_one_line(bpe_tokenizer, tokenizer_directory):
    with pytest.raises(
        InputError, match="append_eos: the tokenizer has no end-of-text token"
    ) as caught:
        load_tokenizer(tokenizer_directory, 16, append_eos=True)
    assert str(tokenizer_directory) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="append_eos: a tokenizer that puts no special tokens"):
        load_tokenizer(bpe_tokenizer(), 16, special_tokens=False, append_eos=True)
    with pytest.raises(InputError, match="no room for text: 2 are special tokens"):
        load_tokenizer(bpe_tokenizer(processors("bos")), 2, append_eos=True)
