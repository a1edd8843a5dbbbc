"""Runs a command or an experiment: `embed-jax COMMAND ...` and `python -m embed_jax COMMAND ...`.

Both do the same. In the repository, `python -m scripts.COMMAND` and `python -m experiments.NAME`
do it too.
"""

from __future__ import annotations

import importlib
import sys

from embed_jax import __version__, packaged
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.huge_pages import restart_with_huge_pages
from embed_jax.registry import unknown

COMMANDS = {
    "evaluate": "scores on tasks and suites, comparisons, leaderboards, diagnoses",
    "encode": "embeddings of a file of texts",
    "index": "an index of a corpus on disk, for search",
    "search": "searches indexes, in stages and within a time; serves them as a page",
    "gate": "may a search be served: cases, forbidden documents, thresholds, a baseline",
    "mine": "hard negatives from a search",
    "annotate": "scores of a teacher for pairs, lists or runs",
    "rerank": "tables of rerankers over shortlists of first stages",
    "pairs": "training pairs from clicks, groups or candidates",
    "audit": "false negatives and duplicates of a training file",
    "synthesize": "queries by a language model, and filters of weak pairs",
    "ablate": "a table of training runs over seeds",
    "replicate": "the same training by sentence-transformers",
    "shrink": "fewer layers or tokens of a model",
    "static": "models that look up a vector for each token",
    "merge": "averages of models",
    "geometry": "how embeddings lie in space",
    "limit": "data that one vector cannot search, and why",
    "export": "sentence-transformers, Hugging Face and ONNX files",
    "bench": "speed and memory",
}


def main() -> None:
    restart_with_huge_pages()
    exit_with_one_line(dispatch)


def dispatch() -> int | None:
    """Runs what the command line names, and returns its exit status.

    Raises:
        InputError: for an unknown command or experiment.
    """
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(command_usage())
        return 0
    if command == "--version":
        print(__version__)
        return 0
    if command == "train":
        name, *arguments = arguments or ["--help"]
        if name in ("-h", "--help"):
            print(train_usage())
            return 0
        module = f"{packaged.package('experiments')}.{packaged.check_experiment(name)}"
        command = f"train {name}"
    else:
        if command not in COMMANDS:
            raise InputError(unknown("command", command, ["train", *COMMANDS]))
        module = packaged.main_module(f"{packaged.package('scripts')}.{command}")
    sys.argv = [f"embed-jax {command}", *arguments]
    return importlib.import_module(module).main()


def command_usage() -> str:
    """Returns the text of `embed-jax --help`."""
    rows = {"train NAME": "one of the experiments, see embed-jax train --help"} | COMMANDS
    lines = [f"  {name:<12}{text}" for name, text in rows.items()]
    head = "usage: embed-jax COMMAND ...\n\nTrain, evaluate and use text-embedding models."
    examples = """examples:
  embed-jax train simcse --config=simcse/unsup_bert_base.py --workdir=runs/simcse
  embed-jax evaluate run --model runs/simcse/model --task sts --data stsb/test.tsv

embed-jax COMMAND --help says more of each; python -m embed_jax is the same command."""
    return "\n".join([head, "", "commands:", *lines, "", examples])


def train_usage() -> str:
    """Returns the text of `embed-jax train --help`."""
    root = packaged.folder("configs")
    files = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.py"))
    names = ", ".join(packaged.experiments())
    head = (
        "usage: embed-jax train NAME --config=FILE[:CUT] [--config.FIELD=VALUE ...] [--workdir=DIR]"
    )
    listed = "\n".join(f"  {file}" for file in files)
    return f"""{head}

NAME is one of {names}.
FILE is your own file, or one of the packaged configs:
{listed}

embed-jax train NAME --help lists the fields."""


if __name__ == "__main__":
    main()
