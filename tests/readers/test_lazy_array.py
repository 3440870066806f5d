"""Weights that stay in the file until they are used: the same numbers, a few rows at a time."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import synthetic
import torch
from commands import OLD_OUT
from sampling import rest_thorough
from specs import ENTRIES, FIXTURES, fixture
from torch import nn

import keras2torch_birnn as birnn
from keras2torch_birnn import lazy_array
from keras2torch_birnn.building import build
from keras2torch_birnn.conversion import build_model, convert_to_file
from keras2torch_birnn.errors import InvalidModelFileError, OutputError
from keras2torch_birnn.functional.parameters import lazy_source, materialize, to_parameter
from keras2torch_birnn.lazy_array import LazyArray, is_finite
from keras2torch_birnn.readers import open_model
from keras2torch_birnn.readers.files.window import Window
from keras2torch_birnn.readers.hdf5.arrays import StoredArray
from keras2torch_birnn.reference import compute
from keras2torch_birnn.saving.checkpoint import save
from keras2torch_birnn.saving.checkpoint_kind import FORMAT
from keras2torch_birnn.saving.content import read_content
from keras2torch_birnn.saving.streaming import stream_safetensors, stream_torch
from keras2torch_birnn.spec import Array


class Rows:
    """A source in memory that notes how much of it was asked for at once."""

    def __init__(self, values: Array) -> None:
        self.values, self.largest, self.total = values, 0, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    def _given(self, part: Array) -> Array:
        self.largest, self.total = max(self.largest, part.nbytes), self.total + part.nbytes
        return part.copy()

    def rows(self, start: int, stop: int) -> Array:
        return self._given(self.values[start:stop])

    def between(self, first: int, last: int) -> Array:
        return self._given(self.values[:, first:last])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix waits, and comes in blocks of three or four rows or columns."""
    monkeypatch.setattr(lazy_array, "LEAST_BYTES", 0)
    monkeypatch.setattr(lazy_array, "BLOCK_BYTES", 200)
    monkeypatch.setattr(lazy_array, "COLUMNS_BYTES", 200)
    monkeypatch.setattr(lazy_array, "PIECE_BYTES", 8)


def matrix(kind: str = "f4") -> tuple[Array, LazyArray]:
    values = np.random.default_rng(0).standard_normal((17, 15)).astype(kind)
    return values, LazyArray.whole(Rows(values))


# ---- to NumPy it is an array --------------------------------------------------------------------


def gates_moved(w: Any) -> Any:
    z, r, h = np.split(w, 3, axis=-1)
    return np.concatenate((r, z, h), axis=-1)


VIEWS: dict[str, Any] = {
    "itself": lambda w: w,
    "transposed": lambda w: w.T,
    "twice": lambda w: w.T.T,
    "double": lambda w: w.astype("f8"),
    "gates moved": gates_moved,
    "gates moved, transposed": lambda w: gates_moved(w).T,
    "one gate": lambda w: np.split(w, 3, axis=-1)[1],
    "one gate, transposed, double": lambda w: np.split(w, 3, axis=1)[2].T.astype("f8"),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("kind", ["f4", "f8", "f2"])
def test_views_hold_what_the_array_holds(view: str, kind: str) -> None:
    values, one = matrix(kind)
    wanted, found = VIEWS[view](values), VIEWS[view](one)
    assert isinstance(found, LazyArray)
    assert (found.shape, found.dtype, found.ndim) == (wanted.shape, wanted.dtype, 2)
    assert (found.size, found.nbytes, len(found)) == (wanted.size, wanted.nbytes, len(wanted))
    np.testing.assert_array_equal(np.asarray(found), wanted)
    np.testing.assert_array_equal(np.concatenate(list(found.blocks())), wanted)
    assert all(block.flags.c_contiguous for block in found.blocks())
    assert found.read().flags.c_contiguous and found.read().flags.writeable


ACTIONS: dict[str, Any] = {
    "one row": lambda w: w[3],
    "rows by number": lambda w: w[np.array([[3, 0, 3], [16, 2, 1]])],
    "rows from the end": lambda w: w[np.array([-1, 0])],
    "no rows": lambda w: w[np.zeros((2, 0), int)],
    "rows by truth": lambda w: w[np.arange(17) % 2 == 0],
    "a slice": lambda w: w[2:5, ::-1],
    "a sum": lambda w: w + 1,
    "with itself": lambda w: w * w,
    "split by rows": lambda w: np.split(w, [3, 5], axis=0)[1],
    "split unevenly": lambda w: np.array_split(w, 4, axis=1)[3],
    "joined with another": lambda w: np.concatenate([w, np.ones((17, 2), "f4")], axis=1),
    "joined by rows": lambda w: np.concatenate([w, w]),
    "stacked": lambda w: np.stack([w, w]),
    "the mean": lambda w: np.mean(w, axis=0),
    "einsum": lambda w: np.einsum("fh,fh->h", w, w),
    "split when transposed": lambda w: np.split(w.T, 3, axis=0)[2],
    "split again": lambda w: np.split(gates_moved(w), 5, axis=-1)[4],
    "split in two": lambda w: np.split(np.split(w, 3, axis=-1)[1], 5, axis=-1)[2],
}


@pytest.mark.parametrize("action", ACTIONS)
def test_what_is_done_with_arrays_is_done_with_it(action: str) -> None:
    values, one = matrix()
    np.testing.assert_array_equal(np.asarray(ACTIONS[action](one)), ACTIONS[action](values))


PRODUCTS: dict[str, Any] = {
    "whole": lambda w: w,
    "one gate": lambda w: np.split(w, 3, axis=-1)[1],
    "transposed": lambda w: w.T,
}


@pytest.mark.parametrize("view", PRODUCTS)
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_products_come_in_blocks(view: str, batch: tuple[int, ...]) -> None:
    values, one = matrix()
    wanted, found = PRODUCTS[view](values).astype("f8"), PRODUCTS[view](one).astype("f8")
    x = np.random.default_rng(1).standard_normal((*batch, wanted.shape[0]))
    np.testing.assert_allclose(x @ found, x @ wanted, rtol=1e-13, atol=1e-14)
    if wanted.ndim == 2:
        np.testing.assert_allclose(found @ wanted.T, wanted @ wanted.T, rtol=1e-13, atol=1e-14)


def test_rows_beyond_the_end_are_an_error() -> None:
    _, one = matrix()
    with pytest.raises(IndexError):
        one[np.array([17])]
    with pytest.raises(IndexError):
        one[np.array([-18])]


def test_a_product_of_other_sizes_is_an_error() -> None:
    _, one = matrix()
    with pytest.raises(ValueError, match="@"):
        np.zeros((2, 3)) @ one


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_in_every_block(bad: float) -> None:
    values, one = matrix()
    assert is_finite(one) and is_finite(values)
    for place in ((0, 0), (16, 14), (9, 7)):
        broken = values.copy()
        broken[place] = bad
        assert not is_finite(LazyArray.whole(Rows(broken)))
        assert not is_finite(broken)


def test_nothing_asks_for_much_at_once() -> None:
    source = Rows(np.ones((40, 30), "f4"))
    one = LazyArray.whole(source)
    for use in (one.blocks, one.T.blocks, gates_moved(one).blocks, gates_moved(one).T.blocks):
        assert sum(block.size for block in use()) == 1200
    assert source.total == 4 * source.values.nbytes
    np.ones((2, 40)) @ one
    assert source.total == 5 * source.values.nbytes
    one[np.array([0, 1, 0])]
    assert source.total == 5 * source.values.nbytes + 2 * 30 * 4
    assert source.largest <= 320  # two columns


# ---- parameters ---------------------------------------------------------------------------------


def test_a_parameter_takes_no_memory_until_it_is_filled() -> None:
    values, one = matrix()
    module = nn.Linear(17, 15, bias=False)
    module.weight = to_parameter(one.T)
    assert module.weight.shape == (15, 17)
    assert module.weight.untyped_storage().nbytes() == 4
    assert lazy_source(module.weight) is not None
    materialize(module)
    assert lazy_source(module.weight) is None
    assert module.weight.is_contiguous()
    np.testing.assert_array_equal(module.weight.detach().numpy(), values.T)


# ---- files --------------------------------------------------------------------------------------

# A sample of everything, and whole families of what can wait.
SAMPLE = sorted({*list(ENTRIES)[::61], *[f for f in ENTRIES if "stack" in f][:9]})
# What ``make test`` reads of it.
SOME = SAMPLE[::4]


def same(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b) if a.isfinite().all() else a.shape == b.shape


@pytest.mark.parametrize("file", rest_thorough(SAMPLE, SOME))
def test_streamed_files_hold_what_saved_ones_hold(file: str, tmp_path: Path) -> None:
    entry = ENTRIES[file]
    config = None if entry["config"] is None else FIXTURES / entry["config"]
    whole = build_model(fixture(file).spec)
    for suffix in (".pt", ".safetensors"):
        out = tmp_path / f"streamed{suffix}"
        convert_to_file(FIXTURES / file, out, config=config)
        save(whole, tmp_path / f"saved{suffix}")
        found, wanted = read_content(out), read_content(tmp_path / f"saved{suffix}")
        assert found["format"] == FORMAT and found["spec"] == wanted["spec"]
        assert list(found["state_dict"]) == list(wanted["state_dict"])
        assert all(same(t, wanted["state_dict"][n]) for n, t in found["state_dict"].items())
        assert all(map(torch.equal, found["golden"]["inputs"], wanted["golden"]["inputs"]))
        for a, b in zip(found["golden"]["outputs"], wanted["golden"]["outputs"], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, equal_nan=True)
    model = birnn.convert(FIXTURES / file, config=config)
    assert all(same(t, wanted["state_dict"][n]) for n, t in model.state_dict().items())


def test_gru_and_dense_matrices_wait_in_the_file(tmp_path: Path) -> None:
    synthetic.bidirectional(tmp_path / "m.h5", 5, 7)
    with open_model(tmp_path / "m.h5") as (spec, problems):
        assert not problems
        waiting = [
            name
            for layer in spec.root.walk()
            for name, array in layer.weights.items()
            if isinstance(array, LazyArray)
        ]
        assert waiting == ["kernel", "recurrent_kernel"] * 2
        x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype("f4")
        found = compute(spec, [x]).outputs[0]
    wanted = compute(birnn_spec(tmp_path / "m.h5"), [x]).outputs[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-15)


def birnn_spec(path: Path) -> Any:
    with open_model(path, weights="read") as (spec, _):
        return spec


def test_compressed_arrays_are_read_at_once(tmp_path: Path) -> None:
    shapes = {"dense": {"dense/kernel:0": (31, 29), "dense/bias:0": (29,)}}
    layer = {"name": "dense", "units": 29, "batch_input_shape": [None, 31]}
    model = {"class_name": "Sequential", "config": [{"class_name": "Dense", "config": layer}]}
    synthetic.write(tmp_path / "m.h5", model, shapes, compression="gzip", shuffle=True)
    with open_model(tmp_path / "m.h5") as (spec, _):
        kernel = spec.graph.layer("dense").weights["kernel"]
    assert isinstance(kernel, np.ndarray)
    convert_to_file(tmp_path / "m.h5", tmp_path / "m.pt")
    weight = birnn.load(tmp_path / "m.pt").state_dict()["dense.weight"]
    np.testing.assert_array_equal(weight.numpy(), kernel.T)


def test_rows_and_columns_of_stored_arrays(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((7, 5)).astype(">f8")
    (tmp_path / "raw").write_bytes(b"head" + values.tobytes())
    with (tmp_path / "raw").open("rb", buffering=0) as file:
        window = Window(file, 0, (tmp_path / "raw").stat().st_size)
        from keras2torch_birnn.readers.hdf5.arrays import Contiguous, Inline

        one = StoredArray("/x", (7, 5), ">f8", Contiguous(4), window)
        np.testing.assert_array_equal(one.rows(2, 5), values[2:5])
        np.testing.assert_array_equal(one.between(1, 4), values[:, 1:4])
        np.testing.assert_array_equal(one.between(0, 5), values)
        inline = StoredArray("/x", (7, 5), ">f8", Inline(values.tobytes()), window)
        with pytest.raises(TypeError, match="/x is not contiguous"):
            inline.rows(0, 1)
        with pytest.raises(TypeError, match="/x is not contiguous"):
            inline.between(0, 1)


def test_inspect_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic.embedding(tmp_path / "m.h5", 11, 5, 3)
    asked: list[str] = []
    monkeypatch.setattr(StoredArray, "read", lambda self: asked.append(self.path))
    monkeypatch.setattr(StoredArray, "rows", lambda self, a, b: asked.append(self.path))
    assert len(birnn.inspect(tmp_path / "m.h5").rows) == 4
    assert asked == []


# ---- what goes wrong while it is written --------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("what", ["grows", "shrinks"])
def test_a_file_that_changes_meanwhile_gives_no_output(
    what: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "m.h5", tmp_path / f"m{suffix}"
    synthetic.embedding(path, 11, 5, 3)
    out.write_bytes(OLD_OUT)
    blocks = LazyArray.blocks

    def changing(self: LazyArray) -> Any:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size + 1 if what == "grows" else 3000)
        return blocks(self)

    monkeypatch.setattr("keras2torch_birnn.lazy_array.is_finite", lambda values: True)
    monkeypatch.setattr(LazyArray, "blocks", changing)
    with pytest.raises(InvalidModelFileError, match=r"m\.h5: .*(changed|became shorter)"):
        convert_to_file(path, out, overwrite=True)
    assert out.read_bytes() == OLD_OUT
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["m.h5", out.name])


CONTENT: dict[str, Any] = {
    "text": "é" * 100,
    "tensors": {
        "a": torch.arange(6.0).reshape(2, 3).T,
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(7),
        "truth": torch.tensor([True, False, True]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "double": torch.linspace(0, 1, 1000, dtype=torch.float64),
    },
    "list": [torch.ones(2, dtype=torch.int32), torch.zeros(3, dtype=torch.int8)],
    "real": 0.5,
}


def test_a_streamed_archive_is_the_one_that_torch_writes(tmp_path: Path) -> None:
    stream_torch(CONTENT, tmp_path / "s.pt")
    dense = {n: t.contiguous() for n, t in CONTENT["tensors"].items()}
    memory = io.BytesIO()
    torch.save({**CONTENT, "tensors": dense}, memory)
    with zipfile.ZipFile(tmp_path / "s.pt") as found, zipfile.ZipFile(memory) as wanted:
        assert found.testzip() is None
        assert found.namelist() == wanted.namelist()
        for name in wanted.namelist():
            if not name.endswith("serialization_id"):  # a hash that includes the checks of tensors
                assert found.read(name) == wanted.read(name), name
    back = torch.load(tmp_path / "s.pt", weights_only=True)
    assert all(torch.equal(t, dense[n]) for n, t in back["tensors"].items())
    assert back["text"] == CONTENT["text"] and back["real"] == 0.5


def test_a_streamed_safetensors_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = {n: t.contiguous() for n, t in CONTENT["tensors"].items()}
    stream_safetensors(tensors, {"one": "é\n"}, tmp_path / "s.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors", metadata={"one": "é\n"})
    data = (tmp_path / "s.safetensors").read_bytes()
    assert int.from_bytes(data[:8], "little") % 8 == 0
    assert len(data) == (tmp_path / "w.safetensors").stat().st_size
    with (
        safetensors.safe_open(tmp_path / "s.safetensors", "pt") as found,
        safetensors.safe_open(tmp_path / "w.safetensors", "pt") as wanted,
    ):
        assert found.metadata() == wanted.metadata()
        assert set(found.keys()) == set(wanted.keys())
        for name in wanted.keys():
            a, b = found.get_tensor(name), wanted.get_tensor(name)
            assert a.dtype == b.dtype and torch.equal(a, b)


def test_archives_of_an_unknown_form_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(content: Any, file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data/0", b"12345")

    monkeypatch.setattr(torch, "save", other)
    with pytest.raises(OutputError, match="this version of torch writes files of an unknown form"):
        stream_torch(CONTENT, tmp_path / "s.pt")


def test_errors_of_torchs_writer_are_errors_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(content: Any, file: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:1] no space\nmore")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OutputError, match=r"cannot be written \(\[enforce.*no space\); disk full"):
        stream_torch(CONTENT, tmp_path / "s.pt")


def test_placeholders_of_loading_take_no_memory(tmp_path: Path) -> None:
    synthetic.bidirectional(tmp_path / "m.h5", 5, 7)
    with open_model(tmp_path / "m.h5") as (spec, _):
        model = build(spec)
    large = [p for p in model.parameters() if p.dim() == 2]
    assert len(large) == 4
    assert all(p.untyped_storage().nbytes() == 4 for p in large)
