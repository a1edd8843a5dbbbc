"""Small random models made with torch, and the simplest packing of sentences."""

import numpy as np
import pytest

from embed_jax.types import TokenBatch

VOCABULARY = 60
ARCHITECTURES = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"max_position_embeddings": 34, "pad_token_id": 1}),
    "xlm-roberta": (
        "XLMRoberta",
        {"max_position_embeddings": 34, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    ),
    "mpnet": ("MPNet", {"max_position_embeddings": 34, "pad_token_id": 1}),
    "distilbert": ("DistilBert", {}),
    "electra": ("Electra", {"embedding_size": 16}),
    "nomic_bert": ("NomicBert", {}),
    "deberta-v2": (
        "DebertaV2",
        {
            "relative_attention": True,
            "pos_att_type": "p2c|c2p",
            "position_buckets": 8,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
        },
    ),
}


def make_torch_model(name: str, **changes):
    """Makes a model of two layers; biases and norms are random, so that mix-ups show."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    prefix, extra = ARCHITECTURES[name]
    settings = {"vocab_size": VOCABULARY, "max_position_embeddings": 32, **extra, **changes}
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
    model = getattr(transformers, f"{prefix}Model")(
        getattr(transformers, f"{prefix}Config")(**settings)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


@pytest.fixture(scope="session")
def torch_model():
    """`(name, **config) -> torch model`."""
    return make_torch_model


@pytest.fixture(scope="session")
def torch_models(tmp_path_factory):
    """Returns {architecture: (torch model, the directory it was saved to)}."""
    made = {}
    for name in ARCHITECTURES:
        directory = tmp_path_factory.mktemp(name)
        model = make_torch_model(name)
        model.save_pretrained(directory)
        made[name] = model, directory
    return made


@pytest.fixture(scope="session")
def ids():
    """Five made sentences as token ids, without special ones."""
    rng = np.random.default_rng(1)
    return [rng.integers(5, VOCABULARY, n).astype(np.int32) for n in (7, 1, 16, 4, 9)]


@pytest.fixture(scope="session")
def make_batch():
    """`(rows, slots, sentences, skip) -> TokenBatch`."""
    return batch


def batch(rows, slots=16, sentences=5, skip=0):
    """Makes a group from rows of (sentence number, token ids).

    The `skip` first tokens of each sentence are not pooled.
    """
    shape = (len(rows), slots)
    token_ids, position = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    sentence, pooled = np.full(shape, sentences, np.int32), np.zeros(shape, bool)
    for r, row in enumerate(rows):
        start = 0
        for number, tokens in row:
            span = slice(start, start := start + len(tokens))
            token_ids[r, span], sentence[r, span] = tokens, number
            position[r, span] = np.arange(len(tokens))
            pooled[r, span] = np.arange(len(tokens)) >= skip
    return TokenBatch(
        token_ids=token_ids,
        sentence=sentence,
        position=position,
        pooled=pooled,
        sentences=sentences,
    )


@pytest.fixture(scope="session")
def unpacked(ids):
    """The sentences with one per row, `[5, 16]`."""
    return batch([[(i, tokens)] for i, tokens in enumerate(ids)])


@pytest.fixture(scope="session")
def packed(ids):
    """The same sentences with several per row, out of order, and rows of padding, `[5, 16]`."""
    return batch([[(4, ids[4]), (0, ids[0])], [(2, ids[2])], [], [(3, ids[3]), (1, ids[1])], []])


@pytest.fixture(scope="session")
def states():
    """`(hidden, tokens) -> states of each sentence`, a list of `[length, D]` by position."""

    def by_sentence(hidden, tokens):
        hidden, sentence = np.asarray(hidden), np.asarray(tokens.sentence)
        return [hidden[sentence == s] for s in range(tokens.sentences)]

    return by_sentence
