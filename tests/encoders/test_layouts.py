"""Directories of sentence-transformers 2 to 6 and transformers, against the installed versions."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, LayerNorm, Normalize, Truncate
from embed_jax.encoders.read import read_model
from embed_jax.encoders.read_classifier import read_classifier
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.weighted_layers import WeightedLayers
from embed_jax.encoders.write import write_model
from embed_jax.errors import InputError
from embed_jax.pretrained import tokenizer_of

TEXTS = [
    "a Dog runs in the city",
    "music",
    "she plays the red guitar , very quickly . and the train made it " * 3,
]
OLD, BASE, NEW = (
    "sentence_transformers." + part
    for part in ("models.", "base.modules.", "sentence_transformer.modules.")
)
TORCH = "torch.nn.modules.activation."
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
T5 = {
    "d_model": 32,
    "d_kv": 16,
    "d_ff": 64,
    "num_layers": 3,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
}


def make(directory, tokenizer, name="BertModel", **changes):
    """Makes a model of three layers in transformers' layout.

    Its tokenizer keeps the case of letters.
    """
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = {
        "vocab_size": 240,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        **SMALL,
        **changes,
    }
    config = getattr(transformers, re.sub("(Encoder)?Model|For.*", "Config", name))
    torch.manual_seed(0)
    model = getattr(transformers, name)(config(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    shutil.copytree(tokenizer, directory, dirs_exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def bert(tmp_path_factory, tiny_tokenizer):
    return make(tmp_path_factory.mktemp("layouts") / "bert", tiny_tokenizer)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def edit(path, **changes):
    result = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    write(path, {name: value for name, value in result.items() if value is not ...})


@pytest.fixture
def lay_out(bert, tmp_path):
    """`((type, folder, config, tensors), ..., texts=..., settings=...) -> directory`.

    The first is the Transformer.
    """

    def make(transformer, *others, texts=None, settings=None, name="sentence_bert_config.json"):
        modules, directory = [transformer, *others], tmp_path / "model"
        shutil.copytree(bert, directory / transformer[1])
        for _, folder, *files in modules:
            for file, save in zip(
                files,
                (lambda path, value: write(path / "config.json", value), save_tensors),
                strict=False,
            ):
                if file is not None:
                    save(directory / folder, file)
        if texts is not None:
            write(directory / transformer[1] / name, texts)
        if settings is not None:
            write(directory / "config_sentence_transformers.json", settings)
        write_modules(directory, *modules)
        return directory

    return make


def write_modules(directory, *modules):
    """Writes modules.json of (type, folder) pairs."""
    entries = [
        {"idx": i, "name": str(i), "path": folder, "type": kind}
        for i, (kind, folder, *_) in enumerate(modules)
    ]
    write(directory / "modules.json", entries)


def save_tensors(directory, tensors):
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "model.safetensors")


def ours(directory, make_batch, prompt_name=None):
    """Returns the tokenizer, and embeddings computed by the parts under test."""
    saved = read_model(directory)
    tokenizer = tokenizer_of(saved, saved.max_length)
    prompt = saved.settings.prompts.get(prompt_name or saved.settings.default_prompt_name, "")
    result = tokenizer.encode(TEXTS, prompt, saved.settings.include_prompt)
    tokens = make_batch(
        [[(i, ids)] for i, ids in enumerate(result.ids)], 64, len(TEXTS), result.skip
    )
    return np.asarray(jax.jit(build_encoder(saved.spec).apply)(saved.params, tokens))


@pytest.fixture
def agrees(make_batch):
    """`(directory, prompt_name=None, **arguments of SentenceTransformer)`.

    Checks that embeddings equal those of that SentenceTransformer.
    """

    def check(directory, prompt_name=None, **arguments):
        peer = pytest.importorskip("sentence_transformers")
        model = peer.SentenceTransformer(str(directory), device="cpu", **arguments)
        expected = model.encode(TEXTS, prompt_name=prompt_name)
        result = ours(directory, make_batch, prompt_name)
        assert result.shape == expected.shape and expected.std() > 1e-3
        np.testing.assert_allclose(result, expected, atol=1e-5)
        return model

    return check


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 4


MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
TWO = (OLD + "Transformer", ""), (OLD + "Pooling", "1_Pooling", MEAN)
DENSE = {"linear.weight": random(16, 32), "linear.bias": random(16)}
NORM = {"norm.weight": random(32), "norm.bias": random(32, seed=1)}
SIZES = {"in_features": 32, "out_features": 16}
V6 = {
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}


# ---- what each version writes


LAYOUTS = {
    "2: their own folders, flags": (
        (
            (OLD + "Transformer", "0_Transformer"),
            (
                OLD + "Pooling",
                "1_Pooling",
                MEAN
                | {
                    "pooling_mode_cls_token": False,
                    "pooling_mode_max_tokens": False,
                    "pooling_mode_mean_sqrt_len_tokens": False,
                },
            ),
        ),
        dict(
            texts={"max_seq_length": 20, "do_lower_case": False},
            settings={"__version__": {"pytorch": "1.9"}},
        ),
    ),
    "2: poolings joined, classes by their modules' names": (
        (
            (OLD + "Transformer.Transformer", ""),
            (
                OLD + "Pooling.Pooling",
                "1_Pooling",
                MEAN | {"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True},
            ),
            (OLD + "Normalize.Normalize", "2_Normalize"),  # which has no folder
        ),
        dict(texts={"max_seq_length": None, "do_lower_case": True}),
    ),
    "2: another name of the config, Dense with its default": (
        (*TWO, (OLD + "Dense", "2_Dense", SIZES | {"bias": True}, DENSE)),
        dict(texts={"max_seq_length": 12}, name="sentence_roberta_config.json"),
    ),
    "3: prompts that are not pooled": (
        (
            TWO[0],
            (
                OLD + "Pooling",
                "1_Pooling",
                MEAN
                | {
                    "include_prompt": False,
                    "pooling_mode_lasttoken": False,
                    "pooling_mode_weightedmean_tokens": True,
                },
            ),
        ),
        dict(
            texts={
                "max_seq_length": 512,
                "do_lower_case": False,
                "model_args": {"attn_implementation": "eager"},
                "config_args": {"hidden_act": "relu"},
                "tokenizer_args": {"model_max_length": 15},
            },
            settings={
                "prompts": {"query": "find the words : "},
                "default_prompt_name": "query",
                "similarity_fn_name": None,
            },
        ),
    ),
    "4: every head": (
        (
            *TWO,
            (OLD + "LayerNorm", "2_LayerNorm", {"dimension": 32}, NORM),
            (OLD + "Dropout", "3_Dropout", {"dropout": 0.5}),
            (
                OLD + "Dense",
                "4_Dense",
                SIZES | {"bias": False, "activation_function": TORCH + "GELU"},
                {"linear.weight": DENSE["linear.weight"]},
            ),
            (OLD + "Normalize", "5_Normalize", {}),
        ),
        dict(settings={"similarity_fn_name": "dot", "prompts": {}, "default_prompt_name": None}),
    ),
    "5: other paths of the classes": (
        (
            (BASE + "transformer.Transformer", ""),
            (
                NEW + "pooling.Pooling",
                "1_Pooling",
                {
                    "embedding_dimension": 32,
                    "pooling_mode": "mean_sqrt_len_tokens",
                    "include_prompt": True,
                },
            ),
            (
                BASE + "dense.Dense",
                "2_Dense",
                SIZES
                | {
                    "bias": True,
                    "activation_function": TORCH + "SiLU",
                    "module_input_name": "sentence_embedding",
                    "module_output_name": None,
                },
                DENSE,
            ),
            (
                BASE + "normalize.Normalize",
                "3_Normalize",
                {
                    "module_input_name": "sentence_embedding",
                    "module_output_name": "sentence_embedding",
                },
            ),
        ),
        dict(
            texts=V6,
            settings={
                "model_type": "SentenceTransformer",
                "prompts": {"query": "", "document": ""},
                "default_prompt_name": None,
                "similarity_fn_name": "cosine",
            },
        ),
    ),
    "6: poolings in their own order, residual, cut": (
        (
            (NEW + "Transformer", ""),
            (
                NEW + "Pooling",
                "1_Pooling",
                {
                    "embedding_dimension": 32,
                    "pooling_mode": ["lasttoken", "cls"],
                    "include_prompt": True,
                },
            ),
            (
                NEW + "Dense",
                "2_Dense",
                {"in_features": 64, "out_features": 16, "use_residual": True},
                {
                    "linear.weight": random(16, 64),
                    "linear.bias": random(16),
                    "residual.weight": random(16, 64, seed=1),
                },
            ),
            (
                NEW + "Dense",
                "3_Dense",
                {"in_features": 16, "out_features": 16, "use_residual": True},
                {"linear.weight": random(16, 16), "linear.bias": random(16)},
            ),
        ),
        dict(
            texts=V6
            | {
                "config_kwargs": {"hidden_act": "relu"},
                "processor_kwargs": {"model_max_length": 15},
            },
            settings={"model_type": "SentenceTransformer", "truncate_dim": 10},
        ),
    ),
    "folders in folders": (
        (
            (OLD + "Transformer", "parts/0_Transformer"),
            (OLD + "Pooling", "parts/more/1_Pooling", MEAN),
            (
                OLD + "Dense",
                "parts/more/2_Dense",
                SIZES | {"activation_function": "torch.nn.modules.linear.Identity"},
                DENSE,
            ),
        ),
        dict(texts={"max_seq_length": 20, "do_lower_case": False}),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_sentence_transformers_reads_it(name, lay_out, agrees):
    modules, about = LAYOUTS[name]
    directory = lay_out(*modules, **about)
    model = agrees(directory)
    saved = read_model(directory)
    assert (saved.settings.similarity, saved.settings.default_prompt_name) == (
        model.similarity_fn_name,
        model.default_prompt_name,
    )
    assert saved.max_length == min(model.max_seq_length, 40)
    assert all(model.prompts[name] == prompt for name, prompt in saved.settings.prompts.items())
    if saved.settings.prompts.get("query"):
        agrees(directory, "query")


def test_what_was_read(lay_out):
    modules, about = LAYOUTS["6: poolings in their own order, residual, cut"]
    saved = read_model(lay_out(*modules, **about))
    assert saved.spec.pooling == "last_token+cls" and saved.spec.backbone.activation == "relu"
    dense = [Dense(size, 16, residual=True) for size in (64, 16)]
    assert saved.spec.heads == (*dense, Truncate(10)) and build_encoder(saved.spec).dim == 10


# ---- weights of layers


@pytest.mark.parametrize(
    ("start", "name", "changes"),
    [
        (2, "BertModel", {}),
        (0, "BertModel", {}),
        (0, "NomicBertModel", {}),
        (
            0,
            "ModernBertModel",
            {"eos_token_id": 1, "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1},
        ),
        (0, "T5EncoderModel", T5),
        (0, "Qwen3Model", {"num_key_value_heads": 1, "head_dim": 16}),
    ],
)
def test_weights_of_layers(start, name, changes, tmp_path, tiny_tokenizer, agrees, make_batch):
    directory = make(tmp_path / "model", tiny_tokenizer, name, **changes)
    edit(directory / "config.json", output_hidden_states=True)
    edit(directory / "sentence_bert_config.json", max_seq_length=30)
    weights = np.array([2, -0.5, 1, 0.25], np.float32)[start:]
    kinds = ("Transformer", "WeightedLayerPooling", "Pooling")
    write_modules(directory, *((OLD + kind, kind * (kind != "Transformer")) for kind in kinds))
    write(directory / "Pooling/config.json", MEAN)
    write(
        directory / "WeightedLayerPooling/config.json",
        {"word_embedding_dimension": 32, "layer_start": start, "num_hidden_layers": 3},
    )
    save_tensors(directory / "WeightedLayerPooling", {"layer_weights": weights})
    agrees(directory)
    saved = read_model(directory)
    assert saved.spec.token_head == WeightedLayers(32, 3, start)


def test_weights_of_layers_go_out_and_are_trained(
    lay_out, agrees, tmp_path, tiny_tokenizer, unpacked
):
    saved = read_model(lay_out(*TWO))
    spec = EncoderSpec(
        saved.spec.backbone, token_head=WeightedLayers(32, 3, 1), heads=(Normalize(), Truncate(8))
    )
    params = {**saved.params, "token_head": {"weights": np.array([1, 2, 3], np.float32)}}

    def embed(weights):
        return (
            build_encoder(spec)
            .apply({**params, "token_head": {"weights": weights}}, unpacked)
            .sum()
        )

    gradient = jax.jit(jax.grad(embed))(params["token_head"]["weights"])
    assert (
        np.abs(gradient).min() > 1e-4 and abs(gradient @ params["token_head"]["weights"]) < 1e-4
    )  # only ratios count

    class Tokenizer:
        def save(self, directory):
            shutil.copytree(tiny_tokenizer, directory, dirs_exist_ok=True)

    write_model(tmp_path / "out", spec, params, tokenizer=Tokenizer(), max_length=30)
    agrees(tmp_path / "out")
    again = read_model(tmp_path / "out")
    assert again.spec == spec
    jax.tree.map(np.testing.assert_array_equal, again.params, params)
    edit(tmp_path / "out/config.json", output_hidden_states=...)
    with pytest.raises(
        InputError, match="output_hidden_states: expected true beside the weights of layers"
    ):
        read_model(tmp_path / "out")


# ---- static embeddings


@pytest.mark.parametrize(
    ("kind", "folder"), [(OLD, "0_StaticEmbedding"), (NEW + "static_embedding.", "")]
)
def test_static_embeddings(kind, folder, tmp_path, tiny_tokenizer, agrees):
    table = {"embedding.weight": random(240, 32)}
    save_tensors(tmp_path / folder, table)
    shutil.copy(tiny_tokenizer / "tokenizer.json", tmp_path / folder)
    write_modules(tmp_path, (kind + "StaticEmbedding", folder), (OLD + "Normalize", "1_Normalize"))
    agrees(tmp_path)


# ---- Hugging Face's directories


def rename(directory, *changes):
    tensors = load_file(directory / "model.safetensors")
    for pattern, new in changes:
        tensors = {re.sub(pattern, new, name): value for name, value in tensors.items()}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def test_names_of_the_first_checkpoints(bert, tmp_path, agrees):
    directory = shutil.copytree(bert, tmp_path / "model")
    rename(
        directory,
        ("^", "bert."),
        (r"LayerNorm\.weight$", "LayerNorm.gamma"),
        (r"LayerNorm\.bias$", "LayerNorm.beta"),
    )
    assert "bert.embeddings.LayerNorm.gamma" in load_file(directory / "model.safetensors")
    agrees(directory)
    jax.tree.map(
        np.testing.assert_array_equal, read_model(directory).params, read_model(bert).params
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_in_shards(dtype, bert, tmp_path, tiny_tokenizer, agrees):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(bert, dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shutil.copytree(tiny_tokenizer, tmp_path, dirs_exist_ok=True)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    agrees(tmp_path, model_kwargs={"dtype": torch.float32})


def test_camembert_is_a_roberta(tmp_path, tiny_tokenizer, agrees):
    directory = make(tmp_path / "model", tiny_tokenizer, "CamembertModel", layer_norm_eps=1e-5)
    edit(directory / "tokenizer_config.json", model_max_length=30)
    agrees(directory)


def test_what_stands_beside_a_plain_directory_is_not_read(bert, tmp_path, agrees):
    """sentence_bert_config.json is not read beside a plain transformers directory.

    The same holds for a model's Transformer folder; its limit and case are read with the model.
    """
    directory = shutil.copytree(bert, tmp_path / "model")
    write(directory / "sentence_bert_config.json", {"max_seq_length": 10, "do_lower_case": True})
    agrees(directory)
    assert read_model(directory).max_length == 40


@pytest.mark.parametrize(
    ("changes", "pooling"), [({}, "last_token"), ({"is_causal": False}, "mean")]
)
def test_a_language_model_is_pooled_at_its_last_token(
    changes, pooling, tmp_path, tiny_tokenizer, agrees
):
    directory = make(
        tmp_path / "model", tiny_tokenizer, "Qwen3ForCausalLM", num_key_value_heads=1, head_dim=16
    )
    edit(directory / "config.json", **changes)
    if not changes:
        agrees(directory)
    assert read_model(directory).spec.pooling == pooling


def test_a_cross_encoder_is_no_embedding_model(tmp_path, tiny_tokenizer):
    directory = make(
        tmp_path / "model", tiny_tokenizer, "BertForSequenceClassification", num_labels=1
    )
    task = V6 | {
        "transformer_task": "sequence-classification",
        "module_output_name": "scores",
        "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    }
    write(directory / "sentence_bert_config.json", task)
    write(
        directory / "config_sentence_transformers.json",
        {
            "model_type": "CrossEncoder",
            "prompts": {"query": "find : "},
            "default_prompt_name": "query",
        },
    )
    write_modules(directory, (BASE + "transformer.Transformer", ""))
    refused(directory, "a cross-encoder, which scores pairs of texts")
    assert read_classifier(directory).prompt == "find : "
    for name in ("config_sentence_transformers.json", "modules.json"):  # transformers' only
        (directory / name).unlink()
    refused(directory, "a cross-encoder, which scores pairs of texts")
    edit(directory / "sentence_bert_config.json", transformer_task="fill-mask")
    with pytest.raises(
        InputError, match="transformer_task: expected 'sequence-classification', found 'fill-mask'"
    ):
        read_classifier(directory)


# ---- what cannot be run is named, with what is accepted


def refused(directory, message, read=read_model):
    with pytest.raises(InputError, match=message) as error:
        read(directory)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


ACCEPTED = (
    "known: Dense, Dropout, LatentAttention, LayerNorm, LogitScore, MLMTransformer, Normalize, "
    "Pooling, SparseStaticEmbedding, SpladePooling, StaticEmbedding, Transformer, Weight"
)


@pytest.mark.parametrize(
    ("position", "kind", "message"),
    [
        *(
            (1, OLD + kind, f"unknown module '{kind}'.*{ACCEPTED}")
            for kind in ("CNN", "LSTM", "WordWeights")
        ),
        *(
            (0, OLD + kind, f"unknown module '{kind}'.*{ACCEPTED}")
            for kind in ("BoW", "WordEmbeddings", "CLIPModel")
        ),
        (
            1,
            "sentence_transformers.sparse_encoder.models.SparseAutoEncoder",
            "unknown module 'SparseAutoEncoder'",
        ),
        (
            0,
            "custom_st.Transformer",
            "'custom_st.Transformer' is code of the model's own.*never run; accepted: .*Dense",
        ),
        (
            0,
            BASE + "router.Router",
            r"Router: an encoder for each route, where .*encoders\[ROUTE\].save",
        ),
        (2, OLD + "Asym", "Asym: an encoder for each route"),
        (2, OLD + "Pooling", "found Transformer, Pooling, Pooling; expected Transformer, Pooling"),
        (1, OLD + "Normalize", "found Transformer, Normalize; expected"),
    ],
)
def test_modules_that_are_refused(position, kind, message, lay_out):
    modules = [*TWO]
    modules[position : position + 1] = [(kind, f"{position}_part")]
    refused(
        lay_out(*modules),
        f"modules.json: .*{message}" if "'" not in message[:1] else f"module {message}",
    )


@pytest.mark.parametrize("folder", ["../elsewhere", "/elsewhere", "C:\\elsewhere", "a/../../b"])
def test_folders_elsewhere_are_refused(folder, lay_out):
    directory = lay_out(*TWO)
    modules = json.loads((directory / "modules.json").read_text())
    modules[1]["path"] = folder
    write(directory / "modules.json", modules)
    refused(directory, "path: expected a folder in the model's directory, found ")


def test_a_transformer_without_a_pooling_is_refused(lay_out):
    refused(lay_out(TWO[0]), "found a Transformer only; expected a Pooling after it")


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("sentence_bert_config.json", {"frames": 3}, "unknown field 'frames'"),
        (
            "sentence_bert_config.json",
            {"max_seq_length": "long"},
            "max_seq_length: expected a whole number from 0, found",
        ),
        ("sentence_bert_config.json", {"query_length": 8}, "query_length: expected none, found 8"),
        (
            "sentence_bert_config.json",
            {"transformer_task": "fill-mask"},
            "expected 'feature-extraction', found 'fill-m",
        ),
        (
            "sentence_bert_config.json",
            {"module_output_name": "sentence_embedding"},
            "expected 'token_embeddings'",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": V6["modality_config"] | {"message": {}}},
            "chat template",
        ),
        (
            "sentence_bert_config.json",
            {"modality_config": {"image": {}}},
            "text: expected .*, found None",
        ),
        (
            "sentence_bert_config.json",
            {"model_args": {"variant": "fp16"}},
            "model_kwargs: variant: not supported; acc",
        ),
        (
            "sentence_bert_config.json",
            {"tokenizer_args": {"add_prefix_space": True}},
            "add_prefix_space: not supported",
        ),
        (
            "config_sentence_transformers.json",
            {"truncate_dim": 0},
            "truncate_dim: expected a size or null, found 0",
        ),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "maxsim"},
            "unknown similarity 'maxsim'",
        ),
        (
            "config_sentence_transformers.json",
            {"default_prompt_name": "q"},
            "unknown prompt 'q'.*known: document, query",
        ),
        (
            "1_Pooling/config.json",
            {"pooling_mode_sum_tokens": True},
            "unknown field 'pooling_mode_sum_tokens'",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "sum"}, "unknown pooling_mode 'sum'"),
        (
            "2_Dense/config.json",
            {"activation_function": "mine.Tanh"},
            "unknown activation_function 'mine.Tanh'",
        ),
        (
            "2_Dense/config.json",
            {"module_input_name": "token_embeddings"},
            "expected 'sentence_embedding', after the",
        ),
        ("2_Dense/config.json", {"dropout": 0.1}, "unknown field 'dropout'"),
        ("2_Dense/config.json", {"out_features": 9}, r"expected \{.*9, 32"),
        ("2_Dense/config.json", {"out_features": -1}, "out_features: expected a size, found -1"),
        ("2_Dense/config.json", {"in_features": ...}, "missing 'in_features'"),
        ("2_Dense/config.json", {"use_residual": True}, r"expected \{.*residual.weight"),
    ],
)
def test_settings_that_are_refused(file, changes, message, lay_out):
    directory = lay_out(*TWO, (OLD + "Dense", "2_Dense", SIZES, DENSE))
    edit(directory / file, **changes)
    refused(directory, f"{file}: .*{message}" if r"expected \{" not in message else message)


@pytest.mark.parametrize("folder", ["", "2_Dense"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", ""])
def test_pickled_weights_are_refused(folder, name, lay_out):
    directory = lay_out(*TWO, (OLD + "Dense", "2_Dense", SIZES, DENSE))
    (directory / folder / "model.safetensors").unlink()
    if name:
        (directory / folder / name).write_bytes(b"\x80")
    result = "only pickled weights" if name else r"no model.safetensors \(nor "
    refused(
        directory, rf"{result}.*convert them with SentenceTransformer\(DIR\).save_pretrained\(NEW\)"
    )


def test_the_advice_for_pickled_weights_works(bert, lay_out, tmp_path, make_batch):
    peer, torch = pytest.importorskip("sentence_transformers"), pytest.importorskip("torch")
    directory = lay_out(*TWO, (OLD + "LayerNorm", "2_LayerNorm", {"dimension": 32}, NORM))
    expected = ours(directory, make_batch)
    for folder in ("", "2_LayerNorm"):
        tensors = load_file(directory / folder / "model.safetensors")
        torch.save(
            {name: torch.tensor(value) for name, value in tensors.items()},
            directory / folder / "pytorch_model.bin",
        )
        (directory / folder / "model.safetensors").unlink()
    peer.SentenceTransformer(str(directory), device="cpu").save_pretrained(str(tmp_path / "new"))
    np.testing.assert_array_equal(ours(tmp_path / "new", make_batch), expected)
    assert read_model(tmp_path / "new").spec.heads == (LayerNorm(32),)
