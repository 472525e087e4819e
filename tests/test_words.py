"""Plain English: words that readers stumbled over stay out of docs, docstrings, comments and messages."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("f3r_jax", "launch", "configs", "docs") for path in (ROOT / folder).rglob("*.py"))
TEXTS = sorted(
    [
        *(ROOT / name for name in ("README.md", "BENCHMARKS.md", "Makefile", "pyproject.toml")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "docs").glob("*.ipynb"),
        *(ROOT / "f3r_jax").rglob("*.jinja"),
    ]
)
INSTEAD = {  # pattern: what to write
    r"told": "detected, reported, printed",
    r"says|is said": "reports, is documented",
    r"goes on|go on": "resumes, continues",
    r"hangs? on": "depends on",
    r"anew": "again",
    r"beside": "next to, temporary file, in addition",
    r"lies": "is in",
    r"stands? in": "is in",
    r"(?:row|line|seconds?|voxels) an? (?:pair|case|step|row|run)": "per",
    r"ours": "f3r_jax",
    r"rivals?|opponents?|peers?": "baselines",
    r"programs": "compiled functions",
    r"pictures?": "figures",
    r"(?<!ground[ -])truth": "ground truth",
    r"refinements?": "instance optimisation",
    r"to the bit": "bit-identical",
    r"as (?:it|they) comes?": "unmodified",
    r"lattices?": "grid",
    r"takes? leave|left be|left alone": "exits, is skipped",
}
# Names that users type stay as they are.
NAMES = re.compile(
    r"`[^`]*`|```.*?```|--\w+|EXTRAS=\S+|\"\w+\"|extras? \S+|^known := .*|\[dev,[\w,]+\]|^peers = ",
    re.DOTALL | re.MULTILINE,
)
MOST_WORDS = 35  # of a docstring's sentence


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def docstrings(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield getattr(node, "lineno", 1), text


def texts(path):
    """(line, text) of what a reader reads: all of a text file; of a source its comments and its strings of words."""
    text = path.read_text()
    if path.suffix != ".py":
        yield from enumerate(NAMES.sub("", text).splitlines(), 1)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def test_the_patterns_find_words_and_spare_names():
    pattern = re.compile(rf"\b({'|'.join(INSTEAD)})\b", re.IGNORECASE)
    assert pattern.search("It goes on.") and pattern.search("seconds a pair") and pattern.search("the truth")
    assert not pattern.search("the ground truth") and not pattern.search(
        NAMES.sub("", "with EXTRAS=peers and `rivals`")
    )


@pytest.mark.parametrize("path", [*SOURCES, *TEXTS], ids=name_of)
def test_words(path):
    found = []
    for line, text in texts(path):
        plain = NAMES.sub("", text)
        for pattern, better in INSTEAD.items():
            words = re.findall(rf"\b(?:{pattern})\b", plain, re.IGNORECASE)
            found += [f"{name_of(path)}:{line}: {word!r}, expected {better}" for word in words]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_sentences_of_docstrings_are_short(path):
    long = []
    for line, text in docstrings(ast.parse(path.read_text())):
        for block in re.split(r"\n\s*\n|\n\s*[-*|] |\n {2,}", text):
            sentences = [sentence for sentence in re.split(r"(?<=[.:;?!])\s+", block) if "  " not in sentence]
            long += [f"{name_of(path)}:{line}: {text[:80]}" for text in sentences if len(text.split()) > MOST_WORDS]
    assert not long, "\n".join(long)
