"""The sweep of all exports: its judgement, its child, its counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import check_exports
import export_cases
import export_summary
import numpy as np
import pytest
from check_exports import Child, Record, judge
from export_cases import ORACLE, Batch

from keras2torch_birnn.comparison.tolerance import Tolerance

VALUES = np.array([1.0, 100.0], np.float32)


def batch(rounding: float = 0.0, limit: Tolerance | None = None) -> Batch:
    return Batch("own", (), (VALUES,), (rounding,), limit)


@pytest.mark.parametrize(
    ("given", "expected", "verdict"),
    [
        (VALUES + np.float32([1e-4, 9e-3]), batch(), "equal"),
        (VALUES + np.float32([1.3e-4, 0]), batch(), "wrong: 1.3e-04"),
        (VALUES + np.float32([1.3e-4, 0]), batch(1e-4), "rounding"),
        (VALUES + np.float32([1.3e-4, 0]), batch(1e-4, ORACLE), "wrong: 1.3e-04"),
        (VALUES + np.float32([0, 1e-4]), batch(0.0, ORACLE), "wrong: 9.9e-05"),
        (VALUES[:1], batch(), "wrong: shapes [(1,)], not [(2,)]"),
    ],
)
def test_a_batch_is_judged_by_the_stated_tolerance(
    given: Any, expected: Batch, verdict: str
) -> None:
    assert judge([given], expected) == verdict


def test_every_manifest_has_cases_and_a_case_is_in_one_part() -> None:
    cases = export_cases.fixtures()
    assert {case.name.split("/")[0] for case in cases} == {
        "keras",
        "tensorflow",
        "plugins",
        "cut",
        "training",
    }
    parts = [export_cases.part(cases, number, 3) for number in range(3)]
    assert sorted(c.name for one in parts for c in one) == sorted(c.name for c in cases)
    titles = [{case.title() for case in one} for one in parts]
    assert not titles[0] & titles[1] | titles[1] & titles[2]
    assert len({case.name for case in cases}) == len(cases)


def test_a_model_is_run_at_every_size_with_every_padding(tmp_path: Path) -> None:
    case = next(c for c in export_cases.fixtures() if c.name.endswith("2.15.0/mask_bi_none.keras"))
    subject = export_cases.read(case)
    found = list(export_cases.batches(case, subject))
    shapes = [(one.size, one.inputs[0].shape[:2]) for one in found]
    steps = found[0].inputs[0].shape[1]
    assert {shape for size, shape in shapes if size == "5, T"} == {(5, steps)}
    assert [shape for size, shape in shapes if size == "1, T"] == [(1, steps)] * 5
    assert [shape for size, shape in shapes if size == "3, T + 4"] == [(3, steps + 4)] * 2
    assert [shape for size, shape in shapes if size == "4, T + 5"] == [(4, steps + 5)] * 2
    assert [shape for size, shape in shapes if size == "2, 1"] == [(2, 1)] * 2
    valid = [int((x != 0).sum()) for x in (one.inputs[0] for one in found if one.size == "1, T")]
    assert 0 in valid
    assert steps in valid
    assert len(set(valid)) > 2


def test_the_child_runs_on_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "fake_child.py"
    source.write_text(
        "import json, os, sys\n"
        "for line in sys.stdin:\n"
        "    if json.loads(line)['file'] == 'bad': os._exit(3)\n"
        "    print(json.dumps([None, [None]]), flush=True)\n"
    )
    monkeypatch.setattr(check_exports, "CHILD", source)
    child = Child()
    assert child.run(file="bad") == ("it crashed (code 3)", [])
    assert child.run(file="good") == (None, [None])
    child.close()


def test_a_record_knows_what_is_missing(tmp_path: Path) -> None:
    record = Record(tmp_path / "r.jsonl")
    done = {"ONNX Runtime": {}, "OpenVINO": {}}
    record.add({"name": "a.h5", "key": "k", "paths": done})
    again = Record(tmp_path / "r.jsonl")
    assert again.missing("k", [".onnx", ".py"]) == [".py"]
    assert again.missing("other", [".onnx", ".py"]) == [".onnx", ".py"]
    assert again.keys == {"a.h5": "k"}


def test_what_is_kept_is_not_done_again_unless_other_code_found_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_exports, "made_by", lambda: "new code")
    done = {"source": {"by": "new code"}, "torch.export": {"by": "old code"}}
    kept = [
        {"name": "a.h5", "key": "k", "paths": done},
        {"name": "b.h5", "not converted": "no model"},
        {"name": "c.h5", "broken": "KeyError: b"},
    ]
    record = Record(tmp_path / "r.jsonl", kept)
    assert record.missing("k", [".py", ".pt2"]) == []
    assert record.keys == {"a.h5": "k", "b.h5": ""}
    again = Record(tmp_path / "r.jsonl", check_exports.made_here(kept))
    assert again.missing("k", [".py", ".pt2"]) == [".pt2"]
    assert again.keys == {"a.h5": "k"}


def test_an_export_is_made_by_code_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    code, *packages = check_exports.made_by().split(", ")
    assert f"torch {version('torch')}" in packages
    monkeypatch.setattr(check_exports, "CODE", ("rnn",))
    check_exports.made_by.cache_clear()
    other, *same = check_exports.made_by().split(", ")
    check_exports.made_by.cache_clear()
    assert (code != other, len(code), same) == (True, 8, packages)


def test_records_are_kept_one_row_a_file_with_what_was_found_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_summary, "KEPT", tmp_path / "kept.jsonl.xz")
    monkeypatch.setattr(export_summary, "RESULT", tmp_path / "counts.json")
    export_summary.RESULT.write_text('{"runners": {}, "real": {}}')
    record = tmp_path / "one.jsonl"
    record.write_text("".join(f"{json.dumps(row)}\n" for row in rows()))
    export_summary.write([record])
    more = {"source": {"by": "b", "sizes": {"own": "equal"}}}
    late = [
        {"name": "keras/b/x.h5", "key": "1", "paths": more},
        {"name": "keras/b/z.h5", "key": "2", "paths": {}},
    ]
    record.write_text("".join(f"{json.dumps(row)}\n" for row in late))
    export_summary.write([record])
    found = {row["name"]: row for row in export_summary.kept()}
    assert found["keras/a/x.h5"]["paths"]["source"] == more["source"]
    assert set(found["keras/a/x.h5"]["paths"]) == {
        "ONNX Runtime",
        "OpenVINO",
        "source",
        "gradients",
    }
    assert found["keras/b/x.h5"] == {"name": "keras/b/x.h5", "key": "1", "paths": {}}
    counted = json.loads(export_summary.RESULT.read_text())
    assert counted["runners"]["source"]["equal"] == 2
    assert counted["runners"]["ONNX Runtime"]["refused"] == 2
    assert counted["not read"] == {}


# ---- counts -------------------------------------------------------------------------------------


def rows() -> list[dict[str, Any]]:
    ours = {
        "by": "a",
        "nodes": 7,
        "sizes": {"own": "equal", "5, T": "rounding", "2, 1": "equal"},
    }
    bad = {
        "by": "a",
        "nodes": 7,
        "sizes": {"own": "equal", "5, T": "wrong: 1.0e+00", "2, 1": "not run: E"},
    }
    refused = {"by": "b", "refused": [["bi", "softplus"], ["other", "softplus"]]}
    return [
        {"name": "keras/a/x.h5", "key": "1", "paths": {"ONNX Runtime": ours, "OpenVINO": bad}},
        {"name": "keras/b/x.h5", "key": "1", "paths": {}},
        {"name": "keras/b/y.h5", "key": "2", "paths": {"ONNX Runtime": refused}},
        {"name": "keras/b/z.h5", "not converted": "no model"},
        {
            "name": "keras/a/x.h5",
            "key": "1",
            "paths": {"source": {"by": "a", "failed": "TypeError: q"}},
        },
        {"name": "keras/a/x.h5", "key": "1", "paths": {"gradients": {"by": "a", "sizes": {}}}},
        {
            "name": "real/medaka",
            "key": "3",
            "paths": {"torch.export": {"by": "a", "sizes": {"oracle": "wrong: 1.0e-04"}}},
        },
    ]


def test_files_count_by_the_verdict_on_their_model() -> None:
    found = export_summary.count(rows())
    assert found["not read"] == {"keras/b/z.h5": "no model"}
    onnx, openvino = found["runners"]["ONNX Runtime"], found["runners"]["OpenVINO"]
    assert (onnx["files"], onnx["models"], onnx["rounding"], onnx["refused"]) == (3, 2, 2, 1)
    assert onnx["by"] == {"a": 1, "b": 1}
    assert "AOTInductor" not in found["runners"]
    assert onnx["sizes"]["5, T"] == "2 of 2"
    assert onnx["reasons"]["refused"] == {"softplus": ["keras/b/y.h5"]}
    assert (openvino["wrong"], openvino["sizes"]["5, T"]) == (2, "0 of 2")
    assert openvino["reasons"]["wrong"]["5, T: wrong: 1.0e+00"] == ["keras/a/x.h5", "keras/b/x.h5"]
    assert found["runners"]["source"]["failed"] == 2
    assert found["runners"]["gradients"]["nothing to compare"] == 2
    assert found["real"] == {"medaka": {"torch.export": "wrong; oracle: wrong: 1.0e-04"}}
    text = "".join(
        make(found)
        for make in (export_summary.table, export_summary.real_table, export_summary.problems)
    )
    assert "| medaka |  |  | wrong; oracle: wrong: 1.0e-04 |  |" in text
    assert "| `.onnx` in ONNX Runtime | 3 | 2 | 1 | 2 | 2 of 2 | 2 of 2 |" in text
    assert "softplus (1 files: y)" in text
    json.dumps(found)


def test_new_counts_take_the_place_of_those_of_the_same_runner() -> None:
    old = export_summary.count(rows())
    more = [
        {
            "name": "keras/c/q.h5",
            "key": "9",
            "paths": {"torch.export": {"by": "c", "failed": "KeyError: s"}},
        },
        {
            "name": "real/medaka",
            "key": "3",
            "paths": {"torch.export": {"by": "c", "sizes": {"own": "equal"}}},
        },
        {
            "name": "real/other",
            "key": "4",
            "paths": {"AOTInductor": {"by": "c", "sizes": {"own": "equal"}}},
        },
        {"name": "keras/c/r.h5", "not converted": "no weights"},
    ]
    found = export_summary.merge(old, export_summary.count(more))
    assert found["runners"]["ONNX Runtime"] == old["runners"]["ONNX Runtime"]
    assert found["runners"]["torch.export"]["by"] == {"c": 2}
    assert found["runners"]["torch.export"]["files"] == 2
    assert [*found["runners"]] == [*filter(found["runners"].get, export_summary.RUNNERS)]
    assert found["not read"] == {"keras/c/r.h5": "no weights"}
    assert found["real"] == {"medaka": {"torch.export": "equal"}, "other": {"AOTInductor": "equal"}}


def test_fewer_files_or_structures_than_before_are_no_new_count() -> None:
    old = export_summary.count(rows())
    few = export_summary.count(rows()[1:3])
    assert export_summary.merge(old, few)["runners"] == old["runners"]
    copies = export_summary.count([{**rows()[0], "name": f"{n}.h5"} for n in range(9)])
    assert export_summary.merge(old, copies)["runners"]["ONNX Runtime"]["models"] == 2


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """One process for all models: it takes longer to start than to run most of them."""
    started = Child()
    yield started
    started.close()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("export", "name"),
    [
        # Keras 3 adds 1e-7 to the number of valid steps, tf.keras nothing.
        ("gradients", "keras-3.15.1/arch_residual_batch_norm.h5"),
        ("gradients", "tf_keras-2.21.0/arch_residual_batch_norm.weights.h5"),
        # A model in float64 stays in it.
        ("gradients", "tf.keras-2.15.0/around_rescaling.keras"),
        # A mask of integers.
        (".py", "keras-3.15.1/dtypes_masks.h5"),
        # It runs with five rows only: an operation of it asks for them.
        ("gradients", "tf.keras-2.15.0/ops_tf_more.keras"),
        # What windows leave of the steps may be one, and no padding is needed at some lengths.
        (".pt2", "tf.keras-2.15.0/pool_default.h5"),
        (".pt2", "keras-3.15.1/conv_same.h5"),
        # Torch takes one step as any number in some models, in others not.
        (".pt2", "tf.keras-2.15.0/arch_seq2seq_luong.h5"),
    ],
)
def test_what_the_sweep_found_once_is_equal_now(export: str, name: str, child: Child) -> None:
    case = next(c for c in export_cases.fixtures() if c.name == f"keras/{name}")
    found = check_exports.examine(case, export_cases.read(case), [export], child)
    (runner,) = check_exports.EXPORTS[export].runners
    assert set(found[runner]["sizes"].values()) == {"equal"}
