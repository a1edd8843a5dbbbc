"""Token ids are those of sentence-transformers."""

import concurrent.futures
import json
import shutil

import numpy as np
import pytest

from embed_jax.data.tokenize import from_transformers, load_tokenizer
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
    found = load_tokenizer(tokenizer_directory, 16).encode(ODD)
    assert len({id for ids in found.ids for id in ids.tolist()}) > 10  # not all of it is unknown
    for text, ids in zip(ODD, found.ids, strict=True):
        assert ids.tolist() == hf(text, truncation=True, max_length=16)["input_ids"]
        assert ids.dtype == np.int32
    assert found.skip == 0
    assert found.truncated == sum(len(hf(text)["input_ids"]) > 16 for text in ODD) >= 1


@pytest.mark.parametrize("lower_case", [False, True])
def test_ids_and_prompt_length_equal_sentence_transformers(tokenizer_directory, tmp_path, lower_case):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import BertConfig, BertModel

    shutil.copytree(tokenizer_directory, tmp_path, dirs_exist_ok=True)
    ours = load_tokenizer(tmp_path, 32, lower_case=lower_case)
    assert (ours.encode(["THE"]).ids[0].tolist() == ours.encode(["the"]).ids[0].tolist()) == lower_case
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=ours.vocab_size, max_position_embeddings=64, **sizes)).save_pretrained(tmp_path)
    theirs = Transformer(str(tmp_path), max_seq_length=32, do_lower_case=lower_case)
    for prompt in ("", "what is: ", "the the "):
        found = ours.encode(ODD, prompt, include_prompt=False)
        for text, ids in zip(ODD, found.ids, strict=True):
            wanted = theirs.preprocess([text], prompt=prompt or None)
            assert ids.tolist() == wanted["input_ids"][0].tolist(), (prompt, text)
            assert found.skip == wanted.get("prompt_length", 0)
    assert ours.encode(ODD, "what is: ").skip == 0


def test_threads_share_a_tokenizer(tokenizer_directory):
    tokenizer = load_tokenizer(tokenizer_directory, 16)
    alone = [ids.tolist() for ids in tokenizer.encode(ODD).ids]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda _: [ids.tolist() for ids in tokenizer.encode(ODD).ids], range(16))
    assert all(result == alone for result in results)


def test_saved_tokenizer_is_the_same(tokenizer_directory, tmp_path):
    tokenizer = load_tokenizer(tokenizer_directory, 16)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path, 16)
    assert [ids.tolist() for ids in again.encode(ODD).ids] == [ids.tolist() for ids in tokenizer.encode(ODD).ids]
    assert again.vocab_size == tokenizer.vocab_size and again.pad_id == tokenizer.pad_id == 0


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
    (tmp_path / "tokenizer.json").write_text((tokenizer_directory / "tokenizer.json").read_text()[:500])
    with pytest.raises(InputError, match="cannot be read") as caught:
        load_tokenizer(tmp_path, 16)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no room for text"):
        from_transformers(load_tokenizer(tokenizer_directory, 16).hf, 2)
