"""Common mistakes on the command line: the call, its exit code, what it says.

Each is told what is wrong and what to do in one line, and writes nothing.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

import numpy as np
import pytest
from commands import MASKED, WEIGHTS, contents, k2t
from plugin_files import forgetting_plugins

import keras2torch_birnn

PORT = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.dense = torch.nn.Linear(3, 2)
"""
FILES = {
    "arch.json": b'{"a": 1}',
    "half.h5": MASKED.read_bytes()[:20000],
    "empty.pt": b"",
    "plugin.py": b"x = 1\n",
    "failing.py": b"import os\nraise ValueError('no')\n",
    "port.py": PORT.encode(),
    "порт.py": PORT.encode(),
    "syntax.py": b"def f(:\n",
    "binary.py": b"x = 1\n\0",
    "leaving.py": b"import sys\nsys.exit(0)\n",
    "note.txt": b"hi\n",
    "page.html": b"<html>mine",
    "broken.npz": b"PK\x03\x04broken",
    "keras.onnx": MASKED.read_bytes(),
}
# Inputs of the model, by its name for them.
INPUTS = {
    "shape.npz": np.ones((3, 7, 2)),
    "none.npz": np.ones((0, 7)),
    "large.npz": np.full((2, 7), 10**6),
    "negative.npz": np.full((2, 7), -1),
    "complex.npz": np.ones((2, 7), complex),
}

# Longer than a name can be.
LONG = "n" * 300

# What is typed, the exit code, and the words of the one line that is said.
TRANSCRIPT = r"""
$ k2t convert
2: Missing argument
$ k2t convert model.h5
2: MODEL and OUT are expected, found 1 path; to convert many: k2t convert MODEL... --out-dir DIR
$ k2t convert modle.h5 new.pt
3: modle.h5: cannot be opened (No such file or directory); did you mean model.h5?
$ k2t convert https://example.org/model.h5 new.pt
3: https://example.org/model.h5: cannot be opened (No such file or directory);
   https://example.org/model.h5 is an address: download it first
$ k2t convert file:///tmp/k2t/model.h5 new.pt
3: file:///tmp/k2t/model.h5: cannot be opened (No such file or directory); name its path:
   /tmp/k2t/model.h5
$ k2t convert model.h5 https://example.org/new.pt
5: https://example.org/new.pt: is an address; name a file of this machine
$ k2t convert model.h5 new
5: new: has no suffix; OUT ends in .pt, .pth or .safetensors
$ k2t convert model.h5 new.onnx
5: new.onnx: ends in .onnx; OUT ends in .pt, .pth or .safetensors; to export: k2t export MODEL
   TARGET
$ k2t convert model.h5 out.pt
5: out.pt: exists already; use --force to replace it
$ k2t convert model.h5 port.pt/
5: port.pt/: is the name of a folder; name a file
$ k2t convert model.h5 nowhere/new.pt
5: nowhere/new.pt: there is no folder
$ k2t convert model.h5 folder
5: folder: is a folder; name a file
$ k2t convert model.h5 model.h5
5: model.h5: is the input itself; name another output
$ k2t convert out.pt new.pt
3: out.pt: a model that k2t converted already; give the Keras model here; k2t.load, `k2t verify OUT`
   and `k2t export OUT` take this file
$ k2t convert out.pt model.h5
2: out.pt is a model that k2t converted; expected is k2t convert MODEL OUT; run k2t convert model.h5
   out.pt
$ k2t convert weights.h5 new.pt
4: weights.h5: holds weights but no architecture; give the text of model.to_json() with --config
   ARCH.json
$ k2t convert weights.h5 new.pt --config arch.json
3: arch.json: without class_name, config; refused
$ k2t convert half.h5 new.pt
3: half.h5: truncated: 20000 bytes here, its header says 52288; refused
$ k2t convert port.py new.pt
3: port.py: Python code; give the Keras model that it saves
$ k2t convert folder new.pt
3: folder: an empty folder; the input must be a Keras model (.h5, .keras, SavedModel, checkpoint or
   TF.js)
$ k2t convert model.h5 new.pt --dtype flaot64
2: --dtype flaot64: float32 or float64 is expected; did you mean float64?
$ k2t convert model.h5 new.pt --from embeding
2: model.h5: --from embeding: no layer of the model is called so; did you mean embedding?
$ k2t convert model.h5 new.pt --plugin plugn.py
3: plugin plugn.py is not a file; name a Python file, or keras-contrib-crf; did you mean
   plugin.py?
$ k2t convert model.h5 new.pt --plugin failing.py
2: plugin failing.py fails: ValueError: no (failing.py:2); --debug shows the traceback
$ k2t convert model.h5 new.pt --plugin keras-contrib-cfr
3: did you mean keras-contrib-crf?
$ k2t convert model.h5 new.pt --jobs 2
2: --jobs is for many files; name a folder for them: --out-dir DIR
$ k2t convert model.h5 --out-dir out.pt
5: out.pt: is no folder; name a folder: --out-dir DIR
$ k2t convert '' new.pt
2: argument 1 is empty (a variable that is not set?)
$ k2t verify model.h5
3: model.h5: a Keras model, or another HDF5 file, and not one that k2t converted
$ k2t verify out.pt model.h5
2: out.pt is a model that k2t converted; expected is k2t verify MODEL OUT; run k2t verify model.h5
   out.pt
$ k2t verify model.h5 port.py:Net
3: port.py:Net: cannot be opened (No such file or directory); did you mean port.py?
$ k2t verify empty.pt
3: empty.pt: not a file that k2t wrote, or damaged (an empty file, or one of zeros)
$ k2t verify port.py
3: port.py: Python code without the function load, which every export has; name a file that k2t
   export wrote; of a port of your own: k2t compare MODEL FILE.py:NAME
$ k2t verify model.h5 out.pt --inputs folder
3: folder: is a folder; name an .npz file
$ k2t verify model.h5 out.pt --device gpu
2: device 'gpu' is unknown; did you mean cuda?
$ k2t verify model.h5 out.pt --against tensorflow
2: --against tensorflow: one of auto, keras, reference, golden is expected; did you mean keras?
$ k2t verify model.h5 out.pt --inputs model.h5
3: model.h5: is not an .npz file of plain arrays (it is none of NumPy's); write it with numpy.savez
$ k2t verify model.h5 out.pt --inputs data.npz
3: data.npz: there is no such file; name an .npz file
$ k2t verify model.h5 out.pt --inputs broken.npz
3: broken.npz: is not an .npz file of plain arrays
$ k2t verify model.h5 out.pt --report report.pdf
5: report.pdf: ends in .pdf; the report ends in .html
$ k2t verify out.pt --per-layer
2: OUT alone can be compared with its golden vectors only; name both files: k2t verify MODEL OUT
$ k2t verify out.pt --against reference
2: name both files: k2t verify MODEL OUT
$ k2t verify export.py
2: an export has no golden vectors; name its model, too: k2t verify OUT EXPORT
$ k2t verify out.pt export.py --against golden
2: an export is not compared with golden; use --against auto
$ k2t verify out.pt export.py --against reference
2: a converted model has no reference; name the Keras file
$ k2t verify out.pt export.py --device cuda
2: an export is run on the CPU, not on cuda
$ k2t verify out.pt missing.onnx
3: missing.onnx: there is no such file; name a file that k2t export wrote
$ k2t inspect mdel.h5
3: mdel.h5: cannot be opened (No such file or directory); did you mean model.h5?
$ k2t inspect out.pt --from dense
2: out.pt: it is converted already; leave out --config, --from and --to
$ k2t export out.pt new.tflite
5: new.tflite: ends in .tflite; an export ends in .onnx, .pt2 or .py
$ k2t export out.pt export.py
5: export.safetensors: exists already; use --force to replace it
$ k2t export keras.onnx keras.onnx --force
5: keras.onnx: is the input itself; name another output
$ k2t export out.pt new.onnx --config arch.json
2: out.pt: --config is for a Keras file; this one is converted
$ k2t export ot.pt new.onnx
3: ot.pt: cannot be opened (No such file or directory); did you mean out.pt?
$ k2t write-back model.h5 out.pt new.h5
2: out.pt is a model that k2t converted; expected is k2t write-back OUT MODEL NEW; run k2t
   write-back out.pt model.h5 new.h5
$ k2t write-back out.pt model.h5 model.h5
5: model.h5: is the input itself; name another output
$ k2t write-back out.pt model.h5 new.h5 --optimizer kept
2: --optimizer kept: keep or drop is expected; did you mean keep?
$ k2t compare port.py:Net model.h5
3: port.py:Net: cannot be opened (No such file or directory); did you mean port.py?
$ k2t compare model.h5 out.pt
2: out.pt: FILE.py:NAME is expected; a state_dict goes with --weights
$ k2t compare model.h5 port.py
2: port.py: FILE.py:NAME is expected; name the class after a colon
$ k2t compare model.h5 port.py:Net --weights folder
3: folder: is a folder; write a state_dict
$ k2t compare model.h5 port.py:Net --map arh.json
3: arh.json: cannot be opened (No such file or directory); did you mean arch.json?
$ k2t compare model.h5 port.py:Net --map model.h5
3: model.h5: not UTF-8
$ k2t compare model.h5 port.py:Nett
2: port.py defines no Nett; did you mean Net?
$ k2t compare model.h5 prt.py:Net
3: prt.py is not a file; did you mean port.py?
$ k2t compare model.h5 port.py:Net --weights model.h5
3: model.h5: cannot be read as tensors (torch.load finds more than tensors, or another kind of
   file); write a state_dict with torch.save(port.state_dict(), ...)
$ k2t map out.pt
3: out.pt: a model that k2t converted already; give the Keras model here; k2t.load, `k2t verify OUT`
   and `k2t export OUT` take this file
$ k2t plugin nw
2: No such command 'nw'. Did you mean 'new'?
$ k2t plugin new out.pt
3: out.pt: a model that k2t converted already; give the Keras model here; k2t.load, `k2t verify OUT`
   and `k2t export OUT` take this file
$ k2t layers LSMT
2: LSMT is no layer that can be converted; did you mean LSTM?
$ k2t bench
2: either MODEL or --rnn is expected
$ k2t bench model.h5 --rnn lstm
2: either MODEL or --rnn is expected
$ k2t bench --rnn lsmt
2: --rnn lsmt: one of lstm, gru, rnn is expected; did you mean lstm?
$ k2t bench --rnn lstm --merge avg
2: --merge avg: one of concat, sum, mul, ave is expected; did you mean ave?
$ k2t bench --rnn lstm --batch none
2: --batch none: integers of at least 1 are expected
$ k2t bench --rnn lstm --features 9999999
2: 1000000
$ k2t bench --rnn lstm --batch 0
2: --batch 0: integers of at least 1 are expected
$ k2t convert model.h5 out.pt --out-dir {LONG}
5: cannot be written (File name too long)
$ k2t inspect model.h5 --plugin {LONG}
3: cannot be opened (File name too long); check the name
$ k2t bench --rnn lstm --plot model.h5
5: model.h5: ends in .h5; the file of --plot ends in .png or .svg
$ k2t explain model.h5
2: No such command 'explain'. In Python it is k2t.explain; k2t --help lists what is expected
$ k2t convrt model.h5 out.pt
2: No such command 'convrt'. Did you mean 'convert'?
# Names with spaces, of other systems and in other scripts.
$ k2t convert my model.h5 new.pt
2: MODEL and OUT are expected, found 3 paths
$ k2t verify out.pt 'my model.h5'
2: run k2t verify 'my model.h5' out.pt
$ k2t convert модель.h5 new.pt
3: модель.h5: cannot be opened (No such file or directory)
$ k2t compare model.h5 порд.py:Net
3: порд.py is not a file; did you mean порт.py?
$ k2t compare model.h5 порт.py:Nett
2: порт.py defines no Nett; did you mean Net?
# Wrong files.
$ k2t convert - new.pt
3: a model is read from a file, not from standard input
$ k2t convert model.h5/inside new.pt
3: model.h5/inside: cannot be opened (Not a directory)
$ k2t convert model.h5 note.txt/new.pt
5: note.txt is no folder; choose another
$ k2t convert model.h5 new.pt --out-dir new
2: new.pt is no model; with --out-dir each OUT has its model's name; leave it out
$ k2t convert folder --out-dir new
2: folder holds no Keras model
$ k2t convert weights.h5 new.pt --config weights.h5
4: weights.h5: holds weights but no
$ k2t convert weights.h5 new.pt --config model.h5
3: the file is incomplete or belongs to
$ k2t verify cut.safetensors
3: cut.safetensors: not a file that k2t wrote, or damaged (
$ k2t verify model.h5 out.pt --report page.html
5: and k2t did not write it; remove it first
$ k2t export out.pt port.py --force
5: (--force does not replace it, either)
# Wrong Python.
$ k2t convert model.h5 new.pt --plugin syntax.py
2: SyntaxError: invalid syntax (line 1);
$ k2t convert model.h5 new.pt --plugin folder
3: plugin folder is not a file; name a Python
$ k2t convert model.h5 new.pt --plugin binary.py
2: cannot contain null bytes
$ k2t convert model.h5 new.pt --plugin leaving.py
2: fails: SystemExit: 0 (leaving.py:2)
$ k2t compare model.h5 syntax.py:Net
2: syntax.py fails: SyntaxError: invalid syntax (line 1);
$ k2t compare model.h5 port.py:PORT
2: port.py defines no PORT
# Wrong values.
$ k2t convert model.h5 new.pt --from dense --to embedding
2: name layers before and after each
$ k2t --verbose convert model.h5 new.pt
2: No such option: --verbose; it follows a command: k2t COMMAND
$ k2t verify model.h5 out.pt --device cpu,cuda
2: is unknown; name one device at a time
$ k2t verify model.h5 out.pt --atol -1
2: atol -1.0: a number of at least 0 is expected
$ k2t verify out.pt --rtol nan
2: rtol nan: a number of at least 0 is expected
$ k2t verify model.h5 out.pt --atol 1,5
2: Invalid value for '--atol'
$ k2t verify model.h5 out.pt --inputs shape.npz
2: has shape (3, 7, 2), (any, any) is expected
$ k2t verify model.h5 out.pt --inputs none.npz
2: has shape (0, 7), which holds no number
$ k2t verify model.h5 out.pt --inputs large.npz
2: index 1000000 is out of bounds
$ k2t verify model.h5 out.pt --inputs negative.npz
2: ids from 0 on are expected, found -1
$ k2t verify model.h5 out.pt --inputs complex.npz
2: holds complex128, numbers are expected
"""


def read_mistakes() -> list[tuple[str, int, str]]:
    """Return the calls, exit codes and words of the transcript; longer words go on indented."""
    rows = re.findall(r"^\$ k2t (.+)\n(\d): (.+\n(?: {3}.+\n)*)", TRANSCRIPT, re.MULTILINE)
    return [
        (call.replace("{LONG}", LONG), int(code), " ".join(words.split()))
        for call, code, words in rows
    ]


MISTAKES = read_mistakes()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, what it was converted to, and other files."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    (folder / "folder").mkdir()
    for name in ("model.h5", "my model.h5"):
        copyfile(MASKED, folder / name)
    for name, array in INPUTS.items():
        np.savez(folder / name, embedding_input=array)
    copyfile(WEIGHTS, folder / "weights.h5")
    assert k2t("convert", folder / "model.h5", folder / "out.pt").code == 0
    assert k2t("export", folder / "out.pt", folder / "export.py").code == 0
    whole = folder / "cut.safetensors"
    assert k2t("convert", folder / "model.h5", whole).code == 0
    whole.write_bytes(whole.read_bytes()[:900])
    return folder


@pytest.fixture(autouse=True)
def inside(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(made)
    with forgetting_plugins():
        yield


@pytest.mark.parametrize(("call", "code", "message"), MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_explained_in_one_line(call: str, code: int, message: str, made: Path) -> None:
    before = contents(made)
    run = k2t(*shlex.split(call))
    (line,) = run.lines("error")
    assert message in line
    assert (run.code, run.out, contents(made)) == (code, "", before)


def test_there_are_rows_for_many_mistakes() -> None:
    assert len({row[0] for row in MISTAKES}) == TRANSCRIPT.count("\n$ ") >= 110


def test_the_right_order_is_json_too() -> None:
    run = k2t("verify", "out.pt", "model.h5", "--json")
    (problem,) = json.loads(run.out)["problems"]
    assert (run.code, problem["code"]) == (2, "usage")
    assert problem["do"] == "run k2t verify model.h5 out.pt"


def test_models_of_other_containers_are_told_from_what_they_hold(made: Path) -> None:
    (made / "saved.bin").write_bytes(MASKED.read_bytes())
    run = k2t("write-back", "saved.bin", "out.pt", "new.h5")
    assert run.lines("error") == [
        "out.pt is a model that k2t converted; expected is k2t write-back OUT MODEL NEW; "
        "run k2t write-back out.pt saved.bin new.h5"
    ]
    (made / "saved.bin").unlink()


@pytest.mark.parametrize("call", ["convert model.h5 new.pt", "inspect model.h5"])
def test_a_plugin_that_registers_nothing_is_noted(call: str, made: Path) -> None:
    run = k2t(*shlex.split(call), "--plugin", "plugin.py")
    (made / "new.pt").unlink(missing_ok=True)
    assert (run.code, run.err.count("registers nothing")) == (0, 1)
    assert "plugin plugin.py registers nothing; see docs/plugins.md" in run.lines("note")


def test_a_plugin_that_registers_something_again_is_not_noted(made: Path) -> None:
    text = "import keras2torch_birnn as k\n@k.converts('Mine')\ndef mine(layer): ...\n"
    (made / "mine.py").write_text(text)
    for _ in range(2):
        assert "registers" not in k2t("inspect", "model.h5", "--plugin", "mine.py").err
    (made / "mine.py").unlink()


@pytest.mark.parametrize(
    ("word", "meant"),
    [("avg", "ave"), ("mean", "ave"), ("add", "sum"), ("multiply", "mul"), ("cat", "concat")],
)
def test_other_libraries_words_for_a_merge_mode_are_known(word: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"merge_mode='{word}': .*; did you mean {meant}\\?"):
        keras2torch_birnn.BiLSTM(3, 2, merge_mode=word)


@pytest.mark.parametrize("call", ["convert model.h5 new.pt", "verify model.h5 out.pt"])
def test_an_engine_that_does_not_exist_is_the_fault_of_no_file(
    call: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told once, not once a layer, and not as damage of the file that is being read."""
    before = contents(made)
    monkeypatch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "warp")
    run = k2t(*shlex.split(call))
    assert (run.code, run.err.count("K2T_ENGINE=warp: one of auto, torch")) == (2, 1)
    assert "damaged" not in run.err
    assert contents(made) == before
