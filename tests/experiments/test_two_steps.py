"""Every config in its full setting, and a row of every table, trains two steps and evaluates.

Only sizes are replaced: models are small random ones under the names that a config uses, data are
a few records under those names, and batches, texts and runs are short. Loss, schedule, optimiser,
adapter, mining, prompts, stages, heads and evaluation are the config's own.
"""

import dataclasses
import functools
import gzip
import importlib
import json
import math
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from embed_jax.config_file import load_config
from embed_jax.cross_encoder import CrossEncoder
from embed_jax.data.pairs import NLI_LABELS
from embed_jax.data.sources import python_docs, recipes
from embed_jax.data.sources.beir import write_beir
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.encoders.spec import random_spec
from embed_jax.encoders.write import write_model
from embed_jax.errors import exit_with_one_line
from embed_jax.train.ablation import plan_runs, read_metrics
from embed_jax.train.ablation_table import Table, read_ablation_table

for package in ("grain", "bm25s", "matplotlib"):
    pytest.importorskip(package)
ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/*/*.py"))
TABLES = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/*/tables/*.py"))

# The columns of the files that configs read. Named data sets (recipes, python_docs) need no line.
PAIR, SCORED_LIST = "anchor positive", "query passages scores"
TUPLE = " ".join([PAIR, *(f"negative_{number}" for number in range(1, 8))])
FILES = {
    **dict.fromkeys(("sentences.txt", "wiki.txt", "wikitext.txt"), "text"),
    **dict.fromkeys(("pairs.jsonl", "gooaq.jsonl", "synthetic.jsonl"), PAIR),
    **dict.fromkeys(("twice.tsv", "questions.tsv"), PAIR),
    **dict.fromkeys(("msmarco_triples.jsonl", "nli/triplets.tsv.gz"), f"{PAIR} negative"),
    **dict.fromkeys(("triplets.jsonl", "lists.jsonl", "msmarco.jsonl", "m3_pairs.jsonl"), TUPLE),
    **dict.fromkeys(("msmarco_scored.jsonl", "msmarco_64way.jsonl"), SCORED_LIST),
    "ms_marco_en_bge_gemma.jsonl": SCORED_LIST,
    "intents.jsonl": f"{PAIR} group",
    "nli.tsv": "premise hypothesis label",
    **dict.fromkeys(("stsb/dev.tsv", "stsb/test.tsv"), "score sentence1 sentence2"),
}
# Directories in BEIR's layout, with the splits that they have there; "data" stands for your own.
BEIR = {"scifact": "train test", "nq": "train test", "msmarco": "train dev test"}
BEIR |= {"data": "train test", "intents": "test"}
# Shapes by what is in a model's name: the first that fits.
SHAPES = {
    r"(?i)mistral|qwen|llama|decoder|mntp": "decoder-tiny",
    r"(?i)modernbert": "modernbert-tiny",
    r"nomic": "nomic-tiny",
    r"static": "static",
    r"": "tiny",
}
MODELS = re.compile(r"(model\.(name|query|guide|teacher)|mine\.(retriever|cross_encoder))$")
RECORDS, LONGEST = 48, 32
SMALL = {  # fields of a run and of its stages
    "batch.size": lambda size: min(8, size),
    "batch.groups": lambda groups: groups and math.gcd(4, groups),
    "data.holdout": lambda share: share and 0.2,
    "data.max_length": LONGEST,
    "train.steps": 2,
    "train.log_every": 1,
    "tracking.wandb": "disabled",
}


def text(words: int, number: int) -> str:
    """Returns the first words of text `number`."""
    vocabulary = "cat dog house river music guitar red blue city train apple bread model".split()
    chosen = np.random.default_rng(number).permutation(vocabulary)[:words]
    return " ".join([*chosen, str(number)])


def make_record(columns: Mapping[str, str], number: int, labels=tuple(NLI_LABELS)):
    """Returns a record with values for {its name of a column: our name}."""

    def value(column: str):
        if column in ("anchor", "query", "sentence1"):
            return text(4, number)
        if column == "premise":  # with a hypothesis of each label
            return text(4, number - number % 3)
        if column.startswith("negative"):
            return text(7, number + int(column.partition("_")[2] or 1))
        values = {"label": labels[number % len(labels)], "score": number % 6 / 5, "id": str(number)}
        values["group"] = str(number // 2)
        values["passages"] = [text(7, number + other) for other in range(4)]
        values["scores"] = [3.0, 1.5, 1.0, 0.5]
        return values.get(column, text(7, number))

    return {name: value(column) for name, column in columns.items()}


def write_records(path: Path, columns: Mapping[str, str], labels=tuple(NLI_LABELS)) -> None:
    """Writes a file in the format of its name."""
    records = [make_record(columns, number, labels) for number in range(RECORDS)]
    lines = {
        ".jsonl": [json.dumps(record) for record in records],
        ".tsv": ["\t".join(columns), *("\t".join(map(str, row.values())) for row in records)],
        ".txt": [record.get("text") for record in records],
    }[Path(path.name.removesuffix(".gz")).suffix]
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt") as file:
        file.writelines(f"{line}\n" for line in lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with all data that configs name, and a tokenizer."""
    from transformers import BertTokenizerFast

    directory = tmp_path_factory.mktemp("place")
    for name, columns in FILES.items():
        write_records(directory / name, {column: column for column in columns.split()})
    for name, recipe in recipes.recipes().items():
        for split in recipe.splits.values():
            path = directory / "recipes" / name / f"{split}.jsonl"
            write_records(path, recipe.columns, range(len(recipe.labels) or 1))
    np.save(directory / "teacher.npy", np.random.default_rng(0).normal(size=(RECORDS, 768)))
    corpus = {str(number): text(7, number) for number in range(RECORDS)}
    queries = {number: text(4, int(number)) for number in corpus}
    for name, splits in BEIR.items():
        write_beir(directory / name, (corpus, queries, {number: {number: 1} for number in queries}))
        for split in splits.split()[:-1]:
            shutil.copy(
                directory / name / "qrels/test.tsv", directory / f"{name}/qrels/{split}.tsv"
            )
    # Of all words in configs, so that prompts are short.
    words = {word for file in CONFIGS for word in re.findall("[a-z]+", (ROOT / file).read_text())}
    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,:_"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]
    vocabulary += [*characters, *(f"##{character}" for character in characters)]
    vocabulary += sorted(words | set(text(13, 0).split()))
    (directory / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)))
    tokenizer = BertTokenizerFast(vocab=str(directory / "vocab.txt"), eos_token="[SEP]")
    tokenizer.save_pretrained(directory / "tokenizer")
    return directory


@functools.cache
def make_model(place: Path, shape: str, layers: int, width: int, is_reranker: bool) -> Path:
    """Writes a random model of a shape, or with more layers and wider if these are asked for."""
    tokenizer = load_tokenizer(place / "tokenizer", 2 * LONGEST, special_tokens=shape != "static")
    spec = random_spec(shape, vocab_size=tokenizer.vocab_size)
    sizes = {"num_layers": layers, "hidden_size": width, "embedding_size": width}
    own = {name: value for name, value in vars(spec.backbone).items() if name in sizes}
    sizes = {name: max(value, sizes[name]) for name, value in own.items()}
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **sizes))
    spec = make_classifier(spec.backbone, 1) if is_reranker else spec
    params = build_encoder(spec).init(jax.random.key(0))
    directory = place / "models" / f"{shape}-{layers}-{width}-{is_reranker}"
    if is_reranker:
        CrossEncoder(spec, params, tokenizer).save(directory)
    else:
        write_model(directory, spec, params, tokenizer=tokenizer, max_length=2 * LONGEST)
    return directory


def put_models(place: Path, settings: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Puts models where a run finds them by name, with the layers and sizes that it speaks of."""
    measured = re.findall(r"by_size/(\d+)/(\d+)", " ".join(metrics))
    sizes = re.findall(r"(?:dims='|projection=)([\d,]+)", settings["loss.name"])
    sizes += [settings["eval.dims"], *(width for _, width in measured)]
    layers = [settings["eval.layers"], settings["model.layers"], *(layer for layer, _ in measured)]
    width = max([0, *map(int, re.findall(r"\d+", " ".join(sizes)))])
    depth = max([0, *map(int, re.findall(r"\d+", " ".join(layers)))])
    depth += bool(settings["model.layers"])  # counted from 0
    for field, name in settings.items():
        if not MODELS.search(field) or name in ("", "token_weights") or name.startswith("random:"):
            continue
        shape = next(shape for pattern, shape in SHAPES.items() if re.search(pattern, name))
        path = place / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(make_model(place, shape, depth, width, "cross-encoder" in name))


def small_fields(settings: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, str]:
    """Returns the fields that make a run and its stages small."""
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        stage, field = re.fullmatch(r"(stages\.\w+\.)?(.*)", name).groups("")
        if field == "train.devices":
            fields[name] = settings[f"{stage}train.fsdp"] * settings[f"{stage}train.tensor"]
        elif field == "model.name" and value.startswith("random:"):
            fields[f"{stage}model.tokenizer"] = "tokenizer"
        elif field in SMALL or re.fullmatch(r"mixture\.sources\.\w+\.max_length", field) and value:
            small = SMALL.get(field, LONGEST)
            fields[name] = small(value) if callable(small) else small
    if not settings["data.train"] and not any(name.startswith("mixture.so") for name in settings):
        fields["data.train"] = "wikitext.txt"  # for configs of any text
    if settings["eval.layers"] and not any(name.startswith("by_size") for name in metrics):
        fields["eval.layers"] = "2,1"  # of the paper's twelve; no metric names them
    return {name: str(value) for name, value in fields.items()}


def read_case(file: Path) -> tuple[Table, str]:
    """Returns a table and its row that changes most fields; a config is a table of one row."""
    if file in TABLES:
        table = read_ablation_table(ROOT / file)
        table = table.in_full() if table.full else table
        return table, max(reversed(table.rows), key=lambda row: len(table.rows[row]))
    config, _ = load_config(["x.py", f"--config={file}"])
    metrics = ("best",) if config.eval.metric else ()
    return Table(file, file.parent.name, str(file), {"full": {}}, metrics=metrics), "full"


@pytest.fixture
def local_names(place, monkeypatch):
    """The names of recipes, with their columns, splits and labels, and python_docs mean files."""
    for name, recipe in recipes.recipes().items():
        local = dataclasses.replace(recipe, source=f"file:recipes/{name}")
        monkeypatch.setitem(recipes._RECIPES, name, local)
    columns = {name: name for name in ("id", "module", "anchor", "positive")}
    records = [make_record(columns, number) for number in range(RECORDS)]
    encoded = [{name: value.encode() for name, value in record.items()} for record in records]
    builder = SimpleNamespace(as_data_source=lambda split: encoded)
    monkeypatch.setattr(python_docs, "prepare_builder", lambda: builder)


@pytest.mark.slow
@pytest.mark.usefixtures("local_names")
@pytest.mark.parametrize("file", [*CONFIGS, *TABLES], ids=str)
def test_it_trains_two_steps_and_evaluates(file, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(ROOT))
    table, row = read_case(file)
    plan = functools.partial(plan_runs, table, [row], [0], workdir=tmp_path, parent="")
    (run,) = plan(overrides={})
    (run,) = plan(overrides=small_fields(run.settings, table.metrics))
    settings = run.settings
    put_models(place, settings, table.metrics)
    monkeypatch.setattr(sys, "argv", run.command[2:])
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        exit_with_one_line(importlib.import_module(f"experiments.{table.experiment}").main)
    error = capsys.readouterr().err
    assert exit.value.code == 0, f"{error}(files that a config reads are in FILES and BEIR above)"
    stages = dict.fromkeys(re.findall(r"stages\.(\w+)", " ".join(settings)))
    for directory in (run.workdir, *(run.workdir / stage for stage in stages)):
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").open()]
        losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
        assert set(losses) == {1, 2} and all(map(math.isfinite, losses.values())), losses
        assert (directory / "model").is_dir()
    metrics = read_metrics(run.workdir, settings["eval.metric"], settings["eval.min_gain"])
    expected = [name for name in table.metrics if not name.startswith("evaluated/")]
    missing = [name for name in expected if not math.isfinite(metrics.get(name, math.nan))]
    assert not missing, f"{missing} not in {sorted(metrics)}"
