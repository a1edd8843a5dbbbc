"""Bad input ends a command with status 2 and one line that names the place.

Nothing is left behind or lost.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

import pytest

from embed_jax.config import Experiment, Source
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.train.workdir import open_workdir

ROOT = Path(__file__).parents[2]
PAIRS = "anchor\tpositive\n" + "".join(f"query {n}\tpassage {n}\n" for n in range(40))
CORPUS = "".join(json.dumps({"_id": f"d{n}", "text": f"passage {n}"}) + "\n" for n in range(40))
QUERIES = "".join(json.dumps({"_id": f"q{n}", "text": f"query {n}"}) + "\n" for n in range(40))


@pytest.fixture
def command(tmp_path, tiny_model, tiny_tokenizer, monkeypatch, capsys):
    """`command(experiment, *overrides) -> (exit status, stderr)`, run in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import nli, retrieval, simcse

    (tmp_path / "pairs.tsv").write_text(PAIRS)
    (tmp_path / "sentences.txt").write_text(PAIRS)
    arguments = {
        simcse: [
            "--config=configs/simcse/unsup_bert_base.py:small",
            f"--config.model.tokenizer={tiny_tokenizer}",
            f"--config.data.train={tmp_path}/sentences.txt",
            "--config.eval.sts=",
            "--config.eval.metric=",
        ],
        retrieval: [
            "--config=configs/retrieval/own_data.py:small",
            f"--config.model.name={tiny_model}",
            f"--config.data.train={tmp_path}/pairs.tsv",
            "--config.data.max_length=32",
        ],
        nli: [
            "--config=configs/nli/mixture.py",
            f"--config.model.name={tiny_model}",
            "--config.data.max_length=32",
            "--config.eval.sts=",
            "--config.eval.metric=",
        ],
    }

    def run(name, *overrides):
        module = {"simcse": simcse, "retrieval": retrieval, "nli": nli}[name]
        shared = [
            "--config.tracking.wandb=disabled",
            "--config.train.devices=1",
            f"--workdir={tmp_path}/run",
        ]
        line = [
            f"experiments/{name}.py",
            *arguments[module],
            "--config.batch.size=8",
            *shared,
            *overrides,
        ]
        monkeypatch.setattr(sys, "argv", line)
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(module.main)
        return exit.value.code, capsys.readouterr().err

    return run


FILES = {
    "header.tsv": (
        b"query\tpassage\na\tb\n",
        "header.tsv:1: unknown fields: found query, passage; accepted: anchor",
    ),
    "fields.tsv": (
        PAIRS.encode() + b"alone\n",
        "fields.tsv:42: found 1 fields, expected 2: anchor, positive",
    ),
    "utf8.tsv": (
        PAIRS.encode() + b"caf\xe9\tbar\n",
        "utf8.tsv:42: invalid UTF-8 (byte 4 of the line)",
    ),
    "empty.jsonl": (b"", "empty.jsonl: empty, no records in it"),
    "header_only.csv": (b"anchor,positive\n", "header_only.csv: empty, no records in it"),
    "blank.tsv": (
        b"anchor\tpositive\n \t\n\t \n",
        "blank.tsv: no record is left, 2 of 2 records are left out: 2 with no text in 'anchor'",
    ),
    "cut.tsv.gz": (gzip.compress(PAIRS.encode())[:-20], "damaged or cut-off gzip data"),
    "json.jsonl": (b'{"anchor": "a", "positive": "b"}\n{"anchor":\n', "json.jsonl:2: invalid JSON"),
    "few.tsv": (b"anchor\tpositive\na\tb\nc\td\n", "few"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_pairs(command, tmp_path, name):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    status, err = command("retrieval", f"--config.data.train={tmp_path / name}")
    assert status == 2 and message in err, err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("retrieval", "--config.data.train={}/gone.tsv", "gone.tsv: no such file"),
        ("retrieval", "--config.data.train=tfds:no_such_set", "no_such_set"),
        ("retrieval", "--config.data.train=hf:{}/gone", "gone"),
        ("retrieval", "--config.data.corpus={}/gone.jsonl", "gone.jsonl: no such file"),
        ("retrieval", "--config.data.split=dev", "a file has no split 'dev'"),
        ("retrieval", "--config.model.name={}/gone", "no such directory"),
        (
            "retrieval",
            "--config.model.name={}/cut",
            "model.safetensors: damaged or no safetensors file",
        ),
        (
            "retrieval",
            "--config.model.pooling=means",
            "unknown pooling 'means' (did you mean 'mean'?)",
        ),
        (
            "retrieval",
            "--config.data.holdout=0.5",
            "config.data.holdout: expected at least 0 and at most 0.4",
        ),
        (
            "retrieval",
            "--config.batch.size=1000",
            "do not fill a batch of 1000: lower config.batch.size",
        ),
        (
            "retrieval",
            "--config.batch.row_length=16",
            "config.batch.row_length: expected at least data.max_length=32",
        ),
        ("retrieval", "--config.data.max_length=4096", "config.data.max_length: expected at most"),
        ("retrieval", "--config.train.devices=100", "config.train.devices: expected at most 8"),
        (
            "simcse",
            "--config.data.train={}/pairs.tsv",
            "expected records with a text, found the fields anchor",
        ),
        (
            "simcse",
            "--config.eval.sts={}/pairs.tsv",
            "pairs.tsv: found the fields anchor, positive; accepted",
        ),
        (
            "simcse",
            "--config.model.tokenizer=",
            "config.model.tokenizer: random weights need a directory",
        ),
        ("simcse", "--config.model.tokenizer={}/gone", "gone: no tokenizer there"),
        (
            "simcse",
            "--config.eval.metric=sts/spearman",
            "config.eval.metric: 'sts/spearman' is to pick the model",
        ),
        ("simcse", "--config.train.steps=many", "train.steps"),
        (
            "simcse",
            "--config.trian.steps=3",
            "unknown config field 'trian.steps' (did you mean 'train.steps'?)",
        ),
        (
            "simcse",
            "--steps=3",
            "unknown argument '--steps=3'; did you mean --config.train.steps=3?",
        ),
        ("simcse", "--workdir={}/pairs.tsv/run", "pairs.tsv/run: cannot be written"),
    ],
)
def test_an_option(command, tmp_path, tiny_model, name, override, message):
    if "cut" in override:
        shutil.copytree(tiny_model, tmp_path / "cut")
        weights = tmp_path / "cut" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
    status, err = command(name, override.format(tmp_path))
    assert status == 2 and message in err, err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert (
        not list(tmp_path.glob("run/checkpoints/*")) and not (tmp_path / "run" / "model").exists()
    )


@pytest.mark.slow
def test_the_corrected_command_may_have_the_same_directory_until_something_was_saved(
    command, tmp_path
):
    steps = ["--config.train.steps=1"]
    status, err = command(
        "simcse", *steps, "--config.eval.metric=sts/spearman", "--config.optim.learning_rate=2"
    )
    assert status == 2 and "nothing is evaluated" in err, err
    assert not (tmp_path / "run").exists()
    with open_workdir(tmp_path / "run", Experiment()) as check_data:
        check_data({"data": "other"})
        (tmp_path / "run" / "wandb_id").write_text("of a run that stopped before it saved")
    status, err = command("simcse", *steps)
    assert status == 0 and not (tmp_path / "run" / "wandb_id").exists(), err
    status, err = command("simcse", *steps, "--config.optim.learning_rate=2")
    assert (
        status == 2
        and "config.optim.learning_rate was 0.001 and is 2.0 now; a run is resumed unchanged" in err
    )


@pytest.mark.parametrize(
    ("qrels", "message"),
    [
        (
            "q0\td99\t1\n",
            "qrels/test.tsv: none of the judged documents is in the corpus, such as 'd99'",
        ),
        ("q0\td0\t1\nq99\td0\t1\n", "qrels/test.tsv:3: the id 'q99' is not in queries.jsonl"),
        ("q0\td0\n", "qrels/test.tsv:2: found 2 fields, expected 3"),
        ("", "qrels/test.tsv: empty"),
    ],
)
def test_judgements(command, tmp_path, qrels, message):
    (tmp_path / "corpus.jsonl").write_text(CORPUS)
    (tmp_path / "queries.jsonl").write_text(QUERIES)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    fields = {"data.holdout": 0, "eval.retrieval": tmp_path, "eval.retrieval_split": "test"}
    status, err = command(
        "retrieval", *(f"--config.{field}={value}" for field, value in fields.items())
    )
    assert status == 2 and message in err and err.count("\n") == 1, err


def test_judgements_to_train_on(command, tmp_path):
    (tmp_path / "corpus.jsonl").write_text(CORPUS)
    (tmp_path / "queries.jsonl").write_text(QUERIES)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td99\t1\n")
    status, err = command("retrieval", f"--config.data.train=beir:{tmp_path}")
    assert status == 2 and err.count("\n") == 1, err
    assert "qrels/train.tsv: none of the judged documents is in the corpus" in err


LISTS = [
    {"query": f"query {n}", "passages": [f"passage {n}", "no", "nor this"], "scores": [3, 1.5, 1]}
    for n in range(9)
]
SCORES = {
    "a text": ([3, "high", 1], "lists.jsonl:9: field 'scores'"),
    "not a number": ([3, float("nan"), 1], "lists.jsonl:9: field 'scores'"),
    "one too few": ([3, 1], "lists.jsonl:9: found 3 passages and 2 scores"),
    "none": (None, "lists.jsonl:9:"),
}


@pytest.mark.parametrize("name", SCORES)
def test_scores_of_a_teacher(command, tmp_path, name):
    scores, message = SCORES[name]
    records = [*LISTS[:8], LISTS[8] | {"scores": scores}]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    fields = {
        "data.train": tmp_path / "lists.jsonl",
        "data.holdout": 0,
        "loss.name": "kl",
        "loss.symmetric": False,
    }
    status, err = command(
        "retrieval", *(f"--config.{field}={value}" for field, value in fields.items())
    )
    assert status == 2 and message in err and err.count("\n") == 1, err


NLI = "premise\thypothesis\tlabel\n" + "".join(
    f"premise {n // 3}\thypothesis {n}\t{n % 3}\n" for n in range(30)
)
GRADED = "score\tsentence1\tsentence2\n" + "".join(
    f"{n % 6}\tsentence {n}\tsentence {n + 1}\n" for n in range(30)
)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nli.weight=0", "config.mixture.sources.nli.weight: expected more than 0, found 0"),
        ("sts.weight=-1", "config.mixture.sources.sts.weight: expected more than 0, found -1"),
        (
            "sts.loss_weight=0",
            "config.mixture.sources.sts.loss_weight: expected more than 0, found 0",
        ),
        ("nil.weight=1", "unknown config field 'mixture.sources.nil.weight'"),
        ("nli.train=", "config.mixture.sources.nli.train: expected a data set, found ''"),
        ("nli.train={}/gone.tsv", "config.mixture.sources.nli: {}/gone.tsv: no such file"),
        (
            "nli.train={}/label.tsv",
            "config.mixture.sources.nli: {}/label.tsv:32: label: expected an integer or one of",
        ),
        (
            "nli.train={}/column.tsv",
            "config.mixture.sources.nli: {}/column.tsv:1: unknown fields: found premise, label",
        ),
        ("nli.loss=softmax(num_labels=2)", "record 2: label 2, config.mixture.sources.nli.loss="),
        (
            "sts.train={}/score.tsv",
            "config.mixture.sources.sts: {}/score.tsv:32: score: expected a finite number",
        ),
        (
            "questions.train={}/sts.tsv",
            "config.mixture.sources.questions.loss: 'online_contrastive' needs records with",
        ),
        (
            "nli.loss=contrastive",
            "record 2: label 2, config.mixture.sources.nli.loss='contrastive' accepts 0 to 1",
        ),
        (
            "questions.columns=premise,text",
            "config.mixture.sources.questions: {}/nli.tsv:1: no field 'text'",
        ),
        (
            "questions.exclude={}/nli.tsv",
            "config.mixture.sources.questions: exclude: all 30 records have a text of",
        ),
    ],
)
def test_a_mixture(command, tmp_path, override, message):
    files = {
        "nli": NLI,
        "label": f"{NLI}premise\thypothesis\tmaybe\n",
        "sts": GRADED,
        "score": f"{GRADED}high\ta\tb\n",
    }
    files["column"] = "premise\tlabel\na\t1\n"
    for name, content in files.items():
        (tmp_path / f"{name}.tsv").write_text(content)
    fields = {"nli": "nli.tsv", "questions": "nli.tsv", "sts": "sts.tsv"}
    sources = [
        f"--config.mixture.sources.{name}.train={tmp_path / file}" for name, file in fields.items()
    ]
    status, err = command("nli", *sources, f"--config.mixture.sources.{override.format(tmp_path)}")
    assert status == 2 and message.format(tmp_path) in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_checkpoint_of_another_architecture(command, tmp_path):
    steps = ["--config.train.steps=1", "--config.checkpoint.every=1"]
    status, err = command("simcse", *steps)
    assert status == 0, err
    saved = {
        path: path.read_bytes()
        for path in (tmp_path / "run" / "checkpoints").rglob("*")
        if path.is_file()
    }
    status, err = command("simcse", *steps, "--config.model.mlp=")
    assert (
        status == 2
        and "config.model.mlp was 'training' and is '' now" in err
        and err.count("\n") == 1
    ), err
    (tmp_path / "run" / "config.json").unlink()
    status, err = command("simcse", *steps, "--config.model.mlp=")
    assert status == 2 and err.count("\n") == 1, err
    assert (
        "checkpoint of another architecture: encoder/heads/0/bias has shape [32], this model's has "
        "none" in err
    )
    assert saved == {path: path.read_bytes() for path in saved}


def test_simcse_refuses_a_mixture(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import simcse

    config = Experiment()
    config.mixture.sources.news = Source(train="news.txt")
    with pytest.raises(InputError, match="one data set, config.data.train; found news$"):
        simcse.run(config, tmp_path)
