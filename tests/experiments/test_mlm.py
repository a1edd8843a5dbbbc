"""Training on text only, from a file to a model directory.

It learns, resumes exactly, and refuses what cannot work.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.pack import pack_sentences
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.mlm import head_logits
from embed_jax.encoders.weights import open_tensors
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.runtime import prepare_jax
from embed_jax.sentence import load_sentence_encoder
from embed_jax.train.fit import fit

pytest.importorskip("grain")
ROOT = Path(__file__).parents[2]
STEPS = 120


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Returns documents of 5 to 60 copies of one word: only the other tokens tell a hidden one."""
    rng = np.random.default_rng(0)
    words = "the river is down there for city and over my road by water house".split()
    numbers, lengths = rng.integers(0, len(words), 80), rng.integers(5, 60, 80)
    lines = [
        " ".join([words[number]] * length) for number, length in zip(numbers, lengths, strict=True)
    ]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def mlm():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from experiments import mlm

        yield mlm


@pytest.fixture(scope="module")
def settings(corpus, tiny_tokenizer):
    """`settings(**fields)`: a small encoder on the corpus."""

    def make(**fields):
        return override(
            Experiment(),
            **{
                "model__name": "random:tiny",
                "model__tokenizer": str(tiny_tokenizer),
                "data__train": str(corpus),
                "data__holdout": 0.15,
                "data__max_length": 16,
                "batch__size": 16,
                "batch__rows": 8,
                "loss__name": "mlm(rate=0.3)",
                "optim__learning_rate": 1e-2,
                "train__steps": STEPS,
                "train__devices": 1,
                "eval__every": STEPS // 2,
                "checkpoint__every": STEPS // 2,
                "checkpoint__keep": 9,
                "tracking__wandb": "disabled",
            }
            | fields,
        )

    return make


@pytest.fixture(scope="module")
def finished(mlm, settings, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    prepare_jax(deterministic=settings().train.deterministic)
    return mlm.run(settings(), workdir), workdir


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def losses_of(lines):
    return [line["loss"] for line in lines if "loss" in line]


def test_it_learns_and_leaves_a_model(finished):
    lines = lines_of(finished[1])
    losses = losses_of(lines)
    assert len(losses) == STEPS and losses[0] == pytest.approx(np.log(150), rel=0.3)
    assert np.mean(losses[-5:]) < 1.5 < np.log(14), "the rest of a document was looked at"
    held_out = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert len(held_out) == 3 and held_out[-1] < 1.5
    last = lines[-1]
    assert (
        last["perplexity"] == pytest.approx(np.exp(last["loss"]), rel=1e-5)
        and last["accuracy"] > 0.5
    )
    assert max(line.get("compilations", 1) for line in lines) == 1
    model = load_sentence_encoder(str(finished[1] / "model"))
    assert model.spec.pooling == "mean" and model.encode(["the river is down"]).shape == (1, 32)


def test_resumed_at_a_checkpoint_it_ends_with_the_same_bits(mlm, settings, finished, tmp_path):
    result, workdir = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(STEPS))
    resumed = mlm.run(settings(), tmp_path / "run")
    assert set(resumed.state.params) == {"encoder", "loss"} and {"dense", "bias"} <= set(
        resumed.state.params["loss"]
    )
    assert jax.tree.structure(resumed.state) == jax.tree.structure(result.state)
    for ours, reference in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(result.state), strict=True
    ):
        assert np.asarray(ours).tobytes() == np.asarray(reference).tobytes()
    assert losses_of(lines_of(tmp_path / "run")) == losses_of(lines_of(workdir))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "attention"), [("next_token", "causal"), ("mntp(rate=0.3)", "bidirectional")]
)
def test_a_decoder_learns_what_comes_next(mlm, settings, tmp_path, objective, attention):
    fields = {
        "model__name": "random:decoder-tiny",
        "model__pooling": "last_token",
        "model__attention": attention,
    }
    mlm.run(settings(**fields, loss__name=objective, checkpoint__every=0), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    losses = losses_of(lines)
    assert np.mean(losses[-5:]) < 1.0 and lines[-1]["accuracy"] > 0.7
    assert load_sentence_encoder(str(tmp_path / "run" / "model")).spec.pooling == "last_token"


# ---- what predicts tokens goes with the model ----------------------------------------------------


def test_transformers_reads_the_model_with_its_head(finished, corpus):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    result, workdir = finished
    reference = transformers.BertForMaskedLM.from_pretrained(str(workdir / "model")).eval()
    model = load_sentence_encoder(str(workdir / "model"))
    (ids,) = model.tokenizer.encode([corpus.read_text().splitlines()[0]]).ids
    ids = ids[:16]
    with torch.no_grad():
        expected = reference(torch.tensor(ids)[None].long()).logits[0].numpy()
    tokens = pack_sentences([ids], row_length=len(ids))
    params = jax.device_get(model.params)
    states = build_encoder(model.spec).hidden(params, tokens, None)[0]
    table = params["backbone"]["embeddings"]["token"]
    logits = head_logits(
        model.spec.backbone, jax.device_get(result.state.params["loss"]), states, table
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_second_run_goes_on_where_the_first_ended(mlm, settings, finished, tmp_path, capsys):
    """Its first loss is the last loss of the first run.

    With a new head it would be that of an untrained model.
    """
    fields = {
        "model__name": str(finished[1] / "model"),
        "model__tokenizer": "",
        "train__steps": 1,
        "eval__every": 0,
    }
    mlm.run(settings(**fields), tmp_path / "run")
    assert "starts at random" not in capsys.readouterr().out
    before, after = (lines_of(workdir) for workdir in (finished[1], tmp_path / "run"))
    assert after[0]["validation/loss"] == pytest.approx(before[-1]["validation/loss"], rel=1e-5)


@pytest.mark.unchecked
def test_a_model_without_a_head_gets_a_new_one_and_it_is_said(
    prepared, settings, tiny_model, capsys
):
    run_arguments = prepared(settings(model__name=str(tiny_model), model__tokenizer=""))
    assert (
        f"{tiny_model} has nothing that predicts tokens: what does starts at random"
        in capsys.readouterr().out
    )
    assert set(run_arguments["state"].params["loss"]) == {"dense", "norm", "bias"}


@pytest.mark.slow
def test_beside_an_adapter_what_was_read_is_not_trained_and_is_written_again(
    mlm, settings, tmp_path
):
    """A decoder's own output layer is written and read; an adapter leaves it unchanged.

    Without an adapter it is trained.
    """
    fields = {
        "loss__name": "next_token",
        "train__steps": 3,
        "checkpoint__every": 0,
        "eval__every": 0,
    }
    mlm.run(settings(**fields, model__name="random:decoder-tiny"), tmp_path / "first")
    start = {"model__name": str(tmp_path / "first" / "model"), "model__tokenizer": ""}
    adapter = {"lora__rank": 2, "lora__merge": True}
    frozen_run = mlm.run(settings(**fields, **start, **adapter), tmp_path / "kept").state
    assert frozen_run.params["loss"] == {} and set(frozen_run.frozen["head"]) == {"lm_head"}
    mlm.run(settings(**fields, **start), tmp_path / "trained")
    first, same, other = (
        open_tensors(tmp_path / name / "model")["lm_head.weight"]
        for name in ("first", "kept", "trained")
    )
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - other).max() > 1e-3
    weight = "layers.1.mlp.down_proj.weight"
    before, after = (open_tensors(tmp_path / name / "model")[weight] for name in ("first", "kept"))
    assert np.abs(before - after).max() > 1e-5, "while the adapter was"


# ---- the data ------------------------------------------------------------------------------------


@pytest.fixture
def prepared(mlm, monkeypatch, tmp_path):
    """`prepared(config)` returns the arguments of the loop; nothing is run."""
    from embed_jax.train import loop

    def make(config):
        run_arguments = {}
        monkeypatch.setattr(
            loop, "run", lambda config, workdir, **arguments: run_arguments.update(arguments)
        )
        mlm.run(config, tmp_path / "run")
        return run_arguments

    return make


def tokens_of(batches):
    """Returns the sentences' token ids, without special ones, in sorted order."""
    result = []
    for _, batch in batches:
        tokens = batch.tokens["encoder"]
        for ids, sentence in zip(tokens.token_ids, tokens.sentence, strict=True):
            result += [
                tuple(ids[sentence == number][1:-1].tolist()) for number in range(tokens.sentences)
            ]
    return sorted(result)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.unchecked
def test_an_epoch_reads_every_token_of_long_documents_once(
    prepared, settings, corpus, stream, tiny_tokenizer
):
    """With batches of 2 an epoch leaves out one piece at most.

    The shuffling window is as large as the corpus.
    """
    from embed_jax.data.tokenizer_files import load_tokenizer

    documents = corpus.read_text().splitlines()
    tokenizer = load_tokenizer(tiny_tokenizer, 1000)
    words = sum(len(ids) - 2 for ids in tokenizer.encode(documents).ids)
    pieces = sum(-(-(len(ids) - 2) // 14) for ids in tokenizer.encode(documents).ids)
    source = f"stream:{corpus}" if stream else str(corpus)
    steps = pieces // 2
    fields = {
        "data__train": source,
        "data__holdout": 0.0,
        "data__window": 10_000,
        "batch__size": 2,
        "batch__rows": 2,
    }
    run_arguments = prepared(settings(**fields, train__steps=steps, eval__every=0))
    read = tokens_of(run_arguments["batches"](0, run_arguments["state"]))
    assert len(read) == 2 * steps and max(map(len, read)) == 14
    left = words - sum(map(len, read))
    assert left == 0 if pieces % 2 == 0 else 0 < left <= 14
    assert run_arguments["evaluate"] is None


def test_held_out_documents_are_not_trained_on(mlm, settings):
    records = [{"text": f"document {number % 90}"} for number in range(100)]
    trained, held_out = mlm.split_documents(records, 0.3)
    assert len(trained) + len(held_out) == 100 and 15 < len(held_out) < 45
    assert not {record["text"] for record in trained} & {record["text"] for record in held_out}
    assert mlm.split_documents(records[::-1], 0.3)[1] == held_out[::-1]


@pytest.fixture
def refused(mlm, settings, capsys, tmp_path):
    """`refused(**fields)`: the one line that a run with these fields ends with, status 2."""

    def run(**fields):
        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(lambda: mlm.run(settings(**fields), tmp_path / "run"))
        err = capsys.readouterr().err
        assert exit.value.code == 2 and err.count("\n") == 1, err
        assert not (tmp_path / "run").exists()
        return err

    return run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"loss__name": "info_nce"},
            "expected an objective on tokens (mlm, mntp, next_token), found 'info_nce'",
        ),
        (
            {"loss__name": "mlm(rat=0.1)"},
            "config.loss.name: 'mlm(rat=0.1)': unknown argument of mlm 'rat'",
        ),
        (
            {"loss__name": "next_token"},
            "config.loss.name: 'next_token': next_token: expected a causal encoder",
        ),
        ({"loss__mlm": 0.1}, "config.loss.mlm: 'mlm(rate=0.3)' trains on tokens only"),
        (
            {"data__anchor_prompt": "query: "},
            "config.data.anchor_prompt: 'mlm(rate=0.3)' trains on tokens only",
        ),
        ({"model__mlp": "kept"}, "config.model.mlp: 'mlm(rate=0.3)' trains on tokens only"),
        ({"queue__size": 16}, "config.queue.size: the loss 'mlm(rate=0.3)' has no use for a queue"),
        (
            {"data__holdout": 0.0001},
            "config.data.holdout: 0.0001 of 80 documents leaves none for validation",
        ),
        ({"data__max_length": 2}, "max_length 2 leaves no room for text"),
    ],
)
def test_what_cannot_be_is_one_line(refused, fields, message):
    assert message in refused(**fields)


def test_pairs_are_no_documents(refused, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"anchor": "a", "positive": "b"}\n')
    assert "expected records with a text, found the fields anchor, positive" in refused(
        data__train=str(path)
    )


def test_pairs_are_not_trained_on_by_other_ways(settings, tmp_path):
    """`fit` called from Python refuses records of two texts, too."""
    from embed_jax.data.record_source import RecordSource
    from embed_jax.data.sources import record_fields

    records = [{"anchor": "a", "positive": "b"}] * 40
    with pytest.raises(InputError, match="'mlm\\(rate=0.3\\)' needs 1 texts a record, found 2"):
        fit(
            settings(),
            tmp_path / "run",
            sources={"train": RecordSource(records, record_fields(records))},
            evaluators={},
        )
