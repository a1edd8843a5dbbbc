"""Scores of the data that a loss can't fit are refused with the record and the field to set."""

import pytest

from embed_jax.config import Experiment
from embed_jax.config import Source as SourceConfig
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.errors import InputError
from embed_jax.losses.expression import build_loss
from embed_jax.train.data_checks import check_data
from embed_jax.train.sources import scaled

PAIRS = [{"sentence1": f"a {i}", "sentence2": f"b {i}", "score": i % 6} for i in range(12)]
LISTS = [{"query": f"q {i}", "passages": ["x", "y"], "scores": [1.0 + i, 0.0]} for i in range(3)]


def check(loss, records, score_max=1.0, dataset=""):
    config = Experiment()
    config.loss.name = loss
    if dataset:
        setattr(config.mixture.sources, dataset, SourceConfig("records", loss=loss))
    source = RecordSource(records, scaled(record_fields(records), score_max))
    check_data(source, build_loss(loss).about, config, dataset)


@pytest.mark.parametrize(
    "loss", ["cosine_mse", "score_mse", "angle_combined", "cosent() + 0.5 * cosine_mse()"]
)
def test_scores_beyond_the_cosine(loss):
    with pytest.raises(InputError) as refused:
        check(loss, PAIRS)
    assert str(refused.value) == (
        f"record 2: score 2, config.loss.name={loss!r} fits -1 to 1; "
        "set config.data.score_max to the largest score of the data"
    )
    check(loss, PAIRS, score_max=5.0)


def test_a_mixture_names_its_own_field():
    with pytest.raises(
        InputError, match=r"set config\.mixture\.sources\.sts\.score_max to the lar"
    ):
        check("cosine_mse", PAIRS, dataset="sts")


def test_margins_beyond_those_of_cosines():
    with pytest.raises(InputError, match="record 2: difference of scores 3, .* fits -2 to 2"):
        check("margin_mse(similarity='cosine')", LISTS)
    check("margin_mse(similarity='cosine')", LISTS, score_max=3.0)


@pytest.mark.parametrize("loss", ["cosent", "angle", "angle_combined(in_batch_weight=0)"])
def test_losses_of_the_order_fit_any_scores(loss):
    check(loss, PAIRS)


def test_products_fit_any_scores():
    check("margin_mse", LISTS)
    check("score_mse(similarity='dot')", PAIRS)
