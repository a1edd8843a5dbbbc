"""Logits of transformers' sequence classifiers, and strict reading of their directories."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embed_jax.encoders.bert import BertConfig
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import classifier_spec, make_classifier
from embed_jax.encoders.heads import Dense, Dropout
from embed_jax.encoders.read import read_model
from embed_jax.encoders.read_classifier import read_classifier
from embed_jax.encoders.write_classifier import write_classifier
from embed_jax.errors import InputError

DECODER = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_key_value_heads": 2}
MODERN = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MODERN |= {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
FAMILIES = {
    "bert": ("Bert", {}),
    "roberta": (
        "Roberta",
        {"max_position_embeddings": 34, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "xlm-roberta": (
        "XLMRoberta",
        {"max_position_embeddings": 34, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "mpnet": ("MPNet", {"max_position_embeddings": 34, "pad_token_id": 1}),
    "distilbert": ("DistilBert", {}),
    "electra": ("Electra", {"embedding_size": 16}),
    "camembert": (
        "Camembert",
        {"max_position_embeddings": 34, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "nomic_bert": ("NomicBert", {"pad_token_id": 0}),
    "deberta-v2": ("DebertaV2", {"relative_attention": True, "pos_att_type": "p2c|c2p"}),
    "modernbert": ("ModernBert", MODERN),
    "modernbert-mean": (
        "ModernBert",
        MODERN | {"classifier_pooling": "mean", "classifier_bias": True},
    ),
    "llama": ("Llama", DECODER),
    "mistral": ("Mistral", DECODER),
    "qwen2": ("Qwen2", DECODER),
    "qwen3": ("Qwen3", DECODER | {"head_dim": 8}),
    "gemma": ("Gemma", DECODER | {"head_dim": 8}),
    "gemma2": ("Gemma2", DECODER | {"head_dim": 8}),
    "gemma3_text": ("Gemma3Text", DECODER | {"head_dim": 8}),
}
TYPED = ("bert", "electra", "nomic_bert")


def torch_classifier(name, num_labels=1):
    """Makes a model of two layers with all parameters random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    prefix, extra = FAMILIES[name]
    settings = {"vocab_size": 60, "max_position_embeddings": 32, "num_labels": num_labels, **extra}
    if name == "distilbert":
        settings |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    else:
        settings |= {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        }
    torch.manual_seed(0)
    config = getattr(transformers, f"{prefix}Config")(**settings)
    model = getattr(transformers, f"{prefix}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bert")
    torch_classifier("bert").save_pretrained(directory)
    return directory


@pytest.fixture
def copy(bert, tmp_path):
    """A copy of a directory that a test may change."""
    return shutil.copytree(bert, tmp_path / "model")


def with_segments(batch, first):
    """Sets token type 1 from position `first[s]` of sentence s on."""
    first = np.array([*first, 10**6])
    return batch.replace(segment=(batch.position >= first[batch.sentence]).astype(np.int32))


def edit(path, **changes):
    config = json.loads(path.read_text())
    path.write_text(
        json.dumps({key: value for key, value in (config | changes).items() if value is not ...})
    )


# ---- logits --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "num_labels"), [*((name, 3) for name in FAMILIES), ("bert", 1)])
def test_logits_equal_transformers(name, num_labels, ids, packed, unpacked, tmp_path):
    """The tolerance is 1e-4 for float32 logits of size 1 to 10.

    Lengths are 1 to 16, with one text per row or packed out of order.
    """
    torch = pytest.importorskip("torch")
    model = torch_classifier(name, num_labels)
    model.save_pretrained(tmp_path)
    saved = read_classifier(tmp_path)
    assert build_encoder(saved.spec).dim == num_labels
    first = [3, 1, 9, 1, 4]
    expected = []
    for tokens, start in zip(ids, first, strict=True):
        types = (
            {"token_type_ids": torch.tensor((np.arange(len(tokens)) >= start)[None] * 1)}
            if name in TYPED
            else {}
        )
        with torch.no_grad():
            expected.append(
                model(input_ids=torch.tensor(tokens[None].astype(np.int64)), **types)
                .logits[0]
                .numpy()
            )
    apply = build_encoder(saved.spec).apply
    batches = [
        with_segments(batch, first) if name in TYPED else batch for batch in (unpacked, packed)
    ]
    both = jax.jit(
        lambda params, batches: [apply(params, batch, None) for batch in batches],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    for logits in both(saved.params, batches):
        assert logits.shape == (5, num_labels) and logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.ptp(np.array(expected), axis=0).min() > 0.02  # 200 tolerances: a mix-up shows


class Files:
    """A tokenizer without content, for `write_classifier`."""

    def save(self, directory):
        (directory / "tokenizer_config.json").write_text("{}")


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_reads_what_is_written(name, tmp_path):
    """All tensors are those of the model that was read, in its class, and the head's settings."""
    model = torch_classifier(name, 3)
    model.save_pretrained(tmp_path / "theirs")
    saved = read_classifier(tmp_path / "theirs")
    write_classifier(
        tmp_path / "ours",
        saved.spec,
        saved.params,
        tokenizer=Files(),
        max_length=16,
        activation="identity",
    )
    assert read_classifier(tmp_path / "ours").spec == saved.spec
    back, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert back.config.architectures == [type(model).__name__]
    for setting in ("num_labels", "classifier_pooling", "classifier_bias", "model_type"):
        assert getattr(back.config, setting, None) == getattr(model.config, setting, None)
    tensors, expected = back.state_dict(), model.state_dict()
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(tensors[key], value)


def test_token_types_count_and_none_are_zeros(bert, packed):
    saved = read_classifier(bert)
    apply = jax.jit(build_encoder(saved.spec).apply)
    without = apply(saved.params, packed, None)
    zeros = apply(saved.params, packed.replace(segment=np.zeros_like(packed.sentence)), None)
    np.testing.assert_allclose(zeros, without, atol=1e-6)
    typed = apply(saved.params, with_segments(packed, [3, 1, 9, 1, 4]), None)
    assert np.abs(typed - without)[[0, 2, 3, 4]].min() > 1e-3
    np.testing.assert_allclose(typed[1], without[1], atol=1e-6)  # one token, of type 0


def test_gradient_of_a_token_type_is_that_of_its_slots(bert, packed):
    """Compares with finite differences along each row of the type table."""
    saved = read_classifier(bert)
    batch = with_segments(packed, [3, 1, 9, 1, 4])
    encoder = build_encoder(saved.spec)
    path = ("backbone", "embeddings", "token_type")

    def loss(table):
        params = jax.tree_util.tree_map_with_path(
            lambda p, leaf: table if tuple(k.key for k in p) == path else leaf, saved.params
        )
        return jnp.sum(encoder.apply(params, batch, None) ** 2)

    table = jnp.asarray(saved.params["backbone"]["embeddings"]["token_type"])
    gradient, loss = jax.jit(jax.grad(loss))(table), jax.jit(loss)
    for row in range(2):
        step = (
            jnp.zeros_like(table).at[row].set(1e-3 * gradient[row] / jnp.linalg.norm(gradient[row]))
        )
        slope = (loss(table + step) - loss(table - step)) / 2e-3
        np.testing.assert_allclose(slope, jnp.linalg.norm(gradient[row]), rtol=2e-2)


def test_head_is_dropped_out_with_a_key_only(packed):
    backbone = BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_layers=1,
        num_heads=2,
        intermediate_size=32,
        embedding_size=32,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    last = make_classifier(backbone)
    hidden, out = last.heads[0], last.heads[2]
    half = Dropout(0.5)
    # The parameters of a head are named by its position.
    specs = [
        dataclasses.replace(last, heads=heads)
        for heads in ((Dropout(0.0), hidden, half, out), (half, hidden, half, out))
    ]
    params, key = jax.jit(build_encoder(specs[0]).init)(jax.random.key(0)), jax.random.key(1)
    plain, late, both = (
        jax.jit(build_encoder(spec).apply)(params, packed, key)
        for spec, key in ((specs[1], None), (specs[0], key), (specs[1], key))
    )
    for left, right in ((plain, late), (plain, both), (late, both)):
        assert np.abs(left - right).max() > 1e-4


# ---- reading -------------------------------------------------------------------------------------


def test_init_makes_what_is_read(bert):
    saved = read_classifier(bert)
    encoder = build_encoder(saved.spec)
    assert encoder.dim == 1
    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
        shapes,
        saved.params,
    )


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_a_classifiers_backbone_is_an_embedding_model_where_config_json_says_so(name, tmp_path):
    torch_classifier(name).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a cross-encoder, which scores pairs of texts"):
        read_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    model = config["architectures"][0].replace("ForSequenceClassification", "Model")
    (tmp_path / "other.json").write_text(json.dumps(config | {"architectures": [model]}))
    classifier = read_classifier(tmp_path)
    (tmp_path / "other.json").replace(tmp_path / "config.json")
    jax.tree.map(
        np.testing.assert_array_equal,
        read_model(tmp_path).params["backbone"],
        classifier.params["backbone"],
    )
    assert build_encoder(read_model(tmp_path).spec).dim == 32


BACKBONE = BertConfig()


@pytest.mark.parametrize(
    ("family", "config", "expected"),
    [
        ("bert", {}, (2, "tanh", [0.1])),
        (
            "bert",
            {"id2label": {"0": "no", "1": "yes", "2": "maybe"}, "num_labels": 1},
            (3, "tanh", [0.1]),
        ),
        (
            "bert",
            {"num_labels": 1, "classifier_dropout": 0.0, "hidden_dropout_prob": 0.3},
            (1, "tanh", [0.0]),
        ),
        (
            "roberta",
            {"classifier_dropout": None, "hidden_dropout_prob": 0.3},
            (2, "tanh", [0.3] * 2),
        ),
        ("mpnet", {"classifier_dropout": 0.5, "hidden_dropout_prob": 0.3}, (2, "tanh", [0.3] * 2)),
        ("electra", {}, (2, "gelu", [0.1] * 2)),
        ("distilbert", {}, (2, "relu", [0.2])),
        ("distilbert", {"seq_classif_dropout": 0.4}, (2, "relu", [0.4])),
        ("modernbert", {"classifier_dropout": 0.3}, (2, "gelu", [0.3])),
        ("modernbert", {"classifier_activation": "silu"}, (2, "silu", [0.0])),
        ("nomic_bert", {}, (2, "tanh", [0.0])),
        ("deberta-v2", {"hidden_dropout_prob": 0.3}, (2, "gelu", [0.3])),
        (
            "deberta-v2",
            {"cls_dropout": 0.0, "hidden_dropout_prob": 0.3, "pooler_hidden_act": "tanh"},
            (2, "tanh", [0.0]),
        ),
    ],
)
def test_head_by_config(family, config, expected):
    backbone = dataclasses.replace(BACKBONE, family=family)
    spec = classifier_spec(backbone, config)
    *_, hidden, out = (head for head in spec.heads if isinstance(head, Dense))
    rates = [head.rate for head in spec.heads if isinstance(head, Dropout)]
    assert (out.out_features, hidden.activation, rates) == expected


def test_configs_without_a_head():
    with pytest.raises(InputError, match="num_labels: expected a number from 1, found -1"):
        classifier_spec(BACKBONE, {"num_labels": -1})
    modern = dataclasses.replace(BACKBONE, family="modernbert")
    with pytest.raises(
        InputError, match="config.json: classifier_pooling: unknown pooling 'first'"
    ):
        classifier_spec(modern, {"classifier_pooling": "first"})
    with pytest.raises(InputError, match="unknown family of classifiers 'gpt2'; known: bert, "):
        classifier_spec(dataclasses.replace(BACKBONE, family="gpt2"), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.weight"), r"no weights of a classifier \(classifier.weight\)"),
        (lambda t: t.pop("classifier.bias"), "missing tensor 'classifier.bias'"),
        (
            lambda t: t.pop("bert.pooler.dense.weight"),
            r"missing tensor 'pooler.dense.weight' \(shape \(32, 32\)\)",
        ),
        (
            lambda t: t.update({"classifier.dense.bias": np.ones(2)}),
            "unexpected tensor 'classifier.dense.bias'",
        ),
        (lambda t: t.update({"bert.pooler.extra": np.ones(2)}), "unexpected tensor 'pooler.extra'"),
        (
            lambda t: t.update({"pooler.dense.bias": np.ones(32)}),
            "'pooler.dense.bias' stands there twice",
        ),
        (
            lambda t: t.update({"classifier.bias": np.ones(3)}),
            r"'classifier.bias' has shape \(3,\), config.json wants",
        ),
    ],
)
def test_tensors_that_do_not_fit(copy, change, message):
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        read_classifier(copy)
    assert str(copy) in str(error.value) and "\n" not in str(error.value)


def test_other_tensors_of_the_checkpoint_are_ignored(copy):
    before = read_classifier(copy)
    tensors = load_file(copy / "model.safetensors")
    tensors |= {
        "bert.embeddings.position_ids": np.arange(32)[None],
        "cls.predictions.bias": np.ones(60, np.float32),
    }
    save_file(tensors, copy / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read_classifier(copy).params, before.params)


SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        ({}, {}, "sigmoid"),
        ({"id2label": {"0": "a", "1": "b"}}, {}, "identity"),
        ({"sbert_ce_default_activation_function": IDENTITY}, {}, "identity"),
        ({"sbert_ce_default_activation_function": None}, {}, "sigmoid"),
        (
            {"sentence_transformers": {"activation_fn": IDENTITY, "version": "5.0.0"}},
            {},
            "identity",
        ),
        ({"sentence_transformers": {"version": "4.0.0"}}, {}, "sigmoid"),
        (
            {"sentence_transformers": {"activation_fn": SIGMOID}},
            {"activation_fn": IDENTITY},
            "identity",
        ),
        ({"id2label": {"0": "a", "1": "b"}}, {"activation_fn": SIGMOID}, "sigmoid"),
    ],
)
def test_activation_by_config(copy, config, settings, expected):
    if len(config.get("id2label", {})) == 2:
        torch_classifier("bert", 2).save_pretrained(copy)
    edit(copy / "config.json", **config)
    (copy / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert read_classifier(copy).activation == expected


@pytest.mark.parametrize(
    "activation", ["os.system", "mine.Sigmoid", "torch.nn.modules.activation.Softmax", 3]
)
def test_no_other_activation_is_run(copy, activation):
    edit(copy / "config.json", sentence_transformers={"activation_fn": activation})
    with pytest.raises(
        InputError,
        match="config.json: unknown sentence_transformers.activation_fn .*known: torch.nn",
    ):
        read_classifier(copy)


def test_directories_of_other_models(copy, tmp_path):
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": ""}
        for kind in ("Transformer", "Pooling")
    ]
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(
        InputError, match="found Transformer, Pooling; expected a Transformer only, or with a"
    ):
        read_classifier(copy)
    (copy / "modules.json").unlink()
    edit(copy / "config.json", model_type="gpt2")
    with pytest.raises(InputError, match="unknown backbone 'gpt2'"):
        read_classifier(copy)
