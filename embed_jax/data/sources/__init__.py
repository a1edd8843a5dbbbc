"""Opens data sets by name: `open_records` for training, `open_retrieval_task` for evaluation.

`record_fields` gives the fields that training uses of records in any format, `pair_columns` those
of pairs.
"""

from embed_jax.data.pairs import NLI_LABELS
from embed_jax.data.sources.base import Records
from embed_jax.data.sources.fields import ReadColumns, RecordFields, pair_columns, record_fields
from embed_jax.data.sources.objects import python_records
from embed_jax.data.sources.opening import (
    clean_records,
    iter_records,
    open_raw,
    open_records,
    place_in_file,
    read_table,
)
from embed_jax.data.sources.search import open_retrieval_task

__all__ = [
    "NLI_LABELS",
    "ReadColumns",
    "RecordFields",
    "Records",
    "clean_records",
    "iter_records",
    "open_raw",
    "open_records",
    "open_retrieval_task",
    "pair_columns",
    "place_in_file",
    "python_records",
    "read_table",
    "record_fields",
]
