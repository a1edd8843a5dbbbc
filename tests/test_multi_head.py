"""Several heads on one encoder: BGE-M3's formulas in torch, its layout, scores, refusals."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import embed_jax
from embed_jax import losses
from embed_jax.data.window import pack_window
from embed_jax.encoders.build import build_encoder
from embed_jax.errors import InputError
from embed_jax.evals.embedder import TokenEmbedder, prompt_options
from embed_jax.evals.retrieval import make_retrieval_task
from embed_jax.head_scores import read_sum
from embed_jax.loading import load_embedding_model
from embed_jax.multi_head import MultiHeadEncoder
from embed_jax.sentence import SentenceEncoder

torch = pytest.importorskip("torch")
TEXTS = ["the cat and the dog", "a red house", "music in the city", "", "red river cat cat", "dog"]
QUERIES, DOCUMENTS = TEXTS[:3], TEXTS[2:5]
SUM = "dense + 0.3 * sparse + multi_vector"


class Reference(torch.nn.Module):
    """BGE-M3's three outputs and its loss, text by text, without padding."""

    def __init__(self, backbone, unused, dim):
        super().__init__()
        width = backbone.config.hidden_size
        self.backbone, self.unused = backbone, unused
        self.sparse_linear = torch.nn.Linear(width, 1)
        self.colbert_linear = torch.nn.Linear(width, dim)

    def forward(self, ids):
        states = self.backbone(torch.tensor([ids.tolist()])).last_hidden_state[0]
        weights = torch.relu(self.sparse_linear(states))[:, 0]
        size = self.backbone.config.vocab_size
        table = torch.zeros(len(ids), size)
        table = table.index_put((torch.arange(len(ids)), torch.tensor(ids)), weights)
        used = torch.tensor([float(number not in self.unused) for number in range(size)])
        normal = torch.nn.functional.normalize
        return {
            "dense": normal(states[0], dim=-1),
            "sparse": table.max(dim=0).values * used,
            "multi_vector": normal(self.colbert_linear(states[1:]), dim=-1),
        }

    @staticmethod
    def scores(queries, documents):
        def mean_maxsim(query, document):
            return (query @ document.T).max(dim=1).values.mean()

        functions = {"dense": torch.dot, "sparse": torch.dot, "multi_vector": mean_maxsim}
        return {
            name: torch.stack(
                [torch.stack([of(q[name], d[name]) for d in documents]) for q in queries]
            )
            for name, of in functions.items()
        }

    def loss(self, queries, documents, temperature):
        scores = {k: s / temperature for k, s in self.scores(queries, documents).items()}
        total = scores["dense"] + 0.3 * scores["sparse"] + scores["multi_vector"]
        entropy, target = torch.nn.functional.cross_entropy, torch.arange(len(queries))
        factors = {"dense": 1.0, "sparse": 0.1, "multi_vector": 1.0}
        contrast = entropy(total, target)
        contrast = contrast + sum(f * entropy(scores[name], target) for name, f in factors.items())
        teacher = torch.softmax(total.detach(), dim=-1)
        distilled = sum(f * entropy(scores[name], teacher) for name, f in factors.items())
        return (contrast / 4 + distilled / 3) / 2


@pytest.fixture(scope="module")
def reference(tiny_tokenizer):
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    size = len((tiny_tokenizer / "vocab.txt").read_text().split())
    config = XLMRobertaConfig(
        vocab_size=size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=41,
        pad_token_id=0,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = Reference(XLMRobertaModel(config, add_pooling_layer=False), {0, 1, 2, 3}, dim=8)
    for name, leaf in model.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(leaf, std=0.4)  # texts are told apart
    return model


@pytest.fixture(scope="module")
def directory(reference, tiny_tokenizer, tmp_path_factory):
    """BGE-M3's layout, as it is after the conversion of its pickles."""
    from safetensors.torch import save_file

    where = tmp_path_factory.mktemp("several") / "m3"
    shutil.copytree(tiny_tokenizer, where)
    reference.backbone.save_pretrained(where)
    for name in ("sparse_linear", "colbert_linear"):
        linear = getattr(reference, name)
        save_file(dict(linear.state_dict()), where / f"{name}.safetensors")
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    (where / "modules.json").write_text(json.dumps(modules))
    (where / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 16, "pooling_mode_cls_token": True}
    pooling |= {"pooling_mode_mean_tokens": False}
    (where / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    limits = {"max_seq_length": 40, "do_lower_case": False}
    (where / "sentence_bert_config.json").write_text(json.dumps(limits))
    return where


@pytest.fixture(scope="module")
def model(directory):
    loaded = embed_jax.load(directory)
    assert isinstance(loaded, MultiHeadEncoder)
    return loaded


def outputs(reference, model, texts):
    return [reference(ids) for ids in model.tokenizer.encode(texts).ids]


def test_embeddings_and_scores_are_those_of_the_reference(reference, model):
    ours = model.encode(TEXTS)
    with torch.no_grad():
        expected = outputs(reference, model, TEXTS)
        scores = reference.scores(expected, expected)
    for name in ("dense", "sparse"):
        rows = np.stack([row[name].numpy() for row in expected])
        own = ours[name].toarray() if name == "sparse" else ours[name]
        np.testing.assert_allclose(own, rows, atol=1e-4, err_msg=name)
    assert ours["sparse"].nnz > 8 and ours["sparse"][[3]].nnz == 0  # the empty text
    for own, row in zip(ours["multi_vector"], expected, strict=True):
        np.testing.assert_allclose(own, row["multi_vector"].numpy(), atol=1e-4)
    for weights in ({"dense": 1.0}, {"sparse": 1.0}, SUM, {"dense": 0.4, "multi_vector": 0.2}):
        expected_sum = sum(w * scores[name].numpy() for name, w in read_sum(weights).items())
        own = model.similarity(ours, ours, weights)
        np.testing.assert_allclose(own, expected_sum, atol=1e-4)
        pairs = model.score(QUERIES, DOCUMENTS, weights)
        np.testing.assert_allclose(pairs, np.diag(expected_sum[:3, 2:5]), atol=1e-4)
    assert model.similarity_fn_name == SUM
    single, some = model.encode("a red house"), model.encode(TEXTS, heads=["multi_vector"])
    assert single["dense"].shape == (16,) and single["sparse"].shape == (1, ours["sparse"].shape[1])
    np.testing.assert_allclose(single["multi_vector"], some["multi_vector"][1], atol=1e-6)
    assert list(some) == ["multi_vector"]
    np.testing.assert_allclose(
        model.similarity(single, single), model.similarity(ours, ours)[1:2, 1:2], rtol=1e-5
    )
    assert [len(rows) for rows in model.encode([]).values() if isinstance(rows, list)] == [0]


def test_loss_and_gradient_are_those_of_the_reference(reference, model):
    encoded = outputs(reference, model, [*QUERIES, *DOCUMENTS])
    value = reference.loss(encoded[:3], encoded[3:], temperature=0.1)
    reference.zero_grad()
    value.backward()
    tokenized = model.tokenizer.encode([*QUERIES, *DOCUMENTS])
    ((numbers, tokens),) = pack_window(tokenized.ids, tokenized.skip, 128)
    encoder = build_encoder(model.spec, vectors_per_text=16)

    def ours(params):
        every = encoder.apply(params, tokens)
        order = jnp.argsort(jnp.asarray(numbers))
        sides = [
            jax.tree.map(lambda leaf, part=part: leaf[order][part], every)
            for part in (slice(3), slice(3, 6))
        ]
        return jnp.mean(losses.self_distillation(*sides, temperature=0.1))

    own, gradient = jax.jit(jax.value_and_grad(ours))(jax.device_get(model.params))
    assert float(own) == pytest.approx(value.item(), rel=1e-5)
    branches, backbone = gradient["branches"], gradient["backbone"]
    for ours, leaf in (
        (branches["sparse"]["vocabulary"]["kernel"].T, reference.sparse_linear.weight),
        (branches["multi_vector"]["heads"]["0"]["kernel"].T, reference.colbert_linear.weight),
        (branches["multi_vector"]["heads"]["0"]["bias"], reference.colbert_linear.bias),
        (backbone["embeddings"]["token"], reference.backbone.embeddings.word_embeddings.weight),
    ):
        expected = leaf.grad.numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_the_layout_is_written_and_the_dense_part_is_sentence_transformers(
    model, directory, tmp_path
):
    model.save(tmp_path / "again")
    again, ours = embed_jax.load(tmp_path / "again"), model.encode(TEXTS)
    assert again.spec == model.spec and again.similarity_fn_name == SUM
    written = again.encode(TEXTS)
    np.testing.assert_array_equal(written["dense"], ours["dense"])
    assert (written["sparse"] != ours["sparse"]).nnz == 0
    for own, other in zip(written["multi_vector"], ours["multi_vector"], strict=True):
        np.testing.assert_array_equal(own, other)
    peers = pytest.importorskip("sentence_transformers")
    peer = peers.SentenceTransformer(str(tmp_path / "again"), device="cpu")
    np.testing.assert_allclose(peer.encode(TEXTS), ours["dense"], atol=1e-5)
    again.similarity_fn_name = "dense + 2 * multi_vector"
    again.save(tmp_path / "again")
    assert embed_jax.load(tmp_path / "again").similarity_fn_name == "dense + 2 * multi_vector"
    dense = load_embedding_model(directory)
    assert isinstance(dense, SentenceEncoder)
    np.testing.assert_allclose(dense.encode(TEXTS), ours["dense"], atol=1e-6)


def test_pickled_heads_are_left_out_with_the_line_that_converts_them(directory, tmp_path):
    where = shutil.copytree(directory, tmp_path / "model")
    for name in ("sparse_linear", "colbert_linear"):
        (where / f"{name}.safetensors").rename(where / f"{name}.pt")
    with pytest.warns(UserWarning, match="sparse_linear.pt, colbert_linear.pt are left out"):
        assert isinstance(embed_jax.load(where), SentenceEncoder)
    (where / "sparse_linear.pt").rename(where / "sparse_linear.safetensors")
    with pytest.warns(UserWarning, match="python -c .* colbert_linear.pt"):
        some = embed_jax.load(where)
    assert some.heads == ("dense", "sparse")
    assert some.similarity_fn_name == "dense + 0.3 * sparse"


def test_what_does_not_fit_is_refused_in_one_line(model, directory, tmp_path):
    from safetensors.numpy import save_file

    wide = shutil.copytree(directory, tmp_path / "wide")
    save_file({"weight": np.ones((1, 5), np.float32)}, wide / "sparse_linear.safetensors")
    encoded = model.encode(TEXTS[:1], heads=["dense"])
    other = {"dense": jnp.eye(2), "sparse": jnp.ones((2, 3))}
    for call, message in (
        (lambda: model.encode(TEXTS, heads=["colbert"]), "unknown head 'colbert'"),
        (lambda: model.encode(TEXTS, max_active=3), "max_active: only sparse embeddings"),
        (lambda: model.similarity(encoded, encoded), "queries: expected embeddings by"),
        (lambda: model.score(TEXTS[:2], TEXTS[:1]), "expected as many documents as queries"),
        (lambda: read_sum("dense - sparse"), "sum of scores: expected one such as"),
        (lambda: read_sum("dense + 2 * lexical"), "unknown head 'lexical'"),
        (lambda: read_sum("dense + dense"), "expected 'dense' once"),
        (lambda: read_sum({"dense": -1.0}), "dense: expected a weight from 0 up"),
        (lambda: embed_jax.load(wide), r"expected weight \[1, 16\] and bias \[1\], found"),
        (
            lambda: losses.self_distillation(other, other, factors="dense"),
            "factors: expected those of dense, sparse, multi_vector, found dense",
        ),
        (
            lambda: losses.info_nce(other, other, similarity="multi_vector"),
            "similarity 'multi_vector': expected the embeddings of a model with that head",
        ),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_any_loss_takes_a_head_or_a_sum():
    """The weighted sum of a head's scores is that of the concatenated embeddings."""
    rng = np.random.default_rng(0)
    sides = [
        {"dense": rng.normal(size=(5, 4)), "sparse": np.maximum(rng.normal(size=(5, 7)), 0)}
        for _ in range(2)
    ]
    sides = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), sides)
    joined = [
        jnp.concatenate([side["dense"], jnp.sqrt(0.3) * side["sparse"]], axis=1) for side in sides
    ]
    for loss in (losses.info_nce, losses.gte, losses.dcl):
        own = loss(*sides, similarity="dense + 0.3 * sparse", temperature=1.0)
        expected = loss(*joined, similarity="dot", temperature=1.0)
        np.testing.assert_allclose(own, expected, rtol=1e-5)


def test_evaluation_searches_by_the_sum_of_the_scores(model):
    corpus = dict(zip("abcdef", TEXTS, strict=True))
    queries, qrels = {"q": "red cat", "r": "music"}, {"q": {"e": 1}, "r": {"c": 1}}
    sides = model.encode_query(list(queries.values())), model.encode_document(TEXTS)
    for similarity in ("", "sparse", "dense + 2 * sparse"):
        embed = TokenEmbedder(
            "m3", model.encode, prompt_options(model), similarity=model.similarity_fn_name
        )
        task = make_retrieval_task((corpus, queries, qrels), ks=(10,), similarity=similarity)
        run = task.search(task.search_by(embed), 6)
        scores = model.similarity(*sides, similarity or None)
        for row, query in enumerate(queries):
            expected = {name: scores[row, index] for index, name in enumerate("abcdef")}
            assert run[query] == pytest.approx(expected, abs=1e-4)
            assert list(run[query].values()) == sorted(run[query].values(), reverse=True)
        assert 0 < task.evaluate(embed).metrics["ndcg@10"] <= 1
