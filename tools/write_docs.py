"""Write the generated tables of the documentation: ``python tools/write_docs.py``.

A generated table is between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``. Generated, too, are
the number of compared files in the README and in ``docs/compared.md``, and the kernel's
``processors.h``. A test fails when one is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import compared
import tables

from keras2torch_birnn.cli.listings import catalogue
from keras2torch_birnn.rnn.engines import DESCRIPTIONS
from keras2torch_birnn.rnn.native import processors
from keras2torch_birnn.schema.custom_layers import EXAMPLES, SHIPPED

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMPARED = DOCS / "compared.md"
HEADER = Path(processors.__file__).with_suffix(".h")
COUNTING = (ROOT / "README.md", COMPARED)
_COUNT = re.compile(r"[\d,]+ files of \d+ Keras versions")


def layer_table() -> str:
    """Make the table of supported layers from the schema."""
    head = "| Keras layer | also | not supported (refused, never approximated) |\n|---|---|---|\n"
    return head + "".join(
        f"| `{row.class_name}` | {', '.join(f'`{a}`' for a in row.aliases)} | "
        f"{'; '.join(row.refused)} |\n"
        for row in catalogue()
    )


def plugin_table() -> str:
    """Make the table of the plugins that ship with the package or are in its source."""
    head = "| `--plugin` | layers | of |\n|---|---|---|\n"
    return head + "".join(
        f"| `{plugin}` | {', '.join(f'`{name}`' for name in shipped.classes)} | "
        f"{shipped.origin} |\n"
        for plugin, shipped in {**SHIPPED, **EXAMPLES}.items()
    )


def engine_table() -> str:
    """Make the table of engines, in order of preference."""
    head = "| engine | what it is | when it is used |\n|---|---|---|\n"
    return head + "".join(
        f"| `{name}` | {what} | {when} |\n" for name, (what, when) in DESCRIPTIONS.items()
    )


# Page -> the tables in it -> what makes each.
TABLES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    DOCS / "layers.md": {"layers": layer_table},
    DOCS / "plugins.md": {"plugins": plugin_table},
    DOCS / "performance.md": {"engines": engine_table, "times": tables.times_table},
}


def update(text: str, makers: Mapping[str, Callable[[], str]]) -> str:
    """Return the page with its generated tables made again.

    Raises:
        ValueError: the page lacks the markers of a table.
    """
    for name, make in makers.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"no {begin.strip()} with its end")
        text = before + begin + make() + end + after
    return text


def update_count(text: str, files: Mapping[str, compared.File]) -> str:
    """Return a page with the number of compared files and of the versions that wrote them."""
    labels = {file.entry["label"] for file in files.values()}
    return _COUNT.sub(f"{len(files):,} files of {len(labels)} Keras versions", text)


def main() -> None:
    """Write every generated page, table and number."""
    for path, makers in TABLES.items():
        path.write_text(update(path.read_text("utf-8"), makers), "utf-8")
    HEADER.write_text(processors.make_header(), "utf-8")
    files = compared.counted()
    makers = compared.make_tables(files)
    COMPARED.write_text(update(COMPARED.read_text("utf-8"), makers), "utf-8")
    for path in COUNTING:
        path.write_text(update_count(path.read_text("utf-8"), files), "utf-8")


if __name__ == "__main__":
    main()
