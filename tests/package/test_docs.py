"""Documentation: its tables are up to date, its examples run, its links lead to files."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import compared
import pytest
import tables
import write_docs
from commands import COMMAND, MASKED, Run, environment, run_process
from live import label
from sampling import rest_thorough
from specs import ENTRIES, FIXTURES, fixture
from warm_process import HAS_FORK, run_in_fork

from keras2torch_birnn.exporting import onnx_file
from keras2torch_birnn.rnn.native.library import why_missing, why_no_precision

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (*sorted(ROOT.glob("[A-Z]*[A-Z].md")), *sorted(ROOT.glob("docs/**/*.md")))
PLUGINS = FIXTURES / "plugins"
CUT = FIXTURES / "cut" / "keras-3.15.1"
# The files that the examples name.
MODELS = {
    "model.h5": MASKED,
    "compiled.h5": MASKED.parent / "compiled.h5",
    "own.h5": PLUGINS / "tf.keras-2.15.0" / "center.h5",
    "text.keras": CUT / "classify.keras",
    "ocr.keras": CUT / "captcha.keras",
    "ocr_training.h5": CUT / "captcha.h5",
    "prediction.json": CUT / "captcha.prediction.json",
    "crf.h5": PLUGINS / "keras-2.2.4" / "contrib_viterbi.h5",
    "arch.yaml": FIXTURES / "yaml" / "arch_siamese.yaml",
    "weights.h5": FIXTURES / "keras-2.2.4" / "arch_siamese_weights.h5",
}
# The Python of every page goes on from this.
IMPORTS = "import torch\nimport keras2torch_birnn as k2t\n"


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


# ---- tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", write_docs.TABLES, ids=relative)
def test_the_tables_of_a_page_are_up_to_date(page: Path) -> None:
    """``python tools/write_docs.py`` writes them again."""
    text = page.read_text("utf-8")
    assert write_docs.update(text, write_docs.TABLES[page]) == text


def test_every_generated_table_is_made_by_the_tool() -> None:
    marked = {
        (page, name) for page in PAGES for name in re.findall(r"<!-- (\w+):begin", page.read_text())
    }
    made = {(page, name) for page, tables in write_docs.TABLES.items() for name in tables}
    assert marked == made | {(write_docs.COMPARED, name) for name in compared.make_tables({})}


def test_a_page_without_the_markers_of_its_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="no <!-- layers:begin --> with its end"):
        write_docs.update(
            "<!-- layers:begin -->\n", write_docs.TABLES[write_docs.DOCS / "layers.md"]
        )


@pytest.fixture(scope="module")
def files() -> Mapping[str, compared.File]:
    return compared.counted()


@pytest.mark.thorough
def test_the_page_of_what_was_compared_is_up_to_date(files: Mapping[str, compared.File]) -> None:
    text = write_docs.COMPARED.read_text("utf-8")
    assert write_docs.update(text, compared.make_tables(files)) == text


@pytest.mark.thorough
@pytest.mark.parametrize("page", write_docs.COUNTING, ids=relative)
def test_a_page_tells_how_many_files_were_compared(
    page: Path, files: Mapping[str, compared.File]
) -> None:
    labels = {file.entry["label"] for file in files.values()}
    text = page.read_text("utf-8")
    assert f"{len(files):,} files of {len(labels)} Keras versions" in text
    assert write_docs.update_count(text, files) == text
    assert write_docs.update_count("1 files of 2 Keras versions", files) in text


@pytest.mark.thorough
def test_every_feature_was_compared_somewhere(files: Mapping[str, compared.File]) -> None:
    unseen = [name for name, has in compared.FEATURES.items() if not any(map(has, files.values()))]
    assert unseen == []


@pytest.mark.thorough
def test_files_of_half_precision_alone_are_left_out(files: Mapping[str, compared.File]) -> None:
    left_out = ENTRIES.keys() - files.keys()
    assert left_out
    assert all({"policy", "dtypes"} & {*ENTRIES[name]["tags"]} for name in left_out)


@pytest.mark.thorough
def test_what_is_counted_is_what_is_read(files: Mapping[str, compared.File]) -> None:
    """The tables read architectures alone; the same layers are converted."""
    for name in list(files)[::50]:
        whole = [(one.class_name, one.name) for one in fixture(name).spec.root.walk()]
        assert [(one.class_name, one.name) for one in files[name].layers] == whole, name


def test_the_readme_tells_the_figures_of_the_table() -> None:
    """Take those of the newest kernel."""
    (line,) = (
        line for line in tables.times_table().splitlines() if "(Zen 5)" in line and "layers" in line
    )
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    said = f"all {cells[3]} measured cases, frozen, take at most {cells[5]}"
    text = " ".join(README.read_text("utf-8").split())
    assert said in text and f"median {cells[4]} of" in text


# ---- text ----------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.read_bytes()) <= 8192


def links(page: Path) -> Iterator[str]:
    """Yield the relative targets of a page's links and pictures, without what is in code."""
    text = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text("utf-8"), flags=re.DOTALL | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target and not target.startswith("#"):
            yield target.partition("#")[0]


def test_every_relative_link_leads_to_a_file() -> None:
    found = [(relative(page), page.parent / target) for page in PAGES for target in links(page)]
    assert [link for link in found if not link[1].exists()] == []


def test_every_module_that_a_page_names_by_its_path_is_there() -> None:
    folders = ("keras2torch_birnn", "tests", "fixtures", "tools", "benchmarks", "examples")
    files = {path.as_posix() for folder in folders for path in (ROOT / folder).rglob("*.*")}
    named = {
        path
        for page in PAGES
        for path in re.findall(r"`([\w/]+/[a-z_0-9]+\.(?:py|cpp|h))`", page.read_text("utf-8"))
    }
    assert len(named) > 50
    assert {path for path in named if not any(f.endswith(f"/{path}") for f in files)} == set()


def test_every_page_of_the_documentation_is_named_in_the_readme() -> None:
    named = {(ROOT / target).resolve() for target in links(README)}
    assert {page.resolve() for page in PAGES if page.parent.name == "docs"} <= named


# ---- examples ------------------------------------------------------------------------------------


def without_numbers(text: str) -> set[str]:
    """Lines with measured errors blotted out: they differ from one processor to the next."""
    return {re.sub(r"\d\.\d+e[-+]\d+", "#", line).rstrip() for line in text.splitlines()}


# A job of ``page_worker`` -> its result.
Runner: TypeAlias = Callable[[Mapping[str, Any]], Run]


def run_as_users_do(job: Mapping[str, Any]) -> Run:
    """Run a job in a process of its own, a command as it is installed."""
    flags = ["-W", "error"] if job.get("strict") else []
    code = (sys.executable, *flags, "-c", job["code"]) if "code" in job else ()
    command = code or (*COMMAND, *job["arguments"])
    return run_process(*command, cwd=job["folder"], env=job["environment"])


RUN: Runner = run_in_fork if HAS_FORK else run_as_users_do


def run_command(command: str, shown: str, folder: Path, run: Runner) -> None:
    """Run a command of the documentation; assert that it prints what is shown."""
    program, *arguments = shlex.split(command)
    assert program == "k2t"
    given = environment(COLUMNS="80")
    done = run({"arguments": arguments, "folder": str(folder), "environment": given})
    differs = shown.rstrip().rpartition("\n")[2].startswith("DIFFERENT")
    assert done.code == differs, command + done.err
    apart = ("with the NumPy reference only", *(["native"] if why_missing() else []))
    wanted = {line for line in without_numbers(shown) if not any(text in line for text in apart)}
    assert wanted <= without_numbers(done.out + done.err), command


# Torch warns of its own deprecated quantization there.
WITH_WARNINGS = (ROOT / "docs" / "torch.md",)


def run_python(code: str, folder: Path, run: Runner, *, strict: bool) -> None:
    given = environment(K2T_ENGINE="torch" if why_missing() else "auto")
    job = {"code": IMPORTS + code, "strict": strict, "folder": str(folder), "environment": given}
    done = run(job)
    assert done.code == 0, done.err


# Packages of extras that the examples of a page need.
NEEDED = {
    ROOT / "docs" / "deploy.md": ("onnx", "onnxscript", "onnxruntime"),
    ROOT / "docs" / "cli.md": ("yaml",),
}
# Older versions of torch cannot export with free sizes.
EXPORTING = (ROOT / "docs" / "deploy.md", ROOT / "docs" / "torch.md")
WITH_EXAMPLES = [page for page in PAGES if blocks(page, "console") or blocks(page, "python")]


# Of these the examples take the least time.
SHORT = (ROOT / "docs" / "bidirectional.md", ROOT / "docs" / "cli.md")


@pytest.mark.parametrize("page", rest_thorough(WITH_EXAMPLES, SHORT), ids=relative)
def test_the_examples_of_a_page_run_and_print_what_is_shown(page: Path, tmp_path: Path) -> None:
    """In order, in one folder: files that the page shows, then the commands, then the Python."""
    for package in NEEDED.get(page, ()):
        pytest.importorskip(package)
    if page in EXPORTING and (reason := onnx_file.TARGET.why_cannot_write()):
        pytest.skip(reason)
    for name, source in MODELS.items():
        shutil.copyfile(source, tmp_path / name)
    code, runs_int8 = [], not (why_missing() or why_no_precision("int8"))
    for block in blocks(page, "python"):
        name = re.match(r"# (\w+\.py)\n", block)
        if name:
            (tmp_path / name[1]).write_text(block, encoding="utf-8")
        elif "set_precision" not in block or runs_int8:
            code.append(block)
    for block in blocks(page, "console"):
        for part in block.split("$ ")[1:]:
            command, _, shown = part.partition("\n")
            run_command(command, shown, tmp_path, RUN)
    if code:
        run_python("\n".join(code), tmp_path, RUN, strict=page not in WITH_WARNINGS)


def test_a_failing_example_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"k2t: error: no\.h5: "):
        run_command("k2t convert no.h5 out.pt", "", tmp_path, RUN)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run_python("1 / 0", tmp_path, RUN, strict=True)
    with pytest.raises(AssertionError, match="UserWarning: told"):
        run_python("import warnings; warnings.warn('told')", tmp_path, RUN, strict=True)


@pytest.mark.live_keras
@pytest.mark.parametrize("backend", ["tensorflow", "torch"])
def test_the_example_of_a_live_model_runs(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if label("keras") is None:
        pytest.skip("keras is not installed")
    monkeypatch.setenv("KERAS_BACKEND", backend)
    (code,) = blocks(ROOT / "docs" / "live.md", "python live")
    run_python(code, tmp_path, run_as_users_do, strict=False)
