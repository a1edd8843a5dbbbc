"""A model's card: the content of a run's files, measured scores, and the hub's metadata."""

import dataclasses
import json

import pytest

from embed_jax.config import Experiment, Source, as_dict, to_json
from embed_jax.config_file import load_config
from embed_jax.cross_encoder import load_cross_encoder
from embed_jax.errors import InputError
from embed_jax.export.card import CardContent, model_card
from embed_jax.export.record import UNKNOWN, config_source, hub_model, read_run
from embed_jax.export.scores import read_scores
from embed_jax.sentence import load_sentence_encoder

RESULT = {
    "task": "retrieval",
    "name": "SciFact",
    "model": "runs/a/model",
    "main": "ndcg@10",
    "metrics": {"ndcg@10": 0.64512, "mrr@10": 0.61, "map": None},
    "intervals": {"ndcg@10": [0.6, 0.69], "map": [None, None]},
    "n": 300,
    "unit": "queries",
    "notes": ["2 documents were cut"],
    "split": "test",
    "items": {"values": [1.0], "statistic": "mean"},
}


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_sentence_encoder(tiny_model)


@pytest.fixture
def made_run(tmp_path):
    """`made_run(name, results=None, lines=..., **fields)`: a run's files, without a model."""

    def make(name, results=None, lines=(), data=None, **fields):
        config = Experiment()
        for field, value in ({"loss__name": "info_nce", "data__train": "snli"} | fields).items():
            part, leaf = field.split("__")
            setattr(getattr(config, part), leaf, value)
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(to_json(config))
        (directory / "data.json").write_text(
            json.dumps(data or {"data": {"records": 1234, "texts": "ab"}})
        )
        (directory / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9'
        )
        if results:
            (directory / "results.json").write_text(json.dumps(results))
        return directory

    return make


def parsed(card):
    hub = pytest.importorskip("huggingface_hub")
    return hub.ModelCard(card)


def test_the_hubs_library_reads_the_metadata(model, made_run, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT))
    run = read_run(
        made_run(
            "run", model__name="nreimers/MiniLM-L6-H384-uncased", data__train="allnli_triplets"
        )
    )
    about = CardContent(
        name="me/model",
        run=run,
        scores=tuple(read_scores([tmp_path / "result.json"])),
        licence="apache-2.0",
        languages=("en",),
    )
    card = parsed(model_card(model, about))
    data = card.data
    assert (data.library_name, data.pipeline_tag) == (
        "sentence-transformers",
        "sentence-similarity",
    )
    assert (
        data.base_model == "nreimers/MiniLM-L6-H384-uncased"
        and data.base_model_relation == "finetune"
    )
    assert (data.license, data.language, data.datasets) == (
        "apache-2.0",
        ["en"],
        ["sentence-transformers/all-nli"],
    )
    assert {"sentence-transformers", "embed-jax"} <= set(data.tags)
    values = {
        (result.dataset_name, result.metric_type): result.metric_value
        for result in data.eval_results
    }
    assert values == {("SciFact", "ndcg@10"): 0.64512, ("SciFact", "mrr@10"): 0.61}
    assert data.eval_results[0].task_type == "information-retrieval" and data.model_name == "model"
    assert "| SciFact test | **ndcg@10** | 0.6451 [0.6000, 0.6900] | 300 queries |" in card.text
    assert "- SciFact: 2 documents were cut" in card.text
    assert model_card(model, about) == model_card(model, about)


def test_what_is_not_known_is_not_claimed(model, tmp_path, made_run):
    """A card does not guess a licence, a language, or a model or data set on the hub."""
    (tmp_path / "data").mkdir()
    run = read_run(
        made_run(
            "run", model__name=str(tmp_path / "secret" / "base"), data__train="snli/train.jsonl"
        )
    )
    card = parsed(model_card(model, CardContent("model", run=run)))
    assert not any(
        name in card.data.to_dict() for name in ("license", "language", "base_model", "datasets")
    )
    assert "model-index" not in card.data.to_dict() and "## Evaluation" not in card.text
    assert f"| snli/train.jsonl | train | 1,234 | {UNKNOWN} | `info_nce` |" in card.text
    assert "`base`, a directory" in card.text
    about = card.text[: card.text.index("## Train it again")]
    assert str(tmp_path) not in about, "paths of a machine are in the config only"


def test_a_name_of_a_directory_is_none_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        hub_model("models/mine") == "models/mine"
        and hub_model("bert-base-uncased") == "bert-base-uncased"
    )
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert not hub_model("models/mine") and not hub_model("a/b/c") and not hub_model("random:tiny")


@pytest.mark.parametrize(
    ("source", "name", "hub", "licence"),
    [
        ("snli", "snli", "stanfordnlp/snli", "CC BY-SA 4.0"),
        ("tfds:snli:1.1.0", "snli", "stanfordnlp/snli", "CC BY-SA 4.0"),
        ("tfds:imdb", "imdb", "", UNKNOWN),
        ("wiki1m", "wiki1m", "princeton-nlp/datasets-for-simcse", None),
        ("hf:nyu-mll/glue:mnli@abc", "nyu-mll/glue", "nyu-mll/glue", UNKNOWN),
        ("python_docs", "python_docs", "", None),
        ("beir:data/scifact", "scifact", "", None),
        ("stream:data/huge.jsonl.gz", "data/huge.jsonl.gz", "", UNKNOWN),
        ("/home/me/pairs.tsv", "me/pairs.tsv", "", UNKNOWN),
    ],
)
def test_data_sets_are_named_with_what_is_known_of_their_licence(
    source, name, hub, licence, made_run
):
    (dataset,) = read_run(made_run("run", data__train=source)).datasets
    assert (dataset.name, dataset.hub, dataset.records) == (name, hub, 1234)
    assert dataset.licence == licence or (licence is None and dataset.licence != UNKNOWN)


def test_a_mixture_names_each_with_its_loss_and_size(made_run):
    directory = made_run(
        "run", data={"nli": {"records": 10}, "mine": {"records": 20}, "versions": {"grain": "1"}}
    )
    config = Experiment()
    config.mixture.sources.nli = Source("allnli", split="train[:10%]")
    config.mixture.sources.mine = Source("pairs.jsonl", loss="cosent")
    (directory / "config.json").write_text(to_json(config))
    datasets = [
        (data.name, data.split, data.records, data.loss) for data in read_run(directory).datasets
    ]
    assert datasets == [
        ("allnli", "train[:10%]", 10, "info_nce"),
        ("pairs.jsonl", "train", 20, "cosent"),
    ]


def test_a_later_stage_tells_of_those_before(model, made_run):
    first = made_run(
        "first", model__name="bert-base-uncased", data__train="snli", loss__name="softmax"
    )
    (first / "model").mkdir()
    second = made_run(
        "second", model__name=str(first / "model"), data__train="stsb", loss__name="cosent"
    )
    run = read_run(second)
    assert run.base == "bert-base-uncased" and len(run.stages()) == 2
    card = parsed(model_card(model, CardContent("model", run=run)))
    assert card.data.base_model == "bert-base-uncased"
    assert card.data.datasets == ["sentence-transformers/stsb", "stanfordnlp/snli"]
    for words in (
        "### Stage 1",
        "### Stage 2",
        "`softmax`",
        "`cosent`",
        "`config_1.py`",
        "`config_2.py`",
    ):
        assert words in card.text


def test_the_log_says_which_step_and_how_fast(model, made_run):
    lines = [
        {"step": 0, "sts/spearman": 0.5},
        *({"step": n, "loss": 1.0, "tokens_per_second": 100.0 * n, "mfu": None} for n in (1, 2, 3)),
        {"step": 4, "sts/spearman": 0.7, "tokens_per_second": 400.0},
        {"step": 5, "sts/spearman": 0.7},
        {"step": 6, "sts/spearman": None},
        {"step": 7, "sts/spearman": 0.705},
    ]
    run = read_run(made_run("run", lines=lines, eval__metric="sts/spearman"))
    assert (run.steps, run.find_best(), run.median("tokens_per_second"), run.median("mfu")) == (
        7,
        (7, 0.705),
        300.0,
        None,
    )
    card = model_card(model, CardContent("model", run=run))
    assert "| steps | 7 |" in card and "of step 7, where sts/spearman was best: 0.7050" in card
    assert "| tokens a second (median) | 300 |" in card and "FLOPs" not in card
    assert "of step 3" in model_card(model, CardContent("model", run=run, step=3))
    patient = read_run(
        made_run("patient", lines=lines, eval__metric="sts/spearman", eval__min_gain=0.01)
    )
    assert patient.find_best() == (5, 0.7), "as the training chooses: of equal ones the later"
    assert read_run(made_run("last", lines=lines)).find_best() is None


def session(seconds, start=0, devices=1, hosts=1, **versions):
    return {
        "start": start,
        "end": start + 5,
        "seconds": seconds,
        "devices": devices,
        "hosts": hosts,
    } | {
        "versions": {"python": "3.12.1", "device": "NVIDIA H200", "cpus": "16", "jax": "0.10.2"}
        | versions
    }


def test_how_long_and_on_what_it_was_trained(model, made_run):
    directory = made_run("run")
    assert "training time" not in model_card(
        model, CardContent("model", run=read_run(directory))
    ), "of older runs"

    def card(*sessions):
        (directory / "run.json").write_text(json.dumps({"experiment": "nli", "sessions": sessions}))
        return model_card(model, CardContent("model", run=read_run(directory)))

    text = card(session(3000, devices=8), session(7000.2, start=5, devices=8))
    assert "| training time | 2 h 47 min, evaluations included |" in text
    assert (
        "| device | 8 x NVIDIA H200 |" in text
        and "| versions | python 3.12.1, jax 0.10.2 |" in text
    )
    assert card(session(3000, devices=8), session(7000.2, start=5, devices=8)) == text
    text = card(
        session(59.96, start=7, device="cpu", jax="0.9"), session(0, start=12, devices=4, hosts=2)
    )
    assert "| training time | 1 min 0 s from step 7 on, evaluations included |" in text
    assert "| device | CPU of 16 cores; then 4 x NVIDIA H200, 2 hosts |" in text
    assert "jax 0.9; then python 3.12.1, jax 0.10.2 |" in text
    for seconds, duration in (
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (3599.4, "59 min 59 s"),
        (3599.9, "1 h 0 min"),
    ):
        assert f"| training time | {duration}, " in card(session(seconds))
    assert "CPU of 16 cores as 8 devices" in card(session(61, devices=8, device="cpu"))


def test_the_command_that_trains_it_again_is_the_one_that_did(model, made_run):
    """The card of an older run, of an experiment, and of a run from Python.

    With two stages, each command starts from the model of the one before.
    """
    directory = made_run("run")
    assert "python -m embed_jax train EXPERIMENT --config=config.py" in again(model, directory)
    (directory / "run.json").write_text(json.dumps({"experiment": "nli", "sessions": []}))
    text = again(model, directory)
    assert (
        "python -m embed_jax train nli --config=config.py --workdir=runs/config\n" in text
        and "EXPERIMENT" not in text
    )
    (directory / "model").mkdir()
    later = made_run("later", model__name=str(directory / "model"))
    (later / "run.json").write_text(json.dumps({"experiment": "retrieval", "sessions": []}))
    text = again(model, later)
    assert text.index(
        "embed_jax train nli --config=config_1.py --workdir=runs/config_1\n"
    ) < text.index("embed_jax train retrieval --config=config_2.py --workdir=runs/config_2\n")
    assert "config.model.name = 'runs/config_1/model'" in text and str(directory) not in text
    (directory / "run.json").write_text(json.dumps({"experiment": "", "sessions": []}))
    assert "python -m" not in again(model, directory) and "trained from Python" in again(
        model, directory
    )


def again(model, directory):
    return model_card(model, CardContent("model", run=read_run(directory))).partition(
        "## Train it again"
    )[2]


@pytest.mark.parametrize(
    "content", ['{"experiment": "nli"}', '{"experiment": "nli", "sessions": [{"seconds": "x"}]}']
)
def test_a_damaged_record_is_said_in_one_line(made_run, content):
    directory = made_run("run")
    (directory / "run.json").write_text(content)
    with pytest.raises(InputError, match="run.json: no record of a run's sessions") as error:
        read_run(directory)
    assert "\n" not in str(error.value)


def test_results_of_the_run_are_there_before_against_after(model, made_run):
    measured = {
        "before/sts12": 0.5,
        "after/sts12": 0.625,
        "before/average": None,
        "after/average": 0.6,
    }
    run = read_run(made_run("run", results={"task": "sts", "metrics": measured}))
    card = model_card(model, CardContent("model", run=run))
    assert (
        "| sts12 | 0.5000 | 0.6250 |" in card
        and "| average |  | 0.6000 |" in card
        and "Spearman" in card
    )


def test_a_cross_encoders_card_has_its_test_on_a_shortlist(tiny_cross_encoder, made_run):
    directory = made_run("run", loss__name="lambda_loss")
    report = {
        "task": "retrieval",
        "model": "bm25 + run",
        "n": 300,
        "depth": 50,
        "rerank_ms_per_query": 12.34,
        "metrics": {"ndcg@10": 0.625, "mrr@10": 0.375},
        "intervals": {"ndcg@10": [0.6, 0.65], "mrr@10": [0.3, 0.4]},
        "first_stage": {
            "model": "bm25",
            "metrics": {"ndcg@10": 0.5, "mrr@10": 0.25},
            "intervals": {"ndcg@10": [0.45, 0.55], "mrr@10": [0.2, 0.3]},
        },
        "differences": {"scifact": {"metric": "ndcg@10", "verdict": "reranked is better: a lot."}},
    }
    (directory / "reranking.json").write_text(json.dumps(report))
    model = load_cross_encoder(str(tiny_cross_encoder()))
    card = model_card(model, CardContent("org/model", run=read_run(directory)))
    assert "| metric | bm25 | reranked |" in card
    assert "| ndcg@10 | 0.5000 [0.4500, 0.5500] | 0.6250 [0.6000, 0.6500] |" in card
    assert "| mrr@10 | 0.2500 [0.2000, 0.3000] | 0.3750 [0.3000, 0.4000] |" in card
    assert "first 50 results" in card and "300 queries" in card and "12.3 ms a query" in card
    assert "reranked is better: a lot." in card
    assert "| 1,234 |" in card and "`lambda_loss`" in card
    assert "model.rank(queries[0], passages)" in card and "CrossEncoder('org/model')" in card
    several = model_card(load_cross_encoder(str(tiny_cross_encoder(2))), CardContent("model"))
    assert ".rank(" not in several and "of each label" in several


def test_the_config_in_the_card_is_the_runs(tmp_path):
    config = Experiment()
    config.model.name = 'a "name" with \\ and é'
    config.loss.name = "info_nce(terms='qp,qq') + 0.1 * uniformity(t=2)"
    config.optim.learning_rate, config.data.template = 1e-5, "Instruct: {instruction}\nQuery: "
    config.mixture.sources.nli = Source("allnli", weight=0.5)
    config.mixture.sources.mine = Source("pairs.jsonl", columns="a,b")
    (tmp_path / "config.py").write_text(
        config_source(json.loads(to_json(config))), encoding="utf-8"
    )
    loaded, _ = load_config(["experiments/nli.py", f"--config={tmp_path / 'config.py'}"])
    assert as_dict(loaded) == as_dict(config)
    assert "config.train" not in config_source(as_dict(config)), (
        "what is as by default is not named"
    )


# ---- results -------------------------------------------------------------------------------------


def test_results_of_every_form_are_read(tmp_path):
    (tmp_path / "b").mkdir()
    older = {"task": "sts", "model": "m", "data": "stsb/,sick_r", "n": 50, "dim": 64}
    older |= {
        "metrics": {"stsb/spearman": 0.8, "average/spearman": 0.75},
        "intervals": {"stsb/spearman": [0.7, 0.9]},
    }
    overlap = {"items": 3, "words": 8, "clean": 0.5}
    (tmp_path / "a.json").write_text(json.dumps(RESULT | {"overlap": overlap}))
    (tmp_path / "b" / "sts.json").write_text(json.dumps(older))
    (tmp_path / "board.json").write_text('[{"not": "results"}]')
    first, second = read_scores([tmp_path])
    assert first.metrics == {"ndcg@10": 0.64512, "mrr@10": 0.61} and first.intervals == {
        "ndcg@10": (0.6, 0.69)
    }
    assert first.notes == (
        "3 of 300 queries share 8 words in a row with training data: 0.5000 without them",
        "2 documents were cut",
    )
    assert (second.name, second.main, second.n) == ("stsb", "average/spearman", 50)
    assert second.notes[0] == "embeddings cut to 64 numbers" and "only 50 items" in second.notes[1]


def test_a_comparison_without_overlap_is_told_too(tmp_path):
    overlap = {"items": 0, "words": 8, "clean": 0.5}
    (tmp_path / "a.json").write_text(json.dumps(RESULT | {"overlap": overlap}))
    (scores,) = read_scores([tmp_path])
    assert scores.notes[0] == "0 of 300 queries share 8 words in a row with training data"


def test_single_experiments_are_one_line(model, tmp_path):
    each = {f"accuracy_{number}": 0.5 + number / 100 for number in range(1, 11)}
    result = RESULT | {"main": "accuracy", "metrics": {"accuracy": 0.555, "f1": 0.5, **each}}
    (tmp_path / "a.json").write_text(json.dumps(result))
    card = model_card(model, CardContent("model", scores=tuple(read_scores([tmp_path]))))
    assert "| accuracy, single experiments | 0.5100 to 0.6000 | 10 experiments |" in card
    assert "accuracy_3" not in card and len(parsed(card).data.eval_results) == 2


def test_many_tasks_have_a_line_each(model, tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.json").write_text(json.dumps(RESULT | {"name": f"Task{number}"}))
    scores = tuple(read_scores([tmp_path]))
    card = model_card(model, CardContent("model", scores=scores))
    assert card.count("| **ndcg@10** |") == 7 and "mrr@10" not in card
    assert len(parsed(card).data.eval_results) == 7


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("{", "not readable as JSON"),
        ("[]", "no results of scripts.evaluate"),
        ('{"task": "sts", "data": "x", "metrics": {"spearman": null}}', "no metric with a number"),
        (
            '{"task": "sts", "data": "x", "main": "b", "metrics": {"a": 1}}',
            "unknown main metric 'b'",
        ),
    ],
)
def test_what_is_no_result_is_said_in_one_line(content, message, tmp_path):
    path = tmp_path / "found.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_scores([path])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "others").mkdir()
    with pytest.raises(InputError, match="no .json file with results"):
        read_scores([tmp_path / "others"])


def test_what_is_no_run_is_said_in_one_line(tmp_path, tiny_model):
    for directory, message in (
        (tmp_path, "no config.json"),
        (tiny_model, "no 'model', so it is not a run's config"),
    ):
        with pytest.raises(InputError, match=message):
            read_run(directory)


def test_cells_stay_cells(model):
    odd = dataclasses.replace(read_scores_of(RESULT), name="a | b\nc")
    card = model_card(model, CardContent("model", scores=(odd,)))
    assert "| a \\| b c test | **ndcg@10** |" in card
    assert parsed(card).data.eval_results[0].dataset_name == "a | b\nc"


def read_scores_of(content):
    from embed_jax.export.scores import _scores

    return _scores(content)
