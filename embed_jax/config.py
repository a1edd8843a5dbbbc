"""Experiment settings: plain mutable dataclasses, filled by a Python file and overridden on the command line.

A config file defines `get_config(cut: str = "") -> Experiment`; `file.py:small` asks for the cut "small". There are
no list or optional fields: an empty string or 0 means "not set", and each field's comment says what happens then.

Three parts hold others by names of your own: `config.mixture.sources.NAME = Source(...)`, the data sets of a mixture,
`config.optim.groups.NAME = ParamGroup(...)`, and `config.stages.NAME = Experiment()`, what to train afterwards.

Here are the fields; what values they accept is in config_rules.py, how files and the command line are read in
config_file.py.
"""

# No `from __future__ import annotations` here: ml_collections reads the fields' types at run time.
import dataclasses
import json
from types import SimpleNamespace
from typing import Any


@dataclasses.dataclass
class Model:
    name: str = "sentence-transformers/all-MiniLM-L6-v2"  # directory, hub name, or "random:SHAPE" with `tokenizer`
    tokenizer: str = ""  # directory with tokenizer files, or a model's name; "": the model's own
    layers: str = (
        ""  # "0,2,4": only these layers of `name`, counted from 0, as a student to train; "": all
    )
    pooling: str = ""  # "": the model's own
    mlp: str = ""  # "": none; "kept": SimCSE's tanh layer; "training": only in training, dropped from the result
    dropout: float = -1.0  # of hidden states and attention; -1: the model's own
    compute_dtype: str = "auto"  # "auto": bfloat16 on GPU and TPU, float32 on CPU
    same_mask_columns: int = (
        0  # texts of an example that share a dropout mask: 2 is SimCSE's "fixed 0.1"; 0: none
    )
    remat: str = "none"  # what the backward pass recomputes: "layer": all of it; "dots": all but products; "none"
    attention: str = ""  # of a decoder: "causal" or "bidirectional"; "": the model's own
    token_head: str = ""  # between layers and pooling: "latent_attention(latents=512, heads=8)"; "": the model's own
    append_eos: bool = False  # end every text with the tokenizer's end token; False: as the model's own tokenizer does
    guide: str = ""  # a model that losses ask which negatives are false (gist); "": none
    teacher: str = ""  # a model whose embeddings are to be imitated (distillation); "": none


@dataclasses.dataclass
class Lora:
    """A low-rank adapter (Hu et al. 2021), trained instead of the model's own parameters."""

    rank: int = 0  # 0: no adapter, all parameters are trained
    alpha: float = 32.0  # the adapter counts alpha / rank times
    dropout: float = 0.0  # of the adapter's input
    targets: str = (
        "all-linear"  # names of linear maps as in the model's files, with commas: "q_proj,v_proj"
    )
    rslora: bool = False  # alpha / sqrt(rank) instead (Kalajdzievski 2023)
    dora: bool = False  # directions and lengths apart (Liu et al. 2024)
    base: str = "float32"  # how the frozen parameters are kept: "float32", "bfloat16", or "int8" (linear maps only)
    merge: bool = (
        False  # save the model with the adapter merged into it; False: beside it, in PEFT's format
    )


@dataclasses.dataclass
class Data:
    # python_docs, a recipe's name, tfds:NAME, hf:NAME, beir:DIRECTORY, parquet:FILES, array_record:FILES, stream:FILE,
    # or a path to .jsonl, .tsv, .csv, .txt (.gz)
    train: str = ""
    split: str = "train"
    validation_split: str = (
        ""  # split of `train` whose loss is logged beside the training loss; "": none
    )
    holdout: float = 0.0  # share of the pairs for validation, and again for test, split by us; 0: the source has splits
    columns: str = ""  # the columns that are anchor, positive, negatives, with commas; "": by their usual names
    corpus: str = ""  # with `holdout`: further texts to search among
    limit: int = 0  # the first so many records; 0: all
    exclude: str = (
        ""  # files with commas between: records with a text that stands in one of them are left out
    )
    score_max: float = 1.0  # scores are divided by it: 5 for STS-B
    window: int = (
        10_000  # of a source that is read one by one ("stream:FILE"): records shuffled together
    )
    consistency: int = 0  # retrieval: a pair stays if its positive is among so many found for its anchor; 0: all stay
    max_length: int = 128  # tokens a text is cut to, special tokens included
    anchor_prompt: str = ""
    candidate_prompt: str = ""
    anchor_instruction: str = (
        ""  # put into `template`, the result is the prompt; "": no instruction
    )
    candidate_instruction: str = ""
    template: str = (
        ""  # "Instruct: {instruction}\nQuery: " or the like, wherever there is an instruction
    )
    pool_prompt: bool = (
        True  # whether prompts count towards pooling; a model that leaves them out keeps doing so
    )
    augment: str = ""  # how the positive of SimCSE is changed: "delete_words(rate=0.1)"; "": not


@dataclasses.dataclass
class Source:
    """One data set of a mixture."""

    train: str = ""  # as `data.train`
    split: str = "train"
    limit: int = 0  # the first so many records; 0: all
    exclude: str = ""
    score_max: float = 1.0
    columns: str = (
        ""  # the fields that are anchor, positive, negatives, with commas; "": by their usual names
    )
    max_length: int = 0  # tokens a text is cut to; 0: `data.max_length`
    anchor_prompt: str = ""  # "": `data.anchor_prompt`, and so on
    candidate_prompt: str = ""
    anchor_instruction: str = ""
    candidate_instruction: str = ""
    loss: str = ""  # "": `loss.name`
    loss_weight: float = 1.0
    weight: float = 1.0  # with `mixture.sampling="weights"`: its share of the batches, in relation to the others


@dataclasses.dataclass
class Mixture:
    sources: SimpleNamespace = dataclasses.field(
        default_factory=SimpleNamespace
    )  # NAME = Source(...); none: `data`
    sampling: str = "proportional"  # to the sizes; "round_robin", "temperature", "weights"
    temperature: float = 1.0  # of "temperature": shares are size^(1 / temperature); 1: proportional
    batches: str = "single"  # "single": each batch from one data set; "mixed": from all of them


@dataclasses.dataclass
class BatchShape:
    size: int = 64  # examples, over all devices
    no_duplicates: bool = False  # no two examples of a batch share a text, an id or a group
    groups: int = (
        0  # groups the batch is dealt to, encoded one after the other on a device; 0: one a device
    )
    shares: int = (
        0  # parts of the batch that are read and dealt to groups by themselves; 0: one a host
    )
    row_length: int = 0  # slots of a packed row; 0: a length that suits `max_length`
    rows: int = 0  # rows of a group; 0: as many as the batch needs


@dataclasses.dataclass
class Loss:
    name: str = "info_nce"  # of the registry, or an expression: "info_nce(terms='qp,qq') + 0.1 * uniformity(t=2)"
    form: str = "auto"  # "dense", "tiled" (never holds all pairs), "ring" (nor all candidates); "auto": by size
    # What follows goes to every loss that takes an argument of that name; one written in the expression wins.
    temperature: float = -1.0  # -1: the loss's own
    similarity: str = ""  # "cosine" or "dot"; "": the loss's own
    margin: float = -1.0  # -1: the loss's own
    symmetric: bool = False  # both directions: anchors to positives and positives to anchors
    hard_negative_weight: float = 1.0  # SimCSE's alpha on an example's own hard negatives
    mask_duplicates: bool = (
        True  # examples that share a text, an id or a group are not each other's negatives
    )
    mlm: float = (
        0.0  # weight of masked language modelling on the batch's texts, beside the loss; 0: none
    )


@dataclasses.dataclass
class Queue:
    size: int = 0  # positives of past batches that are negatives too (MoCo); 0: none
    momentum: float = 0.995  # of the averaged encoder that embeds them; 0: the encoder itself


@dataclasses.dataclass
class Mining:
    """Hard negatives that the training itself looks for."""

    strategy: str = ""  # "bm25", "dense" (by the model as trained so far) or "bm25,dense"; "": none
    corpus: str = (
        ""  # where to look: a file with texts, a directory in BEIR layout; "": among the positives
    )
    every: int = (
        0  # steps after which it is done again with the model as it is then; 0: only at the start
    )
    number: int = 1  # negatives a pair
    rank_min: int = 0  # candidates of these ranks, known positives not counted
    rank_max: int = 100
    score_max: float = -1.0  # highest similarity to the query; -1: any
    absolute_margin: float = (
        -1.0
    )  # a negative's similarity stays so far below its positive's; -1: any
    relative_margin: float = -1.0  # the same as a share of the positive's; -1: any
    sampling: str = "top"  # the best of the candidates, or "random" ones
    cross_encoder: str = ""  # a model that scores the candidates for margins and for losses that need scores; "": none


@dataclasses.dataclass
class ParamGroup:
    """Parameters with a learning rate of their own. Factors of several groups with the same parameter multiply."""

    pattern: str = (
        ""  # regular expression, found anywhere in a path such as "encoder/heads/0/kernel"
    )
    learning_rate_factor: float = 1.0  # times `optim.learning_rate`; 0: frozen
    layers: str = ""  # "0,1,2": only these layers, counted from 0; "": all that the pattern matches
    layer_decay: float = 1.0  # factor from a layer to the one below it; embeddings lie below all


@dataclasses.dataclass
class Optim:
    name: str = "adamw"  # "adamw", "adafactor", or "muon" (layers' kernels; AdamW for all else)
    learning_rate: float = 3e-5
    schedule: str = "linear"  # after the warm-up: "linear", "cosine", "wsd" (to 0) or "constant"
    warmup: float = 0.0  # share of the steps
    decay: float = 0.1  # of "wsd": share of the steps, the last ones, in which it falls to 0
    groups: SimpleNamespace = dataclasses.field(
        default_factory=SimpleNamespace
    )  # NAME = ParamGroup(...): factors, freezing, layer-wise decay; none: all alike
    weight_decay: float = 0.0  # times the learning rate; never on biases and norms
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0  # of the whole gradient; 0: none
    accumulate: int = 1  # batches whose gradients are averaged for one update


@dataclasses.dataclass
class Train:
    seed: int = 0
    steps: int = 0  # 0: by `epochs`
    epochs: float = 1.0
    # Lets a run go on to more `steps` or `epochs` than it was started with (--extend). From there
    # on the learning rate is that of a run of the new length: "linear" and "cosine" rise again to
    # where such a run would be at that step, "constant" goes on, and so does "wsd" up to its decay.
    extend: bool = False
    from_checkpoint: str = (
        ""  # RUN/checkpoints/STEP: go on from there, in a new --workdir; "": step 0
    )
    devices: int = 0  # 0: all
    fsdp: int = (
        1  # devices over which parameters and optimiser state are split, and the batch as well
    )
    tensor: int = 1  # devices over which each matrix product is split
    fsdp_gather: str = "layer"  # "layer": parameters are gathered a layer at a time; "once": all at the step's start
    log_every: int = 10  # steps between lines on the terminal; every step goes to metrics.jsonl
    profile: str = ""  # "START:STOP": trace these steps
    deterministic: bool = False  # GPU: XLA's deterministic kernels, for bitwise repetition


@dataclasses.dataclass
class Hosts:
    coordinator: str = ""  # "": this host alone; "auto": SLURM, TPU pod, Open MPI, Kubernetes; or ADDRESS:PORT of host 0
    count: int = 0  # with an address: how many hosts there are
    index: int = 0  # with an address: which of them this is, from 0
    heartbeat_timeout: int = (
        30  # seconds without a sign of life after which a host is lost, and the run ends
    )
    join_timeout: int = 300  # seconds to wait for all hosts at the start


@dataclasses.dataclass
class Evaluation:
    sts: str = ""  # STS file: score sentence1 sentence2
    test_sts: str = ""  # STS files with commas between, for the end: the model before against after
    sts_instruction: str = (
        ""  # put into `data.template`, before the sentences of `sts` and `test_sts`; "": nothing
    )
    retrieval: str = ""  # "python_docs" or a directory in BEIR layout
    retrieval_split: str = "validation"  # searched while training
    ignore_identical_ids: bool = (
        False  # a document with the query's own id is not a result: for ArguAna and Quora
    )
    test_split: str = ""  # searched once, at the end, before against after; "": not
    geometry: bool = (
        False  # of the texts searched while training, else of the STS texts: evals/geometry.py
    )
    every: int = 0  # steps; 0: a tenth of the run; -1: only before the first step and at the end
    metric: str = ""  # e.g. "sts/spearman": picks the best checkpoint; "": the last one
    patience: int = 0  # evaluations without gain before stopping; 0: never
    min_gain: float = 0.0
    dims: str = (
        ""  # matryoshka: sizes to measure at the end, with commas between; "": the trained ones
    )
    layers: str = ""  # matryoshka: numbers of layers to measure; "": all layers
    baseline: str = ""  # matryoshka: a loss to train the same model with, for comparison; "": none


@dataclasses.dataclass
class Checkpoint:
    every: int = 0  # steps; 0: only at the end, on SIGTERM and on Ctrl-C
    keep: int = 2  # newest checkpoints kept


@dataclasses.dataclass
class Tracking:
    wandb: str = (
        "auto"  # "auto" (online when logged in, else offline), "online", "offline", "disabled"
    )
    project: str = "embed-jax"
    name: str = ""  # "": the work directory's
    experiment: str = ""  # set by an experiment's command to its own name; "": launched from Python


@dataclasses.dataclass
class Experiment:
    """All settings of one run; see each part's fields."""

    model: Model = dataclasses.field(default_factory=Model)
    lora: Lora = dataclasses.field(default_factory=Lora)
    data: Data = dataclasses.field(default_factory=Data)
    mixture: Mixture = dataclasses.field(default_factory=Mixture)
    batch: BatchShape = dataclasses.field(default_factory=BatchShape)
    loss: Loss = dataclasses.field(default_factory=Loss)
    queue: Queue = dataclasses.field(default_factory=Queue)
    mine: Mining = dataclasses.field(default_factory=Mining)
    optim: Optim = dataclasses.field(default_factory=Optim)
    train: Train = dataclasses.field(default_factory=Train)
    hosts: Hosts = dataclasses.field(default_factory=Hosts)
    eval: Evaluation = dataclasses.field(default_factory=Evaluation)
    checkpoint: Checkpoint = dataclasses.field(default_factory=Checkpoint)
    tracking: Tracking = dataclasses.field(default_factory=Tracking)
    stages: SimpleNamespace = dataclasses.field(
        default_factory=SimpleNamespace
    )  # NAME = Experiment(...), one by one


NAMED: dict[str, type] = {  # parts that hold others by name, and the class of those
    "mixture.sources": Source,
    "optim.groups": ParamGroup,
    "stages": Experiment,
}


def named_parts(config: Any, part: str) -> dict[str, Any]:
    """What a config holds by name: `named_parts(config, "mixture.sources")`."""
    for name in part.split("."):
        config = getattr(config, name)
    return vars(config)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"optim.learning_rate": 3e-05, ...}: the leaves of a config's parts, in order."""
    flat = {}
    for name, value in vars(config).items():
        parts = dataclasses.is_dataclass(value) or isinstance(value, SimpleNamespace)
        flat |= flatten(value, f"{prefix}{name}.") if parts else {prefix + name: value}
    return flat


def to_json(config: Experiment) -> str:
    """The config as JSON text, keys in the order of the dataclasses."""
    return json.dumps(as_dict(config), indent=1)


def as_dict(config: Any) -> dict[str, Any]:
    """The config as nested dicts."""
    parts = {name: value for name, value in vars(config).items() if hasattr(value, "__dict__")}
    return {
        name: as_dict(value) if name in parts else value for name, value in vars(config).items()
    }
