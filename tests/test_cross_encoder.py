"""Scores of pairs equal those of sentence-transformers' CrossEncoder, in any order and batch."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest

from embed_jax.cross_encoder import CrossEncoder, load_cross_encoder
from embed_jax.data.pack import pack_sentences
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.data.window import pack_window
from embed_jax.encoders.model_kind import is_cross_encoder
from embed_jax.errors import InputError

WORDS = """a the of to and in is that it was for on are as with cat dog house river music guitar
plays quickly red blue city country road train apple bread science language model learns""".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,"
LIMIT = 48
ODD = [
    ("", ""),
    ("", "the cat"),
    ("the cat", ""),
    ("  The   CAT ", "\t\n"),
    ("中文", "Ünïcödé 😀"),
    ("[CLS] the [SEP]", "</s> <s> dog"),
    ("the cat " * 50, "dog"),
    ("dog", "the cat " * 50),
    ("a dog " * 40, "the cat " * 50),
    ("x" * 300, "y" * 300),
]
FAMILIES = {
    "bert": ("Bert", "Bert"),
    "roberta": ("Roberta", "Roberta"),
    "xlm-roberta": ("XLMRoberta", "XLMRoberta"),
    "mpnet": ("MPNet", "MPNet"),
    "distilbert": ("DistilBert", "DistilBert"),
    "electra": ("Electra", "Electra"),
    "deberta-v2": ("DebertaV2", "DebertaV2"),
}


def made_tokenizer(name):
    """Makes a tokenizer of the family's form with a small vocabulary."""
    import transformers

    kind = getattr(transformers, f"{FAMILIES[name][1]}Tokenizer")
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    if name == "roberta":
        pieces = dict.fromkeys([*marks, *LETTERS, "Ġ", "Ġc", "Ġt", "he", "Ġthe", "Ċ", "ĉ"])
        merges = [("Ġ", "c"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he")]
        return kind(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)
    if name == "xlm-roberta":
        pieces = dict.fromkeys([*marks, "▁", *LETTERS, *(f"▁{word}" for word in WORDS)])
        return kind(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)])
    if name == "deberta-v2":
        marks = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
        pieces = dict.fromkeys([*marks, "▁", *LETTERS, *(f"▁{word}" for word in WORDS), "[MASK]"])
        return kind(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=3)
    marks = (
        ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
        if name == "mpnet"
        else "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
    )
    pieces = dict.fromkeys([*marks, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)])
    return kind(vocab={piece: i for i, piece in enumerate(pieces)})


def made_model(name, directory, num_labels=1, **changes):
    """Writes a random model of one layer with its tokenizer as transformers lays them out."""
    torch = pytest.importorskip("torch")
    import transformers

    tokenizer = made_tokenizer(name)
    tokenizer.save_pretrained(directory)
    offset = 2 if name in ("roberta", "xlm-roberta", "mpnet") else 0
    settings = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LIMIT + offset,
        "num_labels": num_labels,
    }
    settings |= {"pad_token_id": tokenizer.pad_token_id, "type_vocab_size": 1 if offset else 2}
    if name == "distilbert":
        settings |= {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64}
    else:
        settings |= {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        }
    if name == "deberta-v2":
        settings |= {"relative_attention": True, "pos_att_type": "p2c|c2p"}
    torch.manual_seed(0)
    prefix = FAMILIES[name][0]
    config = getattr(transformers, f"{prefix}Config")(**settings | changes)
    model = getattr(transformers, f"{prefix}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    model.save_pretrained(directory)
    return directory


def made_pairs(count, seed=0):
    """Makes queries of 1 to 8 and passages of 1 to 20 words, and odd ones, shuffled."""
    rng = np.random.default_rng(seed)

    def text(most):
        return " ".join(rng.choice(WORDS, rng.integers(1, most + 1)))

    pairs = [(text(8), text(20)) for _ in range(count)] + ODD
    pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    return [query for query, _ in pairs], [passage for _, passage in pairs]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return made_model("bert", tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def model(bert):
    return load_cross_encoder(str(bert), max_length=LIMIT)


@pytest.fixture(autouse=True)
def no_warning_of_cut_pairs():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pairs were cut")
        yield


# ---- parity --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_pairs_are_tokenised_as_by_transformers(name, tmp_path):
    """Pairs are cut in every possible way; token types are compared where they exist."""
    from transformers import AutoTokenizer

    made_tokenizer(name).save_pretrained(tmp_path)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    queries, passages = made_pairs(20)
    for limit in (5, 8, 21, 1000):
        ours = load_tokenizer(tmp_path, limit).encode_pairs(queries, passages)
        cut = reference(queries, passages, truncation="longest_first", max_length=limit)
        assert [ids.tolist() for ids in ours.ids] == cut["input_ids"]
        whole = reference(queries, passages)["input_ids"]
        assert ours.truncated == sum(len(ids) > limit for ids in whole)
        assert (ours.segments is None) == ("token_type_ids" not in cut)
        if ours.segments is not None:
            assert [types.tolist() for types in ours.segments] == cut["token_type_ids"]
            assert max(types.max() for types in ours.segments) == 1


FEWER = [
    name if name in ("bert", "xlm-roberta") else pytest.param(name, marks=pytest.mark.slow)
    for name in FAMILIES
]


@pytest.mark.parametrize("name", FEWER)
def test_scores_equal_sentence_transformers(name, tmp_path):
    """The tolerance is 1e-5 for float32 scores in (0, 1).

    Models are read from the layouts of transformers and sentence-transformers.
    """
    peer = pytest.importorskip("sentence_transformers")
    plain = made_model(name, tmp_path / "plain")
    reference = peer.CrossEncoder(str(plain), device="cpu", max_length=LIMIT)
    reference.save_pretrained(str(tmp_path / "saved"))
    queries, passages = made_pairs(60)
    expected = reference.predict(list(zip(queries, passages, strict=True)))
    assert np.ptp(expected) > 0.02
    for directory in (plain, tmp_path / "saved"):
        ours = load_cross_encoder(str(directory), max_length=LIMIT)
        result = ours.score(queries, passages)
        assert result.dtype == np.float32 and result.shape == expected.shape
        np.testing.assert_allclose(result, expected, atol=1e-5)
    assert load_cross_encoder(str(tmp_path / "saved")).max_length == LIMIT


@pytest.mark.slow
def test_more_labels_and_another_activation_equal_sentence_transformers(tmp_path):
    peer = pytest.importorskip("sentence_transformers")
    torch = pytest.importorskip("torch")
    queries, passages = made_pairs(20)
    pairs = list(zip(queries, passages, strict=True))
    for num_labels, activation in ((3, None), (3, torch.nn.Sigmoid()), (1, torch.nn.Identity())):
        plain = made_model("bert", tmp_path / "plain", num_labels)
        reference = peer.CrossEncoder(str(plain), device="cpu", activation_fn=activation)
        reference.save_pretrained(str(tmp_path / "saved"))
        ours, expected = load_cross_encoder(str(tmp_path / "saved")), reference.predict(pairs)
        result = ours.score(queries, passages)
        assert (
            result.shape
            == expected.shape
            == ((len(pairs), 3) if num_labels == 3 else (len(pairs),))
        )
        np.testing.assert_allclose(result, expected, atol=1e-5)
        assert ours.logits(queries, passages).shape == (len(pairs), num_labels)
        shutil.rmtree(tmp_path / "saved")


def test_a_default_prompt_stands_before_the_query(bert, tmp_path):
    peer = pytest.importorskip("sentence_transformers")
    reference = peer.CrossEncoder(
        str(bert), device="cpu", prompts={"find": "the red "}, default_prompt_name="find"
    )
    reference.save_pretrained(str(tmp_path))
    ours = load_cross_encoder(str(tmp_path))
    expected = reference.predict([("cat", "a dog"), ("", "music")])
    np.testing.assert_allclose(ours.score(["cat", ""], ["a dog", "music"]), expected, atol=1e-5)
    np.testing.assert_allclose(
        load_cross_encoder(str(bert)).score(["the red cat"], ["a dog"]), expected[:1], atol=1e-5
    )


# ---- order, packing, devices ---------------------------------------------------------------------


def test_a_pair_has_one_score_whatever_it_is_scored_with(model):
    queries, passages = made_pairs(100)
    result = model.logits(queries, passages)
    assert np.ptp(result) > 0.1
    order = np.random.default_rng(1).permutation(len(queries))
    for batch_tokens in (64, 10**5):
        shuffled = model.logits(
            [queries[i] for i in order], [passages[i] for i in order], batch_tokens=batch_tokens
        )
        np.testing.assert_allclose(shuffled, result[order], atol=1e-5)
    for i in range(0, len(queries), 50):
        np.testing.assert_allclose(
            model.logits([queries[i]], [passages[i]]), result[i : i + 1], atol=1e-5
        )
    assert np.abs(model.logits(passages, queries) - result).max() > 1e-2, (
        "the order of the texts counts"
    )


def test_windows_are_joined(model, monkeypatch, capsys):
    queries, passages = made_pairs(10)
    whole = model.score(queries, passages)
    monkeypatch.setattr("embed_jax.cross_encoder.WINDOW", 7)
    with pytest.warns(
        UserWarning, match=rf"^3 of 20 pairs were cut at the model's limit of {LIMIT} tokens$"
    ):
        scores = model.score(queries, passages, show_progress=True)
    np.testing.assert_allclose(scores, whole, atol=1e-6)
    assert "20/20" in capsys.readouterr().err


def test_devices_and_parameters(model):
    queries, passages = made_pairs(30)
    single_device = CrossEncoder(
        model.spec, jax.device_get(model.params), model.tokenizer, devices=1
    )
    assert (single_device._mesh.size, model._mesh.size) == (1, 8)
    np.testing.assert_allclose(
        single_device.score(queries, passages), model.score(queries, passages), atol=1e-6
    )
    heads = model.params["heads"]
    heads = {**heads, "2": jax.tree.map(lambda leaf: 2 * leaf, heads["2"])}
    doubled = model.logits(queries, passages, params={**model.params, "heads": heads})
    np.testing.assert_allclose(doubled, 2 * model.logits(queries, passages), rtol=1e-4)


def test_no_pair_gives_no_score(model):
    assert model.score([], []).shape == (0,) and model.logits([], []).shape == (0, 1)


def test_sigmoid_is_exact_far_from_zero(model):
    from embed_jax.pair_scores import ACTIVATIONS

    logits = np.array([-1e4, -90, -20, 0, 3, 90, 1e4], np.float32)
    with np.errstate(over="raise"):
        result = ACTIVATIONS["sigmoid"](logits)
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(
        result, np.exp(np.minimum(wide, 0)) / (1 + np.exp(-np.abs(wide))), rtol=1e-5, atol=1e-44
    )
    assert result.dtype == np.float32


def test_types_are_packed_with_their_tokens():
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 100, n).astype(np.int32) for n in rng.integers(1, 60, 80)]
    segments = [
        (np.arange(len(token_ids)) >= rng.integers(1, 60)).astype(np.int32) for token_ids in ids
    ]
    whole = pack_sentences(ids, row_length=64, segments=segments)
    assert pack_sentences(ids, row_length=64).segment is None
    batches = [(np.arange(len(ids)), whole), *pack_window(ids, 0, 256, segments)]
    seen = 0
    for numbers, batch in batches:
        assert (
            batch.segment.dtype == np.int32
            and not batch.segment[batch.sentence == batch.sentences].any()
        )
        for s, number in enumerate(numbers):
            here = batch.sentence == s
            np.testing.assert_array_equal(batch.token_ids[here], ids[number])
            np.testing.assert_array_equal(batch.segment[here], segments[number])
            seen += 1
    assert seen == 2 * len(ids)


# ---- documented behaviours -----------------------------------------------------------------------


def test_only_the_passage_is_cut_if_the_model_or_the_caller_says_so(bert, tmp_path):
    """The choice is saved; sentence-transformers then cuts alike."""
    peer = pytest.importorskip("sentence_transformers")
    query, passages = "the cat plays music " * 8, ["dog " * 60, "dog " * 40, "red " * 9, ""]
    queries = [query] * len(passages)
    longest_first = load_cross_encoder(bert)
    assert longest_first.truncation == "longest_first"
    ours = load_cross_encoder(bert, truncation="only_second")
    cut, both_cut = ours.tokenize(queries, passages), longest_first.tokenize(queries, passages)
    (whole,) = ours.tokenizer.tokenize([query], whole=True)
    for ids in cut.ids:  # the query is whole
        assert ids[1 : 1 + len(whole)].tolist() == whole.ids and len(ids) <= LIMIT
    assert (cut.truncated, len(cut.ids[0])) == (2, LIMIT)
    assert both_cut.ids[0][1 : 1 + len(whole)].tolist() != whole.ids
    ours.save(tmp_path)
    reference = peer.CrossEncoder(str(tmp_path), device="cpu")
    back = load_cross_encoder(tmp_path)
    assert back.truncation == "only_second"
    expected = reference.predict(list(zip(queries, passages, strict=True)))
    np.testing.assert_allclose(back.score(queries, passages), expected, atol=1e-5)
    assert np.abs(back.score(queries, passages) - longest_first.score(queries, passages)).max() > 0
    with pytest.raises(InputError, match="a query takes 60 tokens, which leaves no room for a p"):
        back.score(["dog " * 60], ["a"])
    with pytest.raises(InputError, match="unknown truncation 'only_first'"):
        load_cross_encoder(bert, truncation="only_first")


def test_an_empty_passage_is_scored_like_any_other(model):
    """It is the special tokens only, as in sentence-transformers; it is ranked, not left out."""
    queries, passages = ["the cat", "", "the cat"], ["", "", "a dog"]
    scores = model.score(queries, passages)
    assert np.isfinite(scores).all() and len(np.unique(scores)) == 3
    assert {entry["corpus_id"] for entry in model.rank("the cat", ["", "a dog", " "])} == {0, 1, 2}
    np.testing.assert_allclose(model.score([""], [" \t"]), scores[1:2], atol=1e-6)


def test_pairs_over_the_limit_are_counted_in_one_warning(model):
    queries, passages = ["the cat"] * 5, ["dog", "dog " * 60, "", "river road " * 40, "red"]
    with pytest.warns(UserWarning) as caught:
        cut = model.score(queries, passages)
    assert [str(warning.message) for warning in caught] == [
        f"2 of 5 pairs were cut at the model's limit of {LIMIT} tokens"
    ]
    room = LIMIT - 3 - len(queries[0].split())  # [CLS] query [SEP] passage [SEP]
    np.testing.assert_allclose(
        model.score(["the cat"], [" ".join(["dog"] * room)]), cut[1:2], atol=1e-6
    )


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_logits_order_passages_whose_scores_round_to_the_same_number(model, compute_dtype):
    """A sigmoid rounds to 1 from a logit of 17 on; logits are float32 in half precision too."""
    heads = model.params["heads"]
    last = str(max(map(int, heads)))
    moved = {**heads[last], "bias": heads[last]["bias"] + 40}
    params = {**model.params, "heads": {**heads, last: moved}}
    shifted = CrossEncoder(
        model.spec, jax.device_get(params), model.tokenizer, compute_dtype=compute_dtype
    )
    passages = ["a dog", "the red house", "music", "the cat plays", "train to the city"]
    logits = shifted.logits(["the cat"] * 5, passages)[:, 0]
    assert logits.dtype == np.float32 and len(np.unique(logits)) == 5
    assert (shifted.score(["the cat"] * 5, passages) == 1).all()
    ranking = shifted.rank("the cat", passages)
    assert [entry["corpus_id"] for entry in ranking] == np.argsort(-logits).tolist()
    assert [type(entry["score"]) for entry in ranking] == [float] * 5


def test_equal_logits_are_in_the_given_order(model):
    passages = ["a dog", "music", "a dog", "music", "a dog"]
    order = [entry["corpus_id"] for entry in model.rank("the cat", passages)]
    assert order in ([0, 2, 4, 1, 3], [1, 3, 0, 2, 4])


@pytest.mark.parametrize("activation", ["sigmoid", "identity"])
def test_the_activation_is_applied_once_here_and_elsewhere(model, activation, tmp_path):
    """A saved model says its activation; its weights are those of logits."""
    peer = pytest.importorskip("sentence_transformers")
    ours = CrossEncoder(
        model.spec, jax.device_get(model.params), model.tokenizer, activation=activation
    )
    for generation in range(2):  # saving a loaded model applies it no second time
        ours.save(tmp_path / str(generation))
        ours = load_cross_encoder(str(tmp_path / str(generation)))
    queries, passages = made_pairs(5)
    logits = model.logits(queries, passages)[:, 0]
    expected = logits if activation == "identity" else 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(ours.score(queries, passages), expected, atol=1e-5)
    reference = peer.CrossEncoder(str(tmp_path / "1"), device="cpu")
    pairs = list(zip(queries, passages, strict=True))
    np.testing.assert_allclose(
        reference.predict(pairs, show_progress_bar=False), expected, atol=1e-5
    )


def test_a_model_with_two_labels_ranks_nothing(tiny_cross_encoder):
    two = load_cross_encoder(str(tiny_cross_encoder(num_labels=2)))
    assert two.score(["the cat"], ["a dog"]).shape == (1, 2)
    with pytest.raises(InputError) as caught:
        two.rank("the cat", ["a dog"])
    assert str(caught.value) == (
        "rank: expected a model with one label, found 2; `score` gives the scores of all of them"
    )


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("queries", "passages", "arguments", "message"),
    [
        (["a"], ["a", "b"], {}, "expected as many passages as queries, found 2 and 1"),
        ("a", ["b"], {}, "expected a list of strings each, found a string"),
        (["a"], "b", {}, "expected a list of strings each, found a string"),
        (["a", 3], ["a", "b"], {}, "a text must be a string, found int"),
        (["a", "b"], ["a", None], {}, "a text must be a string, found NoneType"),
        (["a"], ["\ud800"], {}, "a text is not valid Unicode"),
        (
            ["the cat " * 5],
            ["a"],
            {"batch_tokens": 8},
            "batch_tokens: expected at least 14, the tokens of one text",
        ),
    ],
)
@pytest.mark.unchecked
def test_what_cannot_be_scored_is_said_in_one_line(model, queries, passages, arguments, message):
    with pytest.raises(InputError) as caught:
        model.score(queries, passages, **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_cannot_be_loaded_is_said_in_one_line(bert, tmp_path):
    with pytest.raises(
        InputError, match=f"max_length: expected at most {LIMIT}, the model's positions, found 100"
    ):
        load_cross_encoder(str(bert), max_length=100)
    with pytest.raises(
        InputError, match="max_length 3 leaves no room for a pair of texts: 3 are special tokens"
    ):
        load_cross_encoder(str(bert), max_length=3)
    with pytest.raises(InputError, match="compute_dtype 'float16'"):
        load_cross_encoder(str(bert), compute_dtype="float16")
    one_type = made_model("bert", tmp_path / "model", type_vocab_size=1)
    with pytest.raises(InputError, match="the tokenizer has 2 token types, the model only 1"):
        load_cross_encoder(str(one_type))
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gptj"}))
    with pytest.raises(InputError, match="unknown backbone 'gptj'"):
        load_cross_encoder(str(one_type))


# ---- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_loads_back_bitwise_and_in_sentence_transformers(name, tmp_path):
    peer = pytest.importorskip("sentence_transformers")
    queries, passages = made_pairs(20)
    ours = load_cross_encoder(str(made_model(name, tmp_path / "made")), max_length=LIMIT - 3)
    ours.prompt = "the red "
    ours.save(tmp_path / "saved")
    back = load_cross_encoder(str(tmp_path / "saved"))
    assert (back.spec, back.max_length, back.prompt, back.activation) == (
        ours.spec,
        LIMIT - 3,
        "the red ",
        "sigmoid",
    )
    assert jax.tree.structure(back.params) == jax.tree.structure(ours.params)
    for ours_leaf, back_leaf in zip(*map(jax.tree.leaves, (ours.params, back.params)), strict=True):
        np.testing.assert_array_equal(ours_leaf, back_leaf)
    reference = peer.CrossEncoder(str(tmp_path / "saved"), device="cpu")
    expected = reference.predict(list(zip(queries, passages, strict=True)), show_progress_bar=False)
    np.testing.assert_allclose(ours.score(queries, passages), expected, atol=1e-5)
    assert np.ptp(expected) > 1e-3


def test_what_older_versions_read_is_written_too(bert, tmp_path):
    """They read the activation in config.json and the limit in the tokenizer, not modules.json."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    ours = load_cross_encoder(str(bert), max_length=LIMIT)
    ours.activation = "identity"
    ours.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["sentence_transformers"]["activation_fn"] == "torch.nn.modules.linear.Identity"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert tokenizer.model_max_length == LIMIT
    reference, about = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not about["missing_keys"] and not about["unexpected_keys"]
    queries, passages = made_pairs(5)
    tokens = tokenizer(
        queries, passages, padding=True, truncation="longest_first", return_tensors="pt"
    )
    with torch.no_grad():
        expected = reference.eval()(**tokens).logits.numpy()
    np.testing.assert_allclose(ours.logits(queries, passages), expected, atol=1e-5)


def test_several_labels_and_kinds_of_numbers_are_kept(tmp_path):
    ours = load_cross_encoder(str(made_model("bert", tmp_path / "made", num_labels=3)))
    half = jax.tree.map(
        lambda leaf: np.asarray(leaf).astype("bfloat16"), jax.device_get(ours.params)
    )
    CrossEncoder(ours.spec, half, ours.tokenizer, activation="identity", lower_case=True).save(
        tmp_path / "saved"
    )
    back = load_cross_encoder(str(tmp_path / "saved"))
    assert (back.num_labels, back.activation, back.lower_case) == (3, "identity", True)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(back.params["backbone"])} == {"bfloat16"}
    for ours_leaf, back_leaf in zip(*map(jax.tree.leaves, (half, back.params)), strict=True):
        np.testing.assert_array_equal(ours_leaf, back_leaf)
    files = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    back.save(tmp_path / "saved")  # over itself
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}


def test_a_cross_encoder_is_known_by_its_files(bert, tiny_model, tmp_path):
    assert (
        is_cross_encoder(bert)
        and not is_cross_encoder(tiny_model)
        and not is_cross_encoder(tmp_path)
    )
    load_cross_encoder(str(bert)).save(tmp_path / "saved")
    assert is_cross_encoder(tmp_path / "saved")
    # Versions 2 and 3 of sentence-transformers look for the activation here.
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["sbert_ce_default_activation_function"].endswith("Sigmoid")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds"):
        load_cross_encoder(str(bert)).save(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]
