"""Hugging Face data sets from directories and what is said of names that do not exist."""

import json

import pytest

from embed_jax.data.sources import iter_records, open_records, pair_columns
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
    """What `datasets` is asked for; the hub itself is out of reach."""
    asked = []

    def load_dataset(name, config, data_files, split, revision):
        asked.append((name, config, data_files, split, revision))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("EMBED_JAX_DATA", str(tmp_path / "data"))
    (tmp_path / "data" / "here" / "copied").mkdir(parents=True)
    (tmp_path / "at@home").mkdir()
    wanted = {
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
    for name, arguments in wanted.items():
        assert len(open_records(f"hf:{name}")) == len(ROWS)
        assert asked.pop() == arguments
