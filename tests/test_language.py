"""Docstrings, comments, messages and names are in plain English, as the style guide asks.

`python tests/test_language.py FOLDER ...` lists the places that break a rule.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("embed_jax", "experiments", "configs", "scripts", "tests")

# Idioms -> ordinary English. Searched in docstrings, comments, strings and README files.
IDIOMS = {
    r"\b[Aa]s of [`a-zA-Z]": "see `f`",
    r"(?<!here )\b(is|are|was|were) none\b": "is not set, no pairs given",
    r"\b[Tt]here (is|are|was|were) none\b": "no pairs given",
    r"(?<!here )(?<!hat )(?<!hich )(?<!what )\b(is|are|was|were) no (?!longer\b|more "
    r"than\b|need\b|less than\b)\w": "is not a",
    r"\bso (many|much|few|little)\b(?! "
    r"(faster|slower|more|less|larger|smaller|that))": "at most N, N",
    r"\b(a|an|one|two|three|\d+) (?!or\b|and\b)\w+ more\b(?! "
    r"(than|often|memory|time))": "one more text",
    r"\bof (its|their|his|your|our) own\b": "its own",
    r"\bbut for\b": "except",
    r"\bsave (that|for)\b": "except",
    r"\balone\b": "only",
    r"\b(go|goes|fit|fits|know|knows|give|gives|take|takes|hold|holds|make|makes|stand|stands|need|needs|read|reads)"
    r" not\b": "does not",
    r"\b(has|have|had) not(?= ?[.,;:)]| ?$)": "does not have",
    r"\bmissed better\b": "fails early",
    r"\b(is|are) wanted\b": "is needed, is requested",
    r"\bthe own\b": "its own",
    r"\bof the like\b": "similar",
    r"\bthereof\b|\bwherein\b|\bwhereof\b|\bhereby\b": "of it, in which",
}
FIRST_LINE = re.compile(r"\W*(What|Which|How|Whether|As|Where|Who|That)\b")

# Names that don't say what they hold.
VAGUE_NAMES = {
    *(
        "found",
        "given",
        "wanted",
        "kept",
        "said",
        "asked",
        "more",
        "further",
        "theirs",
        "things",
        "one",
    ),
    *("alone", "lying", "of_one", "as_wanted", "looked_at"),
}


def _strings(tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Yields line, text and "is a docstring" of every string constant of more than one word."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and ast.get_docstring(node) is not None
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value, id(node) in docstrings


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and name of everything that code binds.

    These are variables, arguments, functions and classes.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.lineno, node.name


def _idioms(line: int, text: str) -> Iterator[str]:
    for pattern, instead in IDIOMS.items():
        for match in re.finditer(pattern, text, re.MULTILINE):
            at = line + text.count("\n", 0, match.start())
            yield f"{at}: '{match[0]}' (write: {instead})"


def problems(path: Path) -> list[str]:
    """Returns what breaks a rule in a Python file or a README, as "LINE: what"."""
    source = path.read_text()
    if path.suffix == ".md":
        return list(_idioms(1, source))
    tree = ast.parse(source)
    result = []
    for line, text, is_docstring in _strings(tree):
        result += _idioms(line, text)
        if is_docstring and FIRST_LINE.match(text):
            result.append(
                f"{line}: a docstring begins with {text.split()[0]!r} (write: a verb or a noun)"
            )
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            result += _idioms(token.start[0], token.string)
    result += [
        f"{line}: the name {name!r} does not say what it holds"
        for line, name in _names(tree)
        if name in VAGUE_NAMES
    ]
    return result


def _files(folders: list[str]) -> list[Path]:
    paths = [ROOT / folder for folder in folders]
    files = [path for path in paths if path.is_file()]
    for path in paths:
        files += [*path.rglob("*.py"), *path.rglob("*.md")]
    return sorted(file for file in files if file != Path(__file__).resolve())


@pytest.mark.parametrize("folder", [*FOLDERS, "README.md"])
def test_plain_english(folder):
    assert [
        f"{path.relative_to(ROOT)}:{problem}"
        for path in _files([folder])
        for problem in problems(path)
    ] == []


def test_a_broken_rule_is_seen(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('"""What a model is for: so many texts."""\nfound = 1  # as of `f`\n')
    assert len(problems(file)) == 4


if __name__ == "__main__":
    for path in _files(sys.argv[1:] or [*FOLDERS, "README.md"]):
        for problem in problems(path):
            print(f"{path.relative_to(ROOT)}:{problem}")
