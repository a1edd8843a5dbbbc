"""Fifty clients at a time get an answer each, and every answer is theirs."""

import concurrent.futures
import re
import urllib.request

from embed_jax.serve.app import make_app
from embed_jax.serve.searches import ServedSearch
from scripts.bench.clients import fetch, kinds_of_requests, measure_load

CLIENTS = 50


def test_fifty_clients_at_a_time(start, make_pipeline, dense_model, reranker):
    # BM25 only: batches of queries would be compiled in many sizes.
    served = ServedSearch(*make_pipeline("words"))
    app = make_app(
        {"search": served}, embedders={"tiny": dense_model}, rerankers={"ce": reranker.score}
    )
    url = start(app)
    kinds = kinds_of_requests(url)
    assert list(kinds) == ["page", "/v1/embeddings", "/rerank"]
    texts = ["the cat and the dog"] * CLIENTS
    for ask in kinds.values():
        latencies, errors = measure_load(ask, texts, CLIENTS)
        assert errors == 0 and len(latencies) == CLIENTS
    words = ["cat", "river", "bread", "house", "dog"] * 10

    def top(word):
        html = fetch(urllib.request.Request(f"{url}/?q={word}&left=words&right=")).decode()
        return word, re.search(r'id="l1".*?<p class="text">(.*?)</p>', html, re.DOTALL)[1]

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        assert all(word in text for word, text in pool.map(top, words))
