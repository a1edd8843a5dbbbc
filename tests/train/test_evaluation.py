"""The metric that picks the model is checked before anything is loaded."""

import pytest

from embed_jax.config import Experiment
from embed_jax.errors import InputError
from embed_jax.evals.search import retrieval_evaluator
from embed_jax.evals.sts import sts_evaluator
from embed_jax.train.evaluation import check_metric

EVALUATORS = {
    "sts": sts_evaluator(["a", "b"], ["c", "d"], [0.0, 1.0]),
    "retrieval": retrieval_evaluator({"d": "x"}, {"q": "y"}, {"q": {"d": 1}}),
    "own": lambda encode: {"score": 1.0},
}


def encode(texts, **options):
    return [[1.0, float(len(text))] for text in texts]


def check(metric, evaluators=EVALUATORS, validation=()):
    config = Experiment()
    config.eval.metric = metric
    check_metric(config, evaluators, validation)


@pytest.mark.parametrize("name", ["sts", "retrieval"])
@pytest.mark.unchecked
def test_an_evaluator_names_what_it_gives(name):
    assert set(EVALUATORS[name].metrics) == set(EVALUATORS[name](encode))
    for metric in EVALUATORS[name].metrics:
        check(f"{name}/{metric}")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("sts/speerman", r"unknown metric 'sts/speerman' \(did you mean 'sts/spearman'\?\)"),
        ("retrieval/ndcg@5", "known: retrieval/map@10, retrieval/mrr@10, retrieval/ndcg@10"),
        ("spearman", "nothing gives 'spearman'; evaluated are sts/..., retrieval/..., own/..."),
        ("validation/loss", "nothing gives 'validation/loss'"),
    ],
)
def test_a_metric_that_nothing_gives_is_refused(metric, message):
    with pytest.raises(InputError, match=f"^config.eval.metric: .*{message}"):
        check(metric)


def test_what_is_not_known_before_is_left_to_the_run():
    check("")
    check("own/anything")
    check("validation/loss", validation=[{}])
    with pytest.raises(InputError, match="nothing is evaluated"):
        check("sts/spearman", {})
