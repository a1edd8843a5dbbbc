"""All sources read one table, odd values included, as the same records, or all refuse it."""

import csv
import json
import math
import tempfile
import warnings
from pathlib import Path

import pytest

from embed_jax.data.sources import open_records, python_records
from embed_jax.errors import InputError

pytest.importorskip("hypothesis")
datasets = pytest.importorskip("datasets")
pandas = pytest.importorskip("pandas")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

KINDS = [("anchor", "positive"), ("question", "answer"), ("premise", "hypothesis"), ("text",)]
MISSING = [None, float("nan"), "", " ", "\u2003"]
# Neither line ends nor tabs, which a TSV file cannot hold, and what no reader takes for a number or
# a date.
TEXT = st.text(st.sampled_from('abé"\u4e2d,; '), min_size=1, max_size=6).map(
    lambda text: f"t{text}"
)
TEXTS = st.one_of(TEXT, TEXT, TEXT, TEXT, st.sampled_from(MISSING))
ID = st.one_of(st.integers(-3, 99), st.sampled_from([*MISSING, "x1"]))
SCORE = st.one_of(
    st.floats(-2, 2, width=16), st.integers(-3, 3), st.sampled_from([*MISSING, math.inf])
)
LABELS = [0, 1, 2, True, False, 1.0, *MISSING]
NAMES = ["entailment", " Neutral", "contradiction", "-1", "-", "true", "duplicate", "other"]
OPTIONAL = {
    "id": ID,
    "group": ID,
    "score": SCORE,
    "label": st.one_of(st.sampled_from([*LABELS, -1]), st.sampled_from([*LABELS, *NAMES])),
    "negative": TEXTS,
    "negatives": st.one_of(
        st.sampled_from([None]), st.lists(st.one_of(TEXT, st.sampled_from([None, " "])), max_size=3)
    ),
    "comment": st.one_of(TEXT, st.integers(0, 9), st.sampled_from([None])),
}


@st.composite
def tables(draw):
    """Returns rows with the same fields, spelt in any case."""
    fields = {name: TEXTS for name in draw(st.sampled_from(KINDS))}
    fields |= {name: OPTIONAL[name] for name in sorted(draw(st.sets(st.sampled_from([*OPTIONAL]))))}
    spelt = {name: draw(st.sampled_from([name, name, name.title()])) for name in fields}
    rows = st.fixed_dictionaries({spelt[name]: values for name, values in fields.items()})
    return draw(st.lists(rows, min_size=1, max_size=5))


def cell(value):
    """Returns a value as a table spells it: missing values are empty, a list is JSON."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return ""
    return json.dumps(value) if isinstance(value, list) else str(value)


def write_table(rows, path, delimiter):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(rows[0])
        writer.writerows([cell(row[name]) for name in rows[0]] for row in rows)


def one_type(rows):
    """Returns the rows as Arrow stores them: each column has one type, text if it is mixed."""

    def plain(value):
        return None if isinstance(value, float) and math.isnan(value) else value

    columns = {name: [plain(row[name]) for row in rows] for name in rows[0]}
    for name, values in columns.items():
        types = {type(value) for value in values if value is not None}
        if len(types) > 1:
            columns[name] = [None if value is None else cell(value) for value in values]
    return columns


def outcome(read):
    """Returns the records, or that they are refused."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            records = list(read())
        except InputError as error:
            assert "\n" not in str(error)
            return "refused"
    counts = [str(warning.message).split(": ", 1)[1] for warning in caught]
    return records, [count for count in counts if "left out" in count]


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(rows=tables())
def test_every_source_gives_the_same_records_or_refuses(rows):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "a.jsonl").write_text(lines)
        write_table(rows, folder / "a.csv", ",")
        write_table(rows, folder / "a.tsv", "\t")
        columns = one_type(rows)
        dataset = datasets.Dataset.from_dict(columns)
        dataset.save_to_disk(folder / "saved")
        dataset.to_parquet(folder / "a.parquet")
        sources = {
            "jsonl": lambda: open_records(str(folder / "a.jsonl")),
            "csv": lambda: open_records(str(folder / "a.csv")),
            "tsv": lambda: open_records(str(folder / "a.tsv")),
            "parquet": lambda: open_records(f"parquet:{folder}/a.parquet"),
            "hf": lambda: open_records(f"hf:{folder}/saved"),
            "Dataset": lambda: python_records(dataset),
            "DataFrame": lambda: python_records(pandas.DataFrame(rows)),
            "dicts": lambda: python_records(rows),
        }
        outcomes = {name: outcome(read) for name, read in sources.items()}
    for name, result in outcomes.items():
        assert result == outcomes["dicts"], f"{name}: {rows}"
