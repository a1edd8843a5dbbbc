"""Adapters of sequence classifiers in PEFT's format: equal logits in both libraries."""

import jax
import numpy as np
import pytest

from embed_jax.cross_encoder import CrossEncoder, load_cross_encoder
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.encoders.model_kind import is_cross_encoder
from embed_jax.errors import InputError

QUERIES = ["the cat sat", "a train from the city", "science"]
PASSAGES = ["dog", "language models and apples", "a cat"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory, tiny_tokenizer):
    """Returns directories by family: a plain encoder, and a classifier of 2 labels."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("peft")
    sizes = {
        "vocab_size": load_tokenizer(tiny_tokenizer, 32).vocab_size,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    made = {}
    for name, kind in (("bert", "BertModel"), ("llama", "LlamaForSequenceClassification")):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name.title()}Config")(**sizes)
        model = getattr(transformers, kind)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
        load_tokenizer(tiny_tokenizer, 32).save(made[name])
    return made


def by_peft(base, directory, targets, **changes):
    """Saves a random adapter of a classifier with 3 labels made by peft, and returns its logits."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=3, ignore_mismatched_sizes=True
    )
    config = peft.LoraConfig("SEQ_CLS", r=4, lora_alpha=6, target_modules=targets, **changes)
    model = peft.get_peft_model(model, config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(0, 0.3)
    model.save_pretrained(directory)
    return logits_of(model, base)


def logits_of(model, base):
    torch = pytest.importorskip("torch")
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    rows = []
    for pair in zip(QUERIES, PASSAGES, strict=True):
        with torch.no_grad():
            rows.append(model(**tokenizer(*pair, return_tensors="pt")).logits[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize(
    ("family", "changes"), [("bert", {"use_rslora": True}), ("llama", {"use_dora": True})]
)
def test_an_adapter_of_peft_scores_alike_and_so_does_ours(family, changes, bases, tmp_path):
    peft = pytest.importorskip("peft")
    import transformers

    targets = {"bert": ["query", "value"], "llama": ["q_proj", "down_proj"]}[family]
    expected = by_peft(bases[family], tmp_path / "theirs", targets, **changes)
    assert is_cross_encoder(tmp_path / "theirs")
    ours = load_cross_encoder(tmp_path / "theirs")
    assert (ours.num_labels, ours.spec.lora.rank, ours.base) == (3, 4, str(bases[family]))
    np.testing.assert_allclose(ours.logits(QUERIES, PASSAGES), expected, atol=1e-4)

    ours.params = {
        **ours.params,
        "heads": jax.tree.map(lambda leaf: 2 * leaf, ours.params["heads"]),
    }
    changed = ours.logits(QUERIES, PASSAGES)
    assert np.abs(changed - expected).max() > 0.01
    ours.save_adapter(tmp_path / "ours")
    back = load_cross_encoder(tmp_path / "ours")
    assert back.spec == ours.spec
    jax.tree.map(np.testing.assert_array_equal, back.params, ours.params)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(
        bases[family], num_labels=3, ignore_mismatched_sizes=True
    )
    reference = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    np.testing.assert_allclose(logits_of(reference, bases[family]), changed, atol=1e-4)

    ours.save(tmp_path / "merged")
    merged = load_cross_encoder(tmp_path / "merged")
    assert merged.spec.lora is None
    np.testing.assert_allclose(merged.logits(QUERIES, PASSAGES), changed, atol=1e-4)


def test_what_cannot_be_read_or_written_is_one_line(bases, tmp_path):
    by_peft(bases["bert"], tmp_path / "pooler", ["query", "pooler.dense"])
    with pytest.raises(InputError, match="adapts 'pooler.dense', which is no linear map"):
        load_cross_encoder(tmp_path / "pooler")
    whole = load_cross_encoder(bases["llama"])
    with pytest.raises(InputError, match="with an adapter .* found no adapter") as caught:
        whole.save_adapter(tmp_path / "none")
    assert "\n" not in str(caught.value)
    by_peft(bases["llama"], tmp_path / "adapter", ["q_proj"])
    adapter = load_cross_encoder(tmp_path / "adapter")
    nameless = CrossEncoder(adapter.spec, adapter.params, adapter.tokenizer)
    with pytest.raises(InputError, match="without its base, whose name is not known"):
        nameless.save_adapter(tmp_path / "nameless")
