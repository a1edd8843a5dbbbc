"""Serves indexes as a page, and models as endpoints."""

from __future__ import annotations

import dataclasses
import socket
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, RunError, one_line, require

from .stages import open_stages, query_models

WARM_UP = "a query"


def serve_indexes(
    paths: Sequence[Path],
    names: Sequence[str],
    reranker: str,
    fusion: str,
    models: Any,
    *,
    shortlist: int = 0,
    allowed: Collection[str] | None = None,
    where: Mapping[str, Any] | None = None,
) -> Any:
    """Opens indexes as one pipeline for the page; see `open_stages` for the arguments.

    Args:
        paths: of the indexes.
        names: of the models of their queries.
        reranker: of a model, or a score file.
        fusion: of several indexes.
        models: `corpus_index.Models`.
        shortlist: documents that are reranked; 0: 100.
        allowed: ids that may be shown; None: all.
        where: a filter on fields that holds for all searches; None: no filter.
    """
    from embed_jax.retrieval.search import RERANKED
    from embed_jax.serve.searches import ServedSearch

    pipeline, indexes = open_stages(paths, names, reranker, fusion, models)
    pipeline = dataclasses.replace(pipeline, shortlist=shortlist or 100)
    if where:
        assert pipeline.select is not None, "open_stages sets it"
        selected = set(pipeline.select(where))
        allowed = selected if allowed is None else selected & set(allowed)
    names_of_models = {name: model for name, model in query_models(paths, names).items() if model}
    if reranker:
        names_of_models[RERANKED] = reranker
    loaded = {
        stage: models.load(name)
        for stage, name in names_of_models.items()
        if not (stage == RERANKED and Path(name).is_file())
    }
    return ServedSearch(pipeline, indexes, models=loaded, names=names_of_models, allowed=allowed)


def serve_pipelines(
    files: Sequence[Path],
    corpus: Path,
    folder: Path,
    models: Any,
    *,
    allowed: Collection[str] | None = None,
) -> dict[str, Any]:
    """Opens files of pipelines over a corpus for the page, by their names.

    Args:
        files: see `read_pipeline`.
        corpus: a directory in BEIR's layout or a JSONL file.
        folder: of the indexes, which are built where they lack.
        models: `corpus_index.Models`.
        allowed: ids that may be shown; None: all.
    """
    from embed_jax.data.sources.beir import read_documents
    from embed_jax.pipelines import open_pipeline
    from embed_jax.retrieval.pipeline_spec import read_pipeline
    from embed_jax.retrieval.search import RERANKED
    from embed_jax.serve.searches import ServedSearch

    texts, _ = read_documents(corpus, [])
    searches: dict[str, Any] = {}
    for file in files:
        spec = read_pipeline(file)
        if spec.name in searches:
            raise InputError(f"--pipeline: two have the name {spec.name!r}")
        opened = open_pipeline(spec, texts, folder, models=models)
        roles = {name: each.model for name, each in spec.retrievers.items() if each.model}
        roles |= {RERANKED: spec.rerank.model} if spec.rerank else {}
        names = {stage: spec.models[role] for stage, role in roles.items()}
        searches[spec.name] = ServedSearch(
            opened.pipeline,
            opened.indexes,
            models={stage: models.load(name) for stage, name in names.items()},
            names=names,
            allowed=allowed,
        )
    return searches


def serve(
    searches: Mapping[str, Any], endpoints: Sequence[str], models: Any, host: str, port: int
) -> None:
    """Serves until it is interrupted.

    Args:
        searches: `ServedSearch` by name, for the page; their models are endpoints, too.
        endpoints: names of more models for the endpoints.
        models: `corpus_index.Models`.
        host: the address to listen at.
        port: its port; 0: any that is free.

    Raises:
        InputError: a library is missing, or the address cannot be used.
    """
    require("uvicorn")
    import uvicorn

    from embed_jax.serve.app import LOOPBACK, make_app

    listener = listen(host, port)
    names = [name for each in searches.values() for name in each.names.values()]
    embedders, rerankers = split_models([*names, *endpoints], models)
    warm_up(searches, embedders, rerankers)
    is_local = host in (*LOOPBACK, "")
    hosts = LOOPBACK if is_local else ("*",) if host in ("0.0.0.0", "::") else (*LOOPBACK, host)
    app = make_app(searches, embedders=embedders, rerankers=rerankers, hosts=hosts)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    if not is_local:
        print(f"warning: {host}: whoever reaches this machine can search", file=sys.stderr)
    print(f"serving at {address} (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(app, log_level="warning", server_header=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
        InputError: the address is unknown, in use or not allowed.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise InputError(f"--host {host}, --port {port}: {error.strerror or error}") from None
    listener.listen(1024)
    return listener


def split_models(names: Sequence[str], models: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the models that embed texts, and scorers of pairs, by name; sparse ones are neither.

    Raises:
        InputError: a model cannot be loaded.
    """
    from embed_jax.corpus_index import DENSE, SPARSE, kind_of_model
    from embed_jax.pipelines import model_reranker

    embedders, rerankers = {}, {}
    for name in dict.fromkeys(names):
        if Path(name).is_file():  # scores that were computed before
            continue
        model = models.load(name)
        kind = kind_of_model(model)
        if kind == DENSE:
            embedders[name] = model
        elif kind != SPARSE:
            scorer = model.score if kind == "cross-encoder" else model_reranker(model)
            rerankers[name] = scorer
    return embedders, rerankers


def warm_up(
    searches: Mapping[str, Any], embedders: Mapping[str, Any], rerankers: Mapping[str, Any]
) -> None:
    """Does everything once, so that the first visitor does not wait for compilers.

    Raises:
        RunError: a stage fails.
    """
    for name, served in searches.items():
        try:
            (stages,) = served.search(served.pipeline.reranker is not None, [WARM_UP])
            ids = list(next(iter(stages.values())))[:10]
            for stage in served.explainers_of(served.stages[-1]):
                served.explain(stage, [(WARM_UP, ids)])
        except InputError as error:
            raise RunError(f"{name}: {one_line(error)}") from None
    for model in embedders.values():
        model.encode_query([WARM_UP])
    for score in rerankers.values():
        score([WARM_UP], [WARM_UP])
