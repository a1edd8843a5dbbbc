"""An index of one vector for each document in a LanceDB table, on disk or in an object store.

    build_index("s3://bucket/index", documents, identity=identity, kind="lance")

Vectors, texts and fields stay in the table; memory holds what a search reads. LanceDB only finds
candidates: scores come from the stored vectors. Each write is one commit of the table, so that
whatever ends the process leaves the old state or the new one; LanceDB's own index of the vectors
follows by itself, and until it does, new vectors are all looked at.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.atomic import plain_json
from embed_jax.errors import InputError
from embed_jax.retrieval.document_chunks import IndexEntry, hash_of
from embed_jax.retrieval.document_index import Changes
from embed_jax.retrieval.filters import Filter, select_documents
from embed_jax.retrieval.index_build import (
    FORMAT,
    ShowProgress,
    check_counts,
    check_identity,
    distinct,
    no_progress,
)
from embed_jax.retrieval.index_state import IndexDocument, IndexVectors
from embed_jax.retrieval.lance_table import (
    BATCH,
    DESCRIBED,
    DISTANCE,
    FIELDS,
    HASH,
    ID,
    TABLE,
    TEXT,
    VECTOR,
    DocumentStream,
    among_ids,
    as_run_error,
    check_new_index,
    one_writer,
    open_database,
    open_lance_table,
    tend_table,
    text_bytes,
    vector_index_name,
    vector_matrix,
)
from embed_jax.retrieval.vector_index import check_vectors, vector_entries

SELECTED = 10_000  # ids that a search takes as a list; of more it looks for further candidates


def build_lance_index(
    path: str | Path,
    documents: Iterable[IndexDocument],
    *,
    identity: Mapping[str, Any],
    similarity: str = "cosine",
    partitions: int = 0,
    bytes_per_code: int = 0,
    store_texts: bool = False,
    replace: bool = False,
    progress: ShowProgress = no_progress,
) -> LanceIndex:
    """Builds an index; memory holds a batch of vectors, and the sample that LanceDB learns from.

    Args:
        path: a folder, or an address that LanceDB knows, such as "s3://bucket/index"; credentials
            are those of the environment.
        documents: see `build_vector_index`.
        identity: what the vectors depend on, as JSON: model, prompts, ...
        similarity: "cosine" or "dot".
        partitions: lists of the IVF-PQ index, of which a search looks at some; 0: the square root
            of the number of vectors.
        bytes_per_code: of a product-quantised vector; 0: a byte for each eight numbers. It divides
            the dimension.
        store_texts: store the texts, for `texts`.
        replace: replace an index that is there.
        progress: called with a stage and the number of documents that it has passed since.

    Raises:
        InputError: LanceDB is not installed; there is an index already, or no document; see
            `build_vector_index`.
        RunError: LanceDB can't write.
    """
    if similarity not in ("cosine", "dot"):
        raise InputError(f"similarity: expected 'cosine' or 'dot', found {similarity!r}")
    check_new_index(path, replace)
    description = {
        "format": FORMAT,
        "kind": LanceIndex.kind,
        "identity": plain_json(dict(identity)),
        "similarity": similarity,
        "partitions": partitions,
        "bytes_per_code": bytes_per_code,
        "stores_texts": store_texts,
    }
    entries = distinct(vector_entries(documents, {**description, "dim": None}), ())
    first = next(entries, None)
    if first is None:
        raise InputError("no documents: nothing to index")
    description["dim"] = dim = first.vectors.shape[1]
    if bytes_per_code and dim % bytes_per_code:
        raise InputError(f"bytes_per_code: expected a divisor of {dim}, found {bytes_per_code}")
    with one_writer(path):
        stream = DocumentStream(itertools.chain([first], entries), description, progress)
        mode: Any = "overwrite" if replace else "create"
        with stream.errors(path):
            open_database(path).create_table(TABLE, stream.reader(), mode=mode)
        tend_table(open_lance_table(path), description, path)
    return LanceIndex(path, identity)


class LanceIndex:
    """An index that is open, at the state in which it was opened or which it wrote itself.

    Attributes:
        path: the folder, or the address.
        kind: of the index, in its description.
    """

    kind = "lance"

    def __init__(self, path: str | Path, identity: Mapping[str, Any] | None = None):
        """Opens the index; see `open_index`."""
        self.path = path
        self._table = open_lance_table(path)
        try:
            self._description = json.loads(self._table.schema.metadata[DESCRIBED])
            is_ours = self._description["format"] == FORMAT
        except (TypeError, KeyError, ValueError):
            is_ours = False
        if not is_ours:
            raise InputError(f"{path}: not the table of an {FORMAT!r}")
        check_identity(path, self.identity, identity)

    @property
    def identity(self) -> Mapping[str, Any]:
        """Returns what the embeddings depend on."""
        return self._description["identity"]

    @property
    def factory(self) -> str:
        """Returns the kind of LanceDB's index of the vectors; "" if all of them are looked at."""
        return "IVF_PQ" if vector_index_name(self._table) else ""

    @functools.cached_property
    def ids(self) -> Sequence[str]:
        """Returns the ids of all documents, which are all read."""
        return [name for batch in self._read([ID]) for name in batch[ID].to_pylist()]

    def __len__(self) -> int:
        return self._table.count_rows()

    def __contains__(self, document: str) -> bool:
        return self._table.count_rows(among_ids([document])) > 0

    def search(
        self,
        queries: Sequence[IndexVectors] | IndexVectors,
        k: int,
        *,
        candidates: int = 128,
        probes: int = 0,
        allowed: Collection[str] | None = None,
        where: Filter | None = None,
    ) -> list[dict[str, float]]:
        """Finds the documents most similar to each query, best first.

        Of equal scores larger ids come first, among LanceDB's candidates.

        Args:
            queries: vectors `[Q, D]`.
            k: how many documents; fewer are returned where fewer are found.
            candidates: documents that LanceDB finds, at least k.
            probes: lists of the index that are looked at; 0: LanceDB's default.
            allowed: ids that may be returned; None: all. If they are at most `candidates`, the
                search is exact.
            where: a filter on fields; see `filters`. The fields of all documents are read.

        Returns:
            {id: score} of each query.

        Raises:
            InputError: for k or candidates below 1, or queries of another dimension or with numbers
                that are not finite.
        """
        check_counts(k=k, candidates=candidates)
        if not len(queries):
            return []
        dim, similarity = self._description["dim"], self._description["similarity"]
        vectors = check_vectors("queries", np.asarray(queries), dim, similarity, ndim=2)
        names = None if allowed is None else set(allowed)
        if where:
            selected = self.select(where)
            names = selected if names is None else names & selected
        if names is not None and not names:
            return [{} for _ in vectors]
        return [self._nearest(query, k, max(candidates, k), probes, names) for query in vectors]

    def texts(self, ids: Iterable[str]) -> list[str]:
        """Returns the stored texts of documents.

        Raises:
            InputError: a document is not in the index, or the index stores no texts.
        """
        if not self._description["stores_texts"]:
            raise InputError(f"{self.path}: stores no texts; build it with store_texts=True")
        names = list(ids)
        return [row or "" for row in self._rows(names, TEXT)]

    def fields(self, document: str) -> Mapping[str, Any]:
        """Returns the fields of a document.

        Raises:
            InputError: the document is not in the index.
        """
        return json.loads(self._rows([document], FIELDS)[0])

    def select(self, where: Filter) -> set[str]:
        """Returns the ids of the documents that a filter selects; see `filters`.

        Raises:
            InputError: for a filter on a field that no document has.
        """
        names: list[str] = []
        fields: list[Mapping[str, Any]] = []
        for batch in self._read([ID, FIELDS]):
            names += batch[ID].to_pylist()
            fields += map(json.loads, batch[FIELDS].to_pylist())
        return set(itertools.compress(names, select_documents(fields, where)))

    def add(
        self, documents: Iterable[IndexDocument], *, progress: ShowProgress = no_progress
    ) -> None:
        """Adds documents, all of them or none; see `DocumentIndex.add`."""
        self._write(documents, progress, is_update=False)

    def update(
        self, documents: Iterable[IndexDocument], *, progress: ShowProgress = no_progress
    ) -> None:
        """Replaces documents by others with their ids, all of them or none."""
        self._write(documents, progress, is_update=True)

    def delete(self, ids: Iterable[str]) -> None:
        """Removes documents, all of them or none.

        Raises:
            InputError: an id is not in the index.
            RunError: LanceDB can't write.
        """
        names = list(ids)
        with one_writer(self.path):
            self._refresh()
            for name in sorted(set(names) - self._stored(names).keys()):
                raise InputError(f"{self.path}: no document {name!r} to delete")
            if names:
                with as_run_error(self.path):
                    self._table.delete(among_ids(names))
                self._finish_write()

    def changes(
        self, texts: Mapping[str, str], fields: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Changes:
        """Compares the index with a corpus; see `DocumentIndex.changes`."""
        columns = [ID, HASH, *([] if fields is None else [FIELDS])]
        stored: dict[str, bool] = {}  # whether the corpus has the same
        for batch in self._read(columns):
            for name, text_hash, *own in zip(*(batch[c].to_pylist() for c in columns), strict=True):
                same = name in texts and text_hash == hash_of(texts[name])
                if fields is not None:
                    same &= plain_json(dict(fields.get(name, {}))) == json.loads(own[0])
                stored[name] = same
        return Changes(
            [name for name in texts if name not in stored],
            [name for name in texts if name in stored and not stored[name]],
            [name for name in stored if name not in texts],
        )

    def size(self) -> dict[str, float]:
        """Returns bytes by part and by document, of the current state.

        Returns:
            "documents"; "table" and "index" in bytes, "texts", a part of the table; "bytes per
            document" of table and index.
        """
        table = float(self._table.stats()["total_bytes"])
        index = float(sum(each.size_bytes or 0 for each in self._table.list_indices()))
        texts = 0.0
        for batch in self._read([TEXT]) if self._description["stores_texts"] else ():
            texts += text_bytes(batch[TEXT])
        parts = {"table": table, "index": index, "texts": texts}
        each = (table + index) / max(len(self), 1)
        return {"documents": len(self), **parts, "bytes per document": each}

    def version(self) -> Hashable:
        """Returns a value that changes with each write to the table; None: the table is gone."""
        try:
            return open_lance_table(self.path).version
        except InputError:
            return None

    def _nearest(
        self,
        query: Float[np.ndarray, " D"],
        k: int,
        candidates: int,
        probes: int,
        names: set[str] | None,
    ) -> dict[str, float]:
        """Returns the k best of the candidates, scored by their vectors."""
        listed = names is not None and len(names) <= SELECTED
        while True:
            builder = self._table.search(query, vector_column_name=VECTOR)
            builder = builder.distance_type(self._description["similarity"]).limit(candidates)
            builder = builder.select([ID, VECTOR, DISTANCE])
            if probes:
                builder = builder.nprobes(probes)
            if listed and names is not None:
                builder = builder.where(among_ids(names), prefilter=True)
                if len(names) <= candidates:
                    builder = builder.bypass_vector_index()
            table = self._fetch(builder)
            ids = table[ID].to_pylist()
            keep = [row for row, name in enumerate(ids) if names is None or name in names]
            # Of a long list of ids, enough must be among the candidates.
            if names is None or listed or len(keep) >= min(k, len(names)):
                break
            if candidates >= len(self):
                break
            candidates = min(8 * candidates, len(self))
        vectors = vector_matrix(table[VECTOR])
        scores = vectors @ query
        best = sorted(keep, key=lambda row: (scores[row], ids[row]), reverse=True)[:k]
        return {ids[row]: float(scores[row]) for row in best}

    def _fetch(self, query: Any) -> Any:
        """Returns the result of a query of LanceDB as a table of pyarrow."""
        with as_run_error(self.path):
            return query.to_arrow()

    def _read(self, columns: Sequence[str]) -> Iterator[Any]:
        """Yields columns of all documents, batch by batch."""
        with as_run_error(self.path):
            yield from self._table.search().select(list(columns)).to_batches()

    def _rows(self, names: Sequence[str], column: str) -> list[Any]:
        """Returns the values of a column of documents, in their order."""
        values = self._stored(names, column)
        for name in names:
            if name not in values:
                raise InputError(f"{self.path}: no document {name!r}")
        return [values[name] for name in names]

    def _stored(self, names: Sequence[str], column: str = ID) -> dict[str, Any]:
        """Returns a column's values of those ids that are in the index."""
        stored: dict[str, Any] = {}
        for start in range(0, len(names), BATCH):
            some = list(names[start : start + BATCH])
            columns = list(dict.fromkeys([ID, column]))
            query = self._table.search().where(among_ids(some)).select(columns).limit(len(some))
            table = self._fetch(query)
            stored |= zip(table[ID].to_pylist(), table[column].to_pylist(), strict=True)
        return stored

    def _write(
        self, documents: Iterable[IndexDocument], progress: ShowProgress, *, is_update: bool
    ) -> None:
        with one_writer(self.path):
            self._refresh()
            entries = distinct(vector_entries(documents, self._description), ())
            checked = self._expected(entries, is_update)
            first = next(checked, None)
            if first is None:
                return
            stream = DocumentStream(itertools.chain([first], checked), self._description, progress)
            with stream.errors(self.path):
                if is_update:
                    merge = self._table.merge_insert(ID).when_matched_update_all()
                    merge.execute(stream.reader())
                else:
                    self._table.add(stream.reader())
            self._finish_write()

    def _expected(self, entries: Iterator[IndexEntry], is_update: bool) -> Iterator[IndexEntry]:
        """Yields documents that are in the index for an update, and are not for an addition."""
        while batch := list(itertools.islice(entries, BATCH)):
            stored = self._stored([entry.id for entry in batch])
            for entry in batch:
                if is_update and entry.id not in stored:
                    raise InputError(f"document {entry.id!r} is not in the index; add it")
                if not is_update and entry.id in stored:
                    raise InputError(f"document {entry.id!r} is in the index already; update it")
            yield from batch

    def _refresh(self) -> None:
        """Goes to the newest state, which must be of the same index."""
        self._table.checkout_latest()
        self.__dict__.pop("ids", None)
        LanceIndex(self.path, self.identity)

    def _finish_write(self) -> None:
        self.__dict__.pop("ids", None)
        tend_table(self._table, self._description, self.path)
        self._table.checkout_latest()
