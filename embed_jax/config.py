"""Experiment settings: mutable dataclasses, set by a Python file and on the command line.

A config file defines `get_config(cut: str = "") -> Experiment`; `file.py:small` asks for the cut
"small". Each field carries its default, what it accepts and its help text (`config_fields.option`);
`--help` prints all three. A field that may be left out is "unset": None, "" and "none" all mean it.

Three parts hold others by your own names: `config.mixture.sources.NAME = Source(...)`, the data
sets of a mixture, `config.optim.groups.NAME = ParamGroup(...)`, and `config.stages.NAME =
Experiment()`, what to train afterwards.

config_rules.py checks a config, config_file.py reads files and the command line.
"""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any

from embed_jax.config_fields import option


def part(kind: type) -> Any:
    """Declares a field that holds a part of the config."""
    return dataclasses.field(default_factory=kind)


_HEAD = r"([\d.e-]+ *\* *)?(dense|sparse|multi_vector)"
OF_HEADS = rf"{_HEAD}( *\+ *{_HEAD})*"  # see `head_scores.read_sum`


@dataclasses.dataclass
class Model:
    """The model that training starts from."""

    name: str = option(
        "sentence-transformers/all-MiniLM-L6-v2",
        'A directory, a hub name, or "random:SHAPE" with `tokenizer`.',
    )
    query: str = option(
        "",
        "A model for queries (the first text of an example), while `name` is that of documents: "
        "two towers. If it is the same model, its settings here are those of both. "
        'A directory, a hub name, or "random:SHAPE" with `tokenizer`.',
        unset="`name` encodes both",
    )
    tokenizer: str = option(
        "", "A directory with tokenizer files, or a model's name.", unset="the model's own"
    )
    layers: str = option(
        "",
        '"0,2,4": train a student of only these layers of `name`, counted from 0.',
        unset="all layers",
    )
    pooling: str = option("", "How token states become one embedding.", unset="the model's own")
    sparse: str = option(
        "",
        'Embeddings are weights of the vocabulary\'s words (SPLADE): the largest, or the "sum", of '
        'those of a text\'s tokens. With `query` "token_weights" those of queries are of a table.',
        choices=("max", "sum"),
        unset="the model's own kind",
    )
    start_words: int = option(
        0,
        "`sparse`: change the head's bias so that a text of the corpus, or else a positive, has "
        "about this many weights before the first step (for experiments.sparse).",
        at_least=0,
        unset="the head as it is",
    )
    heads: str = option(
        "",
        'Heads beside the dense one on the same encoder, with a comma between: "sparse", '
        '"multi_vector" (BGE-M3; for experiments.multi_head). `late.dim` is the size of a vector.',
        unset="no others",
    )
    mlp: str = option(
        "",
        'SimCSE\'s tanh layer after the pooling: "kept", or "training", which drops it from the '
        "result.",
        choices=("kept", "training"),
        unset="no such layer",
    )
    dropout: float = option(
        -1.0,
        "Dropout of hidden states and attention.",
        at_least=0,
        at_most=0.99,
        unset="the model's own",
    )
    compute_dtype: str = option(
        "auto",
        'Type of activations. "auto": bfloat16 on GPU and TPU, float32 on CPU.',
        choices=("auto", "float32", "bfloat16"),
    )
    same_mask_columns: int = option(
        0,
        'Texts of an example that share a dropout mask; 2 is SimCSE\'s "fixed 0.1".',
        at_least=0,
        unset="each text has its own mask",
    )
    remat: str = option(
        "none",
        'What the backward pass recomputes: "layer": all of a layer; "dots": all but matrix '
        "products.",
        choices=("none", "layer", "dots"),
    )
    attention: str = option(
        "",
        "Attention of a decoder.",
        choices=("causal", "bidirectional"),
        unset="the model's own",
    )
    token_head: str = option(
        "",
        'A head between layers and pooling, such as "latent_attention(latents=512, heads=8)".',
        unset="the model's own",
    )
    append_eos: bool = option(
        False, "End every text with the tokenizer's end token, whatever the tokenizer does."
    )
    guide: str = option(
        "", "A model that tells losses which negatives are false (gist).", unset="no guide"
    )
    teacher: str = option(
        "", "A model whose embeddings the student imitates (distillation).", unset="no teacher"
    )


@dataclasses.dataclass
class Lora:
    """A low-rank adapter (Hu et al. 2021), trained instead of the model's own parameters."""

    rank: int = option(
        0, "Rank of the adapter.", at_least=0, unset="no adapter, all parameters are trained"
    )
    alpha: float = option(32.0, "The adapter is scaled by alpha / rank.", more_than=0)
    dropout: float = option(0.0, "Dropout of the adapter's input.", at_least=0, at_most=0.99)
    targets: str = option(
        "all-linear",
        'Names of linear maps as in the model\'s files, with commas between: "q_proj,v_proj".',
    )
    rslora: bool = option(False, "Scale by alpha / sqrt(rank) instead (Kalajdzievski 2023).")
    dora: bool = option(False, "Train directions and lengths separately (Liu et al. 2024).")
    base: str = option(
        "float32",
        'How the frozen parameters are kept; "int8" for linear maps only.',
        choices=("float32", "bfloat16", "int8"),
    )
    merge: bool = option(
        False,
        "Save the model with the adapter merged, as cross-encoders always do; False: beside it, "
        "in PEFT's format.",
    )


@dataclasses.dataclass
class DataSet:
    """The fields of every data set: the only one, or one of a mixture."""

    train: str = option(
        "",
        "python_docs, a recipe's name, tfds:NAME, hf:NAME, beir:DIRECTORY, parquet:FILES, "
        "array_record:FILES, stream:FILE, MODULE:FUNCTION, or a path to .jsonl, .tsv, .csv, .txt "
        "(.gz).",
    )
    split: str = option("train", "Split of `train`.")
    columns: str = option(
        "",
        "The columns that hold anchor, positive, negatives, with commas between.",
        unset="found by their usual names",
    )
    limit: int = option(0, "Read at most this number of records.", at_least=0, unset="all")
    exclude: str = option(
        "",
        "Files, with commas between; a record with a text from one of them is left out.",
        unset="no file",
    )
    score_max: float = option(1.0, "Scores are divided by it: 5 for STS-B.", more_than=0)
    teacher_vectors: str = option(
        "",
        "A .npy file with a teacher's embeddings of the records of `train` (distillation).",
        unset="no file",
    )
    teacher_ids: str = option(
        "",
        "A text file with the `id` of the record that each row of `teacher_vectors` is of.",
        unset="rows in the order of the records",
    )


@dataclasses.dataclass
class Data(DataSet):
    """The training data."""

    validation_split: str = option(
        "", "Split of `train` whose loss is logged beside the training loss.", unset="no such loss"
    )
    holdout: float = option(
        0.0,
        "Share of the pairs held out for validation, and again for test; 0: the source has splits.",
        at_least=0,
        at_most=0.4,
    )
    corpus: str = option(
        "", "With `holdout`: more texts to search among.", unset="the pairs' own texts"
    )
    window: int = option(10_000, 'Records shuffled together in a "stream:" source.', at_least=1)
    consistency: int = option(
        0,
        "Retrieval: keep a pair if its positive is among this number of results for its anchor.",
        at_least=0,
        unset="keep all pairs",
    )
    max_length: int = option(128, "Tokens a text is cut to, special tokens included.", at_least=2)
    truncation: str = option(
        "",
        "Cross-encoders: what a pair over `max_length` loses: tokens of the longer text first, or "
        "of the passage only.",
        choices=("longest_first", "only_second"),
        unset="as the model's files say, or else longest_first",
    )
    anchor_prompt: str = option("", "Text put before each anchor.")
    candidate_prompt: str = option("", "Text put before each positive and negative.")
    anchor_instruction: str = option(
        "", "Put into `template`; the result is the anchors' prompt.", unset="no instruction"
    )
    candidate_instruction: str = option(
        "", "Put into `template`; the result is the candidates' prompt.", unset="no instruction"
    )
    template: str = option(
        "",
        'Where instructions go, such as "Instruct: {instruction}\\nQuery: ".',
        unset="no template, so no instructions",
    )
    pool_prompt: bool = option(
        True,
        "Count a prompt's tokens in the pooling; a model that leaves them out keeps doing so.",
    )
    augment: str = option(
        "",
        'How SimCSE changes the positive, such as "delete_words(rate=0.1)".',
        unset="unchanged",
    )


@dataclasses.dataclass
class Source(DataSet):
    """One data set of a mixture."""

    train: str = option("", "The data set, as `data.train`.")
    max_length: int = option(0, "Tokens a text is cut to.", at_least=0, unset="data.max_length")
    anchor_prompt: str = option("", "Text put before each anchor.", unset="data.anchor_prompt")
    candidate_prompt: str = option(
        "", "Text put before each positive and negative.", unset="data.candidate_prompt"
    )
    anchor_instruction: str = option(
        "", "Put into `data.template`; the result is the prompt.", unset="data.anchor_instruction"
    )
    candidate_instruction: str = option(
        "",
        "Put into `data.template`; the result is the prompt.",
        unset="data.candidate_instruction",
    )
    loss: str = option("", "The loss of this data set.", unset="loss.name")
    loss_weight: float = option(1.0, "Factor of this data set's loss.", more_than=0)
    weight: float = option(
        1.0,
        'With mixture.sampling="weights": share of the batches, relative to the other data sets.',
        more_than=0,
    )


@dataclasses.dataclass
class Mixture:
    """Several data sets instead of `data.train`."""

    sources: SimpleNamespace = part(SimpleNamespace)  # NAME = Source(...)
    sampling: str = option(
        "proportional",
        'How often each data set is drawn; "proportional": by its size.',
        choices=("proportional", "round_robin", "temperature", "weights"),
    )
    temperature: float = option(
        1.0,
        'With sampling="temperature": shares are size^(1 / temperature); 1: proportional.',
        more_than=0,
    )
    batches: str = option(
        "single",
        '"single": each batch comes from one data set; "mixed": from all of them.',
        choices=("single", "mixed"),
    )


@dataclasses.dataclass
class BatchShape:
    """The batch, and how it is split and packed."""

    size: int = option(64, "Examples of a batch, over all devices.", at_least=2)
    no_duplicates: bool = option(
        False, "No two examples of a batch share a text, an id or a group."
    )
    clusters: int = option(
        0,
        "Clusters of each data set by the embeddings of anchors; a batch is from one of them.",
        at_least=0,
        unset="a batch is from the whole data set",
    )
    cluster_model: str = option(
        "", "The embedding model that clusters.", unset="the one that training starts from"
    )
    groups: int = option(
        0,
        "Groups of a batch, encoded one after the other on a device (gradient caching).",
        at_least=0,
        unset="one for each device",
    )
    shares: int = option(
        0,
        "Parts of the batch that are read and dealt to groups separately.",
        at_least=0,
        unset="one for each host",
    )
    row_length: int = option(
        0, "Token slots of a packed row.", at_least=0, unset="a length that suits the texts"
    )
    rows: int = option(
        0, "Rows of a group.", at_least=0, unset="as many as batches of the data need"
    )
    in_batch_negatives: int = option(
        0,
        "Cross-encoders: positives of other examples of the batch that each query is read with.",
        at_least=0,
        unset="none",
    )


@dataclasses.dataclass
class LossSettings:
    """The loss. Fields after `form` go to every loss that takes an argument of that name."""

    name: str = option(
        "info_nce",
        "A loss of the registry, MODULE:FUNCTION, a token objective, or an expression such as "
        "\"info_nce(terms='qp,qq') + 0.1 * uniformity(t=2)\". Arguments written there win over "
        "the fields below.",
    )
    form: str = option(
        "auto",
        'How pairs are held: "dense"; "tiled": never all pairs; "ring": nor all candidates; '
        '"auto": by size.',
        choices=("auto", "dense", "tiled", "ring"),
    )
    temperature: float = option(
        -1.0, "Temperature of the softmax.", more_than=0, unset="the loss's own"
    )
    similarity: str = option(
        "",
        "How two embeddings are compared.",
        choices=("cosine", "dot", "maxsim", "mean_maxsim", "xtr"),
        pattern=(OF_HEADS, "a sum of heads' scores such as 'dense + 0.3 * sparse'"),
        unset="the loss's own; late interaction: maxsim",
    )
    margin: float = option(-1.0, "Margin of margin losses.", at_least=0, unset="the loss's own")
    symmetric: bool = option(
        False, "Compare in both directions: anchors to positives and positives to anchors."
    )
    hard_negative_weight: float = option(
        1.0, "SimCSE's alpha: weight of an example's own hard negatives.", more_than=0
    )
    mask_duplicates: bool = option(
        True, "Examples that share a text, an id or a group are not each other's negatives."
    )
    mlm: float = option(
        0.0,
        "Weight of masked language modelling on the batch's texts, beside the loss; 0: none.",
        at_least=0,
    )


@dataclasses.dataclass
class LateInteraction:
    """Late interaction (ColBERT): a vector for each token. A model that has these keeps its own."""

    dim: int = option(128, "Numbers of a token's vector.", at_least=1)
    head: str = option(
        "linear",
        'What makes the vectors of the token states; "two_layers": with GELU between; "residual": '
        "to whose first layer the state is added.",
        choices=("linear", "two_layers", "residual"),
    )
    query_length: int = option(
        32, "Tokens a query is cut to; of documents it is data.max_length.", at_least=3
    )
    expansion: str = option(
        "fixed",
        'Lengthen queries with mask tokens to `query_length`; "min": a longer one is not cut.',
        choices=("fixed", "min"),
        unset="no expansion",
    )
    attend: bool = option(False, "A query's own tokens see those that expand it.")
    query_marker: str = option(
        "[unused0] ", "Put before queries: a token of the tokenizer.", unset="no marker"
    )
    document_marker: str = option(
        "[unused1] ", "Put before documents: a token of the tokenizer.", unset="no marker"
    )
    skip_punctuation: bool = option(True, "Punctuation of documents has no vectors.")
    top_k: int = option(
        256,
        "loss.similarity=xtr: tokens of the batch's documents that each token of a query finds.",
        at_least=1,
    )


@dataclasses.dataclass
class QueueSettings:
    """Positives of past batches as more negatives (MoCo)."""

    size: int = option(0, "Positives kept.", at_least=0, unset="no queue")
    momentum: float = option(
        0.995,
        "Momentum of the averaged encoder that embeds them; 0: the encoder itself.",
        at_least=0,
        at_most=1,
    )


@dataclasses.dataclass
class MiningSettings:
    """Hard negatives that the training itself searches for."""

    strategy: str = option(
        "",
        '"bm25", "dense" (by the model as trained so far) or "bm25,dense".',
        unset="no mining",
    )
    corpus: str = option(
        "",
        "Where to search: a file with texts, or a directory in BEIR layout.",
        unset="among the positives",
    )
    every: int = option(
        0,
        "Steps after which it is done again with the model as it is then.",
        at_least=0,
        unset="only at the start",
    )
    number: int = option(1, "Negatives for each pair.", at_least=1)
    rank_min: int = option(
        0, "Rank of the first candidate, known positives not counted.", at_least=0
    )
    rank_max: int = option(100, "Rank after the last candidate.", at_least=1)
    score_max: float = option(-1.0, "Highest similarity of a negative to the query.", unset="any")
    absolute_margin: float = option(
        -1.0,
        "How far a negative's similarity stays below its positive's.",
        at_least=0,
        unset="any",
    )
    relative_margin: float = option(
        -1.0,
        "The same as a share of the positive's similarity.",
        at_least=0,
        at_most=1,
        unset="any",
    )
    sampling: str = option(
        "top", "Which candidates: the best, or random ones.", choices=("top", "random")
    )
    retriever: str = option(
        "sentence-transformers/all-MiniLM-L6-v2",
        'Cross-encoders: the embedding model that finds negatives ("dense").',
    )
    cross_encoder: str = option(
        "",
        "A model that scores candidates, for margins and for losses that need scores.",
        unset="no such model",
    )


@dataclasses.dataclass
class ParamGroup:
    """Parameters with their own learning rate.

    Factors of groups that share a parameter multiply.
    """

    pattern: str = option(
        "", 'Regular expression, found anywhere in a path such as "encoder/heads/0/kernel".'
    )
    learning_rate_factor: float = option(
        1.0, "Factor of `optim.learning_rate`; 0: frozen.", at_least=0
    )
    layers: str = option(
        "",
        '"0,1,2": only these layers, counted from 0.',
        unset="all layers that the pattern matches",
    )
    layer_decay: float = option(
        1.0,
        "Factor from a layer to the one below it; embeddings lie below all layers.",
        more_than=0,
        at_most=1,
    )


@dataclasses.dataclass
class Optim:
    """Optimiser and learning rate."""

    name: str = option(
        "adamw",
        'The optimiser; "muon" is for the layers\' kernels, with AdamW for all else.',
        choices=("adamw", "adafactor", "muon"),
    )
    learning_rate: float = option(3e-5, "Peak of the learning rate.", more_than=0)
    schedule: str = option(
        "linear",
        'After the warm-up: "linear" and "cosine" fall to 0, "wsd" is constant and falls to 0 at '
        'the end, "constant" stays.',
        choices=("linear", "cosine", "constant", "wsd"),
    )
    warmup: float = option(
        0.0, "Share of the steps in which the rate rises.", at_least=0, at_most=1
    )
    decay: float = option(
        0.1,
        'With schedule="wsd": share of the steps, the last ones, in which the rate falls to 0.',
        more_than=0,
        at_most=1,
    )
    groups: SimpleNamespace = part(SimpleNamespace)  # NAME = ParamGroup(...)
    weight_decay: float = option(
        0.0, "Weight decay, times the learning rate; never on biases and norms.", at_least=0
    )
    b1: float = option(0.9, "AdamW's decay of the first moment.", at_least=0, at_most=1)
    b2: float = option(0.999, "AdamW's decay of the second moment.", at_least=0, at_most=1)
    eps: float = option(1e-8, "AdamW's epsilon.", more_than=0)
    clip_norm: float = option(
        1.0, "Largest norm of the whole gradient; 0: no clipping.", at_least=0
    )
    accumulate: int = option(1, "Batches whose gradients are averaged for one update.", at_least=1)


@dataclasses.dataclass
class Train:
    """Length of the run, devices, reproducibility."""

    seed: int = option(
        0, "Seed of data order, dropout and new weights.", at_least=0, at_most=2**32 - 1
    )
    steps: int = option(0, "Number of steps.", at_least=0, unset="by `epochs`")
    epochs: float = option(1.0, "Passes over the data.", more_than=0)
    extend: bool = option(
        False,
        "Let a run go on to more steps or epochs than it started with (--extend). From there on "
        "the "
        'learning rate is that of a run of the new length: "linear" and "cosine" rise again to '
        'where such a run would be at that step, "constant" goes on, and so does "wsd" up to its '
        "decay.",
    )
    from_checkpoint: str = option(
        "", "RUN/checkpoints/STEP: go on from there, in a new --workdir.", unset="start at step 0"
    )
    devices: int = option(0, "Number of devices.", at_least=0, unset="all")
    fsdp: int = option(
        1,
        "Devices over which parameters and optimiser state are split, and the batch as well.",
        at_least=1,
    )
    tensor: int = option(1, "Devices over which each matrix product is split.", at_least=1)
    fsdp_gather: str = option(
        "layer",
        'When split parameters are gathered: "layer": a layer at a time; "once": all at the '
        "step's "
        "start.",
        choices=("layer", "once"),
    )
    log_every: int = option(
        10, "Steps between lines on the terminal; metrics.jsonl has every step.", at_least=1
    )
    profile: str = option("", '"START:STOP": trace these steps.', unset="no trace")
    deterministic: bool = option(
        False, "GPU: use XLA's deterministic kernels, for bitwise repetition."
    )


@dataclasses.dataclass
class Hosts:
    """Several hosts in one run."""

    coordinator: str = option(
        "",
        '"auto" (SLURM, TPU pod, Open MPI, Kubernetes), or ADDRESS:PORT of host 0.',
        unset="one host",
    )
    count: int = option(0, "With an address: the number of hosts.", at_least=0)
    index: int = option(0, "With an address: which host this is, from 0.", at_least=0)
    heartbeat_timeout: int = option(
        30,
        "Seconds without a sign of life after which a host counts as lost and the run ends.",
        at_least=2,
    )
    join_timeout: int = option(300, "Seconds to wait for all hosts at the start.", at_least=1)


@dataclasses.dataclass
class Evaluation:
    """Measurements during training and at its end."""

    sts: str = option(
        "", "STS file (score sentence1 sentence2) measured during training.", unset="none"
    )
    test_sts: str = option(
        "",
        "STS files, with commas between, for the end: the model before against after.",
        unset="none",
    )
    sts_instruction: str = option(
        "",
        "Put into `data.template`, before the sentences of `sts` and `test_sts`.",
        unset="no instruction",
    )
    retrieval: str = option(
        "", '"python_docs" or a directory in BEIR layout, searched.', unset="no search"
    )
    retrieval_split: str = option("validation", "Split searched during training.")
    ignore_identical_ids: bool = option(
        False,
        "A document with the query's own id is not a result: for ArguAna and Quora.",
    )
    test_split: str = option(
        "", "Split searched once, at the end, before against after.", unset="none"
    )
    first_stage: str = option(
        "",
        'Cross-encoders: what finds the shortlist that is reranked: "bm25", or an embedding model.',
        unset="bm25",
    )
    depth: int = option(100, "Cross-encoders: length of the shortlist.", at_least=2)
    with_positives: bool = option(
        False,
        "Cross-encoders: put every relevant passage into the shortlist, which measures the "
        "reranker without what the first stage missed.",
    )
    geometry: bool = option(
        False,
        "Measure the geometry of the texts searched during training, else of the STS texts.",
    )
    every: int = option(
        0,
        "Steps between evaluations.",
        at_least=1,
        unset="a tenth of the run",
        special=((-1, "only before the first step and at the end"),),
    )
    metric: str = option(
        "", 'The metric that picks the best model, such as "sts/spearman".', unset="the last step"
    )
    patience: int = option(
        0, "Evaluations without gain before the run stops.", at_least=0, unset="never stops early"
    )
    min_gain: float = option(0.0, "The least improvement that counts as a gain.", at_least=0)
    dims: str = option(
        "",
        "Matryoshka: sizes to measure at the end, with commas between.",
        unset="the trained ones",
    )
    layers: str = option("", "Matryoshka: numbers of layers to measure.", unset="all layers")
    baseline: str = option(
        "", "Matryoshka: a loss to train the same model with, for comparison.", unset="none"
    )


@dataclasses.dataclass
class Checkpoint:
    """Saved states of the run."""

    every: int = option(
        0,
        "Steps between checkpoints.",
        at_least=0,
        unset="only at the end, on SIGTERM and on Ctrl-C",
    )
    keep: int = option(2, "Newest checkpoints kept.", at_least=1)


@dataclasses.dataclass
class Tracking:
    """Weights & Biases."""

    wandb: str = option(
        "auto",
        '"auto": online when logged in, else offline.',
        choices=("auto", "online", "offline", "disabled"),
    )
    project: str = option("embed-jax", "Name of the project.")
    name: str = option("", "Name of the run.", unset="the work directory's")
    experiment: str = option(
        "", "Set by an experiment's command to its own name.", unset="launched from Python"
    )


@dataclasses.dataclass
class Experiment:
    """All settings of one run; see each part's fields."""

    model: Model = part(Model)
    lora: Lora = part(Lora)
    data: Data = part(Data)
    mixture: Mixture = part(Mixture)
    batch: BatchShape = part(BatchShape)
    loss: LossSettings = part(LossSettings)
    late: LateInteraction = part(LateInteraction)
    queue: QueueSettings = part(QueueSettings)
    mine: MiningSettings = part(MiningSettings)
    optim: Optim = part(Optim)
    train: Train = part(Train)
    hosts: Hosts = part(Hosts)
    eval: Evaluation = part(Evaluation)
    checkpoint: Checkpoint = part(Checkpoint)
    tracking: Tracking = part(Tracking)
    stages: SimpleNamespace = part(SimpleNamespace)  # NAME = Experiment(...), one by one


NAMED: dict[str, type] = {  # parts that hold others by name, and the class of those
    "mixture.sources": Source,
    "optim.groups": ParamGroup,
    "stages": Experiment,
}


def named_parts(config: Any, part: str) -> dict[str, Any]:
    """Returns what a config holds by name: `named_parts(config, "mixture.sources")`."""
    for name in part.split("."):
        config = getattr(config, name)
    return vars(config)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of a config's parts, in order: {"optim.learning_rate": 3e-05, ...}."""
    flat: dict[str, Any] = {}
    for name, value in vars(config).items():
        parts = dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace)
        flat |= flatten(value, f"{prefix}{name}.") if parts else {prefix + name: value}
    return flat


def to_json(config: Experiment) -> str:
    """Returns the config as JSON text, keys in the order of the dataclasses."""
    return json.dumps(as_dict(config), indent=1)


def as_dict(config: Any) -> dict[str, Any]:
    """Returns the config as nested dicts."""
    parts = {name: value for name, value in vars(config).items() if hasattr(value, "__dict__")}
    return {
        name: as_dict(value) if name in parts else value for name, value in vars(config).items()
    }
