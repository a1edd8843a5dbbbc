"""The section of a model card on how to use the model, in code that runs without changes."""

from __future__ import annotations

from collections.abc import Sequence

from embed_jax.cross_encoder import CrossEncoder
from embed_jax.encoders.heads import Normalize
from embed_jax.encoders.latent import LatentAttention
from embed_jax.encoders.modules import POOLING_NAMES
from embed_jax.export.onnx import has_pooling_mask, input_names
from embed_jax.prompts import DOCUMENT_NAMES
from embed_jax.sentence import SentenceEncoder

QUERIES = '["How do I open a file?", "Where does the river end?"]'
PASSAGES = '["open() gives a file object.", "It flows into the sea."]'
TEXTS = '["A dog runs over the field.", "A cat sleeps in the house."]'


def loads_in_sentence_transformers(model: SentenceEncoder | CrossEncoder) -> bool:
    """Tells whether sentence-transformers has all modules of the model."""
    if isinstance(model, CrossEncoder):
        return True
    return (
        not isinstance(model.spec.token_head, LatentAttention)
        and "first_last_mean" not in model.spec.pooling
    )


def usage(
    model: SentenceEncoder | CrossEncoder, name: str, format: str, onnx: Sequence[tuple[str, str]]
) -> str:
    """Returns the section on how to use a model; see card.CardContent for the arguments."""
    parts = ["## How to use it"]
    if isinstance(model, CrossEncoder):
        if format:
            parts += ["With sentence-transformers:", _code(_cross_encoder_code(model, name))]
            parts += ["With embed-jax:", _code(_own_cross_encoder_code(model, name))]
        if onnx:
            parts += [_PAIR_ONNX]
            parts += [_CHAT] if model.chat else [_code(_pair_onnx_code(model, name, onnx[0][0]))]
            parts += _list_files(onnx)
        return "\n\n".join(parts)
    if format == "huggingface":
        parts += (
            [_PLAIN, "With sentence-transformers:", _code(_plain_code(model, name))]
            if _is_plain(model)
            else [_PLAIN]
        )
    elif format:
        if loads_in_sentence_transformers(model):
            parts += [
                "With sentence-transformers:",
                _code(_sentence_transformers_code(model, name)),
            ]
        else:
            parts.append(
                "sentence-transformers cannot load this model: its pooling is embed-jax's own."
            )
        parts += ["With embed-jax:", _code(_own_code(model, name))]
    if onnx:
        parts += [_ONNX, _code(_onnx_code(model, name, onnx[0][0]))]
        parts += _list_files(onnx)
        parts.append(_tensorrt(model, onnx[0][0]))
    return "\n\n".join(parts)


_PLAIN = (
    "These are the files of the backbone and the tokenizer only, as transformers lays them out: "
    "pooling, prompts and "
    "similarity are not recorded in them, only here. Whatever loads them must be told the pooling."
)
_ONNX = (
    "With ONNX Runtime. The file takes token ids and gives the final embedding, pooled: "
    "sentence-transformers' own "
    '`backend="onnx"` wants token embeddings, and cannot use it.'
)
_PAIR_ONNX = (
    "With ONNX Runtime. The file takes token ids of pairs and gives their logits, before the "
    "activation that makes scores of them."
)
_CHAT = "The pairs are put into the tokenizer's chat template first, as transformers does."
_TENSORRT = """For TensorRT:

```bash
trtexec --onnx={file} --fp16 --saveEngine=model.plan \\
    --minShapes={least} \\
    --optShapes={usual} \\
    --maxShapes={most}
```"""


def _list_files(onnx: Sequence[tuple[str, str]]) -> list[str]:
    """Returns a list of the ONNX files with their precisions, if there are several."""
    if len(onnx) < 2:
        return []
    return ["\n".join(f"- `{file}`: {precision}" for file, precision in onnx)]


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


def _sentence_transformers_code(model: SentenceEncoder, name: str) -> str:
    imported = "from sentence_transformers import SentenceTransformer"
    short = ", truncate_dim={}, normalize_embeddings=True"
    return f"{imported}\n\nmodel = SentenceTransformer({name!r})\n{_encode_code(model, short)}"


def _own_code(model: SentenceEncoder, name: str) -> str:
    return (
        f"import embed_jax\n\nmodel = embed_jax.load({name!r})\n{_encode_code(model, ', dim={}')}"
    )


def _encode_code(model: SentenceEncoder, short: str) -> str:
    """Returns code after loading, which differs between the libraries only in the option `short`.

    `short` is the option of `encode` that cuts embeddings, with "{}" for their size.
    """
    has_sides = {"query", *DOCUMENT_NAMES} & set(model.prompts)
    lines = []
    if has_sides:
        lines += [
            f"queries = model.encode_query({QUERIES})",
            f"passages = model.encode_document({PASSAGES})",
        ]
        lines += ["print(model.similarity(queries, passages))"]
    else:
        named = next(
            (prompt for prompt in model.prompts if prompt != model.default_prompt_name), None
        )
        option = f", prompt_name={named!r}" if named and model.default_prompt_name is None else ""
        lines += [
            f"embeddings = model.encode({TEXTS}{option})",
            "print(model.similarity(embeddings, embeddings))",
        ]
    sizes = [size for size in model.matryoshka_dims if size < model.dim]
    if sizes:
        encode = "encode_document" if has_sides else "encode"
        lines += [f"short = model.{encode}({TEXTS}{short.format(max(sizes))})"]
    return "\n".join(lines)


def _is_plain(model: SentenceEncoder) -> bool:
    """Tells whether sentence-transformers can make the model from the backbone's files only."""
    heads = (
        all(isinstance(head, Normalize) for head in model.spec.heads)
        and model.spec.token_head is None
    )
    return loads_in_sentence_transformers(model) and heads and not model.spec.lora


def _plain_code(model: SentenceEncoder, name: str) -> str:
    names = tuple(POOLING_NAMES[part][0] for part in model.spec.pooling.split("+"))
    normalize = any(isinstance(head, Normalize) for head in model.spec.heads)
    modules = (
        "[transformer, pooling, models.Normalize()]" if normalize else "[transformer, pooling]"
    )
    return "\n".join(
        [
            "from sentence_transformers import SentenceTransformer, models",
            "",
            f"transformer = models.Transformer({name!r})",
            f"pooling = models.Pooling({model.spec.backbone.hidden_size}, "
            f"{names if len(names) > 1 else names[0]!r})",
            f"model = SentenceTransformer(modules={modules})",
            f"embeddings = model.encode({TEXTS})",
            "print(embeddings.shape)",
        ]
    )


def _onnx_code(model: SentenceEncoder, name: str, file: str) -> str:
    """Returns code for ONNX Runtime, with the prompt of queries or else the default prompt."""
    used = next(
        (
            candidate
            for candidate in ("query", model.default_prompt_name)
            if candidate in model.prompts
        ),
        None,
    )
    prompt = model.prompts[used] if used else ""
    lower = ".lower()" if model.lower_case else ""
    put = f"{prompt!r} + text{lower}" if prompt else f"text{lower}"
    lines = [
        *_onnx_start(model, name, file),
        f"encoded = tokenizer.encode_batch([{put} for text in {TEXTS}])",
        *_ONNX_INPUTS,
    ]
    if has_pooling_mask(model):
        skip = model.tokenizer.encode([""], prompt, include_prompt=False).skip
        lines += [
            'inputs["pooling_mask"] = inputs["attention_mask"].copy()',
            f'inputs["pooling_mask"][:, :{skip}] = 0  # the prompt is not pooled',
        ]
    return "\n".join(
        [*lines, "(embeddings,) = session.run(None, inputs)", "print(embeddings.shape)"]
    )


_ONNX_INPUTS = (
    'inputs = {"input_ids": np.array([one.ids for one in encoded])}',
    'inputs["attention_mask"] = np.array([one.attention_mask for one in encoded])',
)


def _onnx_start(model: SentenceEncoder | CrossEncoder, name: str, file: str) -> list[str]:
    """Returns code that reads the tokenizer and the ONNX file."""
    lines = [
        "import numpy as np",
        "import onnxruntime",
        "from tokenizers import Tokenizer",
        "",
        f'directory = "{name}"',
        'tokenizer = Tokenizer.from_file(f"{directory}/tokenizer.json")',
        f"tokenizer.enable_padding(pad_id={model.tokenizer.pad_id})",
    ]
    if "/" in name:
        lines[2:5] = [
            "from huggingface_hub import snapshot_download",
            lines[2],
            "",
            f'directory = snapshot_download("{name}")',
        ]
    if model.max_length < 10**9:
        lines.append(f"tokenizer.enable_truncation({model.max_length})")
    return [*lines, f'session = onnxruntime.InferenceSession(f"{{directory}}/{file}")']


def _pair_onnx_code(model: CrossEncoder, name: str, file: str) -> str:
    """Returns code for ONNX Runtime that scores pairs, with the prompt before each query."""
    lower = ".lower()" if model.lower_case else ""
    query = f"{model.prompt!r} + query{lower}" if model.prompt else f"query{lower}"
    lines = [
        *_onnx_start(model, name, file),
        f"queries, passages = {QUERIES}, {PASSAGES}",
        f"pairs = [({query}, passage{lower}) for query, passage in zip(queries, passages)]",
        "encoded = tokenizer.encode_batch(pairs)",
        *_ONNX_INPUTS,
    ]
    if "token_type_ids" in input_names(model):
        lines.append('inputs["token_type_ids"] = np.array([one.type_ids for one in encoded])')
    lines.append("(logits,) = session.run(None, inputs)")
    scores = "1 / (1 + np.exp(-logits))" if model.activation == "sigmoid" else "logits"
    return "\n".join([*lines, f"scores = {scores}", "print(scores)"])


def _tensorrt(model: SentenceEncoder, file: str) -> str:
    names = ["input_ids", "attention_mask", *(["pooling_mask"] if has_pooling_mask(model) else [])]
    longest = min(model.max_length, 512)

    def shapes(batch: int, length: int) -> str:
        return ",".join(f"{name}:{batch}x{min(length, longest)}" for name in names)

    return _TENSORRT.format(
        file=file, least=shapes(1, 1), usual=shapes(32, 64), most=shapes(256, 512)
    )


def _cross_encoder_code(model: CrossEncoder, name: str) -> str:
    lines = [
        "from sentence_transformers import CrossEncoder",
        "",
        f"model = CrossEncoder({name!r})",
        f"queries, passages = {QUERIES}, {PASSAGES}",
        "scores = model.predict(list(zip(queries, passages)))",
    ]
    return "\n".join([*lines, *_show_scores(model)])


def _own_cross_encoder_code(model: CrossEncoder, name: str) -> str:
    lines = [
        "import embed_jax",
        "",
        f"model = embed_jax.load_cross_encoder({name!r})",
        f"queries, passages = {QUERIES}, {PASSAGES}",
        "scores = model.score(queries, passages)",
    ]
    return "\n".join([*lines, *_show_scores(model)])


def _show_scores(model: CrossEncoder) -> list[str]:
    """Returns code that prints scores, and ranks passages if the model has one label."""
    if model.num_labels != 1:
        return ["print(scores)  # of each label"]
    return ["print(scores)", "ranking = model.rank(queries[0], passages)", "print(ranking)"]
