"""Search: BM25, exact, approximate, compressed and multi-vector; mining of hard negatives.

    from embed_jax import retrieval

    retrieval.top_k(queries, documents, k=10)
    retrieval.bm25_search(corpus, queries, k=10)

The names below are public; each is imported when it is asked for.
"""

from __future__ import annotations

from embed_jax.public import public_names

_MODULES = {
    "annotate": (
        "RunLists",
        "in_blocks",
        "record_lists",
        "score_missing",
        "scored_lists",
        "similarity_scorer",
        "teacher_margin",
    ),
    "bm25": ("BM25Searcher", "bm25_search", "bm25_searcher"),
    "calibration": ("calibrate",),
    "compressed": ("CompressedIndex",),
    "fusion": ("sort_results", "convex_combination", "reciprocal_rank_fusion"),
    "index": ("DenseSearcher", "FaissSearcher", "dense_searcher", "faiss_searcher"),
    "indexes": ("Index", "build_index", "open_index"),
    "lance_index": ("LanceIndex", "build_lance_index"),
    "mine": ("Mining", "mine_negatives", "mine_records"),
    "multi_vector": ("MultiVectorIndex", "build_multi_vector"),
    "passages": ("passage_search", "split_passages"),
    "quantize": ("Compressed", "compress", "dequantize_embeddings", "quantize_embeddings"),
    "round_trip": ("round_trip_filter",),
    "search": ("Pipeline", "Retriever", "SearchResults", "index_retriever"),
    "score_store": ("ScoreStore", "read_score_file"),
    "sparse_index": ("SparseIndex", "build_sparse_index"),
    "sparse": ("SparseSearcher", "sparse_searcher", "sparse_top_k", "write_word_weights"),
    "text_chunks": ("chunk_corpus", "chunk_spans", "fold_chunks"),
    "topk": ("dense_search", "top_k"),
    "vector_index": ("VectorIndex", "build_vector_index"),
    "word_index": ("WordIndex", "build_word_index"),
}
__all__, __getattr__, __dir__ = public_names(__name__, _MODULES)
