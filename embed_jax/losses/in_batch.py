"""Contrastive losses over in-batch negatives, of every device.

Each takes columns of examples (0 the anchors, called queries in the names of terms; 1 the
positives, called passages; the rest hard negatives) and returns values and weights by example; an
example without anchor or positive weighs 0. Where there is a queue of earlier batches' positives,
they are further negatives of the anchors (He et al. 2020, MoCo). Metrics: `accuracy` (the positive
comes before every negative), `positive_similarity`, `hardest_negative_similarity`. With prefixes
(Kusupati et al. 2022) these are of the largest one; all prefixes' products come from one pass.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from embed_jax.errors import InputError
from embed_jax.losses.base import is_number, loss
from embed_jax.losses.negatives import (
    ANCHOR,
    POSITIVE,
    Negatives,
    Rows,
    Texts,
    similarity_block,
    sizes,
)
from embed_jax.losses.terms import (
    SoftmaxTerm,
    Term,
    contrast_metrics,
    cross_entropy,
    example_weights,
    over_prefixes,
    scale_of,
)
from embed_jax.scores import Score, find_score
from embed_jax.types import Columns, LossResult, Number, Params, World
from embed_jax.vectors import add_arrays

HARDNESS = ("", "in_batch_negatives", "hard_negatives", "all_negatives")


def log_scale_init(dim: int, key: Array, temperature: float, learn_temperature: bool) -> Params:
    """Makes {"log_scale": log(1 / temperature)} if the temperature is learnt."""
    return {"log_scale": jnp.log(jnp.float32(1 / temperature))} if learn_temperature else {}


@loss(init=log_scale_init, tiled=True, queue=True, prefixes=True, positive=("temperature",))
def info_nce(
    own: Columns,
    world: World,
    params: Params,
    *,
    temperature: Number = 0.05,
    similarity: str | Score = "cosine",
    symmetric: bool = False,
    terms: str = "qp",
    partition: str = "joint",
    repeat_positive: bool = False,
    hard_negatives: str = "all",
    hard_negative_weight: Number = 1.0,
    hardness: str = "",
    hardness_strength: Number = 0.0,
    label_smoothing: Number = 0.0,
    learn_temperature: bool = False,
    mask_duplicates: bool = True,
    mask_by: str = "",
    mask_margin: Number = 0.0,
    mask_strategy: str = "absolute",
) -> LossResult:
    """InfoNCE: -log( exp(s(q_i, p_i) / t) / Z_i ), Z_i over the positive and all negatives.

    van den Oord, Li, Vinyals (2018), eq. 4; with in-batch negatives Henderson et al. (2017).

    Args:
        temperature: t; with `learn_temperature` where it starts, as exp(-params["log_scale"]),
            never below 0.01.
        similarity: s: "cosine", "dot", or another `scores.Score`, by name or "module:attribute".
        symmetric: short for terms "qp,pq", each with its own softmax (CLIP's loss).
        terms: what Z_i sums over, j != i: "qp" s(q_i, p_j) and s(q_i, hard negatives); "pq" s(q_j,
            p_i); "qq" s(q_i, q_j); "pp" s(p_i, p_j) and s(p_i, hard negatives of j).
        partition: "joint": one softmax over all terms; "per_direction": the mean of one over "qp"
            and one over "pq".
        repeat_positive: in "joint", the pair itself counts once more in "pq", as some
            implementations have it.
        hard_negatives: "all": everybody's hard negatives are candidates; "own": the example's own,
            and none in "pp".
        hard_negative_weight: alpha, how often an example's own hard negatives count (SimCSE, Gao et
            al. 2021).
        hardness: which negatives of "qp" count the more the more similar they are:
            "in_batch_negatives" (texts of other examples), "hard_negatives" (the example's own),
            "all_negatives".
        hardness_strength: their logit grows by strength * s, without gradient.
        label_smoothing: share e of the target that is spread evenly over the positive and all
            negatives.
        learn_temperature: whether the temperature is learnt.
        mask_duplicates: whether candidates of an equal text, id or group are left out; see
            `Negatives`.
        mask_by: the model that decides which candidates are too similar; see `Negatives`.
        mask_margin: see `Negatives`.
        mask_strategy: see `Negatives`.

    >>> anchors, positives = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(info_nce(anchors, positives, temperature=0.5))
    [0.4425 0.2176]

    Similarities of 0.90 to the positive and 0.20 to the negative, and the other way round:

    >>> query, near, far = (jnp.array([[c, (1 - c**2) ** 0.5]]) for c in (1.0, 0.9, 0.2))
    >>> pairs = (near, far), (far, near)
    >>> [f"{info_nce(query, *pair, temperature=0.05)[0]:.2g}" for pair in pairs]
    ['8.3e-07', '14']

    Logits of 1000 and 986 do not overflow, and do not round to 0:

    >>> pair = jnp.array([[1000.0]]), jnp.array([[986.0]])
    >>> print(f"{info_nce(jnp.ones((1, 1)), *pair, similarity='dot', temperature=1.0)[0]:.1e}")
    8.3e-07
    """
    if symmetric:
        terms, partition = "qp,pq", "per_direction"
    names = [name.strip() for name in terms.split(",")]
    score = find_score(similarity)
    own, world = score.in_world(own, world)
    negatives = Negatives(
        score,
        sizes(own),
        mask_duplicates,
        mask_by,
        mask_margin,
        mask_strategy,
        hard_negatives,
    )
    passages = tuple(range(POSITIVE, len(own.embeddings)))
    known = {
        "qp": (ANCHOR, passages),
        "pq": (POSITIVE, (ANCHOR,)),
        "qq": (ANCHOR, (ANCHOR,)),
        "pp": (POSITIVE, passages if hard_negatives == "all" else (POSITIVE,)),
    }
    accepted = set(known) if partition == "joint" else {"qp", "pq"}
    if (
        "qp" not in names
        or not set(names) <= accepted
        or partition not in ("joint", "per_direction")
    ):
        raise InputError(
            f"config.loss: terms={terms!r} with partition={partition!r}: expected 'qp' and others "
            f"of {', '.join(sorted(accepted))}, and the partition 'joint' or 'per_direction'"
        )
    if hardness not in HARDNESS:
        raise InputError(
            f"config.loss: hardness: expected one of {', '.join(map(repr, HARDNESS))}, found "
            f"{hardness!r}"
        )

    def adjust(rows: Rows, candidates: Texts, similarities: Array) -> Array:
        """Weights of hard negatives as additions to the logits.

        They concern the anchors' rows and passages.
        """
        counts = (rows.column == ANCHOR)[:, None] & (candidates.column != ANCHOR)[None, :]
        same = rows.example[:, None] == candidates.example[None, :]
        is_hard = (candidates.column > POSITIVE)[None, :]
        bonus = jnp.where(counts & same & is_hard, jnp.log(hard_negative_weight), 0.0)[None]
        if hardness:
            chosen = {
                "in_batch_negatives": ~same,
                "hard_negatives": same & is_hard,
                "all_negatives": counts,
            }[hardness]
            stronger = hardness_strength * jax.lax.stop_gradient(similarities)
            bonus = bonus + jnp.where(chosen & counts, stronger, 0.0)
        return bonus

    adjusts = not is_number(hard_negative_weight, 1.0) or hardness
    scale = scale_of(temperature, params)
    again = float(repeat_positive and partition == "joint" and "pq" in names)
    parts = [
        SoftmaxTerm(own, world, negatives, known[name], scale, adjust if adjusts else None)
        for name in names
    ]
    if partition == "joint":
        values = cross_entropy(parts, label_smoothing, again)
    else:
        values = add_arrays(cross_entropy([part], label_smoothing) for part in parts) / len(parts)
    return over_prefixes(values, own, parts[0].metrics())


@loss(init=log_scale_init, tiled=True, queue=True, prefixes=True, positive=("temperature",))
def gte(
    own: Columns,
    world: World,
    params: Params,
    *,
    temperature: Number = 0.01,
    similarity: str | Score = "cosine",
    repeat_positive: bool = False,
    learn_temperature: bool = False,
    mask_duplicates: bool = True,
) -> LossResult:
    """GTE's loss: `info_nce` with all four terms in one softmax (Li et al. 2023, eq. 3).

    Z_i = sum_j e(q_i, p_j) + sum_{j!=i} [e(q_i, q_j) + e(q_j, p_i) + e(p_j, p_i)], with e = exp(s /
    t).

    Args:
        temperature: t, more than 0; with `learn_temperature` the start of the learnt temperature.
        similarity: "cosine", "dot", or another `scores.Score`, by name or "module:attribute".
        repeat_positive: whether the pair itself counts once more; see `info_nce`.
        learn_temperature: whether the temperature is learnt.
        mask_duplicates: whether candidates of an equal text, id or group are left out; see
            `Negatives`.

    >>> anchors, positives = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(gte(anchors, positives, temperature=0.5))
    [0.8688 1.2488]
    """
    return info_nce.on_world(
        own,
        world,
        params,
        temperature=temperature,
        similarity=similarity,
        terms="qp,qq,pq,pp",
        repeat_positive=repeat_positive,
        learn_temperature=learn_temperature,
        mask_duplicates=mask_duplicates,
    )


@loss(init=log_scale_init, tiled=True, queue=True, prefixes=True, positive=("temperature",))
def qwen3(
    own: Columns,
    world: World,
    params: Params,
    *,
    temperature: Number = 0.01,
    similarity: str | Score = "cosine",
    learn_temperature: bool = False,
    mask_duplicates: bool = True,
    mask_margin: Number = 0.1,
) -> LossResult:
    """Qwen3-Embedding's loss: likely positives are masked (Zhang et al. 2025, eq. 1).

    Hard negatives count for their own example only:

    Z_i = e(q_i, p_i) + sum_k m e(q_i, n_ik)
        + sum_{j!=i} m [e(q_i, q_j) + e(p_i, p_j) + e(q_i, p_j)],

    where m = 0 for a similarity above s(q_i, p_i) + mask_margin, or an equal text, else 1.

    Args:
        temperature: t, more than 0; with `learn_temperature` the start of the learnt temperature.
        similarity: "cosine", "dot", or another `scores.Score`, by name or "module:attribute".
        learn_temperature: whether the temperature is learnt.
        mask_duplicates: whether candidates of an equal text, id or group are left out; see
            `Negatives`.
        mask_margin: how far above the positive's similarity a candidate is still a negative.

    >>> anchors, positives = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(qwen3(anchors, positives, temperature=0.5))
    [0.8103 0.9108]
    """
    return info_nce.on_world(
        own,
        world,
        params,
        temperature=temperature,
        similarity=similarity,
        terms="qp,qq,pp",
        hard_negatives="own",
        learn_temperature=learn_temperature,
        mask_duplicates=mask_duplicates,
        mask_by="model",
        mask_margin=-mask_margin,
    )


@loss(init=log_scale_init, tiled=True, queue=True, prefixes=True, positive=("temperature",))
def gist(
    own: Columns,
    world: World,
    params: Params,
    *,
    temperature: Number = 0.01,
    similarity: str | Score = "cosine",
    contrast_anchors: bool = True,
    contrast_positives: bool = True,
    learn_temperature: bool = False,
    mask_duplicates: bool = True,
    mask_by: str = "guide",
    mask_margin: Number = 0.0,
    mask_strategy: str = "absolute",
) -> LossResult:
    """InfoNCE without candidates that a guide finds closer than the positive.

    Solatorio (2024), "GISTEmbed". A candidate c of example i is dropped if g(i, c) > g(q_i, p_i) -
    margin ("absolute") or > g(q_i, p_i) - margin * |g(q_i, p_i)| ("relative"), where g is the
    guide's cosine of the texts compared. Candidates: passages and hard negatives, anchors against
    anchors, positives against positives.

    Args:
        temperature: t, more than 0; with `learn_temperature` the start of the learnt temperature.
        similarity: "cosine", "dot", or another `scores.Score`, by name or "module:attribute".
        contrast_anchors: whether anchors are compared with anchors.
        contrast_positives: whether positives are compared with positives.
        learn_temperature: whether the temperature is learnt.
        mask_duplicates: whether candidates of an equal text, id or group are left out; see
            `Negatives`.
        mask_by: "guide" (config.model.guide), or "model": the trained model guides itself.
        mask_margin: margin.
        mask_strategy: "absolute" or "relative"; see `Negatives`.

    >>> anchors, positives = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(gist(anchors, positives, guide=[anchors, anchors], temperature=0.5))
    [0.8103 0.9108]
    """
    score = find_score(similarity)
    own, world = score.in_world(own, world)
    negatives = Negatives(score, sizes(own), mask_duplicates, mask_by, mask_margin, mask_strategy)
    terms: list[Term] = [(ANCHOR, tuple(range(POSITIVE, len(own.embeddings))))]
    terms += [(ANCHOR, (ANCHOR,))] if contrast_anchors else []
    terms += [(POSITIVE, (POSITIVE,))] if contrast_positives else []
    scale = scale_of(temperature, params)
    parts = [SoftmaxTerm(own, world, negatives, term, scale) for term in terms]
    return over_prefixes(cross_entropy(parts), own, parts[0].metrics())


@loss(init=log_scale_init, tiled=True, queue=True, prefixes=True, positive=("temperature",))
def dcl(
    own: Columns,
    world: World,
    params: Params,
    *,
    temperature: Number = 0.05,
    similarity: str | Score = "cosine",
    sigma: Number = 0.0,
    learn_temperature: bool = False,
    mask_duplicates: bool = True,
) -> LossResult:
    """Decoupled contrastive loss (Yeh et al. 2022): the positive is not in the denominator.

    l_i = -w_i s(q_i, p_i) / t + log sum_{j!=i} exp(s(q_i, p_j) / t), hard negatives included.

    Args:
        temperature: t, more than 0; with `learn_temperature` the start of the learnt temperature.
        similarity: "cosine", "dot", or another `scores.Score`, by name or "module:attribute".
        sigma: of the weights w_i = 2 - exp(s_ii / sigma) / mean_k exp(s_kk / sigma) (DCLW; 0.5 in
            the paper); 0: w = 1.
        learn_temperature: whether the temperature is learnt.
        mask_duplicates: whether candidates of an equal text, id or group are left out; see
            `Negatives`.

    >>> anchors, positives = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(dcl(anchors, positives, temperature=0.5))
    [-0.5858 -1.4142]
    """
    score = find_score(similarity)
    own, world = score.in_world(own, world)
    negatives = Negatives(score, sizes(own), mask_duplicates)
    scale = scale_of(temperature, params)
    part = SoftmaxTerm(
        own, world, negatives, (ANCHOR, tuple(range(POSITIVE, len(own.embeddings)))), scale
    )
    weights = example_weights(own)
    values = jnp.where(part.logsumexp == -jnp.inf, 0.0, part.logsumexp)  # nothing to be told from
    if not is_number(sigma, 0.0):
        positive = part.rows.positive
        exponential = jnp.exp(positive / sigma)
        total = jnp.sum(world.gather((exponential * weights[None]).T), axis=0)
        mean = total / jnp.maximum(jnp.sum(world.gather(weights)), 1.0)
        values = values + (exponential / mean[:, None] - 1.0) * positive * scale
    return over_prefixes(values, own, part.metrics())


def siglip_init(dim: int, key: Array, temperature: float, bias: float) -> Params:
    """Makes the learnable scale, as its logarithm, and bias."""
    return {"log_scale": jnp.log(jnp.float32(1 / temperature)), "bias": jnp.float32(bias)}


@loss(init=siglip_init, tiled=True, queue=True, prefixes=True, positive=("temperature",))
def siglip(
    own: Columns,
    world: World,
    params: Params,
    *,
    temperature: Number = 0.1,
    bias: Number = -10.0,
    similarity: str | Score = "cosine",
    mask_duplicates: bool = True,
) -> LossResult:
    """Sigmoid loss: each pair is a yes or no by itself (SigLIP, Zhai et al. 2023).

    sum_j -log sigmoid(z_ij (s(q_i, p_j) / t + b)), z_ii = 1, else -1. Hard negatives are more p_j.
    Scale 1 / t = exp(params["log_scale"]) and b = params["bias"] are learnt.

    Args:
        temperature: the start of t; 0.1 in the paper.
        bias: the start of b; -10 in the paper.
        similarity: "cosine", "dot", or another `scores.Score`, by name or "module:attribute".
        mask_duplicates: whether candidates of an equal text, id or group are left out; see
            `Negatives`.

    >>> anchors, positives = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(siglip(anchors, positives, temperature=0.5, bias=0.0))
    [1.7588 0.9108]
    """
    score = find_score(similarity)
    own, world = score.in_world(own, world)
    negatives = Negatives(score, sizes(own), mask_duplicates)
    passages = tuple(range(POSITIVE, len(own.embeddings)))
    shared = (jnp.exp(params["log_scale"]), params["bias"])
    block = similarity_block(
        negatives, lambda compared, shared: jax.nn.softplus(compared * shared[0] + shared[1]), 0.0
    )
    rows = negatives.rows(own, ANCHOR)
    values = jax.nn.softplus(-(rows.positive * shared[0] + shared[1]))
    extra_candidates = negatives.earlier(own)
    values = values + world.sum(
        block,
        rows,
        lambda columns: negatives.texts(columns, passages),
        shared,
        extra_candidates,
        negatives.numbers(own, ANCHOR, passages),
    )
    metrics = {
        "positive_similarity": rows.positive[-1],
        "scale": jnp.broadcast_to(shared[0], rows.example.shape),
        "bias": jnp.broadcast_to(shared[1], rows.example.shape),
    }
    return over_prefixes(values, own, metrics)


@loss(tiled=True, queue=True)
def mega_batch_margin(
    own: Columns,
    world: World,
    params: Params,
    *,
    positive_margin: Number = 0.8,
    negative_margin: Number = 0.3,
    similarity: str | Score = "cosine",
    mask_duplicates: bool = True,
) -> LossResult:
    """Margin loss against the hardest negative of the batch (Wieting and Gimpel 2018).

    [positive_margin - s(q_i, p_i)]+ + [max_{j!=i} s(q_i, p_j) - negative_margin]+, hard negatives
    included.

    Args:
        positive_margin: the similarity that pairs should reach.
        negative_margin: the similarity that negatives should stay below.
        similarity: "cosine", "dot", or another `scores.Score`, by name or "module:attribute".
        mask_duplicates: whether candidates of an equal text, id or group are left out; see
            `Negatives`.

    >>> anchors, positives = jnp.eye(2), jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> print(mega_batch_margin(anchors, positives))
    [0.4071 0.0929]
    """
    score = find_score(similarity)
    own, world = score.in_world(own, world)
    negatives = Negatives(score, (), mask_duplicates)
    passages = tuple(range(POSITIVE, len(own.embeddings)))
    rows = negatives.rows(own, ANCHOR)
    block = similarity_block(negatives, lambda compared, _: compared, -jnp.inf)
    extra_candidates = negatives.earlier(own)
    hardest = world.max(
        block,
        rows,
        lambda columns: negatives.texts(columns, passages),
        extra_candidates=extra_candidates,
        numbers=negatives.numbers(own, ANCHOR, passages),
    )[0]
    positive = rows.positive[0]
    too_near = jnp.where(hardest == -jnp.inf, 0.0, jax.nn.relu(hardest - negative_margin))
    metrics = contrast_metrics(positive, hardest)
    return jax.nn.relu(positive_margin - positive) + too_near, example_weights(own), metrics
