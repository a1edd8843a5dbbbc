"""python_docs: real pairs, no leak between splits, the same whoever makes it."""

import subprocess
import sys

import pytest

pytest.importorskip("tensorflow_datasets")

from embed_jax.data.sources import (
    docstrings,
    open_raw,
    open_records,
    open_retrieval_task,
    python_docs,
)
from embed_jax.errors import InputError

MODULE = '''
# -*- coding: latin-1 -*-
import os

class Shelf:
    """A class's text is not a pair."""

    @property
    def size(self):
        """How many books stand here.  More text.

        And more.
        """
        # why
        return len(self.books)

    @size.setter
    def size(self, value):
        "Sets how many
 books."

    def short(self):
        """Two words."""
        return 1

    def empty(self):
        """Only a docstring here, no code."""

    def inline(self): "Shares its line with code."; return 1

async def fetch(url):
    """Fetch e.g. a page, or
    fail.
    """
    def inner():
        """Return the nested one."""
        return "\\x0c"
    return inner()
'''.replace('"Sets how many\n books."', '"Sets how many books there are."\n        self.n = "é"')


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    root = tmp_path_factory.mktemp("lib")
    (root / "shelf.py").write_bytes(MODULE.encode("latin-1"))
    (root / "package" / "test").mkdir(parents=True)
    (root / "package" / "__init__.py").write_text(
        'def f(a):\n    """Return what it got."""\n    return a\n'
    )
    (root / "package" / "copy.py").write_text(
        'def f(a):\n    """Return the very same."""\n    return a\n'
    )
    (root / "package" / "feed.py").write_text(
        'A = 1\n\x0c\ndef g(a):\n    """Return two of it."""\n    return a, a\n'
    )
    (root / "package" / "test" / "test_a.py").write_text(
        'def t():\n    """Do not read this."""\n    return 1\n'
    )
    (root / "broken.py").write_text("def (:\n")
    return root


def test_pairs_of_a_library(library):
    pairs = docstrings.extract_pairs(library, minimum=1)
    assert {pair.id: pair.anchor for pair in pairs} == {
        "package:f": "Return what it got.",  # its copy has the same source
        "package.feed:g": "Return two of it.",
        "shelf:Shelf.size": "How many books stand here.",
        "shelf:Shelf.size#2": "Sets how many books there are.",
        "shelf:fetch": "Fetch e.g. a page, or fail.",
        "shelf:fetch.inner": "Return the nested one.",
    }
    sources = {pair.id: pair.positive for pair in pairs}
    assert (
        sources["shelf:Shelf.size"]
        == "@property\ndef size(self):\n    # why\n    return len(self.books)"
    )
    assert sources["shelf:Shelf.size#2"].endswith('self.n = "é"')
    assert sources["package.feed:g"] == "def g(a):\n    return a, a"
    assert pairs == docstrings.extract_pairs(library, minimum=1)


def test_a_stripped_library_is_an_error(library):
    with pytest.raises(
        InputError, match=r"holds 6 documented functions, at least 3000 are needed"
    ) as caught:
        docstrings.extract_pairs(library)
    assert str(library) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two processes make the data set at the same time; yields what they printed."""
    directory = tmp_path_factory.mktemp("tfds")
    program = (
        "from embed_jax.data.sources import python_docs as p; print(p.python_docs_fingerprint())"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBED_JAX_DATA", str(directory))
        command = [sys.executable, "-c", program]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(command, **options) for _ in range(2)]
        outputs = [process.communicate() for process in processes]
        assert [process.returncode for process in processes] == [0, 0], outputs
        yield outputs


def test_prepared_once_quietly_and_the_same_for_all(prepared):
    result = python_docs.python_docs_fingerprint()
    assert prepared == [(f"{result}\n", "")] * 2
    assert len(result) == 16


def test_no_module_and_no_source_on_two_sides(prepared):
    sides = {split: open_raw("python_docs", split) for split in docstrings.SPLITS}
    total = sum(map(len, sides.values()))
    assert total >= docstrings.MINIMUM and len(sides["train"]) > total / 2
    for field in ("module", "id", "positive"):
        values = [{record[field] for record in side} for side in sides.values()]
        assert sum(map(len, values)) == len(set.union(*values))
    for split, side in sides.items():
        assert len(side) >= 0.05 * total
        assert all(docstrings.choose_split(record["module"]) == split for record in side)
        assert all(record["anchor"] and record["positive"] for record in side)


def test_a_module_stays_on_its_side_for_ever():
    sides = {"tkinter": "train", "json.decoder": "validation", "json": "test"}
    assert {module: docstrings.choose_split(module) for module in sides} == sides


def test_retrieval_task(prepared):
    corpus, queries, qrels = open_retrieval_task("python_docs", "test")
    records = open_records("python_docs", "test")
    assert len(corpus) == len(records) and set(queries) == set(qrels)
    assert sorted(queries.values()) == sorted({record["anchor"] for record in records})
    for query, relevant in qrels.items():
        expected = {record["positive"] for record in records if record["anchor"] == queries[query]}
        assert {corpus[document] for document in relevant} == expected


def test_it_is_a_tfds_data_set(prepared):
    import numpy as np

    builder = python_docs.prepare_builder()
    assert builder.name == "python_docs" and builder.builder_config.name.startswith("python3.")
    assert set(builder.info.splits) == set(docstrings.SPLITS)
    source = builder.as_data_source(split="validation")
    by_name = open_records(f"tfds:python_docs/{builder.builder_config.name}", "validation")
    assert len(by_name) == len(source) == builder.info.splits["validation"].num_examples
    few = by_name[3:6]
    assert [record["id"] for record in few] == [by_name[i]["id"] for i in (3, 4, 5)]
    assert all(isinstance(text, str) for text in few[-1].values()) and not isinstance(
        source[0]["id"], (str, np.str_)
    )


def test_names_that_do_not_exist(prepared):
    with pytest.raises(
        InputError, match="python_docs has no split 'dev'; known: train, validation, test"
    ):
        open_records("python_docs", "dev")
    with pytest.raises(
        InputError, match="tfds:no_such_data_set, split 'train': cannot be read"
    ) as caught:
        open_records("tfds:no_such_data_set")
    assert "\n" not in str(caught.value)


def test_unwritable_directory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EMBED_JAX_DATA", str(tmp_path / "file"))
    with pytest.raises(InputError, match="cannot be written to .*file.*EMBED_JAX_DATA"):
        open_records("python_docs", "train")
