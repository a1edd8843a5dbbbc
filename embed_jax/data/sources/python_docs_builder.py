"""The TFDS builder of python_docs; a file by itself, since it imports TensorFlow Datasets."""

from __future__ import annotations

import dataclasses
import sysconfig
from pathlib import Path

import tensorflow_datasets as tfds

from embed_jax.data.sources import docstrings

# Written into the data set; a change of it is not a change of the data.
DESCRIPTION = (
    "The documentation of the running Python's own standard library, a real task of code search."
)


class PythonDocs(tfds.core.GeneratorBasedBuilder):
    """First sentences of docstrings, and the functions that they describe."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name=docstrings.config_name(Path(sysconfig.get_path("stdlib"))),
            description="The standard library of this Python installation.",
        )
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        fields = [field.name for field in dataclasses.fields(docstrings.DocumentedFunction)]
        return tfds.core.DatasetInfo(
            builder=self,
            description=DESCRIPTION,
            features=tfds.features.FeaturesDict({name: tfds.features.Text() for name in fields}),
            supervised_keys=("anchor", "positive"),
            homepage="https://docs.python.org/3/library/",
            license="PSF-2.0: the text is that of the Python installation it was read from",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        pairs = docstrings.extract_pairs(Path(sysconfig.get_path("stdlib")))
        sides: dict[str, list[docstrings.DocumentedFunction]] = {
            split: [] for split in docstrings.SPLITS
        }
        for pair in pairs:
            sides[docstrings.choose_split(pair.module)].append(pair)
        return {split: self._generate_examples(side) for split, side in sides.items()}

    def _generate_examples(self, pairs: list[docstrings.DocumentedFunction]):
        for index, pair in enumerate(pairs):
            yield index, dataclasses.asdict(pair)


def download_config() -> tfds.download.DownloadConfig:
    """Returns a configuration that downloads nothing, and asks no mirror for the data."""
    return tfds.download.DownloadConfig(
        try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
    )
