"""SimCSE with all additions of its config.

A stream, augmentation, masked language modelling, a queue, a shared mask.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.stream import open_stream, stream_batches
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.runtime import prepare_jax

pytest.importorskip("grain")
ROOT = Path(__file__).parents[2]
STEPS = 7


@pytest.fixture(scope="module")
def sentence_file(tmp_path_factory, sentences):
    path = tmp_path_factory.mktemp("sentences") / "sentences.txt"
    path.write_text("\n".join(sentences[:30]) + "\n")
    return path


@pytest.fixture(scope="module")
def simcse():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from experiments import simcse

        yield simcse


@pytest.fixture(scope="module")
def everything(sentence_file, tiny_tokenizer):
    """`everything(**fields)`: a config with all of these."""

    def make(**fields):
        return override(
            Experiment(),
            **{
                "model__name": "random:tiny",
                "model__tokenizer": str(tiny_tokenizer),
                "model__same_mask_columns": 2,
                "data__train": f"stream:{sentence_file}",
                "data__window": 12,
                "data__max_length": 24,
                "data__augment": "delete_words(rate=0.3)",
                "batch__size": 8,
                "batch__rows": 6,
                "loss__mlm": 0.1,
                "loss__mask_duplicates": False,
                "queue__size": 24,
                "queue__momentum": 0.9,
                "optim__learning_rate": 1e-3,
                "train__steps": STEPS,
                "train__devices": 1,
                "train__log_every": 1,
                "checkpoint__every": 2,
                "checkpoint__keep": 9,
                "tracking__wandb": "disabled",
            }
            | fields,
        )

    return make


@pytest.fixture(scope="module")
def finished(simcse, everything, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    prepare_jax(deterministic=everything().train.deterministic)
    return simcse.run(everything(), workdir), workdir


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_each_part_reports_what_it_does(finished):
    lines = lines_of(finished[1])
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all(
        np.isfinite(line[name]) for line in lines for name in ("loss", "mlm/loss", "mlm/accuracy")
    )
    assert lines[0]["mlm/loss"] == pytest.approx(np.log(150), rel=0.3), (
        "at the start each word is as likely as others"
    )
    ages = [line["queue/age"] for line in lines[3:]]
    assert ages == pytest.approx([ages[0]] * len(ages)) and ages[0] > 0, (
        "a full queue is always as old"
    )
    assert max(line["compilations"] for line in lines) == 1


@pytest.mark.parametrize("step", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 6))])
def test_resumed_at_a_checkpoint_it_ends_with_the_same_bits(
    simcse, everything, finished, tmp_path, step
):
    """Compares parameters, moments, queue, averaged encoder and language model head.

    The stream's position is compared too.
    """
    result, workdir = finished
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    for later in (tmp_path / "run" / "checkpoints").iterdir():
        if int(later.name) > step:
            shutil.rmtree(later)
    resumed = simcse.run(everything(), tmp_path / "run")
    assert set(resumed.state.params) == {"encoder", "loss", "auxiliary"} and resumed.state.extra
    assert jax.tree.structure(resumed.state) == jax.tree.structure(result.state)
    for ours, reference in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(result.state), strict=True
    ):
        assert np.asarray(ours).tobytes() == np.asarray(reference).tobytes()
    for ours, reference in zip(lines_of(tmp_path / "run"), lines_of(workdir), strict=True):
        assert all(
            ours[name] == reference[name] for name in ("step", "loss", "mlm/loss", "queue/age")
        )


@pytest.fixture
def batches_of(simcse, monkeypatch, tmp_path):
    """`batches_of(config, start)`: the batches of a run from a step on.

    Nothing is run.
    """
    from embed_jax.train import loop

    def make(config, start=0):
        run_arguments = {}
        monkeypatch.setattr(
            loop, "run", lambda config, workdir, **arguments: run_arguments.update(arguments)
        )
        simcse.run(config, tmp_path / "run")
        return list(run_arguments["batches"](start, run_arguments["state"]))

    return make


@pytest.mark.unchecked
def test_the_batches_are_those_of_the_stream_from_any_step_on(
    batches_of, everything, sentence_file
):
    lines = sentence_file.read_text().splitlines()
    stream = open_stream(lambda: iter(lines), "lines")
    expected = stream_batches(stream, 8, window=12, seed=0)
    whole = batches_of(everything())
    assert [step for step, _ in whole] == list(range(STEPS))
    for (_, batch), numbers in zip(whole, expected, strict=False):
        assert sorted(batch.record.reshape(-1)) == sorted(number for number, _ in numbers)
    for start in (1, 3, 6):
        for (step, ours), (other, reference) in zip(
            batches_of(everything(), start), whole[start:], strict=True
        ):
            assert step == other
            for leaf, same in zip(jax.tree.leaves(ours), jax.tree.leaves(reference), strict=True):
                assert leaf.tobytes() == same.tobytes()


@pytest.mark.unchecked
def test_only_the_positive_is_augmented_anew_each_time(batches_of, everything, sentence_file):
    """Every epoch sees the file's three sentences.

    Texts are compared before augmentation, tokens after it.
    """
    fields = {"data__train": str(sentence_file), "data__limit": 8, "batch__groups": 1}
    seen = {number: ([], []) for number in range(8)}
    plain = {}
    for augment in ("", "delete_words(rate=0.3)"):
        for _, batch in batches_of(everything(**fields, data__augment=augment)):
            tokens = batch.tokens["encoder"]
            for place, number in enumerate(batch.record[0]):
                anchor, positive = (
                    tokens.token_ids[0][tokens.sentence[0] == 8 * column + place].tolist()
                    for column in (0, 1)
                )
                if not augment:
                    assert anchor == positive == plain.setdefault(int(number), anchor)
                else:
                    assert anchor == plain[number] and set(positive) <= set(anchor)
                    seen[number][0].append(anchor)
                    seen[number][1].append(positive)
            assert (batch.text_hash[:, 0] == batch.text_hash[:, 1]).all()
    assert sum(len(set(map(tuple, positives))) > 1 for _, positives in seen.values()) >= 6


@pytest.fixture
def refused(simcse, everything, monkeypatch, capsys, tmp_path):
    """`refused(**fields)`: the one line that a run with these fields ends with, status 2."""

    def run(**fields):
        def main():
            simcse.run(everything(**fields), tmp_path / "run")

        with pytest.raises(SystemExit) as exit:
            exit_with_one_line(main)
        err = capsys.readouterr().err
        assert exit.value.code == 2 and err.count("\n") == 1, err
        assert not (tmp_path / "run").exists()
        return err

    return run


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"train__steps": 0},
            "config.train.steps: a stream has no known end, set the number of steps; found 0",
        ),
        ({"batch__no_duplicates": True}, "config.batch.no_duplicates: not for a stream"),
        ({"data__limit": 5}, "config.data.limit: not for a stream"),
        ({"data__exclude": "x.tsv"}, "config.data.exclude: not for a stream"),
        ({"data__train": "stream:gone.txt"}, "gone.txt: no such file"),
        ({"data__augment": "delete_wrods(rate=0.1)"}, "did you mean 'delete_words'"),
        (
            {"model__same_mask_columns": 3},
            "config.model.same_mask_columns: expected 0 or 2, the texts of an example",
        ),
        (
            {"loss__name": "alignment"},
            "config.queue.size: the loss 'alignment' has no use for a queue",
        ),
        ({"queue__momentum": 1.0}, "queue momentum: expected 0 or more and less than 1, found 1.0"),
    ],
)
def test_what_cannot_be_is_one_line(refused, fields, message):
    assert message in refused(**fields)


@pytest.mark.unchecked
def test_a_bad_line_of_a_stream_is_told_when_it_is_reached(
    batches_of, everything, tmp_path, sentence_file
):
    path = tmp_path / "late.jsonl"
    good = [json.dumps({"text": text}) for text in sentence_file.read_text().splitlines()]
    path.write_text("\n".join([*good * 80, '{"txet": "x"}']) + "\n")
    config = everything(data__train=f"stream:{path}", data__window=16, train__steps=400)
    with pytest.raises(InputError, match="late.jsonl:2401: no field 'text': found txet"):
        batches_of(config, 295)


@pytest.mark.unchecked
def test_excluded_sentences_are_left_out(batches_of, everything, sentence_file, tmp_path, capsys):
    lines = sentence_file.read_text().splitlines()
    (tmp_path / "test.txt").write_text("\n".join(lines[:20]) + "\n")
    fields = {
        "data__train": str(sentence_file),
        "data__exclude": str(tmp_path / "test.txt"),
        "train__steps": 3,
    }
    batches_of(everything(**fields))
    assert "train: 20 of 30 records left out" in capsys.readouterr().out
