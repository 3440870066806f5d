"""Lay out the pages for ``mkdocs``: README first, and a reference of all public Python names."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import gallery
from markdown_links import rewrite_links

import keras2torch_birnn

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "build" / "site-source"
PAGES = ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")


def main() -> None:
    """Copy the documentation into ``build/site-source``, where ``mkdocs.yml`` looks for it."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(ROOT / "docs", SOURCE / "docs")
    for notebook in sorted((SOURCE / "docs" / "gallery").glob("*.ipynb")):
        notebook.with_suffix(".md").write_text(gallery.as_page(notebook), encoding="utf-8")
        notebook.unlink()
    for name in PAGES:
        shutil.copyfile(ROOT / name, SOURCE / name)
    readme = (ROOT / "README.md").read_text("utf-8")
    (SOURCE / "index.md").write_text(readme, encoding="utf-8")
    (SOURCE / "api.md").write_text(reference(), encoding="utf-8")
    shutil.copyfile(ROOT / "tools" / "site.css", SOURCE / "site.css")
    for page in SOURCE.rglob("*.md"):
        page.write_text(link_outside(page), encoding="utf-8")


# All public names, by what one wants to do.
TASKS: Mapping[str, Sequence[str]] = {
    "Convert": ("convert", "save", "load", "inspect", "weights"),
    "Prove it": ("verify", "ParityReport"),
    "Compute": (
        *("freeze", "reset_states", "output_mask", "explain", "set_engine", "set_precision"),
    ),
    "Merge modes without Keras": ("BiLSTM", "BiGRU", "BiRNN"),
    "Train and write back": (
        *("training", "Training", "penalty", "constrain_"),
        *("synchronize_batch_norm", "write_back", "WrittenModel"),
    ),
    "Run without this package": ("export", "Exported"),
    "Find the mistake in a port": ("compare", "PortReport"),
    "Supply your own layers": (
        *("converts", "equation", "supplies", "ModelSpec", "LayerSpec", "MaskFlow"),
    ),
    "Errors": (
        *("K2TError", "UsageError", "InvalidModelFileError", "MissingArchitectureError"),
        *("UnsupportedLayerError", "UnsupportedOptionError", "WeightMismatchError"),
        *("OutputError", "PluginError"),
    ),
}

# Types of arguments, which the tables of parameters name: module -> names.
TYPES: Mapping[str, Sequence[str]] = {
    "readers.containers.container": ("ModelSource",),
    "readers.steps": ("PathLike",),
    "spec": ("LayerNames",),
    "plugins": ("PluginName",),
    "verification": ("Against",),
    "verification.given_inputs": ("InputData",),
    "freezing": ("InputShape",),
    "trainers.output_masks": ("Masks",),
    "rnn.engines": ("EngineRequest",),
    "rnn.native.codes": ("Precision",),
    "rnn.arguments": ("MergeMode",),
    "resuming": ("OptimizerState",),
    "schema.custom_layers": ("WeightNames", "OutputShape", "Sizes", "InitialState"),
}


def reference() -> str:
    """Return the page that ``mkdocstrings`` fills: the public names, by task, then types."""
    lines = ["# Python", "", "```python", "import keras2torch_birnn as k2t", "```", ""]
    for task, names in TASKS.items():
        lines += [f"## {task}", ""]
        for name in names:
            found = getattr(keras2torch_birnn, name)
            lines += _entry(f"{found.__module__}.{found.__qualname__}", f"k2t.{name}", name)
    lines += ["## Types of arguments", ""]
    for module, names in TYPES.items():
        for name in names:
            lines += _entry(f"{keras2torch_birnn.__name__}.{module}.{name}", name, name)
    return "\n".join(lines)


def _entry(path: str, heading: str, label: str) -> list[str]:
    options = ("      heading_level: 3", f"      heading: {heading}", f"      toc_label: {label}")
    return [f"::: {path}", "    options:", *options, ""]


def read_title(page: Path) -> str:
    """Return the title of a page, without marks of code."""
    found = re.search(r"^# (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return found[1].replace("`", "") if found else page.stem


def link_outside(page: Path) -> str:
    """Return a page's text, with links to notebooks, which are pages here, and without others.

    Links to files that are no pages become plain names; a page is named by its title.
    """

    def check(text: str, target: str) -> str | None:
        if "://" in target or target.startswith("#"):
            return None
        target = re.sub(r"\.ipynb(?=#|$)", ".md", target)
        other = page.parent / target.partition("#")[0]
        if not other.exists():
            return text
        if other.suffix == ".md" and text.endswith(other.name):
            text = read_title(other)
        elif "/" in text and target.startswith(text):  # a folder
            text = Path(text).name.capitalize()
        return f"[{text}]({target})"

    return rewrite_links(page.read_text("utf-8"), check)


if __name__ == "__main__":
    main()
