"""Cross-encoders of other layouts than BERT's classifier score as in sentence-transformers."""

import dataclasses
import json
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.cross_encoder import CrossEncoder, load_cross_encoder
from embed_jax.data.pair_template import encode_templated_pairs, read_pair_template
from embed_jax.data.tokenizer_files import from_transformers
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import make_classifier
from embed_jax.encoders.heads import Dense, Dropout, LayerNorm, LogitScore
from embed_jax.encoders.model_kind import is_cross_encoder
from embed_jax.encoders.spec import LoraSpec
from embed_jax.encoders.text_config import ChatFormat
from embed_jax.errors import InputError

WORDS = "a the of to in is cat dog house river music plays red blue city language yes no".split()
WORDS += "0 1 2 3 4".split()  # by which sentence-transformers finds a template's end
ROLES = ["<|im_start|>", "<|im_end|>", "<Query>:", "<Document>:", "<think>", "</think>"]
TEMPLATE = (
    "{% for m in messages if m.role == 'system' %}<|im_start|> {{ m.content }}<|im_end|>"
    "{% endfor %}"
    "<|im_start|> <Query>: {{ messages | selectattr('role', 'eq', 'query') |"
    " map(attribute='content') | first }} <Document>: {{ messages |"
    " selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>"
    "{% if add_generation_prompt %} <think> </think>{% endif %}"
)
STRUCTURED = (
    "{% for m in messages %}<|im_start|> {{ m.content[0].text | trim }}<|im_end|>{% endfor %}"
    " <think>"
)
LIMIT = 40


@pytest.fixture(autouse=True)
def no_warning_of_cut_pairs():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pairs were cut")
        yield


def made_tokenizer(template=None, **special):
    """Makes a tokenizer of words; each piece between blanks is a token."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = ["<pad>", "<unk>", "<s>", "</s>", *WORDS]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(vocabulary)}, "<unk>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    hf = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", **special
    )
    hf.add_special_tokens({"additional_special_tokens": ROLES})
    hf.chat_template = template
    hf.model_input_names = ["input_ids", "attention_mask"]
    return hf


def made_model(directory, kind, template=None, **changes):
    """Writes a random model of two layers with its tokenizer as transformers lays them out."""
    torch = pytest.importorskip("torch")
    import transformers

    tokenizer = made_tokenizer(template)
    tokenizer.save_pretrained(directory)
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LIMIT,
        "pad_token_id": 0,
    }
    if not kind.startswith("Bert"):
        settings |= {"num_key_value_heads": 1, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}
    if kind.startswith("T5"):
        settings = {"vocab_size": len(tokenizer), "d_model": 16, "d_kv": 8, "d_ff": 32}
        settings |= {"num_layers": 2, "num_heads": 2, "pad_token_id": 0, "eos_token_id": 3}
    torch.manual_seed(0)
    family = (
        kind.removesuffix("EncoderModel")
        .removesuffix("ForCausalLM")
        .removesuffix("ForSequenceClassification")
    )
    config = getattr(transformers, f"{family.removesuffix('Model')}Config")(**settings | changes)
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4)
    model.save_pretrained(directory)
    return directory


def made_pairs(count, seed=0, most=20):
    """Makes queries of 1 to 4 words and passages of 0 to `most`, one of them empty."""
    rng = np.random.default_rng(seed)

    def text(least, most):
        return " ".join(rng.choice(WORDS, rng.integers(least, most + 1)))

    return [text(1, 4) for _ in range(count)], ["", *(text(1, most) for _ in range(count - 1))]


def peer_scores(model, queries, passages):
    return model.predict(list(zip(queries, passages, strict=True)), show_progress_bar=False)


def agrees(directory, reference, pairs, spread=0.05):
    """Checks that our scores are sentence-transformers', 1e-4, and that these differ."""
    expected = peer_scores(reference, *pairs)
    assert np.ptp(expected, axis=0).min() > spread
    ours = load_cross_encoder(str(directory))
    np.testing.assert_allclose(ours.score(*pairs), expected, atol=1e-4)
    return ours


def both_ways(directory, reference, pairs, tmp_path):
    """Checks the scores of a model that was read, written, and read by sentence-transformers."""
    peer = pytest.importorskip("sentence_transformers")
    reference.save_pretrained(str(tmp_path / "peer"))
    agrees(directory, reference, pairs)
    ours = agrees(tmp_path / "peer", reference, pairs)
    assert is_cross_encoder(tmp_path / "peer")
    ours.save(tmp_path / "ours")
    back = agrees(tmp_path / "ours", reference, pairs)
    assert (back.spec, back.activation, back.chat) == (ours.spec, ours.activation, ours.chat)
    jax.tree.map(np.testing.assert_array_equal, back.params, ours.params)
    again = peer.CrossEncoder(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_allclose(
        peer_scores(again, *pairs), peer_scores(reference, *pairs), atol=1e-5
    )
    return ours


# ---- language models -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "template", "changes"),
    [
        ("Qwen3ForCausalLM", TEMPLATE, {"tie_word_embeddings": True}),
        ("Gemma2ForCausalLM", STRUCTURED, {"final_logit_softcapping": 2.0}),
        ("LlamaForCausalLM", None, {}),
    ],
)
def test_a_language_model_scores_by_two_tokens(kind, template, changes, tmp_path):
    peer = pytest.importorskip("sentence_transformers")
    directory = made_model(tmp_path / "plain", kind, template, **changes)
    reference = peer.CrossEncoder(str(directory), device="cpu")
    ours = both_ways(directory, reference, made_pairs(12), tmp_path)
    head = ours.spec.heads[0]
    assert isinstance(head, LogitScore)
    assert [made_tokenizer().convert_ids_to_tokens(i) for i in head.token_ids] == ["yes", "no"]
    assert (ours.output_layer is None) == ours.spec.backbone.tied == (kind != "LlamaForCausalLM")


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A directory of sentence-transformers, with a prompt and an option of its template."""
    peer = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.cross_encoder.modules import LogitScore as PeerLogitScore

    plain = made_model(tmp_path_factory.mktemp("plain"), "Qwen3ForCausalLM", TEMPLATE)
    transformer = Transformer(
        str(plain),
        transformer_task="text-generation",
        processing_kwargs={"chat_template": {"add_generation_prompt": True}},
    )
    model = peer.CrossEncoder(
        modules=[transformer, PeerLogitScore(5, 9)],
        device="cpu",
        prompts={"find": "the red"},
        default_prompt_name="find",
    )
    directory = tmp_path_factory.mktemp("model")
    model.save_pretrained(str(directory))
    return directory


def test_options_and_the_prompt_reach_the_template(language_model, tmp_path):
    """The texts are those of the longest pairs that fit, and longer ones that are cut alike."""
    peer = pytest.importorskip("sentence_transformers")
    reference = peer.CrossEncoder(str(language_model), device="cpu")
    pairs = made_pairs(16, most=60)
    ours = agrees(language_model, reference, pairs)
    with pytest.warns(UserWarning, match=f"pairs were cut at the model's limit of {LIMIT} tokens"):
        ours.score(*pairs)
    ours.save(tmp_path / "saved")
    back = agrees(tmp_path / "saved", reference, pairs)
    agrees(tmp_path / "saved", peer.CrossEncoder(str(tmp_path / "saved"), device="cpu"), pairs)
    assert (back.prompt, back.chat.options) == ("the red", {"add_generation_prompt": True})
    longer = back.logits(["dog"], ["the cat " * 30])
    np.testing.assert_array_equal(longer, back.logits(["dog"], ["the cat " * 40]))
    assert back.logits(["dog"], ["the cat"]) != longer
    assert back.logits(["dog of"], ["the cat " * 30]) != longer  # the query is whole


def test_rows_that_are_trained_are_written(language_model, tmp_path):
    """Rows other than those of a tied table make an output layer; the others stay as they were."""
    peer = pytest.importorskip("sentence_transformers")
    from safetensors.numpy import load_file

    queries, passages = made_pairs(8)
    untied = made_model(tmp_path / "untied", "LlamaForCausalLM")
    for directory in (language_model, untied):
        model = load_cross_encoder(str(directory))
        heads = jax.tree.map(lambda rows: rows[::-1] + 0.5, jax.device_get(model.params["heads"]))
        model = CrossEncoder(
            model.spec,
            {**model.params, "heads": heads},
            model.tokenizer,
            chat=model.chat,
            prompt=model.prompt,
            output_layer=model.output_layer,
        )
        model.save(tmp_path / "saved")
        reference = peer.CrossEncoder(str(tmp_path / "saved"), device="cpu")
        agrees(tmp_path / "saved", reference, (queries, passages), spread=1e-3)
        ids = list(model.spec.heads[0].token_ids)
        before, after = (
            load_file(place / "model.safetensors") for place in (directory, tmp_path / "saved")
        )
        old = before.get("lm_head.weight", before["model.embed_tokens.weight"])
        rest = np.delete(np.arange(len(old)), ids)
        np.testing.assert_array_equal(after["lm_head.weight"][rest], old[rest])
        assert not np.array_equal(after["lm_head.weight"][ids], old[ids])


def test_a_classifier_with_a_chat_template(tmp_path):
    peer = pytest.importorskip("sentence_transformers")
    directory = made_model(
        tmp_path / "plain", "Qwen3ForSequenceClassification", TEMPLATE, num_labels=1
    )
    reference = peer.CrossEncoder(str(directory), device="cpu")
    ours = both_ways(directory, reference, made_pairs(12), tmp_path)
    assert ours.spec.pooling == "last_token"


def test_an_adapter_is_merged_as_it_is_saved(language_model, tmp_path):
    """Adapters of the layers of a classifier, of a language model and of modules."""
    backbone = load_cross_encoder(str(language_model)).spec.backbone
    other = make_classifier(backbone, num_labels=2)
    modules = dataclasses.replace(other, pooling="mean")
    for name, spec in {"form": other, "modules": modules, "score": None}.items():
        model = load_cross_encoder(str(language_model))
        spec = dataclasses.replace(spec or model.spec, lora=LoraSpec(2, 4.0))
        params = build_encoder(spec).init(jax.random.key(0))
        params["lora"] = jax.tree.map(lambda leaf: leaf + 0.1, params["lora"])
        tuned = CrossEncoder(spec, params, model.tokenizer, chat=model.chat, activation="identity")
        tuned.save(tmp_path / name)
        back = load_cross_encoder(str(tmp_path / name))
        assert back.spec == dataclasses.replace(spec, lora=None)
        pair = ["dog"], ["the cat"]
        np.testing.assert_allclose(back.score(*pair), tuned.score(*pair), atol=1e-5)
        params["lora"] = jax.tree.map(jnp.zeros_like, params["lora"])
        assert np.abs(tuned.logits(*pair, params=params) - tuned.logits(*pair)).max() > 1e-4


# ---- modules -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "labels"), [("BertModel", 1), ("Qwen3Model", 3), ("T5EncoderModel", 1)]
)
def test_modules_that_end_in_scores(kind, labels, tmp_path):
    torch = pytest.importorskip("torch")
    peer = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Dense as PeerDense
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Dropout as PeerDropout
    from sentence_transformers.sentence_transformer.modules import LayerNorm as PeerLayerNorm
    from sentence_transformers.sentence_transformer.modules import Pooling

    template = TEMPLATE if kind == "Qwen3Model" else None
    transformer = Transformer(str(made_model(tmp_path / "plain", kind, template)))
    gelu, identity = torch.nn.GELU(), torch.nn.Identity()
    torch.manual_seed(1)
    reference = peer.CrossEncoder(
        modules=[
            transformer,
            Pooling(16, "lasttoken" if kind == "Qwen3Model" else "mean"),
            PeerDense(16, 24, activation_function=gelu),
            PeerDropout(0.3),
            PeerLayerNorm(24),
            PeerDense(24, labels, activation_function=identity, module_output_name="scores"),
        ],
        device="cpu",
        activation_fn=identity,
    )
    with torch.no_grad():
        for module in list(reference)[2:]:
            for parameter in module.parameters():
                parameter.normal_(0, 1)
    reference.save_pretrained(str(tmp_path / "peer"))
    ours = both_ways(tmp_path / "peer", reference, made_pairs(12), tmp_path)
    assert ours.num_labels == labels
    assert [type(head) for head in ours.spec.heads] == [Dense, Dropout, LayerNorm, Dense]


# ---- rank ----------------------------------------------------------------------------------------


def test_rank_equals_sentence_transformers(language_model):
    peer = pytest.importorskip("sentence_transformers")
    reference = peer.CrossEncoder(str(language_model), device="cpu")
    model = load_cross_encoder(str(language_model))
    passages = made_pairs(9)[1]
    expected = reference.rank("the red dog", passages, return_documents=True)
    ranking = model.rank("the red dog", passages, return_documents=True)
    assert [entry["corpus_id"] for entry in ranking] == [entry["corpus_id"] for entry in expected]
    for entry, other in zip(ranking, expected, strict=True):
        assert entry.keys() == other.keys() and entry["text"] == other["text"]
        assert type(entry["score"]) is float and type(entry["corpus_id"]) is int
        assert entry["score"] == pytest.approx(other["score"], abs=1e-4)
    assert model.rank("dog", passages[:1]) == [{"corpus_id": 0, "score": pytest.approx(0.5, abs=1)}]
    assert len(model.rank("the red dog", passages, top_k=2)) == 2
    assert model.rank("dog", []) == model.rank("dog", passages, top_k=0) == []


def test_equal_logits_are_ranked_by_index_and_equal_scores_by_logits(language_model, monkeypatch):
    model = load_cross_encoder(str(language_model))
    logits = np.array([[90], [91], [-3], [90], [90]], np.float32)
    monkeypatch.setattr(model, "logits", lambda *_, **__: logits)
    ranking = model.rank("dog", list("abcde"))
    assert [entry["corpus_id"] for entry in ranking] == [1, 0, 3, 4, 2]
    assert [entry["score"] for entry in ranking[:4]] == [1.0] * 4


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content }}", "it leaves out the message of the role 'document'"),
        ("{{ raise_exception('user only') }}", "cannot hold a pair of texts: user only"),
        (
            "{% for m in messages %}{{ m.content | upper }}{{ m.content }} {% endfor %}",
            "cannot hold a pair of texts: it changes them",
        ),
        (TEMPLATE + " a" * LIMIT, f"max_length {LIMIT} leaves no room for a pair of texts: 44 are"),
    ],
)
def test_a_template_that_cannot_hold_a_pair(language_model, template, message):
    model = load_cross_encoder(str(language_model))
    tokenizer = from_transformers(made_tokenizer(template), LIMIT)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        CrossEncoder(model.spec, model.params, tokenizer, chat=ChatFormat())
    assert "\n" not in str(caught.value)


def test_what_cannot_be_scored_is_one_line(language_model, tmp_path):
    model = load_cross_encoder(str(language_model))
    assert np.isfinite(model.score(["dog"], [""])).all()
    with pytest.raises(InputError, match="leaves no room for a passage in max_length 40: 'dog dog"):
        model.score(["dog " * 50], ["the cat"])
    with pytest.raises(InputError, match="top_k: expected a number from 0, found -1"):
        model.rank("dog", ["a"], top_k=-1)
    edit = tmp_path / "model"
    shutil.copytree(language_model, edit)
    config = edit / "1_LogitScore" / "config.json"
    for fields, message in (
        ({"true_token_id": 99}, "token 99: expected one of the model's"),
        ({}, "missing 'true_token_id'"),
        ({"true_token_id": 5, "module_input_name": "logits"}, "expected 'causal_logits'"),
    ):
        config.write_text(json.dumps(fields))
        with pytest.raises(InputError, match=message):
            load_cross_encoder(str(edit))


def test_a_model_with_several_labels_does_not_rank(language_model):
    model = load_cross_encoder(str(language_model))
    spec = make_classifier(model.spec.backbone, num_labels=2)
    params = build_encoder(spec).init(jax.random.key(0))
    classifier = CrossEncoder(spec, params, model.tokenizer)
    with pytest.raises(InputError, match="rank: expected a model with one label, found 2"):
        classifier.rank("dog", ["a"])


def test_a_passage_is_cut_at_its_end_only():
    """The template and the query stay whole; the passage keeps its first words."""
    tokenizer = from_transformers(made_tokenizer(TEMPLATE), 20)
    template = read_pair_template(tokenizer, options={"add_generation_prompt": True})
    query, passage = "red dog", " ".join(WORDS)
    (whole,) = tokenizer.tokenize([template.fill(query, passage)[0]], whole=True)
    cut = encode_templated_pairs(tokenizer, template, [query, query], [passage, "a"])
    assert (cut.truncated, len(cut.ids[0])) == (1, 20)
    start = 20 - 3  # tokens before the last three: <|im_end|> <think> </think>
    assert cut.ids[0].tolist() == whole.ids[:start] + whole.ids[-3:]
    structured = from_transformers(made_tokenizer(STRUCTURED), 20)
    assert read_pair_template(structured).fill(" a ", "b ")[0] == template_text("a", "b")


def template_text(query, passage):
    return f"<|im_start|> {query}<|im_end|><|im_start|> {passage}<|im_end|> <think>"
