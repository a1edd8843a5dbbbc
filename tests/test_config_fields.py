"""A config's field states its default, accepted values and help; unset is one convention."""

import dataclasses
import json
from pathlib import Path

import pytest

from embed_jax.config import NAMED, Experiment, ParamGroup, Source, flatten, to_json
from embed_jax.config_fields import UNSET, option, rules_of
from embed_jax.config_file import help_text, load_config, override, read_run_config
from embed_jax.config_rules import rules_by_field, validate
from embed_jax.errors import InputError

ROOT = Path(__file__).parent.parent
FILE = f"--config={ROOT}/configs/retrieval/own_data.py"


def with_named_parts():
    config = Experiment()
    config.mixture.sources.web = Source(train="web.jsonl")
    config.optim.groups.heads = ParamGroup(pattern="heads")
    config.stages.later = Experiment()
    return config


def test_every_field_has_a_rule_that_accepts_its_default_and_a_help_text():
    config = with_named_parts()
    rules = rules_by_field(config)
    assert set(rules) == set(flatten(config))
    for field, rule in rules.items():
        assert rule.help.endswith(".") and len(rule.help) > 10, field
        assert rule.check(flatten(config)[field], field) == flatten(config)[field]
    validate(config)


def test_unset_is_one_convention():
    for field, rule in rules_by_field(with_named_parts()).items():
        if not rule.unset:
            continue
        for text in ("", "none", "None", "unset"):
            assert rule.read(text, field) == UNSET[rule.kind]
        assert rule.check(None, field) == UNSET[rule.kind] and type(UNSET[rule.kind]) is rule.kind
        assert rule.show(UNSET[rule.kind]) == "unset" and "or unset (" in rule.describe()
    config = override(Experiment(), loss__temperature=None, model__guide=None, train__steps=None)
    assert config == Experiment()


def test_what_is_shown_is_what_is_read():
    for field, rule in rules_by_field(with_named_parts()).items():
        for value in (*rule.choices, flatten(with_named_parts())[field]):
            assert rule.read(rule.show(value), field) == value


@pytest.mark.parametrize(
    "field, text, message",
    [
        ("train.steps", "1.5", "expected a whole number, at least 0, or unset (by `epochs`), "),
        ("optim.learning_rate", "0", "expected more than 0, "),
        ("optim.learning_rate", "nan", "expected more than 0, "),
        ("optim.warmup", "1.1", "expected at least 0 and at most 1, "),
        ("eval.every", "-2", "expected at least 1, or -1 (only before the first step and at the"),
        ("loss.symmetric", "perhaps", "expected True or False, "),
        ("optim.schedule", "step", "expected one of 'linear', 'cosine', 'constant', 'wsd', "),
    ],
)
def test_what_is_not_accepted_is_told_in_one_line(field, text, message):
    with pytest.raises(InputError) as error:
        load_config(["x", FILE, f"--config.{field}={text}"])
    assert str(error.value).startswith(f"config.{field}: {message}")
    assert "\n" not in str(error.value) and text in str(error.value)


def test_a_default_outside_its_rule_is_a_mistake_of_the_programmer():
    with pytest.raises(ValueError, match="the default 0.0 is not a number, more than 0"):
        option(0.0, "A rate.", more_than=0)


def test_json_may_hold_null_and_named_parts(tmp_path):
    config = with_named_parts()
    config.stages.later.mixture.sources.more = Source(train="more.jsonl")
    file = tmp_path / "config.json"
    file.write_text(to_json(config))
    assert read_run_config(file) == config
    content = json.loads(to_json(config))
    content["loss"]["temperature"] = None
    file.write_text(json.dumps(content))
    assert read_run_config(file) == config
    for damaged in ("[]", "3", '{"optim": 3}', '{"mixture": {"sources": 3}}', '{"nothing": {}}'):
        file.write_text(damaged)
        with pytest.raises(InputError, match="config.json: no settings of a run"):
            read_run_config(file)


def test_help_names_all_fields_and_fits_80_columns():
    config = Experiment()
    text = help_text(config, "usage: python -m experiments.nli --config=FILE")
    for field, rule in rules_by_field(config).items():
        assert f"--config.{field}={rule.show(flatten(config)[field])}\n" in text
    for part, kind in NAMED.items():
        if kind is not Experiment:
            assert all(f"--config.{part}.NAME.{name}=" in text for name in rules_of(kind))
    words = [line for line in text.splitlines() if not line.startswith("  --config.")]
    assert max(map(len, words)) <= 80


def test_help_of_a_part_shows_the_file_s_values(capsys):
    with pytest.raises(SystemExit) as end:
        load_config(["nli", "--help=loss", f"--config={ROOT}/configs/nli/sup_simcse_bert_base.py"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and "--config.loss.temperature=0.05\n" in shown
    assert "--config.optim" not in shown and "unset (the loss's own)" in " ".join(shown.split())
    with pytest.raises(InputError, match="--help: unknown part 'los'.*did you mean 'loss'"):
        load_config(["nli", "--help=los"])


def test_a_field_set_on_the_wrong_part_is_refused():
    config = Experiment()
    config.optim = dataclasses.replace(config.optim)
    config.optim.lr = 1.0
    with pytest.raises(InputError, match="'optim.lr' .did you mean 'optim.learning_rate'"):
        validate(config)
    config = Experiment()
    config.optim = 3
    with pytest.raises(
        InputError, match="config.optim: expected a part of the config .* found int"
    ):
        validate(config)
