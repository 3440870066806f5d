"""The tables of what was compared are those of the files."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from matrix import FEATURES, MARKED, PAGE, README, File, counted, page, readme_section
from specs import ENTRIES, fixture


@pytest.fixture(scope="module")
def files() -> Mapping[str, File]:
    return counted()


def test_the_readme_and_the_page_are_those_of_the_files(files: Mapping[str, File]) -> None:
    """``python tests/matrix.py`` writes them anew."""
    found = MARKED.search(README.read_text("utf-8"))
    assert found is not None
    inside = found[0].removeprefix(found[1]).removesuffix(found[2])
    assert inside == readme_section(files)
    assert page(files) == PAGE.read_text("utf-8")


def test_every_feature_was_compared_somewhere(files: Mapping[str, File]) -> None:
    unseen = [name for name, test in FEATURES.items() if not any(map(test, files.values()))]
    assert unseen == []


def test_files_of_half_precision_alone_are_left_out(files: Mapping[str, File]) -> None:
    left_out = ENTRIES.keys() - files.keys()
    assert left_out
    assert all({"policy", "dtypes"} & {*ENTRIES[name]["tags"]} for name in left_out)


def test_what_is_counted_is_what_is_read(files: Mapping[str, File]) -> None:
    """The tables read architectures alone; the same layers are converted."""
    for name in list(files)[::50]:
        whole = [(one.class_name, one.name) for one in fixture(name).spec.root.walk()]
        assert [(one.class_name, one.name) for one in files[name].layers] == whole, name
