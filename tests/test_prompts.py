"""Prompts of families of models, and instructions in templates."""

import pytest

from embed_jax.errors import InputError
from embed_jax.prompts import FAMILIES, expected, fill_template

# One name for each line of FAMILIES, in its order.
NAMES = """intfloat/e5-base-v2 intfloat/multilingual-e5-large-instruct
intfloat/e5-mistral-7b-instruct Salesforce/SFR-Embedding-Mistral Linq-AI-Research/Linq-Embed-Mistral
nvidia/NV-Embed-v2 GritLM/GritLM-7B Qwen/Qwen3-Embedding-0.6B Alibaba-NLP/gte-Qwen2-7B-instruct
Alibaba-NLP/gte-modernbert-base BAAI/bge-base-en-v1.5 BAAI/bge-small-zh-v1.5 BAAI/bge-m3
mixedbread-ai/mxbai-embed-large-v1 Snowflake/snowflake-arctic-embed-m-v1.5
Snowflake/snowflake-arctic-embed-l-v2.0 nomic-ai/nomic-embed-text-v1.5
nomic-ai/modernbert-embed-base hkunlp/instructor-large
NovaSearch/stella_en_1.5B_v5 google/embeddinggemma-300m
sentence-transformers/all-MiniLM-L6-v2""".split()


def test_each_family_is_found_by_name_and_by_path():
    for name, family in zip(NAMES, FAMILIES.values(), strict=True):
        assert expected(name) is family, name
        assert expected(name.split("/")[1]) is family
        assert expected(f"/models/{name}/") is family


@pytest.mark.parametrize(
    "name", ["model", "runs/my-e5-base", "e5-base-v2-finetuned", "e5-base-sts-en-de", "", "/"]
)
def test_other_names_are_no_family(name):
    assert expected(name) is None


def test_prompts_are_those_of_the_cards():
    """The exact characters: Qwen3 has no blank after "Query:", E5-Mistral has one."""
    query = {name: expected(name).prompts.get("query") for name in NAMES}
    web = "Given a web search query, retrieve relevant passages that answer the query"
    assert query["Qwen/Qwen3-Embedding-0.6B"] == f"Instruct: {web}\nQuery:"
    assert query["intfloat/e5-mistral-7b-instruct"] == f"Instruct: {web}\nQuery: "
    nvidia = "Instruct: Given a question, retrieve passages that answer the question\nQuery: "
    assert query["nvidia/NV-Embed-v2"] == nvidia
    assert expected("intfloat/e5-base").prompts == {"query": "query: ", "passage": "passage: "}
    masked = {name for name in NAMES if not expected(name).include_prompt}
    assert masked == {"nvidia/NV-Embed-v2", "GritLM/GritLM-7B", "hkunlp/instructor-large"}
    for family in FAMILIES.values():
        if family.instruction:
            assert family.prompts["query"] == fill_template(family.template, family.instruction)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in NAMES if "instructor" not in name]
)  # which it does not have
def test_prompts_are_those_that_mteb_evaluates_with(name):
    mteb = pytest.importorskip("mteb")
    options = mteb.get_model_meta(name).loader_kwargs
    reference, ours = options.get("model_prompts", {}), expected(name)
    for side in ("query", "document"):
        prompt = reference.get(side, "").replace("{text}", "")
        if not prompt:
            continue
        assert prompt == (ours.prompts.get(side) or ours.prompts["passage"])
    if template := options.get("instruction_template"):
        filled = template("do it") if callable(template) else template.format(instruction="do it")
        assert fill_template(ours.template, "do it") == filled
    assert options.get("include_prompt", ours.include_prompt) == ours.include_prompt


def test_an_instruction_is_put_in_as_it_is():
    template = "<|user|>\n{instruction}\n<|embed|>\n"
    assert (
        fill_template(template, "Keep {this} and {{that}}")
        == "<|user|>\nKeep {this} and {{that}}\n<|embed|>\n"
    )
    assert fill_template("{{x}} {instruction}: ", "a") == "{x} a: "


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Instruct: ", "found none"),
        ("{task}: ", "found {task}"),
        ("{instruction} {text}", "found {instruction}, {text}"),
        ("{instruction!r} ", "found {instruction!r}"),
        ("{instruction:>9} ", "found {instruction:>9}"),
        ("{} ", "found {}"),
        ("{instruction", "a brace itself is written twice"),
    ],
)
def test_a_template_has_its_placeholder_and_no_other(template, message):
    with pytest.raises(InputError) as caught:
        fill_template(template, "a")
    assert message in str(caught.value) and "\n" not in str(caught.value)
