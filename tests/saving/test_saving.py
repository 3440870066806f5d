"""OUT, in and out: the same model comes back, and a failure changes nothing on the disk."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import h5py
import pytest
import safetensors.torch
import torch
from commands import MASKED, OLD, OLD_OUT, STACK_H5, assert_refused, contents, k2t
from fixture_files import FIXTURES
from same_models import assert_same_outputs, assert_same_weights
from torch import nn
from warm_process import run_code

import keras2torch_birnn as birnn
from keras2torch_birnn.errors import (
    InvalidModelFileError,
    OutputError,
    UsageError,
    WeightMismatchError,
)
from keras2torch_birnn.golden import origin
from keras2torch_birnn.layers.running import run
from keras2torch_birnn.saving.atomic import FileKind, NewFile, write_atomically
from keras2torch_birnn.saving.checkpoint_kind import FORMAT

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="files of POSIX")
ANY = FileKind("a file", ("",), lambda _: True)
SUFFIXES = pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pth", ".PT"])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return birnn.convert(MASKED)


@pytest.fixture(scope="module")
def plain_dict(tmp_path_factory: pytest.TempPathFactory, model: nn.Module) -> dict[str, Any]:
    """Return the content of OUT."""
    out = tmp_path_factory.mktemp("plain") / "model.pt"
    birnn.save(model, out)
    return torch.load(out, weights_only=True)


# ---- round trips -------------------------------------------------------------------------------


@SUFFIXES
@pytest.mark.parametrize("source", [MASKED, OLD, STACK_H5], ids=lambda p: p.stem)
def test_a_model_comes_back_as_it_was(source: Path, suffix: str, tmp_path: Path) -> None:
    before, out = birnn.convert(source), tmp_path / f"model{suffix}"
    birnn.save(before, out)
    after = birnn.load(out)
    assert_same_weights(after, before)
    inputs = origin(before).golden.inputs
    assert_same_outputs(run(after, inputs), run(before, inputs))
    assert origin(after).spec.kept == origin(before).spec.kept
    assert not after.training


def test_a_trained_model_takes_new_golden_vectors_along(tmp_path: Path) -> None:
    trained, out = birnn.convert(MASKED), tmp_path / "trained.pt"
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.25)
    birnn.save(trained, out)
    assert torch.load(out, weights_only=True)["golden"]["made_by"] == "model"
    assert birnn.verify(out).ok
    assert not birnn.verify(MASKED, out).ok


def test_saving_does_not_change_the_model_or_share_its_memory(
    model: nn.Module, tmp_path: Path
) -> None:
    before = {name: t.clone() for name, t in model.state_dict().items()}
    birnn.save(model, tmp_path / "model.pt")
    loaded = birnn.load(tmp_path / "model.pt")
    with torch.no_grad():
        next(loaded.parameters()).zero_()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_only_converted_models_are_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"not made by k2t.*state_dict"):
        birnn.save(nn.Linear(2, 3), tmp_path / "out.pt")
    assert contents(tmp_path) == {}


WITHOUT_US = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "keras2torch_birnn":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
content = torch.load(sys.argv[1], weights_only=True)
assert type(content) is dict
assert set(content) == {"format", "architecture", "facts", "state_dict", "golden"}, set(content)
def plain(value):
    if isinstance(value, dict):
        return all(type(k) is str and plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(plain, value))
    if type(value) is torch.Tensor:
        dense = value.layout is torch.strided and value.is_contiguous() and not value.requires_grad
        return dense and value.device.type == "cpu"
    return type(value) in (str, float, int)
assert plain(content)
assert not any(name.startswith("keras2torch_birnn") for name in sys.modules)
print(content["format"], len(content["state_dict"]))
"""


def test_out_is_a_plain_dict_for_who_does_not_have_this_package(
    model: nn.Module, tmp_path: Path
) -> None:
    out = tmp_path / "model.pt"
    birnn.save(model, out)
    done = run_code(f"import sys\nsys.argv = ['', {str(out)!r}]\n{WITHOUT_US}")
    assert done.out == f"{FORMAT} {len(model.state_dict())}\n", done.err


def test_out_holds_what_keras_wrote_and_who_did(plain_dict: dict[str, Any]) -> None:
    with h5py.File(MASKED) as file:
        assert json.loads(plain_dict["architecture"]) == json.loads(file.attrs["model_config"])
    facts = json.loads(plain_dict["facts"])
    assert (facts["family"], facts["keras_version"]) == ("tf.keras", "2.15.0")


# ---- files that are not ours, or no longer -----------------------------------------------------


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("ending", "change", "words"),
    [
        ("weight_hh_l0", lambda tensor: tensor.T.contiguous(), ""),
        ("bias_hh_l0", torch.Tensor.long, " is of torch.int64, expected"),
    ],
    ids=["another shape", "integers"],
)
def test_another_tensor_is_refused_by_name(
    ending: str, change: Any, words: str, plain_dict: dict[str, Any], tmp_path: Path
) -> None:
    state = dict(plain_dict["state_dict"])
    name = next(n for n in state if n.endswith(ending))
    state[name] = change(state[name])
    with pytest.raises(WeightMismatchError, match=f"{re.escape(name)}{words}"):
        birnn.load(saved({**plain_dict, "state_dict": state}, tmp_path / "out.pt"))


def test_a_model_in_bfloat16_is_saved(tmp_path: Path) -> None:
    model = birnn.convert(MASKED).bfloat16()
    birnn.save(model, tmp_path / "out.pt")
    again = birnn.load(tmp_path / "out.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    "make",
    [
        lambda path: saved([torch.zeros(2)], path),
        lambda path: safetensors.torch.save_file(
            {"a": torch.zeros(2)},
            path,
            metadata={"format": FORMAT, "architecture": "{}", "facts": "{}", "golden": "{"},
        ),
    ],
    ids=["list", "damaged golden"],
)
def test_a_foreign_file_is_refused(make: Any, tmp_path: Path) -> None:
    """More of them: ``attacks/test_out.py``."""
    make(tmp_path / "out.pt")
    with pytest.raises(InvalidModelFileError, match="not a file that k2t wrote"):
        birnn.load(tmp_path / "out.pt")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_plain_dict_of_tensors_is_sent_to_compare(
    suffix: str, nested: bool, tmp_path: Path
) -> None:
    out = tmp_path / f"out{suffix}"
    tensors = {"a.weight": torch.ones(2, 3)}
    if suffix == ".pt":
        torch.save({"epoch": 3, "state_dict": tensors} if nested else tensors, out)
    else:
        safetensors.torch.save_file(tensors, out, metadata={"epoch": "3"} if nested else None)
    with pytest.raises(InvalidModelFileError, match=r"\(a state_dict\?\).*`k2t compare` takes"):
        birnn.load(out)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.99])
def test_a_truncated_out_is_refused(
    part: float, suffix: str, model: nn.Module, tmp_path: Path
) -> None:
    out = tmp_path / f"out{suffix}"
    birnn.save(model, out)
    out.write_bytes(out.read_bytes()[: int(out.stat().st_size * part)])
    with pytest.raises(InvalidModelFileError, match=r"that k2t wrote, or damaged|a truncated zip"):
        birnn.load(out)


@pytest.mark.parametrize("name", ["bi_lstm_concat_seq.h5", "bi_lstm_concat_last.keras"])
def test_a_keras_model_in_the_place_of_out_is_called_one(name: str) -> None:
    with pytest.raises(InvalidModelFileError, match="not one that k2t converted") as caught:
        birnn.load(FIXTURES / "keras-3.15.1" / name)
    assert "k2t verify MODEL OUT" in caught.value.advice


def test_out_of_another_model_is_not_compared(tmp_path: Path) -> None:
    birnn.save(birnn.convert(OLD), tmp_path / "old.pt")
    with pytest.raises(WeightMismatchError, match="made from another model"):
        birnn.verify(MASKED, tmp_path / "old.pt")


# ---- writing -----------------------------------------------------------------------------------


def test_tensors_that_share_memory_are_written_apart(model: nn.Module, tmp_path: Path) -> None:
    """A tensor of another's memory, or of a larger one, is written as itself alone."""
    first, second = model.get_parameter("dense.weight"), model.get_parameter("dense.bias")
    large = torch.arange(100_000.0)
    first.data, second.data = large[: first.numel()].view(first.shape), large[: second.numel()]
    for suffix in (".pt", ".safetensors"):
        path = tmp_path / f"out{suffix}"
        birnn.save(model, path)
        assert path.stat().st_size < 50_000
        found = birnn.load(path).state_dict()
        assert torch.equal(found["dense.weight"], first) and torch.equal(
            found["dense.bias"], second
        )


def test_errors_of_a_librarys_writer_are_errors_of_the_output(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:1] no space\nmore")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OutputError, match=r"cannot be written \(\[enforce.*no space\); disk full"):
        birnn.save(model, tmp_path / "out.pt")
    assert contents(tmp_path) == {}


def test_an_existing_file_is_refused_before_the_work_is_done(tmp_path: Path) -> None:
    out, done = tmp_path / "out", list[Path]()
    out.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        write_atomically(NewFile(out, ANY, done.append), overwrite=False)
    assert done == []
    assert contents(tmp_path) == {"out": b"old"}


def test_of_two_writers_without_force_one_wins(tmp_path: Path) -> None:
    """Both have passed the early check when the first of them puts its file in place."""
    out, ready = tmp_path / "out", threading.Barrier(2)
    ends: list[str] = []

    def write(text: str) -> None:
        def fill(path: Path) -> None:
            path.write_text(text)
            ready.wait()

        try:
            write_atomically(NewFile(out, ANY, fill), overwrite=False)
            ends.append(text)
        except OutputError as error:
            ends.append(error.message)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = out.read_text()
    assert sorted(ends) == sorted([winner, "exists already"])
    assert list(contents(tmp_path)) == ["out"]


@POSIX
def test_a_link_stays_and_its_target_is_replaced(model: nn.Module, tmp_path: Path) -> None:
    target, link = tmp_path / "target.pt", tmp_path / "link.pt"
    target.write_bytes(OLD_OUT)
    link.symlink_to(target.name)
    with pytest.raises(OutputError, match="exists already; use --force"):
        birnn.save(model, link, overwrite=False)
    birnn.save(model, link)
    assert link.is_symlink()
    assert birnn.load(target).state_dict().keys() == model.state_dict().keys()


@POSIX
def test_a_dangling_link_gets_its_target(model: nn.Module, tmp_path: Path) -> None:
    link = tmp_path / "link.pt"
    link.symlink_to("target.pt")
    birnn.save(model, link, overwrite=False)
    assert link.is_symlink()
    assert birnn.verify(tmp_path / "target.pt").ok


@POSIX
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_umask(
    mask: int, mode: int, model: nn.Module, tmp_path: Path
) -> None:
    before = os.umask(mask)
    try:
        birnn.save(model, tmp_path / "out.pt")
        birnn.save(model, tmp_path / "out.safetensors")
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_folder_is_no_output(tmp_path: Path) -> None:
    assert_refused(k2t("convert", MASKED, tmp_path, "--force"), 5, tmp_path, "is a folder")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    out = tmp_path / "none" / "out.pt"
    assert_refused(k2t("convert", MASKED, out), 5, out, f"there is no folder {tmp_path / 'none'}")
    assert contents(tmp_path) == {}


def test_a_folder_that_is_not_writable_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # For root every folder is writable, so the answer is given by hand.
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    out = tmp_path / "out.pt"
    assert_refused(k2t("convert", MASKED, out), 5, out, "is not writable")
    assert contents(tmp_path) == {}


def test_a_very_long_name_can_be_written(model: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / ("x" * 252 + ".pt")
    birnn.save(model, out)
    assert birnn.verify(out).ok


@POSIX
def test_a_pipe_is_written_to_and_stays_a_pipe(model: nn.Module, tmp_path: Path) -> None:
    pipe, copy = tmp_path / "pipe", tmp_path / "copy.pt"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: copy.write_bytes(pipe.read_bytes()))
    reader.start()
    birnn.save(model, pipe, overwrite=False)
    reader.join()
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert birnn.verify(copy).ok


@POSIX
def test_the_null_device_stays_a_device(model: nn.Module) -> None:
    birnn.save(model, os.devnull, overwrite=False)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_device_is_an_output_error(model: nn.Module) -> None:
    with pytest.raises(OutputError, match=r"/dev/full: cannot be written \(No space left"):
        birnn.save(model, "/dev/full")
