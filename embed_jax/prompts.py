"""Prompts: templates for instructions, and the prompts of well-known families of models.

The families' prompts are those of their model cards. They are for models whose files record none;
a model's own files always come first.
"""

from __future__ import annotations

import dataclasses
import re
import string
from collections.abc import Mapping

from embed_jax.errors import InputError
from embed_jax.registry import unknown


def check_template(template: str) -> None:
    """Raises an InputError unless a template has the placeholder `{instruction}`, and no other."""
    try:
        parts = string.Formatter().parse(template)
        fields = {
            name + (f":{spec}" if spec else "") + (f"!{conversion}" if conversion else "")
            for _, name, spec, conversion in parts
            if name is not None
        }
    except ValueError as error:
        raise InputError(
            f"template {template!r}: {error}; a brace itself is written twice"
        ) from None
    if fields != {"instruction"}:
        placeholders = ", ".join(f"{{{field}}}" for field in sorted(fields)) or "none"
        raise InputError(
            f"template {template!r}: expected the placeholder {{instruction}} only, found "
            f"{placeholders}"
        )


def fill_template(template: str, instruction: str) -> str:
    r"""Makes a prompt of an instruction by a template.

    >>> fill_template("Instruct: {instruction}\nQuery: ", "Given a claim, find what refutes it")
    'Instruct: Given a claim, find what refutes it\nQuery: '

    Raises:
        InputError: the template lacks its placeholder `{instruction}`, or has another.
    """
    check_template(template)
    return template.format(instruction=instruction)


@dataclasses.dataclass(frozen=True)
class FamilyPrompts:
    """The prompts that a family of models expects.

    Attributes:
        prompts: text put before an input, by name.
        template: what makes a prompt of an instruction; "": the family takes none.
        include_prompt: whether a prompt's tokens count towards pooling.
        append_eos: whether texts end with the end-of-text token.
        instruction: the usual one for retrieval queries, already in `prompts["query"]`.
    """

    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    template: str = ""
    include_prompt: bool = True
    append_eos: bool = False
    instruction: str = ""


def instructed(template: str, instruction: str, **options) -> FamilyPrompts:
    """Makes a family whose queries have an instruction and whose documents have none."""
    prompts = {"query": fill_template(template, instruction), "document": ""}
    return FamilyPrompts(prompts, template, instruction=instruction, **options)


E5_TEMPLATE = "Instruct: {instruction}\nQuery: "
QWEN3_TEMPLATE = "Instruct: {instruction}\nQuery:"  # no blank at the end, as its card has it
WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
QUESTION = "Given a question, retrieve passages that answer the question"
WIKIPEDIA = "Given a question, retrieve Wikipedia passages that answer the question"
BGE_QUERY = {"query": "Represent this sentence for searching relevant passages: ", "document": ""}
BGE_ZH_QUERY = {"query": "为这个句子生成表示以用于检索相关文章：", "document": ""}
NOMIC = {
    "query": "search_query: ",
    "document": "search_document: ",
    "clustering": "clustering: ",
    "classification": "classification: ",
}
GRITLM = {name: "<|embed|>\n" for name in ("query", "document")}
INSTRUCTOR = {
    "query": "Represent the question for retrieving supporting documents: ",
    "document": "Represent the document for retrieval: ",
}
GEMMA = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "STS": "task: sentence similarity | query: ",
}

# The last part of a model's name, in any case: what it expects. The first that matches counts.
FAMILIES: dict[str, FamilyPrompts] = {
    r"(multilingual-)?e5-(small|base|large)(-v2|-unsupervised)?": FamilyPrompts(
        {"query": "query: ", "passage": "passage: "}
    ),
    r"multilingual-e5-large-instruct": instructed(E5_TEMPLATE, WEB_SEARCH),
    r"e5-mistral-7b-instruct": instructed(E5_TEMPLATE, WEB_SEARCH, append_eos=True),
    r"sfr-embedding-(mistral|2_r)": instructed(E5_TEMPLATE, WEB_SEARCH, append_eos=True),
    r"linq-embed-mistral": instructed(E5_TEMPLATE, WIKIPEDIA, append_eos=True),
    r"nv-embed-v[12]": instructed(E5_TEMPLATE, QUESTION, include_prompt=False, append_eos=True),
    r"gritlm-(7b|8x7b)": FamilyPrompts(
        GRITLM, "<|user|>\n{instruction}\n<|embed|>\n", include_prompt=False
    ),
    r"qwen3-embedding-(0\.6b|4b|8b)": instructed(QWEN3_TEMPLATE, WEB_SEARCH),
    r"gte-qwen(1\.5|2)-(1\.5b|7b)-instruct": instructed(E5_TEMPLATE, WEB_SEARCH),
    r"gte-(small|base|large)(-zh|-en-v1\.5)?|gte-(multilingual|modernbert)-base": FamilyPrompts(),
    r"bge-(small|base|large)-en(-v1\.5)?": FamilyPrompts(BGE_QUERY),
    r"bge-(small|base|large)-zh(-v1\.5)?": FamilyPrompts(BGE_ZH_QUERY),
    r"bge-m3": FamilyPrompts(),
    r"mxbai-embed-large-v1|uae-large-v1": FamilyPrompts(BGE_QUERY),
    r"snowflake-arctic-embed-(xs|s|m|l|m-long|m-v1\.5)": FamilyPrompts(BGE_QUERY),
    r"snowflake-arctic-embed-(m|l)-v2\.0": FamilyPrompts({"query": "query: ", "document": ""}),
    r"nomic-embed-text-v(1|1\.5|1-ablated|1-unsupervised|2-moe)": FamilyPrompts(NOMIC),
    r"modernbert-embed-base": FamilyPrompts(NOMIC),
    r"instructor-(base|large|xl)": FamilyPrompts(
        INSTRUCTOR, "{instruction} ", include_prompt=False
    ),
    r"stella_en_(400m|1\.5b)_v5": instructed(E5_TEMPLATE, f"{WEB_SEARCH}."),
    r"embeddinggemma-300m": FamilyPrompts(
        GEMMA, "task: {instruction} | query: ", instruction="search result"
    ),
    r"(all|paraphrase|multi-qa)-(multilingual-)?(minilm|mpnet|distilroberta|distilbert)[\w.-]*|labse"
    r"|(sentence|gtr)-t5-\w+|(un)?sup-simcse-[\w-]+|static-retrieval-mrl-en-v1|potion-[\w-]+"
    r"|jina-embeddings-v2-[\w-]+": FamilyPrompts(),
}


DOCUMENT_NAMES = ("document", "passage", "corpus")  # names of the prompt of searched texts


def prompt_for(
    prompts: Mapping[str, str], *, task: str = "", kind: str = "", side: str = ""
) -> str | None:
    """Returns the name of a task's prompt, in mteb's order: its own, its kind's, its side's.

    None if there is no such prompt.

    >>> prompt_for({"query": "q: ", "STS": "s: "}, kind="STS")
    'STS'

    Args:
        prompts: text by name; names count in any case.
        task: name of the task, such as "SciFact".
        kind: by mteb's name, such as "Retrieval" or "PairClassification".
        side: "query", "document" or "".
    """
    sides = DOCUMENT_NAMES if side == "document" else (side,)
    names = [
        f"{what}-{name}" if name else what for what in (task, kind) if what for name in (*sides, "")
    ]
    known = {name.lower(): name for name in prompts}
    return next(
        (known[name.lower()] for name in (*names, *filter(None, sides)) if name.lower() in known),
        None,
    )


def resolve_prompt(
    prompts: Mapping[str, str],
    template: str,
    *,
    prompt_name: str | None = None,
    prompt: str | None = None,
    instruction: str | None = None,
) -> str:
    """Returns the text to put before an input: a prompt, a named prompt, or an instruction.

    Raises:
        InputError: for an unknown name, an instruction beside a prompt or to a model whose template
            is "".
    """
    arguments = {"prompt_name": prompt_name, "prompt": prompt, "instruction": instruction}
    several = [argument for argument, value in arguments.items() if value is not None]
    if instruction is not None:
        if len(several) > 1:
            raise InputError(f"expected a prompt or an instruction, found {' and '.join(several)}")
        if not template:
            raise InputError(
                f"instruction {instruction!r}: this model has no template for instructions"
            )
        return fill_template(template, instruction)
    if prompt is not None or prompt_name is None:
        return prompt or ""
    if prompt_name not in prompts:
        known = unknown("prompt", prompt_name, prompts)
        raise InputError(known if prompts else f"this model has no prompts: {prompt_name!r}")
    return prompts[prompt_name]


def expected(name: str) -> FamilyPrompts | None:
    """Returns the prompts of a model's family; None for a name that no family has.

    Args:
        name: on the hub, with or without its organisation, or a path that ends in such a name. A
            name with more before or after it, such as "my-e5-base", is another model's.
    """
    last = last_part(name)
    return next(
        (family for pattern, family in FAMILIES.items() if re.fullmatch(pattern, last)), None
    )


def last_part(name: str) -> str:
    """Returns a model's short name in lower case.

    It is a hub name without its organisation, or a path's last part.
    """
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()
