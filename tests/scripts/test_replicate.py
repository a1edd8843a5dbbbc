"""A run repeated with sentence-transformers.

Losses and parameters agree at each step; other runs are refused.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.cross_encoder import load_cross_encoder
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.data.sources.sts import read_sts
from embed_jax.encoders.read import read_model
from embed_jax.errors import InputError
from embed_jax.evals.sts import sts_evaluator
from embed_jax.losses.expression import build_loss
from embed_jax.parallel.world import local_world
from embed_jax.train.fit import fit
from embed_jax.train.pair_model import initial_cross_encoder, pair_loss, pair_objective
from embed_jax.train.sources import ONLY
from embed_jax.world import make_columns
from experiments import cross_encoder
from scripts.replicate import __main__ as replicate
from scripts.replicate.embedders import embedder_peer, peer_loss
from scripts.replicate.pairs import pair_peer
from scripts.replicate.training import train

torch = pytest.importorskip("torch")
pytest.importorskip("sentence_transformers")


@pytest.fixture
def source(sentences):
    """`source("labelled")`: 32 records; some texts are longer than 16 tokens."""

    def make(kind):
        pairs = [{"anchor": sentences[n], "positive": sentences[n + 40]} for n in range(32)]
        extra_columns = {
            "pairs": lambda n: {},
            "triplets": lambda n: {"negative": sentences[n + 80]},
            "labelled": lambda n: {"label": n % 3},
            "scored": lambda n: {"score": n % 5 / 4},
            "uneven": lambda n: {"negatives": sentences[n + 80 :][: n % 3]},
        }[kind]
        records = [pair | extra_columns(n) for n, pair in enumerate(pairs)]
        return {ONLY: RecordSource(records, record_fields(records))}

    return make


@pytest.fixture
def settings(tiny_model):
    """A config without dropout; with this eps, gradients that are rounding errors move nothing."""

    def make(**fields):
        usual = {
            "model__name": str(tiny_model),
            "model__dropout": 0.0,
            "data__max_length": 16,
            "batch__size": 8,
            "loss__mask_duplicates": False,
            "optim__learning_rate": 1e-3,
            "optim__warmup": 0.4,
            "optim__weight_decay": 5.0,
            "optim__eps": 1e-5,
            "train__steps": 6,
            "train__devices": 1,
            "tracking__wandb": "disabled",
        }
        return override(Experiment(), **usual | fields)

    return make


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, fields, names",
    [
        (
            "triplets",
            {
                "model__mlp": "training",
                "eval__every": 3,
                "eval__metric": "sts/spearman",
                "optim__clip_norm": 0.1,
            },
            ("loss", "learning_rate", "grad_norm", "sts/spearman", "sts/pearson"),
        ),
        pytest.param(
            "labelled",
            {
                "loss__name": "softmax",
                "model__mlp": "kept",
                "data__anchor_prompt": "all: ",
                "optim__accumulate": 2,
            },
            ("loss", "learning_rate"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_same_losses_and_parameters(kind, fields, names, source, settings, tmp_path, sts):
    config = settings(eval__sts=str(sts) if "eval__metric" in fields else "", **fields)
    evaluators = {"sts": sts_evaluator(*read_sts(sts))} if config.eval.sts else {}
    fit(config, tmp_path / "ours", sources=source(kind), evaluators=evaluators)
    train(config, tmp_path / "theirs", source(kind), embedder_peer)

    ours, reference = lines(tmp_path / "ours"), lines(tmp_path / "theirs")
    assert [line["step"] for line in ours] == [line["step"] for line in reference]
    for name in names:
        left, right = ([line[name] for line in run if name in line] for run in (ours, reference))
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-9, err_msg=name)
    left, right = (read_model(tmp_path / run / "model") for run in ("ours", "theirs"))
    assert (left.spec, left.max_length) == (right.spec, right.max_length)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0.0, atol=1e-4),
        left.params,
        right.params,
    )


@pytest.mark.slow
def test_a_cross_encoder_takes_the_same_steps(tiny_tokenizer, sentences, settings, tmp_path):
    """Losses, and at the end the scores of pairs, without dropout."""
    config = settings(
        model__name="random:tiny",
        model__tokenizer=str(tiny_tokenizer),
        loss__name="binary_cross_entropy(pos_weight=2)",
        eval__every=-1,
    )
    records = [
        {"anchor": sentences[n], "positive": sentences[n + 40], "negative": sentences[n + 80]}
        for n in range(32)
    ]
    data = RecordSource(records, record_fields(records))
    sources = {ONLY: cross_encoder.with_scores(data, pair_loss(config))}
    fit(
        config,
        tmp_path / "ours",
        sources=sources,
        evaluators={},
        model=initial_cross_encoder(config, pair_loss(config)),
        objective=pair_objective,
    )
    train(config, tmp_path / "theirs", sources, pair_peer)
    ours, reference = lines(tmp_path / "ours"), lines(tmp_path / "theirs")
    for name in ("loss", "learning_rate", "grad_norm"):
        left, right = ([line[name] for line in run if name in line] for run in (ours, reference))
        np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-9, err_msg=name)
    left, right = (
        load_cross_encoder(str(tmp_path / run / "model")).logits(sentences[:8], sentences[20:28])
        for run in ("ours", "theirs")
    )
    np.testing.assert_allclose(left, right, atol=1e-3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"loss__name": "rank_net"}, "'rank_net' is not replicated; accepted: binary_cross_ent"),
        (
            {"loss__name": "binary_cross_entropy", "batch__in_batch_negatives": 1},
            "in_batch_negatives=1: not trained with sentence-transformers",
        ),
    ],
)
def test_other_cross_encoders_are_refused(fields, message, settings):
    with pytest.raises(InputError, match=message):
        pair_peer(settings(**fields), {})


DIM = 6


class Given(torch.nn.Module):
    """A model that returns its inputs as embeddings."""

    device = "cpu"

    def forward(self, features):
        return {"sentence_embedding": features["given"]}

    def get_embedding_dimension(self):
        return DIM


@pytest.mark.parametrize(
    "expression, columns",
    [
        ("info_nce(mask_duplicates=False, temperature=0.2)", 3),
        ("info_nce(symmetric=True)", 3),
        ("info_nce(similarity='dot', temperature=1)", 2),
        ("softmax(concatenation='|u-v|, u*v', num_labels=4)", 2),
        ("cosine_mse", 2),
        ("cosent(scale=5)", 2),
        ("angle", 2),
    ],
)
def test_each_loss_is_ours(expression, columns):
    rng = np.random.default_rng(0)
    embeddings, label = (
        rng.normal(size=(columns, 8, DIM)).astype(np.float32),
        rng.integers(0, 4, size=8),
    )
    loss = build_loss(expression)
    params = loss.init(DIM, jax.random.key(0))
    labels = torch.tensor(label if "label" in loss.about.needs else label / 4)
    reference = peer_loss(loss, params, Given())(
        [{"given": torch.tensor(embedding)} for embedding in embeddings], labels
    )

    ours = make_columns(
        jnp.asarray(embeddings), label=jnp.asarray(label), score=jnp.asarray(label)[:, None] / 4
    )
    values, _, _ = loss.on_world(ours, local_world(ours, "dense"), params)
    assert float(jnp.mean(values)) == pytest.approx(reference.item(), rel=1e-5)


@pytest.mark.parametrize(
    "kind, loss, message",
    [
        (
            "triplets",
            "triplet",
            "'triplet' is not replicated; accepted: info_nce, softmax, cosine_mse, cosent, angle",
        ),
        ("pairs", "info_nce + uniformity", "'info_nce + uniformity' is not replicated"),
        (
            "triplets",
            "info_nce(hard_negative_weight=2)",
            "hard_negative_weight=2.0: sentence-transformers' info_nce",
        ),
        (
            "labelled",
            "softmax(concatenation='u')",
            "concatenation='u': sentence-transformers has u,v",
        ),
        ("pairs", "cosent", "'cosent' needs records with a score"),
        (
            "uneven",
            "info_nce",
            "record 1: sentence-transformers needs the same number of texts in each record, here 2",
        ),
    ],
)
def test_what_the_peer_has_not_is_refused_before_anything_is_written(
    kind, loss, message, source, settings, tmp_path
):
    with pytest.raises(InputError, match="^[^\n]*$") as error:
        train(settings(loss__name=loss), tmp_path / "run", source(kind), embedder_peer)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture
def command(tmp_path, tiny_model, sentences, run):
    """`command(*arguments) -> (status, stdout, stderr)` on 16 pairs, and the config file's path."""
    data, file = tmp_path / "pairs.jsonl", tmp_path / "config.py"
    rows = [{"anchor": sentences[n], "positive": sentences[n + 40]} for n in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = (
        "from embed_jax.config import Experiment\n\n\n"
        "def get_config(cut=''):\n    config = Experiment()\n"
    )
    fields = {
        "model.name": str(tiny_model),
        "data.train": str(data),
        "data.max_length": 16,
        "batch.size": 8,
    }
    fields |= {"train.epochs": 1.0, "optim.learning_rate": 1e-3}
    file.write_text(
        code
        + "".join(f"    config.{k} = {v!r}\n" for k, v in fields.items())
        + "    return config\n"
    )
    return lambda *arguments: run(replicate, "--experiment=nli", f"--config={file}", *arguments)


def test_a_table_of_two_seeds(command, tmp_path):
    status, _, err = command("--seeds=0,1", f"--workdir={tmp_path / 'theirs'}")
    assert status == 0, err
    for seed, loss in enumerate(
        (1.0, 3.0)
    ):  # work directories as our training leaves them, as far as they are read
        ours = tmp_path / "ours" / f"seed{seed}"
        (ours / "model").mkdir(parents=True)
        shutil.copy(tmp_path / "theirs" / ours.name / "config.json", ours)
        rows = [
            {"step": n, "loss": value}
            for n, value in enumerate([9.0] * 18 + [loss, loss + 1], start=1)
        ]
        (ours / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = ("--seeds=0,1", f"--workdir={tmp_path / 'again'}", f"--against={tmp_path / 'ours'}")
    status, out, err = command(*again)
    assert status == 0, err
    table = [line.split() for line in out.splitlines() if line.startswith("loss")]
    reference = [lines(tmp_path / "again" / f"seed{seed}")[-1]["loss"] for seed in (0, 1)]
    expected = [(1.5, reference[0]), (3.5, reference[1]), (2.5, np.mean(reference))]
    assert [row[1] for row in table] == ["0", "1", "mean"]
    for row, (ours, peers) in zip(table, expected, strict=True):
        assert row[2:4] == [f"{ours:.4f}", f"{peers:.4f}"]
    status, _, err = command(*again)
    assert status == 2 and "expected a new directory" in err
    other = (
        "--config.optim.learning_rate=0.5",
        "--seeds=0",
        f"--workdir={tmp_path / 'b'}",
        again[-1],
    )
    status, _, err = command(*other)
    assert status == 2 and "config.optim.learning_rate was 0.001 there and is 0.5 here" in err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--seeds=0,x"], "--seeds: expected whole numbers"),
        (["--experiment=none"], "--experiment: invalid choice: 'none'"),
        (["--against=nowhere"], "found nowhere without model or metrics"),
        (["--config.batch.sizes=3"], "unknown config field"),
        (
            ["--config.eval.patience=3"],
            "config.eval.patience=3: not trained with sentence-transformers",
        ),
        (
            ["--config.eval.metric=retrieval/ndcg@10"],
            "config.eval.metric: 'retrieval/ndcg@10' is not measured",
        ),
    ],
)
def test_wrong_options_are_told_in_one_line(command, tmp_path, options, message):
    status, _, err = command(f"--workdir={tmp_path / 'run'}", *options)
    assert status == 2 and err.count("\n") == 1 and message in err, err
    assert not (tmp_path / "run").exists()
