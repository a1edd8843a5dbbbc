"""Losses of lists of scores against sentence-transformers' cross-encoder losses and rax."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax import losses
from embed_jax.errors import InputError
from embed_jax.losses.candidates import ranks
from embed_jax.losses.classification import softmax_loss
from embed_jax.losses.ranking import WEIGHTINGS
from embed_jax.scores import pair_score

LISTS, SIZE = 5, 7
FUNCTIONS = {
    "binary_cross_entropy": functools.partial(losses.binary_cross_entropy_loss, pos_weight=3.0),
    "score_mse": losses.score_mse_loss,
    "margin_mse": losses.margin_mse_loss,
    "kl": functools.partial(losses.kl_loss, temperature=0.5, teacher_temperature=2.0),
    "kl, min_max": functools.partial(losses.kl_loss, normalization="min_max"),
    "list_softmax": losses.list_softmax_loss,
    "list_net": losses.list_net_loss,
    "list_mle": losses.list_mle_loss,
    "list_mle, as given": functools.partial(losses.list_mle_loss, respect_input_order=True),
    "list_mle, by position": functools.partial(losses.list_mle_loss, by_position=True),
    "rank_net": losses.rank_net_loss,
    "adr_mse": losses.adr_mse_loss,
    **{
        f"lambda_rank, {weighting}": functools.partial(losses.lambda_rank_loss, weighting=weighting)
        for weighting in WEIGHTINGS
    },
    "lambda_rank, k": functools.partial(losses.lambda_rank_loss, k=2),
}
every = pytest.mark.parametrize("name", FUNCTIONS)


def some_lists(seed=0, grades=4):
    """Returns random scores, grades with ties, and a mask of lists of unequal lengths.

    The lists have gaps. The first one has a single candidate, the last one is full.
    """
    rng = np.random.default_rng(seed)
    scores = rng.normal(scale=2.0, size=(LISTS, SIZE)).astype(np.float32)
    labels = rng.integers(grades, size=(LISTS, SIZE)).astype(np.float32)
    present = rng.random((LISTS, SIZE)) < 0.6
    present[0] = np.arange(SIZE) == 3
    present[-1] = True
    labels[-1, 0] = grades - 1
    return scores, labels, present


class Together:
    """Many functions in one program for each shape, which is computed once for equal arrays.

    It gives the mean over lists with its gradient by scores, and the ListValues.
    """

    def __init__(self, functions):
        def each(*arrays):
            def mean(scores, function):
                lists = function(scores, *arrays[1:])
                return lists.mean(), lists

            gradient = jax.value_and_grad(mean, has_aux=True)
            return {name: gradient(arrays[0], function) for name, function in functions.items()}

        self.compiled = jax.jit(each, compiler_options={"xla_backend_optimization_level": 0})
        self.results = {}

    def __call__(self, name, scores, labels, present):
        """Returns `((mean, lists), gradient)`, computed under strict promotion rules."""
        arrays = tuple(map(jnp.asarray, (scores, labels, present)))
        key = tuple(
            (array.shape, str(array.dtype), np.asarray(array).tobytes()) for array in arrays
        )
        if key not in self.results:
            with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
                self.results[key] = self.compiled(*arrays)
        return self.results[key][name]


TOGETHER = Together(FUNCTIONS)


def value_and_gradient(name, scores, labels, present, functions=TOGETHER):
    """The mean over lists and its gradient by scores."""
    (value, _), gradient = functions(name, scores, labels, present)
    return value, gradient


def of_each_list(name, scores, labels, present):
    """The values and weights of each list."""
    (_, lists), _ = TOGETHER(name, scores, labels, present)
    return lists


def assert_same(ours, expected):
    for own, reference in zip(ours, expected, strict=True):
        limit = 1e-5 * np.max(np.abs(np.asarray(reference)))
        np.testing.assert_allclose(own, reference, rtol=0.0, atol=limit)


# ---- sentence-transformers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def cross_encoder_of():
    """Makes a CrossEncoder of sentence-transformers whose "document" i has the logits i."""
    torch = pytest.importorskip("torch")
    base = pytest.importorskip("sentence_transformers").CrossEncoder

    class Given(base):
        device, num_labels = torch.device("cpu"), 1

        def __init__(self, logits):
            torch.nn.Module.__init__(self)
            self.logits = logits

        def preprocess(self, pairs, prompt=None, task=None):
            return {"documents": torch.tensor([document for _, document in pairs])}

        def forward(self, features):
            return {"scores": self.logits[features["documents"]]}

    return Given


@pytest.fixture
def equals_peer(cross_encoder_of):
    """`check(functions, name, make, arguments, scores, labels, present)`: equal values, gradients.

    `functions` is a `Together`; `make(model)` is sentence-transformers' loss and
    `arguments(documents)` what it is called with, given the positions of each list's candidates
    in the flat logits.
    """
    torch = pytest.importorskip("torch")

    def check(functions, name, make, arguments, scores, labels, present):
        flat = torch.tensor(scores.reshape(-1), requires_grad=True)
        positions = np.arange(scores.size).reshape(scores.shape)
        documents = [
            list(map(int, row[there])) for row, there in zip(positions, present, strict=True)
        ]
        expected = make(cross_encoder_of(flat))(*arguments(documents))
        expected.backward()
        ours = value_and_gradient(name, scores, labels, present, functions)
        assert_same(ours, (expected.item(), flat.grad.numpy().reshape(scores.shape)))

    return check


@pytest.fixture(scope="module")
def peers():
    return pytest.importorskip("sentence_transformers.cross_encoder.losses")


def schemes(peers):
    return {
        "none": peers.NoWeightingScheme(),
        "ndcg1": peers.NDCGLoss1Scheme(),
        "ndcg2": peers.NDCGLoss2Scheme(),
        "lambda_rank": peers.LambdaRankScheme(),
        "ndcg2++": peers.NDCGLoss2PPScheme(mu=10.0),
    }


# Ours with its arguments, and sentence-transformers'.
OF_LISTS = {
    "ListNetLoss": (losses.list_net_loss, {}, {}),
    "ListMLELoss": (losses.list_mle_loss, {}, {"respect_input_order": False}),
    "ListMLELoss, as given": (losses.list_mle_loss, {"respect_input_order": True}, {}),
    "PListMLELoss": (
        losses.list_mle_loss,
        {"by_position": True},
        {"respect_input_order": False},
    ),
    "PListMLELoss, as given": (
        losses.list_mle_loss,
        {"by_position": True, "respect_input_order": True},
        {},
    ),
    "RankNetLoss": (losses.rank_net_loss, {}, {}),
    "RankNetLoss, natural": (
        losses.rank_net_loss,
        {"logarithm": "natural", "sigma": 0.5, "k": 3},
        {"reduction_log": "natural", "sigma": 0.5, "k": 3},
    ),
    "ADRMSELoss": (losses.adr_mse_loss, {}, {}),
    "ADRMSELoss, sharp": (losses.adr_mse_loss, {"alpha": 3.0}, {"alpha": 3.0}),
    "LambdaLoss": (losses.lambda_rank_loss, {}, {}),
}
LIKE_PEERS = Together(
    {name: functools.partial(ours, **arguments) for name, (ours, arguments, _) in OF_LISTS.items()}
)
LAMBDA = Together(
    {
        (weighting, k): functools.partial(
            losses.lambda_rank_loss, weighting=weighting, k=k, sigma=0.7
        )
        for weighting in WEIGHTINGS
        for k in (0, 1, 3)
    }
)


def of_ragged_lists(labels, present):
    """Arguments of a list loss of sentence-transformers."""
    torch = pytest.importorskip("torch")

    targets = [torch.tensor(row[there]) for row, there in zip(labels, present, strict=True)]
    return lambda documents: ([[str(i) for i in range(len(documents))], documents], targets)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", OF_LISTS)
def test_list_losses_equal_sentence_transformers(name, seed, equals_peer, peers):
    peer_arguments = OF_LISTS[name][2]
    scores, labels, present = some_lists(seed)
    if "MLE" in name:  # torch does not say in which order it sorts ties
        labels = np.random.default_rng(seed).permuted(np.tile(np.arange(SIZE), (LISTS, 1)), axis=1)
    equals_peer(
        LIKE_PEERS,
        name,
        lambda model: getattr(peers, name.split(",")[0])(model, **peer_arguments),
        of_ragged_lists(labels, present),
        *(scores, labels, present),
    )


@pytest.mark.parametrize("k", [0, 1, 3])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_weightings_of_lambda_loss_equal_sentence_transformers(weighting, k, equals_peer, peers):
    scores, labels, present = some_lists(k)
    equals_peer(
        LAMBDA,
        (weighting, k),
        lambda model: peers.LambdaLoss(model, schemes(peers)[weighting], k=k or None, sigma=0.7),
        of_ragged_lists(labels, present),
        *(scores, labels, present),
    )


@pytest.mark.parametrize("name, pos_weight", [("MSE", 0), ("BinaryCrossEntropy", 5.0)])
def test_losses_of_pairs_equal_sentence_transformers(name, pos_weight, equals_peer, peers):
    torch = pytest.importorskip("torch")

    scores, labels, present = some_lists()
    labels = labels / 3.0
    weight = {"pos_weight": torch.tensor(pos_weight)} if pos_weight else {}
    ours = losses.score_mse_loss
    if pos_weight:
        ours = functools.partial(losses.binary_cross_entropy_loss, pos_weight=pos_weight)

    def arguments(documents):
        pairs = [(i, document) for i, each in enumerate(documents) for document in each]
        return list(zip(*pairs, strict=True)), torch.tensor(labels[present])

    make = getattr(peers, f"{name}Loss")
    functions = Together({name: ours})
    equals_peer(
        functions, name, lambda model: make(model, **weight), arguments, scores, labels, present
    )


def test_margin_mse_equals_sentence_transformers(equals_peer, peers):
    torch = pytest.importorskip("torch")

    scores, labels, _ = some_lists()
    equals_peer(
        TOGETHER,
        "margin_mse",
        peers.MarginMSELoss,
        lambda documents: (
            [list(range(LISTS)), *map(list, zip(*documents, strict=True))],
            torch.tensor(labels),
        ),
        *(scores, labels, np.ones_like(labels, bool)),
    )


def test_cross_entropy_equals_sentence_transformers(cross_encoder_of, peers):
    torch = pytest.importorskip("torch")
    scores, labels, _ = some_lists()
    classes = labels[:, 0].astype(int)
    logits = torch.tensor(scores, requires_grad=True)
    pairs = [list(range(LISTS)), list(range(LISTS))]
    expected = peers.CrossEntropyLoss(cross_encoder_of(logits))(pairs, torch.tensor(classes))
    expected.backward()
    ours = jax.jit(
        jax.value_and_grad(lambda scores: jnp.mean(softmax_loss(scores, jnp.asarray(classes))))
    )
    assert_same(ours(jnp.asarray(scores)), (expected.item(), logits.grad.numpy()))


# ---- rax -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rax():
    return pytest.importorskip("rax")


def of_rax(rax):
    """Functions of rax by the names above: `(scores, labels, where=) -> scalar`, and a factor."""

    def pairs(weights=None):
        return functools.partial(rax.pairwise_logistic_loss, lambdaweight_fn=weights)

    def normalized(weights):
        return functools.partial(weights, normalize=True)

    softmax = functools.partial(
        rax.softmax_loss, label_fn=lambda labels, where: jax.nn.softmax(labels, where=where)
    )
    shares = functools.partial(rax.softmax_loss, label_fn=rax.utils.normalize_probabilities)
    binary = 1.0 / math.log(2.0)
    return {
        "score_mse": (rax.pointwise_mse_loss, 1.0),
        "list_softmax": (shares, 1.0),
        "list_net": (softmax, 1.0),
        "list_mle": (rax.listmle_loss, 1.0),
        "rank_net": (pairs(), binary),
        # rax multiplies the weights by the size of the array.
        "lambda_rank, ndcg2": (pairs(normalized(rax.dcg2_lambdaweight)), binary / SIZE),
        "lambda_rank, lambda_rank": (pairs(normalized(rax.dcg_lambdaweight)), binary / SIZE),
    }


@pytest.mark.parametrize("name", ["score_mse", "list_softmax", "list_net", "list_mle", "rank_net",
                                  "lambda_rank, ndcg2", "lambda_rank, lambda_rank"])  # fmt: skip
def test_losses_equal_rax(name, rax):
    scores, labels, present = some_lists(1)
    labels = np.where(present, labels + 1.0, 0.0)  # a list without labels is uniform in rax
    if name == "list_mle":
        labels = np.random.default_rng(0).permuted(np.tile(np.arange(7.0), (LISTS, 1)), axis=1)
    reference, factor = of_rax(rax)[name]
    expected = jax.jit(
        jax.value_and_grad(
            lambda scores: (
                factor * reference(scores, jnp.asarray(labels), where=jnp.asarray(present))
            )
        )
    )(jnp.asarray(scores))
    assert_same(value_and_gradient(name, scores, labels, present), expected)


def test_binary_cross_entropy_equals_rax(rax):
    scores, labels, present = some_lists()
    expected = jax.jit(
        jax.value_and_grad(
            lambda scores: rax.pointwise_sigmoid_loss(scores, labels / 3.0, where=present)
        )
    )(jnp.asarray(scores))
    assert_same(
        value_and_gradient(
            "plain",
            *(scores, labels / 3.0, present),
            Together({"plain": losses.binary_cross_entropy_loss}),
        ),
        expected,
    )


# ---- properties ----------------------------------------------------------------------------------


def test_ranks():
    values = jnp.array([[0.0, 2.0, 1.0, 2.0, 9.0], [-jnp.inf, 0.0, 0.0, 0.0, 0.0]])
    present = jnp.array([[True] * 4 + [False], [True] * 5])
    np.testing.assert_array_equal(ranks(values, present)[0, :4], [4, 1, 3, 2])
    np.testing.assert_array_equal(ranks(values, present)[1], [5, 1, 2, 3, 4])


@every
def test_absent_candidates_are_as_if_they_were_not_there(name):
    """Whatever stands in their place, infinite or not a number; and they have no gradient."""
    scores, labels, _ = some_lists()
    present = np.random.default_rng(0).permuted(
        np.tile([True, True, True, True, False, False], (LISTS, 1)), axis=1
    )
    present = np.pad(present, [(0, 0), (1, 0)], constant_values=True)  # a positive of margin_mse
    filled = [
        np.where(present, array, fill) for array, fill in ((scores, -np.inf), (labels, np.nan))
    ]
    value, gradient = value_and_gradient(name, *filled, present)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert not np.any(gradient[~present])
    short = [array[present].reshape(LISTS, 5) for array in (scores, labels, present)]
    expected, slopes = value_and_gradient(name, *short)
    assert_same((value, gradient[present]), (expected, slopes.reshape(-1)))


@every
def test_the_mean_is_that_of_any_parts(name):
    """Sums over parts of a batch give the loss of the whole, so that groups and devices do."""
    arrays = some_lists()
    whole = value_and_gradient(name, *arrays)[0]
    total = count = 0.0
    for part in ([0, 1], [2, 3, 4]):
        mask = arrays[2] & np.isin(np.arange(LISTS), part)[:, None]
        values, weights = map(np.asarray, of_each_list(name, *arrays[:2], mask))
        assert not np.any(np.delete(weights, part))
        total, count = total + np.sum(values * weights), count + np.sum(weights)
    assert count > 0.0
    assert float(whole) == pytest.approx(total / count, rel=1e-6)


@every
@pytest.mark.parametrize(
    "case",
    [
        "equal scores",
        "equal labels",
        "no labels",
        "empty lists",
        "nothing",
        "single",
        "far",
        "half",
    ],
)
def test_degenerate_lists_have_finite_values_and_gradients(name, case):
    scores, labels, present = some_lists()
    if case == "equal scores":
        scores[:] = 0.5
    elif case in ("equal labels", "no labels"):
        labels[:] = float(case == "equal labels")
    elif case == "empty lists":
        present[1:3] = False
    elif case == "nothing":
        present[:] = False
    elif case == "single":
        present[:] = np.arange(SIZE) == 0
    elif case == "far":
        scores[:, ::2] = 1e4
        scores[:, 1::2] = -1e4
    elif case == "half":
        scores = jnp.asarray(scores, jnp.bfloat16)
    value, gradient = value_and_gradient(name, scores, labels, present)
    assert value.dtype == jnp.float32 and np.isfinite(value)
    assert np.all(np.isfinite(np.asarray(gradient, np.float32)))
    if case == "nothing":
        assert float(value) == 0.0 and not np.any(gradient)
    if case == "empty lists":
        weights = of_each_list(name, scores, labels, present).weights
        assert not np.any(weights[1:3]) and np.any(weights)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "ndcg1" not in name])
def test_the_right_order_costs_less_than_the_reverse(name):
    labels = jnp.asarray([[3.0, 2.0, 1.0, 0.0]]) / (3.0 if "binary" in name else 1.0)
    present = jnp.ones_like(labels, bool)
    right, reverse = (
        value_and_gradient(name, scores, labels, present)[0] for scores in (labels, labels[:, ::-1])
    )
    assert float(right) < float(reverse)


def test_position_weights_of_a_long_list():
    """2^n overflows; the weights of the first places are 1/2, 1/4, ..."""
    scores = jnp.zeros((1, 300))
    value = losses.list_mle_loss(scores, scores, by_position=True).mean()
    expected = sum(2.0**-r * math.log(301 - r) for r in range(1, 60))
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_list_softmax_of_one_positive_is_own_candidates():
    scores, _, present = some_lists()
    present[:, 0] = True
    scores, present = jnp.asarray(scores), jnp.asarray(present)
    labels = jnp.zeros_like(scores).at[:, 0].set(1.0)
    ours = losses.list_softmax_loss(scores, labels, present).values
    np.testing.assert_allclose(losses.own_candidates_loss(scores, present).values, ours, rtol=1e-6)


@pytest.mark.parametrize(
    "expression, message",
    [
        ("lambda_rank(weighting='ndcg')", "unknown weighting of lambda_rank 'ndcg'.*ndcg2"),
        ("rank_net(logarithm='log2')", "unknown logarithm 'log2'"),
        ("lambda_rank(sigma=0.0)", "sigma: expected more than 0, found 0.0"),
    ],
)
def test_wrong_arguments_are_one_line(expression, message):
    with pytest.raises(InputError, match=message) as refused:
        losses.build_loss(expression)(*jnp.ones((3, 2, 4)), score=jnp.ones((2, 2)))
    assert "\n" not in str(refused.value)


# ---- in training ---------------------------------------------------------------------------------


def test_embeddings_are_scored_by_a_similarity_and_a_temperature():
    rng = np.random.default_rng(0)
    anchors, *candidates = jnp.asarray(rng.normal(size=(4, 3, 6)).astype(np.float32))
    labels = jnp.asarray(rng.integers(3, size=(3, 3)).astype(np.float32))
    scores = jnp.stack([jnp.sum(anchors * each, axis=1) for each in candidates], axis=1)
    ours = losses.build_loss("lambda_rank(similarity='dot', temperature=0.5, k=2)")
    expected = losses.lambda_rank_loss(scores / 0.5, labels, k=2).values
    np.testing.assert_allclose(ours(anchors, *candidates, score=labels), expected, rtol=1e-5)


def test_logits_of_pairs_are_a_score():
    """A model that reads both texts has the same losses: its logits take the embeddings' place."""
    logit = pair_score("logit", lambda _, logits: logits[0])
    scores, labels, _ = some_lists()
    columns = [jnp.zeros((LISTS, 1)), *jnp.asarray(scores.T[:, :, None])]
    ours = losses.list_net(*columns, score=labels, similarity=logit, temperature=1.0)
    expected = losses.list_net_loss(jnp.asarray(scores), jnp.asarray(labels)).values
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
