"""Run ``make test``'s selection against changes of one line outside of what tests/mutations covers.

    python tests/mutants.py [NUMBER...]

Each row: a file of the package, a piece of it, what takes its place, and the tests that must fail.
The tests run on a copy of this tree; the tree itself stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
MUTANTS = (
    (
        "schema/merge_modes.py",
        "(forward + backward) / 2",
        "(forward + backward) / 3",
        "rnn/test_native.py",
    ),
    (
        "comparison/tolerance.py",
        "rtol=rtol, atol=atol",
        "rtol=1, atol=atol",
        "verification/test_verify.py",
    ),
    ("reference/rounding.py", "share <= UNJUDGEABLE\n", "share >= UNJUDGEABLE\n", "verification"),
    (
        "readers/hdf5/parser_child.py",
        "if first < end and start < last",
        "if False",
        "readers/test_hdf5_refusals.py",
    ),
    (
        "readers/hdf5/parser_child.py",
        "if count != grid",
        "if False",
        "readers/test_hdf5_refusals.py",
    ),
    (
        "readers/hdf5/parser_child.py",
        "if found != expected or",
        "if",
        "attacks/test_hdf5_files.py",
    ),
    (
        "readers/hdf5/store.py",
        "count > self._stored",
        "count > 2 * self._stored",
        "readers/test_hdf5_child.py",
    ),
    ("readers/hdf5/parser_process.py", "if missing:", "if False:", "readers/test_hdf5_child.py"),
    (
        "readers/config/generations.py",
        '"previous_output" if config.get("unroll")',
        '"zeros" if config.get("unroll")',
        "parity/test_fixtures.py",
    ),
    (
        "exporting/onnx_recurrent.py",
        "(0, 3, 1, 2)",
        "(0, 3, 2, 1)",
        "exporting/test_onnx_recurrent.py",
    ),
    (
        "exporting/exporter.py",
        "not found.ok and not own.ok",
        "not own.ok",
        "exporting/test_onnx_models.py",
    ),
    (
        "saving/atomic.py",
        "not kind.recognises(target)",
        "False",
        "saving/test_writing.py::test_a_file_of_others_is_never_replaced",
    ),
    ("saving/checkpoint_kind.py", 'if key == "format" else', "if key else", "saving"),
    (
        "cli/batch.py",
        "max((outcome.exit_code",
        "min((outcome.exit_code",
        "cli/test_batch.py::test_a_refused_file_is_counted_or_ends_the_work",
    ),
    (
        "saving/atomic.py",
        "if not overwrite:",
        "if False:",
        "saving/test_saving.py::test_an_existing_file_is_refused_before_the_work_is_done",
    ),
    (
        "readers/config/generations.py",
        'cudnn or rule_of("reset_after", generation)',
        "cudnn",
        "readers/test_generations.py",
    ),
    (
        "exporting/onnx_recurrent.py",
        '{"linear_before_reset": 0}',
        '{"linear_before_reset": 1}',
        "exporting/test_onnx_recurrent.py",
    ),
    (
        "exporting/onnx_recurrent.py",
        "(lengths - 1).clamp(min=0)",
        "(lengths - 2).clamp(min=0)",
        "exporting/test_onnx_recurrent.py",
    ),
    (
        "exporting/exporter.py",
        "free_steps(stored) if any_length else stored",
        "stored",
        "exporting/test_onnx_models.py::test_a_fixed_time_axis_stays_fixed_unless_it_is_freed",
    ),
    (
        "cli/proofs.py",
        "print_notes(report.notes)\n    raise typer.Exit(0 if report.ok else 1)",
        "print_notes(report.notes)\n    raise typer.Exit(0)",
        "porting/test_compare_command.py::test_a_wrong_port_ends_with_1_and_says_what_and_where",
    ),
    (
        "trainers/optimizers.py",
        "math.sqrt(1 - group",
        "math.sqrt(2 - group",
        "trainers/test_optimizers.py",
    ),
    (
        "trainers/optimizers.py",
        "alpha=momentum)",
        "alpha=1)",
        "trainers/test_training_steps.py",
    ),
    (
        "trainers/optimizers.py",
        "param.mul_(1 - group",
        "param.mul_(1 + group",
        "trainers/test_training_steps.py",
    ),
    (
        "trainers/weight_places.py",
        "len(values[array]) // 2 :] = 0",
        "len(values[array]) // 2 :] = 1",
        "writers/test_written_fixtures.py",
    ),
    (
        "errors.py",
        "exit_code = 3\n",
        "exit_code = 4\n",
        "readers/test_bad_input.py::test_a_truncated_file_is_refused",
    ),
    (
        "rnn/native/split_units.h",
        "copy(s.c + first, count, state_in",
        "copy(s.h_next + first, count, state_in",
        "rnn/test_native.py",
    ),
    (
        "rnn/native/step_sums.h",
        "(gate + gates - first_gate(shape.kind)) % gates",
        "gate",
        "rnn/test_native_training.py",
    ),
    (
        "rnn/native/cells.h",
        "copies > 1 ? all : 0, copies",
        "0, copies",
        "rnn/test_native_dropout.py",
    ),
    (
        "rnn/masks.py",
        "initial[d][0] if initial else None",
        "None",
        "rnn/test_recurrent.py",
    ),
    (
        "porting/gates.py",
        "tuple(order[gate] for gate in torch_order(layer))",
        "order",
        "porting/test_hand_ports.py::test_a_wrong_order_of_gates_is_told_by_their_letters",
    ),
)


def failed(number: int) -> str:
    """Return the first test that fails with a mutant; nothing if all pass."""
    file, old, new, tests = MUTANTS[number]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        kept = shutil.ignore_patterns(".*", "build", "__pycache__")
        shutil.copytree(ROOT, copy, ignore=kept)
        (copy / "build").mkdir()
        (copy / "build" / "fixtures").symlink_to(ROOT / "build" / "fixtures")
        path = copy / "keras2torch_birnn" / file
        text = path.read_text("utf-8")
        if text.count(old) < 1:
            raise SystemExit(f"{file} has no {old!r}")
        path.write_text(text.replace(old, new, 1), "utf-8")
        if path.suffix in (".cpp", ".h"):
            build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
            needed = {"K2T_REQUIRE_KERNEL": "1", "K2T_CXXFLAGS": "-O1"}
            subprocess.run(build, cwd=copy, env={**os.environ, **needed}, check=True)
        command = [sys.executable, "-m", "pytest", "-qx", "-m", "not thorough", f"tests/{tests}"]
        # (The processes that tests start import the copy as well.)
        there = {**os.environ, "PYTHONPATH": str(copy)}
        done = subprocess.run(
            command, cwd=copy, env=there, capture_output=True, text=True, check=False
        )
    if done.returncode not in (0, 1, 2):  # 2: a module of tests cannot be imported
        raise SystemExit(f"{tests}: {done.stderr or done.stdout}")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].partition(" - ")[0] if lines else ""


def main() -> None:
    """Run all mutants, or those with these numbers."""
    for number in map(int, sys.argv[1:]) if sys.argv[1:] else range(len(MUTANTS)):
        file, old, *_ = MUTANTS[number]
        print(number, file, repr(old), failed(number) or "NOT NOTICED", flush=True)


if __name__ == "__main__":
    main()
