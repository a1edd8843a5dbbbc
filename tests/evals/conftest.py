"""A fake encoder, and the scores of mteb's own tasks on made data."""

import json

import numpy as np
import pytest


@pytest.fixture(scope="session")
def encode():
    """Returns the sum of a text's word vectors, which are random but fixed.

    Texts with common words are near.
    """
    words = {}

    def vector(word):
        if word not in words:
            words[word] = np.random.default_rng(list(word.encode())).normal(size=12)
        return words[word]

    return lambda texts: np.array(
        [np.sum([vector(word) for word in text.split()], axis=0) for text in texts], np.float32
    )


@pytest.fixture
def recorded(encode):
    """The fake encoder as tasks see it: `seen` has its texts, `uses` their purposes."""

    class Recorded:
        similarity = "cosine"

        def __init__(self):
            self.seen, self.uses = [], set()

        def __call__(self, texts, use):
            self.seen.extend(texts)
            self.uses.add((use.task, use.kind, use.side, use.instruction))
            return encode(texts)

    return Recorded()


@pytest.fixture
def write(tmp_path):
    """`write(rows, name)` writes a JSONL file and returns its path."""

    def write(rows, name="test.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def mteb_scores(encode):
    """`mteb_scores(task class, type, main score, data, **attributes)`.

    Scores of the fake encoder by a task of mteb.
    """
    mteb = pytest.importorskip("mteb")
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import ModelMeta
    from mteb.similarity_functions import cos_sim, pairwise_cos_sim

    class Model:
        mteb_model_meta = ModelMeta.create_empty()
        similarity = staticmethod(cos_sim)
        similarity_pairwise = staticmethod(pairwise_cos_sim)

        def encode(self, inputs, **_):
            return encode([text for batch in inputs for text in batch["text"]])

    def scores(task, kind, main_score, data, **attributes):
        metadata = TaskMetadata(
            name="Made",
            description="made data",
            reference="https://github.com/embeddings-benchmark/mteb",
            dataset={"path": "NA", "revision": "NA"},
            type=kind,
            category="t2t",
            modalities=["text"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score=main_score,
        )
        made = type("Made", (getattr(mteb.abstasks, task),), {"metadata": metadata, **attributes})()
        made.dataset, made.data_loaded = data, True
        scores_by_split = made.evaluate(Model(), "test", encode_kwargs={"show_progress_bar": False})
        return scores_by_split["default"]

    return scores


@pytest.fixture
def one_thread():
    """Limits libraries to one thread, as small problems run slower with several."""
    limits = pytest.importorskip("threadpoolctl").threadpool_limits(1)
    yield
    limits.restore_original_limits()
