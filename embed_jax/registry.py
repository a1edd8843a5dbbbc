"""Names that a config file may use, each bound to "module:attribute" and imported when needed.

A new backbone, loss or data set is its own file (or function) and one line here. Objects outside
this code base are named "module:attribute" wherever a name of the registry is accepted.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import re
import sys
from typing import Any

from embed_jax.errors import InputError

REGISTRY: dict[str, dict[str, str]] = {
    "backbone": {  # by config.json's model_type
        "bert": "embed_jax.encoders.bert:BERT",
        "roberta": "embed_jax.encoders.bert:ROBERTA",
        "xlm-roberta": "embed_jax.encoders.bert:XLM_ROBERTA",
        "camembert": "embed_jax.encoders.bert:CAMEMBERT",
        "mpnet": "embed_jax.encoders.bert:MPNET",
        "distilbert": "embed_jax.encoders.bert:DISTILBERT",
        "electra": "embed_jax.encoders.bert:ELECTRA",
        "deberta-v2": "embed_jax.encoders.deberta:DEBERTA",
        "nomic_bert": "embed_jax.encoders.nomic:NOMIC",
        "new": "embed_jax.encoders.gte:GTE",
        "gte": "embed_jax.encoders.gte:ARCTIC",
        "modernbert": "embed_jax.encoders.modernbert:MODERNBERT",
        "t5": "embed_jax.encoders.t5:T5_ENCODER",
        "llama": "embed_jax.encoders.decoder_families:LLAMA",
        "mistral": "embed_jax.encoders.decoder_families:MISTRAL",
        "qwen2": "embed_jax.encoders.decoder_families:QWEN2",
        "qwen3": "embed_jax.encoders.decoder_families:QWEN3",
        "gemma": "embed_jax.encoders.decoder_families:GEMMA",
        "gemma2": "embed_jax.encoders.decoder_families:GEMMA2",
        "gemma3_text": "embed_jax.encoders.decoder_families:GEMMA3",
        "static": "embed_jax.encoders.static:STATIC",
    },
    "model": {  # by model_type of config_sentence_transformers.json
        "SentenceTransformer": "embed_jax.routed:load_routed",
        "SparseEncoder": "embed_jax.routed:load_routed",
        "CrossEncoder": "embed_jax.cross_encoder:load_cross_encoder",
        "MultiVectorEncoder": "embed_jax.late_interaction:load_late_interaction_encoder",
        "ColBERT": "embed_jax.late_interaction:load_late_interaction_encoder",
        "MultiHeadEncoder": "embed_jax.multi_head:load_multi_head_encoder",
    },
    "directory": {  # directories that hold more than a model
        "run": "embed_jax.train.run:load_run",
    },
    "loss": {
        "info_nce": "embed_jax.losses.in_batch:info_nce",
        "gte": "embed_jax.losses.in_batch:gte",
        "qwen3": "embed_jax.losses.in_batch:qwen3",
        "gist": "embed_jax.losses.in_batch:gist",
        "dcl": "embed_jax.losses.in_batch:dcl",
        "siglip": "embed_jax.losses.in_batch:siglip",
        "mega_batch_margin": "embed_jax.losses.in_batch:mega_batch_margin",
        "contrastive": "embed_jax.losses.pairwise:contrastive",
        "online_contrastive": "embed_jax.losses.pairwise:online_contrastive",
        "cosent": "embed_jax.losses.pairwise:cosent",
        "angle": "embed_jax.losses.pairwise:angle",
        "angle_combined": "embed_jax.losses.pairwise:angle_combined",
        "cosine_mse": "embed_jax.losses.pairwise:cosine_mse",
        "contrastive_tension": "embed_jax.losses.pairwise:contrastive_tension",
        "contrastive_tension_in_batch": "embed_jax.losses.pairwise:contrastive_tension_in_batch",
        "triplet": "embed_jax.losses.triplets:triplet",
        "batch_all_triplet": "embed_jax.losses.triplets:batch_all_triplet",
        "batch_hard_triplet": "embed_jax.losses.triplets:batch_hard_triplet",
        "batch_hard_soft_margin_triplet": (
            "embed_jax.losses.triplets:batch_hard_soft_margin_triplet"
        ),
        "batch_semi_hard_triplet": "embed_jax.losses.triplets:batch_semi_hard_triplet",
        "softmax": "embed_jax.losses.classification:softmax",
        "embedding_mse": "embed_jax.losses.distillation:embedding_mse",
        "embedding_cosine": "embed_jax.losses.distillation:embedding_cosine",
        "margin_mse": "embed_jax.losses.distillation:margin_mse",
        "kl": "embed_jax.losses.distillation:kl",
        "relational": "embed_jax.losses.distillation:relational",
        "score_mse": "embed_jax.losses.pointwise:score_mse",
        "binary_cross_entropy": "embed_jax.losses.pointwise:binary_cross_entropy",
        "pair_cross_entropy": "embed_jax.losses.pointwise:pair_cross_entropy",
        "own_candidates": "embed_jax.losses.listwise:own_candidates",
        "list_softmax": "embed_jax.losses.listwise:list_softmax",
        "list_net": "embed_jax.losses.listwise:list_net",
        "list_mle": "embed_jax.losses.listwise:list_mle",
        "rank_net": "embed_jax.losses.ranking:rank_net",
        "lambda_rank": "embed_jax.losses.ranking:lambda_rank",
        "adr_mse": "embed_jax.losses.ranking:adr_mse",
        "uniformity": "embed_jax.losses.regularization:uniformity",
        "alignment": "embed_jax.losses.regularization:alignment",
        "global_orthogonal": "embed_jax.losses.regularization:global_orthogonal",
        "variance": "embed_jax.losses.regularization:variance",
        "covariance": "embed_jax.losses.regularization:covariance",
        "self_distillation": "embed_jax.losses.heads:self_distillation",
        "flops": "embed_jax.losses.sparsity:flops",
        "l1": "embed_jax.losses.sparsity:l1",
    },
    "score": {
        "cosine": "embed_jax.scores:COSINE",
        "dot": "embed_jax.scores:DOT",
        "logit": "embed_jax.scores:LOGIT",
        "maxsim": "embed_jax.maxsim:MAXSIM",
        "mean_maxsim": "embed_jax.maxsim:MEAN_MAXSIM",
        "xtr": "embed_jax.xtr:XTR",
        "dense": "embed_jax.head_scores:DENSE",  # and the following: of an encoder's heads
        "sparse": "embed_jax.head_scores:SPARSE",
        "multi_vector": "embed_jax.head_scores:MULTI_VECTOR",
    },
    "token_objective": {
        "mlm": "embed_jax.encoders.token_objectives:mlm",
        "mntp": "embed_jax.encoders.token_objectives:mntp",
        "next_token": "embed_jax.encoders.token_objectives:next_token",
    },
    "token_head": {
        "latent_attention": "embed_jax.encoders.latent:latent_attention",
    },
    "augmentation": {
        "crop": "embed_jax.data.augment:crop",
        "delete_words": "embed_jax.data.augment:delete_words",
        "delete_one_word": "embed_jax.data.augment:delete_one_word",
        "repeat_words": "embed_jax.data.augment:repeat_words",
        "mask_span": "embed_jax.data.augment:mask_span",
    },
    "task": {
        "sts": "embed_jax.evals.sts:open_task",
        "retrieval": "embed_jax.evals.retrieval:open_task",
        "classification": "embed_jax.evals.classification:open_task",
        "clustering": "embed_jax.evals.clustering:open_task",
        "pairs": "embed_jax.evals.pairs:open_task",
        "reranking": "embed_jax.evals.reranking:open_task",
        "bitext": "embed_jax.evals.bitext:open_task",
        "summarization": "embed_jax.evals.summarization:open_task",
        "transfer": "embed_jax.evals.transfer:open_task",
        "instructions": "embed_jax.evals.instructions:open_task",
        "passkey": "embed_jax.evals.passkey:open_task",
    },
    "source": {
        "python_docs": "embed_jax.data.sources.python_docs:open_source",
        "tfds": "embed_jax.data.sources.tfds:open_source",
        "hf": "embed_jax.data.sources.hf:open_source",
        "beir": "embed_jax.data.sources.beir:open_source",
        "array_record": "embed_jax.data.sources.array_record:open_source",
        "parquet": "embed_jax.data.sources.parquet:open_source",
        "recipe": "embed_jax.data.sources.recipes:open_source",
        "file": "embed_jax.data.sources.files:open_source",
    },
}


OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # "module:attribute"


def lookup(kind: str, name: str, imported_only: bool = False) -> Any:
    """Returns the registered object `name` of `kind`, or the one that "module:attribute" names.

    Args:
        kind: of the registry, such as "loss".
        name: a registered name, or "module:attribute".
        imported_only: accept an attribute only of a module that the program has imported: for names
            from a model's files, which may come from anybody.

    Raises:
        InputError: for an unknown name; the message lists the known ones.
    """
    entries = REGISTRY[kind]
    if name in entries:
        module, attribute = entries[name].split(":")
        return getattr(importlib.import_module(module), attribute)
    if not OWN.fullmatch(name):
        raise InputError(unknown(f"{kind}", name, entries))
    return _own(kind, name, imported_only)


def _own(kind: str, name: str, imported_only: bool) -> Any:
    """Imports the object that "module:attribute" names."""
    module_name, attribute = name.split(":")
    if imported_only and module_name not in sys.modules:
        raise InputError(
            f"{kind} {name!r}: import the module {module_name} first; a file can't have it imported"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        known = ", ".join(sorted(REGISTRY[kind]))
        raise InputError(
            f"{kind} {name!r}: can't import {module_name}: {error}; known without a module: {known}"
        ) from None
    if not hasattr(module, attribute):
        names = [known for known in vars(module) if not known.startswith("_")]
        raise InputError(f"{kind} {name!r}: {unknown('attribute', attribute, names)}")
    return getattr(module, attribute)


def with_dots(expression: str) -> tuple[str, dict[str, str]]:
    """Writes "module:attribute" in an expression as "module.attribute", which Python parses.

    Returns:
        The expression, and "module:attribute" by its replacement. Texts in quotes are unchanged.
    """
    own: dict[str, str] = {}

    def with_dot(match: re.Match) -> str:
        if match[1] is None:
            return match[0]
        own[match[1].replace(":", ".")] = match[1]
        return match[1].replace(":", ".")

    return re.sub(rf"""'[^']*'|"[^"]*"|({OWN.pattern})""", with_dot, expression), own


def called(kind: str, text: str) -> Any:
    """Calls a registered function by an expression, and returns its result.

    Expressions are "crop(rate=0.1)", "crop" or "my_module:my_crop(rate=0.1)".

    Args:
        kind: of the registry, such as "augmentation".
        text: a name of `kind` or "module:function", arguments by name as literals. It is never
            evaluated as Python.

    Raises:
        InputError: naming the wrong part, and what is accepted.
    """
    source, own = with_dots(text.strip())
    try:
        node = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(getattr(error, "msg", str(error))) from None
    positional: list[ast.expr] = []
    keywords: list[ast.keyword] = []
    match node:
        case ast.Name(id=name):
            pass
        case ast.Attribute() if ast.unparse(node) in own:
            name = own[ast.unparse(node)]
        case ast.Call(func=ast.Name(id=name), args=positional, keywords=keywords):
            pass
        case ast.Call(func=ast.Attribute()) if ast.unparse(node.func) in own:
            name, positional, keywords = own[ast.unparse(node.func)], node.args, node.keywords
        case _:
            raise InputError(f"expected a single {kind}, of {', '.join(sorted(REGISTRY[kind]))}")
    make = lookup(kind, name)
    parameters = inspect.signature(make).parameters
    if positional:
        raise InputError(f"expected arguments by name; known: {', '.join(parameters)}")
    arguments: dict[str, Any] = {}
    for keyword in keywords:
        if keyword.arg is None or keyword.arg not in parameters:
            written = keyword.arg or f"**{ast.unparse(keyword.value)}"
            raise InputError(unknown(f"argument of {name}", written, parameters))
        if keyword.arg in arguments:
            raise InputError(f"expected {keyword.arg} once, found it twice")
        try:
            arguments[keyword.arg] = ast.literal_eval(keyword.value)
        except ValueError:
            raise InputError(f"{keyword.arg}: expected a number or a string in quotes") from None
    for argument, parameter in parameters.items():
        if argument not in arguments and parameter.default is parameter.empty:
            raise InputError(f"{name} needs the argument {argument}")
    return make(**arguments)


def unknown(what: str, name: Any, known) -> str:
    """Returns one line for an unknown `name`: a guess at the one meant, and the known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {name!r}{guess}; known: {', '.join(known)}"
