"""A smaller model that imitates a larger one: the student's embeddings become the teacher's.

    python -m experiments.distill --config=configs/distill/layers.py --workdir=runs/student

The student is `model.name`, with `model.layers` only those of its layers; `model.teacher` embeds
the same texts, with the same prompts. "embedding_mse" and "embedding_cosine" compare text by text
(Reimers and Gurevych 2020), with "projection=SIZE" through a learnt map to a teacher of another
size; "relational" compares the similarities within the batch, whatever the sizes (Tung and Mori
2019). The data are sentences; of pairs and triplets every text is imitated.

In place of a teacher, `data.teacher_vectors` names a file with its embeddings: see
configs/distill/vectors.py.
"""

from pathlib import Path

from embed_jax import config as configs
from embed_jax.data.pairs import kind_of
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import RecordFields
from embed_jax.errors import exit_with_one_line
from embed_jax.train import loop
from embed_jax.train.evaluation import report_sts, sts_evaluators, sts_tests
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.sources import (
    ONLY,
    Sources,
    open_mixture,
    read_validation,
    read_with_teacher,
    without_texts,
)


def run(config: configs.Experiment, workdir: Path) -> loop.Result:
    # Data: the texts on which the student imitates the teacher.
    sources = read_data(config)
    validation = read_validation(config.data) if config.data.validation_split else []

    # Evaluation: STS on the development set picks the best model.
    evaluators = sts_evaluators(config)

    tests = sts_tests(config)  # fail early: needed only at the end

    # Training.
    result = fit(config, workdir, sources=sources, evaluators=evaluators, validation=validation)

    # Afterwards, once, on test: the student before and after, and its teacher.
    if result.finished and tests:
        report_sts(tests, config, workdir, result.unchanged)
    return result


def read_data(config: configs.Experiment) -> Sources:
    """Reads the data sets by name; a record may be a single text."""
    if not vars(config.mixture.sources):
        records, vectors = read_with_teacher(config.data)
        if kind_of(records[0]) == ("text",):
            fields = RecordFields(lambda record: (record["text"],), teacher=vectors)
            if config.data.exclude:
                records = without_texts(records, fields.columns, config.data.exclude)
            return {ONLY: RecordSource(records, fields)}
    return open_mixture(config)


def main() -> None:
    launch(run, "distill")


if __name__ == "__main__":
    exit_with_one_line(main)
