"""Named data sets, in the layouts of TFDS and of the hub, give records for training."""

import json
import re
import warnings

import pytest

from embed_jax.data.pairs import kind_of
from embed_jax.data.sources import NLI_LABELS, iter_records, open_records, record_fields
from embed_jax.data.sources.recipes import recipes
from embed_jax.errors import InputError

datasets = pytest.importorskip("datasets")
tfds = pytest.importorskip("tensorflow_datasets")

NAMES = ("entailment", "neutral", "contradiction")
COUNT = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Returns EMBED_JAX_DATA: data prepared by TFDS's builder, and made parquet repositories."""
    root = tmp_path_factory.mktemp("data")
    raw = root / "raw"
    raw.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMBED_JAX_DATA", str(root))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        make_tfds(root, raw)
        make_hub(root)
        yield root


def make_tfds(root, raw):
    from embed_jax.data.sources.python_docs_builder import download_config
    from embed_jax.data.sources.tfds import silence_tfds

    def table(name, rows):
        lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
        (raw / name).write_text("\n".join(lines) + "\n")
        return raw / name

    def nli(name, labels):
        rows = [
            {
                "gold_label": labels[n % len(labels)],
                "sentence1": f'{name} "p" {n}',
                "sentence2": f"h {n}",
            }
            for n in range(COUNT)
        ]
        return table(f"{name}.tsv", rows)

    def prepare(name, splits):
        with silence_tfds():
            builder = tfds.builder(name, data_dir=str(root), file_format="array_record")
            builder._split_generators = lambda _: {
                split: builder._generate_examples(path) for split, path in splits.items()
            }
            builder.download_and_prepare(
                download_config=download_config(), file_format="array_record"
            )

    prepare(
        "snli:1.1.0", {side: nli(f"snli_{side}", [*NAMES, "-"]) for side in ("train", "validation")}
    )


def make_hub(root):
    def repository(name, configs):
        """Writes a directory like a hub repository.

        It has Parquet files, and a README.md that lists them.
        """
        directory, header = root / name, ["---", "configs:"]
        for config, splits in configs.items():
            header += [f"- config_name: {config}", "  data_files:"]
            for split, rows in splits.items():
                path = directory / config / f"{split}-00000-of-00001.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                datasets.Dataset.from_list(rows).to_parquet(path)
                header += [f"  - split: {split}", f"    path: {config}/{split}-*"]
        (directory / "README.md").write_text("\n".join([*header, "---", ""]))

    def rows(*columns, **functions):
        return [
            {name: f"{name} {n}" for name in columns}
            | {name: value(n) for name, value in functions.items()}
            for n in range(COUNT)
        ]

    sides = ("train", "dev", "test")
    nli = rows("premise", "hypothesis", label=lambda n: n % 3)
    triplets = rows("anchor", "positive", "negative")
    repository(
        "sentence-transformers/all-nli",
        {"pair-class": dict.fromkeys(sides, nli), "triplet": dict.fromkeys(sides, triplets)},
    )
    numbered = {"label": lambda n: n % 3, "idx": lambda n: n}
    matched = {
        f"validation_{side}": rows(
            "hypothesis", premise=lambda n, side=side: f"{side} {n}", **numbered
        )
        for side in ("matched", "mismatched")
    }
    duplicates = rows("question1", "question2", label=lambda n: n % 2, idx=lambda n: n)
    mnli = {"train": [row | {"idx": n} for n, row in enumerate(nli)]} | matched
    repository("nyu-mll/glue", {"mnli": mnli, "qqp": {"train": duplicates}})
    scored = rows("sentence1", "sentence2", score=lambda n: n / COUNT)
    repository(
        "sentence-transformers/stsb",
        {"data": dict.fromkeys(("train", "validation", "test"), scored)},
    )
    repository(
        "sentence-transformers/natural-questions", {"pair": {"train": rows("query", "answer")}}
    )
    repository(
        "sentence-transformers/msmarco-bm25",
        {"triplet": {"train": rows("query", "positive", "negative")}},
    )
    titles = {
        "title-title-pair": {"train": rows("title1", "title2")},
        "body-body-pair": {"train": rows("body1")},
    }
    repository("sentence-transformers/stackexchange-duplicates", titles)
    directory = root / "princeton-nlp" / "datasets-for-simcse"
    directory.mkdir(parents=True)
    (directory / "wiki1m_for_simcse.txt").write_text(
        "".join(f'Sentence {n}, "so".\n' for n in range(COUNT))
    )
    (directory / "nli_for_simcse.csv").write_text("sent0,sent1,hard_neg\na,b,c\n")


KINDS = {
    "snli": ("premise", "hypothesis"),
    "multinli": ("premise", "hypothesis"),
    "allnli": ("premise", "hypothesis"),
    "allnli_triplets": ("anchor", "positive"),
    "stsb": ("sentence1", "sentence2"),
    "qqp": ("sentence1", "sentence2"),
    "msmarco": ("anchor", "positive"),
    "natural_questions": ("anchor", "positive"),
    "stackexchange": ("anchor", "positive"),
    "wiki1m": ("text",),
}


@pytest.mark.filterwarnings("ignore:snli")
@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_data_set_is_of_a_known_kind(data, name):
    recipe = recipes()[name]
    records = open_records(name)
    assert kind_of(records[0]) == KINDS[name]
    assert all(set(record) == set(recipe.columns.values()) for record in records)
    if KINDS[name] != ("text",):
        fields = record_fields(records)
        assert all(isinstance(text, str) for record in records for text in fields.columns(record))
        assert bool(fields.label) == bool(recipe.labels) and bool(fields.score) == bool(
            recipe.scale
        )
        if fields.label:
            assert {fields.label(record) for record in records} == set(range(len(recipe.labels)))
    assert list(iter_records(name)) == list(records) == list(open_records(f"recipe:{name}"))


def test_every_recipe_says_what_it_takes_and_of_which_version():
    assert set(recipes()) == set(KINDS)
    for recipe in recipes().values():
        assert recipe.licence and set(recipe.splits) <= {"train", "validation", "test"} | set(
            recipe.splits.values()
        )
        assert re.fullmatch(
            r"tfds:[\w/]+:\d+\.\d+\.\d+|hf:[\w./-]+(:[\w-]+)?@([0-9a-f]{40}|main)", recipe.source
        )
        assert recipe.labels[:2] != ("entailment", "neutral") or recipe.labels == tuple(NLI_LABELS)


def test_records_without_a_gold_label_are_left_out_and_counted(data):
    with pytest.warns(
        UserWarning, match="snli, split 'train': 3 of 12 records are left out: 3 with no gold label"
    ):
        records = open_records("snli")
    with pytest.warns(UserWarning, match="3 of 12 records are left out: 3 with no gold label"):
        assert list(records) == list(open_records("tfds:snli:1.1.0"))
    assert {record["premise"]: record["label"] for record in records} == {
        f'snli_train "p" {n}': n % 4 for n in range(COUNT) if n % 4 < 3
    }
    assert records[-1] == records[8] and list(records[2:4]) == [records[2], records[3]]
    assert len(records[:5]) == 5
    with pytest.raises(IndexError):
        records[9]


def test_splits_by_our_names(data):
    assert open_records("multinli", "validation")[0]["premise"].startswith("matched")
    assert open_records("multinli", "validation_mismatched")[0]["premise"].startswith("mismatched")
    assert len(open_records("allnli", "validation")) == COUNT
    assert len(open_records("stsb", "test[:25%]")) == COUNT // 4
    for name, split, known in (
        ("multinli", "test", "train, validation, "),
        ("wiki1m", "dev", "train"),
    ):
        with pytest.raises(InputError, match=f"{name} has no split '{split}'; known: {known}"):
            open_records(name, split)


def test_contents_survive_the_renaming(data):
    assert open_records("qqp")[3] == {
        "sentence1": "question1 3",
        "sentence2": "question2 3",
        "label": 1,
    }
    assert open_records("natural_questions")[0] == {"anchor": "query 0", "positive": "answer 0"}
    assert open_records("wiki1m")[2] == {"text": 'Sentence 2, "so".'}
    assert open_records("stsb")[6] == {
        "score": 0.5,
        "sentence1": "sentence1 6",
        "sentence2": "sentence2 6",
    }


def test_a_path_of_the_same_name_needs_a_dot(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "train.jsonl").write_text(json.dumps({"text": "mine"}) + "\n")
    with pytest.warns(UserWarning, match=r"stsb is the data set of that name; write \./stsb"):
        assert len(open_records("stsb")) == COUNT
    with warnings.catch_warnings(action="error"):
        assert open_records("./stsb") == [{"text": "mine"}]
    with pytest.raises(InputError, match="snlii.tsv: no such file"):
        open_records("snlii.tsv")
    for name in ("snlii", "recipe:snlii"):
        with pytest.raises(
            InputError, match=r"unknown data set( or file)? 'snlii' \(did you mean 'snli'\?\)"
        ):
            open_records(name)


def test_a_copy_with_other_columns(data, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBED_JAX_DATA", str(tmp_path))
    directory = tmp_path / "sentence-transformers" / "natural-questions"
    directory.mkdir(parents=True)
    (directory / "train.jsonl").write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    with pytest.raises(
        InputError, match="record 0: hf:.*: no column 'query'; found question, answer"
    ) as caught:
        open_records("natural_questions")
    assert "\n" not in str(caught.value)
