"""Reads the form that evaluate had before its subcommands, until version 1.0."""

from __future__ import annotations

from collections.abc import Sequence

from embed_jax.errors import InputError

# An old flag, the subcommand that it stands for, and how many values follow it.
ALIASES = {
    "--task": ("run", 1),
    "--suite": ("suite", 1),
    "--compare": ("compare", 2),
    "--leaderboard": ("leaderboard", 1),
    "--sweep": ("sweep", 0),
    "--diagnose": ("diagnose", 0),
}


def translate(argv: Sequence[str]) -> list[str]:
    """Returns a command line with a subcommand for one of old flags, and any other as it is.

    Raises:
        InputError: for flags that stand for different subcommands, or none of them.
    """
    if argv and not argv[0].startswith("-") or {"-h", "--help"} & set(argv):
        return list(argv)
    words, rest, flags = list(argv), [], {}
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in ALIASES:
            rest.append(word)
            continue
        count = ALIASES[flag][1]
        flags[flag] = [value] if equals else words[:count]
        del words[: 0 if equals else count]
        if len(flags[flag]) < (1 if equals else count):
            raise InputError(f"argument {flag}: expected {count} arguments")
    modes = ["--suite", "--task", "--compare", "--leaderboard"]
    chosen = [flag for flag in modes if flag in flags]
    if chosen == ["--suite", "--compare"]:
        if any(word.partition("=")[0] == "--model" for word in rest):
            raise InputError("--suite needs --model, or --compare with two models; found both")
        models = ",".join(flags["--compare"])
        return ["suite", *flags["--suite"], "--model", models, "--compare", *rest]
    if len(chosen) != 1:
        listed = f"expected one of {', '.join(modes)}, found {' and '.join(chosen) or 'none'}"
        raise InputError(f"{listed}")
    (mode,) = chosen
    searches = [flag for flag in ("--sweep", "--diagnose") if flag in flags]
    if len(searches) > 1:
        raise InputError("expected one of --sweep, --diagnose, found both")
    if mode != "--task":
        if searches:
            raise InputError(f"{searches[0]} is for --task retrieval, found {mode}")
        return [ALIASES[mode][0], *flags[mode], *rest]
    if not searches:
        return ["run", "--task", *flags["--task"], *rest]
    if flags["--task"] != ["retrieval"]:
        raise InputError(f"{searches[0]} is for --task retrieval, found {flags['--task'][0]!r}")
    return [ALIASES[searches[0]][0], *rest]
