"""Hugging Face data sets from directories and what is said of names that do not exist."""

import json
import os

import pytest

from embed_jax.data.nli import nli_triplets
from embed_jax.data.sources import iter_records, open_records, pair_columns, python_records
from embed_jax.data.sources.sts import open_sts
from embed_jax.data.sources.tasks import read_labelled_pairs
from embed_jax.errors import InputError

datasets = pytest.importorskip("datasets")
ROWS = [{"anchor": f"a{i}", "positive": f"p{i}"} for i in range(10)]


def test_saved_data_set(tmp_path):
    train, test = datasets.Dataset.from_list(ROWS[:7]), datasets.Dataset.from_list(ROWS[7:])
    datasets.DatasetDict(train=train, test=test).save_to_disk(tmp_path / "both")
    records = open_records(f"hf:{tmp_path / 'both'}", "train")
    assert list(records) == ROWS[:7] and records[-1] == ROWS[6]
    assert list(records[2:5]) == ROWS[2:5] and len(records[:3]) == 3
    assert list(open_records(f"hf:{tmp_path / 'both'}", "test")) == ROWS[7:]
    with pytest.raises(InputError, match="split 'dev': cannot be read: known splits: train, test"):
        open_records(f"hf:{tmp_path / 'both'}", "dev")
    train.save_to_disk(tmp_path / "one")
    assert list(open_records(f"hf:{tmp_path / 'one'}")) == ROWS[:7]
    with pytest.raises(InputError, match="saved without splits"):
        open_records(f"hf:{tmp_path / 'one'}", "test")


def test_one_by_one_without_random_access(tmp_path):
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert list(iter_records(f"hf:{tmp_path}")) == ROWS
    datasets.Dataset.from_list(ROWS[:7]).save_to_disk(tmp_path / "saved")
    assert list(iter_records(f"hf:{tmp_path / 'saved'}")) == ROWS[:7]
    with pytest.raises(InputError, match="split 'dev': cannot be read"):
        next(iter_records(f"hf:{tmp_path}", "dev"))


@pytest.mark.unchecked
def test_negatives_of_rows():
    rows = datasets.Dataset.from_list(
        [ROWS[0] | {"negative": None, "negatives": ["x", "y"]}, ROWS[1]]
    )
    columns = pair_columns(rows)
    assert [columns(row) for row in rows] == [("a0", "p0", None, "x", "y"), ("a1", "p1", None)]


def test_directory_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    assert list(open_records(f"hf:{tmp_path / 'files'}")) == ROWS


def test_unknown_name(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match="hf:no-such/data-set, split 'train': cannot be read"
    ) as caught:
        open_records("hf:no-such/data-set")
    assert "\n" not in str(caught.value)


def test_revisions_files_and_copies(tmp_path, monkeypatch):
    """Checks the requests to `datasets`; the hub itself is out of reach."""
    requests = []

    def load_dataset(name, config, data_files, split, revision):
        requests.append((name, config, data_files, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("EMBED_JAX_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "here" / "copied").mkdir(parents=True)
    (tmp_path / "at@home").mkdir()
    expected = {
        "owner/name": ("owner/name", None, None, "train", None),
        "owner/name:config": ("owner/name", "config", None, "train", None),
        "owner/name@v1.0": ("owner/name", None, None, "train", "v1.0"),
        "owner/name:config@0f0f": ("owner/name", "config", None, "train", "0f0f"),
        "owner/name/some/file.txt@0f0f": ("owner/name", None, "some/file.txt", "train", "0f0f"),
        "here/copied:config@0f0f": (
            str(tmp_path / "data/here/copied"),
            "config",
            None,
            "train",
            None,
        ),
        "here/copied/file.txt": (
            str(tmp_path / "data/here/copied"),
            None,
            "file.txt",
            "train",
            None,
        ),
        f"{tmp_path}/at@home:config": (f"{tmp_path}/at@home", "config", None, "train", None),
    }
    for name, arguments in expected.items():
        assert len(open_records(f"hf:{name}")) == len(ROWS)
        assert requests.pop() == arguments


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


CONFIGS = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data.jsonl
---
"""


def test_files_that_changed_are_read_anew(tmp_path, cache):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "README.md").write_text(CONFIGS)
    file = folder / "data.jsonl"
    times = None
    for text in ("old", "new"):
        rows = [{"anchor": f"{text}{n}", "positive": "p"} for n in range(3)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        times = times or (file.stat().st_atime_ns, file.stat().st_mtime_ns)
        os.utime(file, ns=times)  # as after rsync or a checkout: same size, same time
        assert list(open_records(f"hf:{folder}")) == rows
        assert list(iter_records(f"hf:{folder}")) == rows


NLI_NAMES = ["contradiction", "entailment", "neutral"]


def class_dataset(names, labels, **columns):
    columns = {name: [f"{name}{n}" for n in range(len(labels))] for name in columns}
    features = dict.fromkeys(columns, datasets.Value("string"))
    features["label"] = datasets.ClassLabel(names=names)
    return datasets.Dataset.from_dict(
        columns | {"label": labels}, features=datasets.Features(features)
    )


@pytest.mark.parametrize("form", ["saved", "parquet", "Dataset", "one by one"])
def test_classes_count_by_their_names(tmp_path, cache, form):
    """An NLI data set with its classes in another order still gives the entailed hypothesis."""
    dataset = class_dataset(NLI_NAMES, [0, 1, 2, -1], premise="", hypothesis="")
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "a.parquet")
    read = {
        "saved": lambda: open_records(f"hf:{tmp_path}/saved"),
        "parquet": lambda: open_records(f"parquet:{tmp_path}/a.parquet"),
        "Dataset": lambda: python_records(dataset),
        "one by one": lambda: iter_records(f"hf:{tmp_path}/saved"),
    }
    with pytest.warns(UserWarning, match="1 of 4 records are left out: 1 with no gold label"):
        records = list(read[form]())
    assert [record["label"] for record in records] == [2, 0, 1]
    same = [record | {"premise": "p"} for record in records]
    assert nli_triplets(same)[0] == [
        {"anchor": "p", "positive": "hypothesis1", "negative": "hypothesis0"}
    ]


def test_classes_of_pairs_and_those_that_mean_nothing():
    alike = class_dataset(["duplicate", "not_duplicate"], [0, 1], sentence1="", sentence2="")
    assert [record["label"] for record in python_records(alike)] == [1, 0]
    for names, fields in (
        (["entailment", "not_entailment"], {"premise": "", "hypothesis": ""}),
        (["similar", "maybe"], {"sentence1": "", "sentence2": ""}),
    ):
        with pytest.raises(InputError, match=r"pairs\[1\]: label: expected an integer or one of"):
            python_records(class_dataset(names, [0, 1], **fields))
    texts = class_dataset(["b", "a"], [0, 1], text="")
    assert [record["label"] for record in python_records(texts)] == [0, 1]


def test_classes_of_an_evaluation_count_by_their_names(tmp_path):
    pairs = class_dataset(["duplicate", "not_duplicate"], [0, 1, 1], sentence1="", sentence2="")
    pairs.save_to_disk(tmp_path / "pairs")
    assert read_labelled_pairs(f"hf:{tmp_path}/pairs", "train")[2] == [1, 0, 0]
    unknown = class_dataset(["b", "a"], [0, 1], sentence1="", sentence2="")
    unknown.save_to_disk(tmp_path / "unknown")
    with pytest.raises(InputError, match="record 0: field 'label': expected 0 or 1, found 'b'"):
        read_labelled_pairs(f"hf:{tmp_path}/unknown", "train")


def test_columns_of_a_wrong_type_name_the_record(tmp_path):
    datasets.Dataset.from_dict({"anchor": ["a", "b"], "positive": [1, 2]}).save_to_disk(tmp_path)
    message = "record 0: field 'positive' must be a string, found int 1"
    with pytest.raises(InputError, match=message):
        open_records(f"hf:{tmp_path}")


def test_a_null_sentence_of_an_evaluation_is_missing(tmp_path):
    columns = {"sentence1": ["a", None], "sentence2": ["b", "c"], "score": [1.0, 2.0]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path)
    with pytest.raises(InputError, match="record 1: no field 'sentence1': found sentence2, score"):
        open_sts(f"hf:{tmp_path}", "train")
