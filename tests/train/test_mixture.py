"""Several data sets in one run.

Shares of a batch, settings of each data set, and an exact resume.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.config import Experiment, Source
from embed_jax.config_file import load_config, override
from embed_jax.data.pairs import text_hash
from embed_jax.data.pipeline import make_batch_maker
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.errors import InputError
from embed_jax.parallel.mesh import split_groups
from embed_jax.parallel.world import local_world
from embed_jax.runtime import prepare_jax
from embed_jax.train import data as train_data
from embed_jax.train import loop
from embed_jax.train.fit import fit
from embed_jax.train.objective import training_loss
from embed_jax.world import make_columns

pytest.importorskip("grain")
ROOT = Path(__file__).parents[2]
STEPS = 12
CONFIG = """
from embed_jax.config import Experiment, Source


def get_config(cut=""):
    config = Experiment()
    config.model.name = "{model}"
    config.mixture.sources.nli = Source(
        "{data}/triplets.jsonl", anchor_prompt="like this : ", max_length=12, loss_weight=0.5
    )
    config.mixture.sources.graded = Source(
        "{data}/graded.jsonl",
        loss="cosent",
        anchor_prompt="red ",
        candidate_prompt="blue ",
        score_max=5.0,
    )
    config.mixture.sources.questions = Source(
        "{data}/questions.jsonl", loss="softmax(num_labels=2)", columns="q1,q2", max_length=8
    )
    config.mixture.sampling = "temperature"
    config.mixture.temperature = 2.0
    config.data.max_length = 24
    config.data.candidate_prompt = "that : "
    config.batch.size = 8
    config.batch.no_duplicates = True
    config.batch.groups = 8
    config.batch.row_length = 72
    config.batch.rows = 1
    config.optim.learning_rate = 1e-3
    config.train.steps = {steps}
    config.train.devices = 1
    config.train.log_every = 1
    config.checkpoint.every = 3
    config.tracking.wandb = "disabled"
    return config
"""


@pytest.fixture(scope="module")
def here():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory, sentences):
    """Writes triplets, graded pairs, and labelled pairs with their own names.

    Half of the triplets' anchors are one of two texts.
    """
    directory = tmp_path_factory.mktemp("mixture")

    def write(name, records):
        (directory / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    def shuffled(text):
        return " ".join(sorted(text.split()))

    texts = sentences
    write(
        "triplets.jsonl",
        [
            {
                "anchor": texts[n if n % 2 else n % 4],
                "positive": shuffled(texts[n]),
                "negative": f"not {texts[n]}",
            }
            for n in range(60)
        ],
    )
    write(
        "graded.jsonl",
        [
            {"sentence1": texts[60 + n], "sentence2": texts[140 - n], "score": n % 6}
            for n in range(30)
        ],
    )
    write(
        "questions.jsonl",
        [{"q1": texts[150 + n], "q2": texts[199 - n], "label": n % 2} for n in range(20)],
    )
    return directory


@pytest.fixture(scope="module")
def config_file(data, tiny_model):
    path = data / "mixture.py"
    path.write_text(CONFIG.format(model=tiny_model, data=data, steps=STEPS))
    return path


@pytest.fixture
def experiment(config_file):
    """`experiment(**fields)`: the config, fields by dotted name with "__" for the dot."""

    def make(**fields):
        config, _ = load_config(["nli", f"--config={config_file}"])
        return override(config, **fields)

    return make


def train(config, workdir):
    from experiments import nli

    prepare_jax(deterministic=config.train.deterministic)
    return nli.run(config, workdir)


@pytest.fixture(scope="module")
def undisturbed(here, config_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return train(load_config(["nli", f"--config={config_file}"])[0], workdir), workdir


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def assert_same_bits(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for first, second in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert np.asarray(first).tobytes() == np.asarray(second).tobytes()


KILLED = """
import os, signal
from embed_jax.train.loop import MetricsFile
from experiments import nli

def write(self, step, metrics, write=MetricsFile.write):
    write(self, step, metrics)
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)

MetricsFile.write = write
nli.main()
"""


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_it_ends_with_the_same_bits(
    undisturbed, experiment, config_file, tmp_path
):
    """Kills a run in step 8, after the line of step 7; step 6 may have no checkpoint yet."""
    command = [
        sys.executable,
        "-c",
        KILLED,
        f"--config={config_file}",
        f"--workdir={tmp_path / 'run'}",
    ]
    environment = {
        **os.environ,
        "JAX_NUM_CPU_DEVICES": "8",
        "PYTHONPATH": str(ROOT),
    }
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    assert (
        subprocess.run(command, cwd=ROOT, env=environment, capture_output=True).returncode
        == -signal.SIGKILL
    )
    assert lines_of(tmp_path / "run")[-1]["step"] == 7

    result, workdir = undisturbed
    resumed = train(experiment(), tmp_path / "run")
    assert set(resumed.state.params["loss"]) == {"2"}, "the classifier's"
    assert_same_bits(resumed.state, result.state)
    assert [line["step"] for line in lines_of(tmp_path / "run")] == list(range(1, STEPS + 1))
    for mine, other in zip(lines_of(tmp_path / "run"), lines_of(workdir), strict=True):
        assert mine["loss"] == other["loss"] and mine.keys() == other.keys()


def test_each_data_set_has_the_metrics_of_its_loss_when_its_turn_comes(undisturbed):
    names_by_line = [
        {name for name in line if name.startswith("loss/")} for line in lines_of(undisturbed[1])
    ]
    assert all(len(names) == 1 for names in names_by_line)
    assert set.union(*names_by_line) == {"loss/nli", "loss/graded", "loss/questions"}


# ---- the batches ---------------------------------------------------------------------------------

FILES = {"nli": "triplets.jsonl", "graded": "graded.jsonl", "questions": "questions.jsonl"}
TEXTS = {
    "nli": ("anchor", "positive", "negative"),
    "graded": ("sentence1", "sentence2"),
    "questions": ("q1", "q2"),
}
PROMPTS = {
    "nli": ("like this : ", "that : "),
    "graded": ("red ", "blue "),
    "questions": ("", "that : "),
}
LENGTHS = {"nli": 12, "graded": 24, "questions": 8}


@pytest.fixture
def assembled(monkeypatch, tmp_path, here):
    """`assembled(config)`: the arguments that `fit` gives the loop, and those of its batches.

    Nothing is run.
    """
    from experiments import nli

    def make(config):
        run_arguments = {}

        def recorded(sources, **settings):
            run_arguments.update(sources=dict(zip(names, sources, strict=True)), settings=settings)
            return make_batch_maker(sources, **settings)

        monkeypatch.setattr(train_data, "make_batch_maker", recorded)
        monkeypatch.setattr(
            loop, "run", lambda config, workdir, **arguments: run_arguments.update(arguments)
        )
        sources, _ = nli.read_data(config)
        names = list(sources)
        fit(
            config, tmp_path / f"run{len(list(tmp_path.iterdir()))}", sources=sources, evaluators={}
        )
        batches = run_arguments["batches"](0, run_arguments["state"])
        run_arguments["batches"] = [batch for _, batch in batches]
        batches.close()
        return run_arguments

    return make


@pytest.mark.unchecked
def test_a_batch_is_of_one_data_set_with_that_ones_prompts_and_length(
    assembled, experiment, data, tiny_model
):
    records = {
        name: [json.loads(line) for line in (data / file).read_text().splitlines()]
        for name, file in FILES.items()
    }
    tokenizer, seen = load_tokenizer(tiny_model, 40), set()
    for batch in assembled(experiment())["batches"]:
        (number,) = np.unique(batch.dataset)
        name = list(FILES)[number]
        seen.add(name)
        tokens, cut = batch.tokens["encoder"], tokenizer.cut_at(LENGTHS[name])
        for place, index in np.ndenumerate(batch.record):
            record = records[name][index]
            for column, field in enumerate(TEXTS[name]):
                prompt = PROMPTS[name][min(column, 1)]
                slots = tokens.sentence[place[0]] == column * batch.record.shape[1] + place[1]
                assert (
                    tokens.token_ids[place[0]][slots].tolist()
                    == cut.encode([record[field]], prompt).ids[0].tolist()
                )
                assert tuple(batch.text_hash[place[0], column, place[1]]) == text_hash(
                    record[field]
                )
            assert batch.present[place[0], :, place[1]].tolist() == [
                n < len(TEXTS[name]) for n in range(3)
            ]
            assert batch.label[place] == record.get("label", 0)
            assert batch.score[place] == pytest.approx(record.get("score", 0) / 5.0)
    assert seen == set(FILES)


def repeated_texts(batch):
    """Counts the texts that occur in more than one example of a batch."""
    rows = [set(map(tuple, texts[there])) for texts, there in zip(*by_example(batch), strict=True)]
    return sum(len(row) for row in rows) - len(set.union(*rows))


def by_example(batch):
    """Returns [B, C, 2] hashes and [B, C] presence."""
    shape = (-1, batch.present.shape[1])
    hashes = np.swapaxes(np.asarray(batch.text_hash), 1, 2).reshape(*shape, 2)
    return hashes, np.swapaxes(np.asarray(batch.present), 1, 2).reshape(shape)


@pytest.mark.parametrize("mixing", ["single", "mixed"])
@pytest.mark.unchecked
def test_no_duplicates_in_the_whole_batch_whatever_devices_and_hosts_share_it(
    assembled, experiment, mixing
):
    def of(**fields):
        return assembled(experiment(mixture__batches=mixing, **fields))

    one_device = of(batch__shares=2)
    assert all(repeated_texts(batch) == 0 for batch in one_device["batches"])
    assert sum(repeated_texts(batch) for batch in of(batch__no_duplicates=False)["batches"]) > 0

    eight = of(batch__shares=2, train__devices=8)
    for batch, other in zip(one_device["batches"], eight["batches"], strict=True):
        assert_same_bits(batch, other)

    order = train_data.training_order(one_device["sources"], experiment(mixture__batches=mixing))
    hosts = [
        make_batch_maker(
            list(one_device["sources"].values()), **one_device["settings"] | {"shard": (host, 2)}
        )
        for host in range(2)
    ]
    for step, batch in enumerate(one_device["batches"]):
        parts = [make(order[step], step) for make in hosts]
        assert_same_bits(batch, jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts))


# ---- the losses ----------------------------------------------------------------------------------


def value_and_gradient(loss, columns):
    def mean(embeddings):
        own = dataclasses.replace(columns, embeddings=embeddings)
        values, weights, metrics = loss.on_world(own, local_world(own, "dense"), {})
        return jnp.sum(values * weights) / jnp.sum(weights), {
            name: jnp.mean(value) for name, value in metrics.items()
        }

    compiled = jax.jit(
        jax.grad(mean, has_aux=True), compiler_options={"xla_backend_optimization_level": 0}
    )
    gradient, metrics = compiled(columns.embeddings)
    return jnp.stack(gradient), metrics


def test_a_weight_scales_the_gradient_of_its_own_part():
    def of(weight):
        config = Experiment()
        config.mixture.sources.a = Source("a", loss="info_nce")
        config.mixture.sources.b = Source("b", loss="info_nce", loss_weight=weight)
        return value_and_gradient(training_loss(config), columns)

    embeddings = jax.random.normal(jax.random.key(0), (2, 8, 6))
    columns = make_columns(embeddings, dataset=jnp.arange(8) % 2)
    (gradient, metrics), (twice, twice_metrics) = of(1.0), of(2.0)
    np.testing.assert_allclose(twice[:, 0::2], gradient[:, 0::2], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(twice[:, 1::2], 2 * gradient[:, 1::2], rtol=1e-5, atol=1e-8)
    assert float(jnp.abs(gradient).min()) > 0
    assert twice_metrics["loss/a"] == pytest.approx(float(metrics["loss/a"]), rel=1e-6)
    assert twice_metrics["loss/b"] == pytest.approx(2 * float(metrics["loss/b"]), rel=1e-6)


def only(experiment, name, **fields):
    config = experiment(train__steps=3, checkpoint__every=0, batch__no_duplicates=False)
    config.mixture.sources = SimpleNamespace(**{name: getattr(config.mixture.sources, name)})
    return override(config, **fields)


@pytest.mark.unchecked
def test_a_mixture_of_one_is_that_data_set(assembled, experiment, data):
    """State, batches and the program of a step are equal.

    The loss is the data set's own.
    """
    mixture = only(experiment, "graded")
    single = only(
        experiment,
        "graded",
        data__train=str(data / "graded.jsonl"),
        data__score_max=5.0,
        data__anchor_prompt="red ",
        data__candidate_prompt="blue ",
        loss__name="cosent",
    )
    single.mixture.sources = SimpleNamespace()
    programs = []
    of_mixture, of_data_set = assembled(mixture), assembled(single)
    for run_arguments in (of_mixture, of_data_set):
        arguments = (
            run_arguments["state"],
            split_groups(run_arguments["batches"][0], run_arguments["mesh"]),
            jax.random.key(0),
        )
        programs.append(run_arguments["step_fn"].lower(*arguments).as_text())
    assert_same_bits(of_mixture["state"], of_data_set["state"])
    assert_same_bits(of_mixture["batches"], of_data_set["batches"])
    assert programs[0] == programs[1]


# ---- wrong use -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"questions__loss": "cosent"},
            "config.mixture.sources.questions.loss: 'cosent' needs records with a score",
        ),
        (
            {"questions__loss": "triplet"},
            "questions.loss: 'triplet' needs 3 or more texts a record, found 2",
        ),
        (
            {"questions__loss": "softmax(num_labels=1)"},
            "record 1: label 1, config.mixture.sources.questions.loss=",
        ),
        (
            {"questions__loss": "sofmax"},
            "config.mixture.sources.questions.loss: sofmax: unknown loss 'sofmax'",
        ),
        (
            {"questions__columns": "q1,q3"},
            "config.mixture.sources.questions: .*questions.jsonl:1: no field 'q3'",
        ),
        (
            {"questions__columns": ""},
            "config.mixture.sources.questions: .*questions.jsonl:1: unknown fields: found q1",
        ),
        (
            {"nli__max_length": 512},
            "config.batch.row_length: expected at least data.max_length=512, found 72",
        ),
        ({"nli__limit": 5}, "5 records do not fill a batch of 8"),
        (
            {"nli__train": "stream:x.jsonl"},
            "stream:x.jsonl: a mixture takes data sets with random access",
        ),
    ],
)
def test_a_data_set_that_does_not_suit_is_named(assembled, experiment, fields, message):
    fields = {f"mixture__sources__{name}": value for name, value in fields.items()}
    with pytest.raises(InputError, match=message):
        assembled(experiment(**fields))
