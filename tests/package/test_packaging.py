"""Contents of an sdist and of wheels, built in a copy of this tree with an old library in it."""

from __future__ import annotations

import builtins
import inspect
import os
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import pytest
from commands import run_process

import keras2torch_birnn
from keras2torch_birnn import suggestions
from keras2torch_birnn.rnn.native import library
from keras2torch_birnn.suggestions import advise_extra

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PACKED = (
    *("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "tools"),
    "keras2torch_birnn",
)
OLD = f"keras2torch_birnn/rnn/native/{library.NAME}"
# What a build front end such as pip calls, without an environment of its own.
HOOK = """
import sys
from setuptools import build_meta
getattr(build_meta, sys.argv[1])(sys.argv[2])
"""

pytestmark = pytest.mark.skipif(find_spec("setuptools") is None, reason="nothing to build with")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what is packed, and a library that was not built from it."""
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in PACKED:
        place = ROOT / name
        if place.is_dir():
            hidden = shutil.ignore_patterns("__pycache__", library.NAME)
            shutil.copytree(place, copy / name, ignore=hidden)
        else:
            shutil.copy(place, copy / name)
    (copy / OLD).write_text("an old library")
    listed = copy / "keras2torch_birnn.egg-info" / "SOURCES.txt"
    listed.parent.mkdir()
    listed.write_text(f"setup.py\n{OLD}\n")
    return copy


def build(tree: Path, hook: str, **environment: str) -> Path:
    """The one file or folder that a hook of the build makes."""
    out = tree.parent / hook
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = (sys.executable, "-c", HOOK, hook, out)
    done = run_process(*command, cwd=tree, env={**os.environ, **environment})
    assert done.code == 0, done.err
    (made,) = (found for found in out.iterdir() if found.suffix != ".egg-info")
    return made


def facts(wheel: Path) -> tuple[list[str], list[str]]:
    """The libraries in a wheel, and what its WHEEL says of platforms."""
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        lines = packed.read(about).decode().splitlines()
    said = [line for line in lines if line.startswith(("Tag", "Root-Is-Purelib"))]
    return [name for name in names if name.endswith(".so")], said


@pytest.mark.thorough
def test_an_sdist_has_sources_and_manifests_and_neither_a_library_nor_archives(tree: Path) -> None:
    (tree / "fixtures").mkdir()
    for name in ("manifest.json", "README.md", "generate.py", "keras-9.7.1.tar.xz"):
        (tree / "fixtures" / name).touch()
    with tarfile.open(build(tree, "build_sdist")) as packed:
        names = [name.partition("/")[2] for name in packed.getnames()]
    assert [name for name in names if name.endswith(".so")] == []
    sources = {file.relative_to(tree).as_posix() for file in (tree / OLD).parent.glob("*.[hc]*")}
    assert len(sources) > 10
    assert {*PACKED, *sources} <= {*names}
    found = {name for name in names if name.startswith("fixtures/")}
    assert found == {f"fixtures/{name}" for name in ("manifest.json", "README.md", "generate.py")}


@pytest.mark.thorough
def test_a_wheel_without_a_compiler_has_no_library_and_no_platform(tree: Path) -> None:
    for _ in range(2):
        wheel = build(tree, "build_wheel", CXX="/bin/false", CC="/bin/false")
        assert facts(wheel) == ([], ["Root-Is-Purelib: true", "Tag: py3-none-any"])
        assert wheel.name.endswith("-py3-none-any.whl")
        # The second build finds what an earlier one made, where it would put its own.
        (folder,) = (tree / "build").glob("lib*")
        (folder / OLD).write_text("an old library")


@pytest.mark.thorough
def test_a_wheel_that_requires_the_kernel_is_not_built_without_it(tree: Path) -> None:
    with pytest.raises(AssertionError, match="/bin/false"):
        build(tree, "build_wheel", CXX="/bin/false", CC="/bin/false", K2T_REQUIRE_KERNEL="1")


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_wheel_of_the_sdist_has_the_library_of_its_sources(tree: Path, tmp_path: Path) -> None:
    with tarfile.open(build(tree, "build_sdist")) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    wheel = build(source, "build_wheel", K2T_CXXFLAGS="-O0")
    libraries, said = facts(wheel)
    assert libraries == [OLD]
    assert said[0] == "Root-Is-Purelib: false"
    assert said[1].startswith("Tag: py3-none-")
    assert not said[1].endswith("-any")
    with zipfile.ZipFile(wheel) as packed_wheel:
        packed_wheel.extractall(tmp_path / "installed")
    library.load((tmp_path / "installed" / OLD).parent)


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(r"^dependencies = \[(.*)\]$", project, re.MULTILINE)
    allowed = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', listed))
    assert len(allowed) == listed.count('"') // 2
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()[1:]
    tested = dict(line.split("==") for line in lines)
    (setuptools,) = re.findall(
        r'^requires = \["setuptools>=([\d.]+)", "ziglang', project, re.MULTILINE
    )
    wanted = {**allowed, "setuptools": setuptools}
    assert len({*re.findall(r'"ziglang==([\d.]+)[";]', project)}) == 1
    assert {name: re.sub(r"^(\d+\.\d+)$", r"\1.0", v) for name, v in wanted.items()} == tested


def described(tree: Path, **environment: str) -> str:
    """The description in a package's metadata, which an index shows."""
    made = build(tree, "prepare_metadata_for_build_wheel", **environment)
    return (made / "METADATA").read_text("utf-8").partition("\n\n")[2]


@pytest.mark.thorough
def test_a_package_index_shows_no_link_to_a_file_that_is_not_there(tree: Path) -> None:
    links = r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)"
    readme = (ROOT / "README.md").read_text("utf-8")
    relative = [target for target in re.findall(links, readme) if "://" not in target]
    assert len(relative) > 20
    published = described(tree, K2T_SOURCE_URL="https://example.org/blob/v7/")
    found = re.findall(links, published)
    assert {f"https://example.org/blob/v7/{target}" for target in relative} <= {*found}
    assert not {*relative} & {*found}


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_builds_anew_what_a_changed_source_makes_old(tree: Path) -> None:
    shutil.copy(ROOT / "Makefile", tree)
    made = tree / ".venv"
    (made / "bin").mkdir(parents=True)
    for name in ("bin/python", "installed", "installed-test", "installed-docs"):
        (made / name).touch()

    def steps(goal: str) -> str:
        done = run_process("make", "--dry-run", "VENV=.venv", goal, cwd=tree)
        assert done.code == 0, done.err
        return done.out

    now = (made / "installed").stat().st_mtime
    for goal in ("test", "demo", "docs"):
        assert "pip install" not in steps(goal)
        for changed in ("api.cpp", "kernel.h", "processors.py"):
            source = (tree / OLD).with_name(changed)
            os.utime(source, (now + 7, now + 7))
            assert "pip install" in steps(goal), changed
            os.utime(source, (now - 7, now - 7))


def test_the_source_archive_has_all_that_the_tests_need() -> None:
    """Each entry of the tree is named in MANIFEST.in, packed by setuptools, or of no use there."""
    rules = [line.split() for line in (ROOT / "MANIFEST.in").read_text("utf-8").splitlines()]
    named = {name for rule in rules if rule[:1] in (["graft"], ["include"]) for name in rule[1:]}
    named |= {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
    named |= {"keras2torch_birnn", ".github", ".gitignore"}
    tracked = run_process("git", "ls-files", cwd=ROOT)
    if tracked.code:
        pytest.skip("no git, or no repository: nothing tells which files belong to the tree")
    entries = {line.partition("/")[0] for line in tracked.out.splitlines()}
    assert entries <= named


def test_the_site_has_every_page_and_every_public_name() -> None:
    docs = ROOT / "docs"
    found = [*ROOT.glob("[A-Z]*.md"), *docs.rglob("*.md")]
    pages = {page.relative_to(ROOT).as_posix() for page in found}
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    navigation = pytest.importorskip("yaml").safe_load(text)["nav"]
    assert {*re.findall(r"'([\w./-]+\.md)'", str(navigation))} == pages
    shown = re.findall(r"^::: keras2torch_birnn\.(\w+)$", (docs / "api.md").read_text(), re.M)
    public = [name for name in keras2torch_birnn.__all__ if not name.startswith("_")]
    assert sorted(shown) == sorted(public)


def public_docstrings() -> Iterator[tuple[str, str]]:
    """All names that the site's page of Python shows, with their docstrings."""
    for name in keras2torch_birnn.__all__:
        found = getattr(keras2torch_birnn, name)
        yield name, inspect.getdoc(found) or ""
        for part, value in vars(found).items() if inspect.isclass(found) else ():
            if not part.startswith("_") and (inspect.isfunction(value) or type(value) is property):
                yield f"{name}.{part}", inspect.getdoc(value) or ""


def test_public_docstrings_name_pages_that_are_there_and_nothing_private() -> None:
    private = {module.name for module in iter_modules(keras2torch_birnn.__path__)}
    private -= {*keras2torch_birnn.__all__}
    found = []
    for name, text in public_docstrings():
        pages = re.findall(r"\bdocs/[\w-]+\.md\b", text)
        found += [(name, page) for page in pages if not (ROOT / page).is_file()]
        for inside, dotted in re.findall(r"`(?:k2t\.)?((\w+)\.\w[\w.]*)`", text):
            is_class = dotted[0].isupper() and dotted not in keras2torch_birnn.__all__
            found += [(name, inside)] if dotted in private or is_class else []
    assert found == []


# Classes that a user makes; the fields of others are attributes.
MADE_BY_USERS = ("BiGRU", "BiLSTM", "BiRNN")


def entries(text: str, section: str) -> list[str]:
    """The names that a section of a docstring describes."""
    part = re.search(rf"^{section}:\n((?: .*\n|\n)+)", f"{text}\n", re.MULTILINE)
    return re.findall(r"^    \*?(\w+): [A-Z\"`(\d]", part[1], re.MULTILINE) if part else []


@pytest.mark.parametrize("name", keras2torch_birnn.__all__)
def test_every_parameter_and_field_has_a_row_on_the_site(name: str) -> None:
    """In the docstring's section "Args" or "Attributes", in the order of the signature."""
    public = getattr(keras2torch_birnn, name)
    text = inspect.getdoc(public) or ""
    assert [*re.findall(r"^(Args|Attributes):$", text, re.MULTILINE)][1:] == []
    if not inspect.isclass(public) or name in MADE_BY_USERS:
        assert entries(text, "Args") == [*inspect.signature(public).parameters]
        returned = inspect.signature(public).return_annotation
        assert ("\nReturns:\n" in text) == (returned not in ("None", None)), returned
    elif public is keras2torch_birnn.K2TError:
        assert {*entries(text, "Attributes")} == {*vars(public("message"))}
    elif not issubclass(public, keras2torch_birnn.K2TError):
        assert entries(text, "Attributes") == [*inspect.signature(public).parameters]
    raised = entries(text, "Raises")
    assert ("\nRaises:\n" in text) == bool(raised)
    errors = {**vars(builtins), **vars(keras2torch_birnn.errors)}
    assert all(issubclass(errors[one], Exception) for one in raised)


def test_one_place_of_the_source_is_told_everywhere() -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert urls.keys() == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(url.startswith(urls["Source"]) for url in urls.values())
    owner = urls["Source"].split("/")[3]
    assert f"site_url: https://{owner}.github.io/" in (ROOT / "mkdocs.yml").read_text("utf-8")
    assert f"git clone {urls['Source']} && cd keras2torch_birnn\n" in README.read_text("utf-8")


def test_an_extra_is_named_by_the_folder_where_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert advise_extra("keras") == "pip install 'keras2torch_birnn[keras]'"

    def find(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(suggestions, "distribution", find)
    assert advise_extra("keras") == "pip install '.[keras]'"


def test_one_version_is_told_everywhere() -> None:
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert declared
    assert cited
    assert declared[1] == cited[1]
