"""What MkDocs does not do by itself: help of the commands, the notebook and BENCHMARKS.md as pages, links to them.

The help is that of the commands at the time of the build, so it cannot be out of date. The notebook is converted here,
because mkdocs-jupyter loads scripts of another server.
"""

import base64
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
NOTEBOOK = "notebook.ipynb"
PAGES = {"../BENCHMARKS.md": "benchmarks.md", NOTEBOOK: "notebook.md"}  # what a link names: its page on the site
HELP = re.compile(r"^<!-- help: (\S+) -->$", re.MULTILINE)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds BENCHMARKS.md and the notebook as pages; the notebook itself can be downloaded."""
    pages = {"benchmarks.md": (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")}
    pages |= notebook_page(json.loads((ROOT / "docs" / NOTEBOOK).read_text(encoding="utf-8")))
    for name, content in pages.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Inserts the help of commands, and leads links to the pages above."""
    if page.file.src_uri != "notebook.md":
        for link, target in PAGES.items():
            markdown = markdown.replace(f"]({link})", f"]({target})")
    modules = HELP.findall(markdown)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = dict(zip(modules, pool.map(help_of, modules), strict=True))
    return HELP.sub(lambda found: texts[found[1]], markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Keeps browsers from breaking a flag in the text after its dashes."""

    def keep(code: re.Match) -> str:
        return re.sub(r"--[\w.\[\]]+", r'<span class="flag">\g<0></span>', code[0])

    return re.sub(r"<code>[^<\n]*</code>", keep, content)


def help_of(module: str) -> str:
    """What `python -m MODULE --help` prints, as Markdown: each flag is a term of a definition list."""
    command = [sys.executable, "-m", module, "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise PluginError(f"{' '.join(command)}: status {finished.returncode}: {finished.stderr.strip()}")
    description, *groups = re.split(r"\n\n(?=[^\n]+:\n  --)", finished.stdout.rstrip())
    return "\n\n".join([describe(description), *map(describe_group, groups)])


def describe(text: str) -> str:
    """The description of a command; indented lines are commands."""
    parts = []
    for part in text.split("\n\n"):
        if part.startswith("  "):
            part = "\n".join(["```", *(line.strip() for line in part.splitlines()), "```"])
        else:
            part = re.sub(r"<(\w+)>", r"&lt;\1&gt;", part)
        parts.append(part)
    return "\n\n".join(parts)


def describe_group(text: str) -> str:
    """A group of flags as its heading and a definition list."""
    heading, *lines = text.splitlines()
    flags: list[list[str]] = []
    for line in lines:
        if line.startswith("  --"):
            flags.append([f"`{line.strip()}`", ""])
        else:
            flags[-1][1] = f"{flags[-1][1]} {line.strip()}".strip()
    return "\n\n".join([f"**{heading.removesuffix(':')}**", *(f"{flag}\n:   {meaning}" for flag, meaning in flags)])


def notebook_page(notebook: dict[str, Any]) -> dict[str, str | bytes]:
    """The page of a notebook and its figures, by name."""
    first, *cells = notebook["cells"]
    title, *rest = "".join(first["source"]).splitlines()
    parts = [title, f"[Download this notebook]({NOTEBOOK}){{download}}", "\n".join(rest)]
    figures: dict[str, str | bytes] = {}
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"notebook_{len(figures) + 1}.png"
                figures[name] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![Figure {len(figures)} of the notebook]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    return {"notebook.md": "\n\n".join(parts) + "\n"} | figures
