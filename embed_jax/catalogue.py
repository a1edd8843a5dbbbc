"""A catalogue of published models: their sizes, published averages, and whether they load here.

Computations always use a model's own files; the catalogue is for people, beside results.
"""

from __future__ import annotations

import dataclasses

from embed_jax.prompts import FamilyPrompts, expected, last_part

V1 = "MTEB(eng, v1)"  # 56 tasks
V2 = "MTEB(eng, v2)"  # 41 tasks
MULTILINGUAL = "MTEB(Multilingual)"


@dataclasses.dataclass(frozen=True)
class Average:
    """A mean over a benchmark's tasks, in percent, and who published it.

    Averages of different benchmarks must not be compared.
    """

    value: float
    benchmark: str
    source: str


@dataclasses.dataclass(frozen=True)
class CatalogueEntry:
    """A published model.

    Attributes:
        name: on the hub.
        architecture: config.json's model_type; "static": a table of token vectors, which has no
            config.json.
        dim: numbers in an embedding.
        max_tokens: the length at which its sentence-transformers files cut a text, else that of its
            card; 0: no limit.
        pooling: with which it was trained.
        average: of a benchmark; None: none was found at its source.
        refused: why it does not load; "": it does.
        note: what has to be done before it loads, or differs from what is published.
    """

    name: str
    architecture: str
    dim: int
    max_tokens: int
    pooling: str
    average: Average | None = None
    refused: str = ""
    note: str = ""

    @property
    def prompts(self) -> FamilyPrompts | None:
        """Returns the prompts that it expects before a text; None if they are not known here."""
        return expected(self.name)


def _v1(value: float, source: str = "model card") -> Average:
    return Average(value, V1, source)


E = CatalogueEntry
BGE, GTE, QWEN3 = "BGE README", "gte-Qwen2 card", "Qwen3-Embedding README"
WANG, MUENNIGHOFF = "Wang et al. 2024, table 1", "Muennighoff et al. 2024"
PICKLED = "its weights are pytorch_model.bin: convert them first"
UNPOOLED = f"{PICKLED}; its files name no pooling: it loads with the mean, and without its pooler"
TWO_WAY = 'attends both ways: needs "is_causal": false in its config.json'
CATALOGUE = (
    E("sentence-transformers/all-MiniLM-L6-v2", "bert", 384, 256, "mean",
      _v1(56.26, "MTEB leaderboard, 2024")),
    E("sentence-transformers/all-MiniLM-L12-v2", "bert", 384, 128, "mean"),
    E("sentence-transformers/all-mpnet-base-v2", "mpnet", 768, 384, "mean", _v1(57.78, BGE)),
    E("sentence-transformers/all-distilroberta-v1", "roberta", 768, 512, "mean"),
    E("sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", "bert", 384, 128, "mean"),
    E("sentence-transformers/multi-qa-mpnet-base-dot-v1", "mpnet", 768, 512, "cls"),
    E("sentence-transformers/multi-qa-distilbert-cos-v1", "distilbert", 768, 512, "mean"),
    E("sentence-transformers/LaBSE", "bert", 768, 256, "cls"),
    E("sentence-transformers/sentence-t5-base", "t5", 768, 256, "mean"),
    E("sentence-transformers/sentence-t5-xxl", "t5", 768, 256, "mean", _v1(59.51, BGE)),
    E("sentence-transformers/gtr-t5-base", "t5", 768, 512, "mean"),
    E("sentence-transformers/static-retrieval-mrl-en-v1", "static", 1024, 0, "mean"),
    E("minishlab/potion-base-8M", "static", 256, 0, "mean"),
    E("princeton-nlp/sup-simcse-bert-base-uncased", "bert", 768, 512, "cls",
      _v1(48.7, WANG), note=UNPOOLED),
    E("intfloat/e5-small-v2", "bert", 384, 512, "mean", _v1(59.93, BGE)),
    E("intfloat/e5-base-v2", "bert", 768, 512, "mean", _v1(61.50, BGE)),
    E("intfloat/e5-large-v2", "bert", 1024, 512, "mean", _v1(62.25, BGE)),
    E("intfloat/multilingual-e5-small", "bert", 384, 512, "mean",
      _v1(57.87, "MTEB leaderboard, by Vespa")),
    E("intfloat/multilingual-e5-base", "xlm-roberta", 768, 512, "mean", _v1(59.45, GTE)),
    E("intfloat/multilingual-e5-large", "xlm-roberta", 1024, 512, "mean", _v1(61.50, GTE)),
    E("intfloat/multilingual-e5-large-instruct", "xlm-roberta", 1024, 512, "mean",
      Average(63.22, MULTILINGUAL, QWEN3)),
    E("intfloat/e5-mistral-7b-instruct", "mistral", 4096, 32768, "last_token", _v1(66.63, GTE)),
    E("BAAI/bge-small-en-v1.5", "bert", 384, 512, "cls", _v1(62.17)),
    E("BAAI/bge-base-en-v1.5", "bert", 768, 512, "cls", _v1(63.55)),
    E("BAAI/bge-large-en-v1.5", "bert", 1024, 512, "cls", _v1(64.23)),
    E("BAAI/bge-m3", "xlm-roberta", 1024, 8192, "cls",
      Average(59.56, MULTILINGUAL, QWEN3), note=PICKLED),
    E("thenlper/gte-small", "bert", 384, 512, "mean", _v1(61.36)),
    E("thenlper/gte-base", "bert", 768, 512, "mean", _v1(62.39)),
    E("thenlper/gte-large", "bert", 1024, 512, "mean", _v1(63.13)),
    E("Alibaba-NLP/gte-base-en-v1.5", "new", 768, 8192, "cls", _v1(64.11)),
    E("Alibaba-NLP/gte-large-en-v1.5", "new", 1024, 8192, "cls", _v1(65.39)),
    E("Alibaba-NLP/gte-multilingual-base", "new", 768, 8192, "cls"),
    E("Alibaba-NLP/gte-modernbert-base", "modernbert", 768, 8192, "cls", _v1(64.38)),
    E("Alibaba-NLP/gte-Qwen2-1.5B-instruct", "qwen2", 1536, 32768, "last_token",
      _v1(67.16), note=TWO_WAY),
    E("Alibaba-NLP/gte-Qwen2-7B-instruct", "qwen2", 3584, 32768, "last_token",
      _v1(70.24), note=TWO_WAY),
    E("Qwen/Qwen3-Embedding-0.6B", "qwen3", 1024, 32768, "last_token", Average(70.70, V2, QWEN3)),
    E("Qwen/Qwen3-Embedding-4B", "qwen3", 2560, 32768, "last_token", Average(74.60, V2, QWEN3)),
    E("Qwen/Qwen3-Embedding-8B", "qwen3", 4096, 32768, "last_token", Average(75.22, V2, QWEN3)),
    E("nomic-ai/nomic-embed-text-v1", "nomic_bert", 768, 8192, "mean",
      _v1(62.39, "Nussbaum et al. 2024")),
    E("nomic-ai/nomic-embed-text-v1.5", "nomic_bert", 768, 8192, "mean", _v1(62.28)),
    E("nomic-ai/nomic-embed-text-v2-moe", "nomic_bert", 768, 512, "mean",
      None, "a mixture of experts (num_experts 8)"),
    E("nomic-ai/modernbert-embed-base", "modernbert", 768, 8192, "mean", _v1(62.62)),
    E("mixedbread-ai/mxbai-embed-large-v1", "bert", 1024, 512, "cls", _v1(64.68, GTE)),
    E("WhereIsAI/UAE-Large-V1", "bert", 1024, 512, "cls", _v1(64.64, "AnglE README")),
    E("Snowflake/snowflake-arctic-embed-xs", "bert", 384, 512, "cls"),
    E("Snowflake/snowflake-arctic-embed-m-v1.5", "bert", 768, 512, "cls"),
    E("Snowflake/snowflake-arctic-embed-m-v2.0", "gte", 768, 8192, "cls"),
    E("Snowflake/snowflake-arctic-embed-l-v2.0", "xlm-roberta", 1024, 8192, "cls"),
    E("NovaSearch/stella_en_1.5B_v5", "qwen2", 1024, 512, "mean", note=TWO_WAY),
    E("jinaai/jina-embeddings-v2-base-en", "bert", 768, 8192, "mean",
      None, "position_embedding_type 'alibi'"),
    E("jinaai/jina-embeddings-v3", "xlm-roberta", 1024, 8192, "mean",
      None, "position_embedding_type 'rotary'"),
    E("google/embeddinggemma-300m", "gemma3_text", 768, 2048, "mean",
      Average(69.67, V2, "model card")),
    E("Salesforce/SFR-Embedding-Mistral", "mistral", 4096, 4096, "last_token"),
    E("Linq-AI-Research/Linq-Embed-Mistral", "mistral", 4096, 32768, "last_token", _v1(68.2)),
    E("nvidia/NV-Embed-v2", "nvembed", 4096, 32768, "mean",
      _v1(72.31), "model_type 'nvembed' is its own code"),
    E("GritLM/GritLM-7B", "mistral", 4096, 32768, "mean", _v1(66.8, MUENNIGHOFF), note=TWO_WAY),
    E("hkunlp/instructor-large", "t5", 768, 512, "mean"),
    E("hkunlp/instructor-xl", "t5", 768, 512, "mean",
      _v1(61.79, "BehnamGhader et al. 2024, table 2")),
)  # fmt: skip
_BY_NAME = {last_part(entry.name): entry for entry in CATALOGUE}


def entry(name: str) -> CatalogueEntry | None:
    """Returns the model of a name; None if it is not in the catalogue.

    Args:
        name: on the hub, with or without its organisation, in any case, or a path that ends in such
            a name. A name with more before or after it is another model's.
    """
    return _BY_NAME.get(last_part(name))


def line(entry: CatalogueEntry) -> str:
    """Describes a model in one line, to be read beside one's own figures."""
    tokens = f"up to {entry.max_tokens} tokens" if entry.max_tokens else "any number of tokens"
    parts = [
        f"{entry.architecture}, {entry.dim} dimensions, {tokens}, {entry.pooling} pooling, "
        f"{_prompts(entry)}"
    ]
    average = entry.average
    parts.append(
        f"{average.benchmark} {average.value:g} ({average.source})"
        if average
        else "no verified MTEB average"
    )
    parts += [entry.note] if entry.note else []
    parts += [f"not loaded: {entry.refused}"] if entry.refused else []
    return f"{entry.name}: {'; '.join(parts)}"


def _prompts(entry: CatalogueEntry) -> str:
    family = entry.prompts
    if family is None:
        return "prompts not known"
    named = [name for name, text in family.prompts.items() if text] + (
        ["an instruction"] if family.template else []
    )
    return f"prompts for {', '.join(named)}" if named else "no prompts"
