"""Settings of encoding and comparison that a model's files record beside its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class EncodingSettings:
    """Settings of an embedding model, read and written with it; none of them changes a weight.

    >>> settings = EncodingSettings(prompts={"query": "query: "}, default_prompt_name="query")
    >>> settings.prompts["query"], settings.similarity
    ('query: ', 'cosine')

    Attributes:
        prompts: texts put before the input, by name; a copy of the argument.
        default_prompt_name: the name of the prompt used when none is named, or None.
        include_prompt: whether a prompt's tokens count towards pooling.
        similarity: "cosine", "dot", "euclidean" or "manhattan": how embeddings are compared; of
            several heads a weighted sum, see `head_scores.read_sum`.
        template: makes a prompt of an instruction, such as "Instruct: {instruction}\\nQuery: ";
            "": the model takes no instruction.
        matryoshka_dims: sizes to which embeddings were trained to be cut; empty: the full one only.
        adaptive_layers: whether every layer was trained to be the last.
        max_active: the most weights that a sparse embedding keeps; 0: all.
        lower_case: whether texts are lower-cased before the tokenizer sees them.
        base: the model's own name as the base of an adapter, or the name of its base if it has an
            adapter: an absolute directory, or a name on the hub.
    """

    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    default_prompt_name: str | None = None
    include_prompt: bool = True
    similarity: str = "cosine"
    template: str = ""
    matryoshka_dims: tuple[int, ...] = ()
    adaptive_layers: bool = False
    max_active: int = 0
    lower_case: bool = False
    base: str = ""

    def __post_init__(self) -> None:
        prompts: Mapping[str, str] = self.prompts
        # A copy: a model's prompts may be changed in place, which must not change other models'.
        object.__setattr__(self, "prompts", dict(prompts))
        object.__setattr__(self, "matryoshka_dims", tuple(self.matryoshka_dims))
