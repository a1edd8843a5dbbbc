"""The cross-encoder experiment as a whole, and the loop from embedder to teacher to embedder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embed_jax
from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.errors import InputError

pytest.importorskip("grain")
pytest.importorskip("bm25s")
ROOT = Path(__file__).parents[2]
WORDS = "cat dog house river music guitar red blue city train apple bread science model".split()


def made_pairs(count, seed=0):
    """Makes queries of two words, each with a passage that has them among others."""
    rng = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        words = rng.choice(WORDS, 5, replace=False)
        anchor = f"{words[0]} {words[1]}"
        pairs.append({"anchor": anchor, "positive": f"{' '.join(words)} {number}"})
    return pairs


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import cross_encoder

    return cross_encoder


def test_from_pairs_to_mined_negatives_to_a_reranker_and_its_report(
    experiment, tiny_model, tmp_path, capsys
):
    data, workdir = tmp_path / "pairs.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in made_pairs(60)))
    config = override(
        Experiment(),
        model__name=str(tiny_model),
        data__train=str(data),
        data__holdout=0.2,
        data__max_length=24,
        mine__strategy="bm25",
        mine__retriever=str(tiny_model),
        mine__number=2,
        mine__rank_max=20,
        batch__size=8,
        batch__in_batch_negatives=1,
        loss__name="binary_cross_entropy(pos_weight=3)",
        train__steps=2,
        train__devices=1,
        eval__every=1,
        eval__depth=5,
        eval__with_positives=True,
        eval__metric="reranking/ndcg@10",
        checkpoint__every=1,
        tracking__wandb="disabled",
        tracking__experiment="cross_encoder",
    )
    result = experiment.run(config, workdir)
    assert result.finished and list((workdir / "mined").glob("*.jsonl"))
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    measured = [entry["reranking/ndcg@10"] for entry in logged if "reranking/ndcg@10" in entry]
    assert len(measured) >= 2 and all(0 < value <= 1 for value in measured)
    assert "reranked" in capsys.readouterr().out

    # The report has both stages; a model that is loaded from the run ranks.
    report = json.loads((workdir / "reranking.json").read_text())
    assert report["depth"] == 5
    assert report["first_stage"]["model"] == "bm25 with positives"
    for stage in (report, report["first_stage"]):
        assert stage["metrics"]["recall@10"] == 1 >= stage["metrics"]["ndcg@10"] > 0
    model = embed_jax.load_cross_encoder(workdir)
    ranking = model.rank("cat dog", ["red city", "dog cat house"])
    assert {entry["corpus_id"] for entry in ranking} == {0, 1}
    assert model.activation == "sigmoid"


def test_a_model_of_classes_is_not_asked_to_rank(experiment, tmp_path):
    config = override(
        Experiment(), loss__name="pair_cross_entropy(num_labels=3)", eval__retrieval="scifact"
    )
    message = "config.eval.retrieval: the loss 'pair_cross_entropy.*' trains 3 logits a pair, which"
    with pytest.raises(InputError, match=message):
        experiment.run(config, tmp_path)


@pytest.mark.slow  # nine processes
def test_the_loop_from_embedder_to_teacher_to_distilled_embedder(tiny_model, tmp_path):
    pairs, data = made_pairs(40), tmp_path / "data"
    (data / "qrels").mkdir(parents=True)
    for name, field in (("corpus", "positive"), ("queries", "anchor")):
        lines = [{"_id": f"{n}", "title": "", "text": pair[field]} for n, pair in enumerate(pairs)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for split, numbers in (("train", range(28)), ("test", range(28, 40))):
        rows = ["query-id\tcorpus-id\tscore", *(f"{n}\t{n}\t1" for n in numbers)]
        (data / "qrels" / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    fields = {"train.steps": 2, "batch.size": 8, "data.max_length": 24, "checkpoint.every": 0}
    fields |= {"tracking.wandb": "disabled", "train.devices": 1, "optim.warmup": 0}
    options = " ".join(f"--config.{name}={value}" for name, value in fields.items())
    runs = tmp_path / "runs"
    environment = os.environ | {
        "PYTHON": sys.executable,
        "EMBEDDER": str(tiny_model),
        "PYTHONPATH": str(ROOT),
    }
    command = ["bash", "scripts/teacher_loop.sh", str(data), str(runs), options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in ("embedder_mined", "teacher", "embedder_distilled"):
        assert (runs / name / "model" / "modules.json").is_file()
    annotated = [json.loads(line) for line in (runs / "annotated.jsonl").open()]
    assert all(len(record["scores"]) == len(record["passages"]) for record in annotated)
    results = {path.stem for path in runs.glob("*.json")}
    assert results == {"before", "embedder_mined", "embedder_distilled", "two_stages"}
    two_stages = json.loads((runs / "two_stages.json").read_text())
    assert two_stages["depth"] == 50 and "first_stage" in two_stages
