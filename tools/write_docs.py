"""Write the generated tables of the documentation: ``python tools/write_docs.py``.

A generated table is between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``; the whole of
``docs/tables/compared.md`` is generated, and the number of compared files in the README and in
``docs/compared.md``. A test fails when a page is out of date.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import compared
import cost_table
import export_summary
import layer_speed
import model_speed
import penalty_table
import precision_table
import speed
import speed_of_exports
import stack_speed
import training_speed

from keras2torch_birnn.cli.catalogue import catalogue
from keras2torch_birnn.plugins import SHIPPED
from keras2torch_birnn.rnn.engines import ENGINES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
COMPARED = DOCS / "tables" / "compared.md"
COUNTING = (ROOT / "README.md", DOCS / "compared.md")
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
    """Make the table of the plugins that come with the package."""
    head = "| `--plugin` | layers | of |\n|---|---|---|\n"
    return head + "".join(
        f"| `{plugin}` | {', '.join(f'`{name}`' for name in shipped.classes)} | "
        f"{shipped.origin} |\n"
        for plugin, shipped in SHIPPED.items()
    )


def engine_table() -> str:
    """Make the table of engines, in order of preference."""
    head = "| engine | what it is | when it is used |\n|---|---|---|\n"
    return head + "".join(f"| `{row.name}` | {row.description} | {row.use} |\n" for row in ENGINES)


# Page -> the tables in it -> what makes each.
TABLES: Mapping[Path, Mapping[str, Callable[[], str]]] = {
    DOCS / "layers.md": {"layers": layer_table},
    DOCS / "plugins.md": {"plugins": plugin_table},
    DOCS / "performance.md": {"engines": engine_table},
    DOCS / "tables" / "performance.md": {
        "engine": partial(speed.table, training=False),
        "training": partial(speed.table, training=True),
        "training_steps": training_speed.table,
        "penalties": penalty_table.table,
        "layers_and_floor": layer_speed.table,
        "kernel_pairs": layer_speed.pairs,
        "stacks": stack_speed.short,
        "long": stack_speed.long,
        "precision": precision_table.table,
        "models": partial(model_speed.table, model_speed.MODELS),
        "eager_floor": partial(model_speed.floor_table, model_speed.FLOOR),
        "cost_measured": cost_table.measured,
        "cost_foreseen": cost_table.foreseen,
    },
    DOCS / "deploy.md": {
        "export_speed": speed_of_exports.table,
        "exports": partial(export_summary.show, export_summary.table),
        "real_exports": partial(export_summary.show, export_summary.real_table),
        "not_exported": partial(export_summary.show, export_summary.problems),
    },
}


def update(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return the page with its generated tables made again.

    Raises:
        ValueError: the page lacks the markers of a table.
    """
    for name, make in tables.items():
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
    for path, tables in TABLES.items():
        path.write_text(update(path.read_text("utf-8"), tables), "utf-8")
    files = compared.counted()
    COMPARED.write_text(compared.page(files), "utf-8")
    for path in COUNTING:
        path.write_text(update_count(path.read_text("utf-8"), files), "utf-8")


if __name__ == "__main__":
    main()
