"""Check a checkpoint before torch or the builder sees it: it may come from a stranger.

A ``.pt`` file is a zip whose ``data.pkl`` is a program for a stack machine. ``check_archive`` runs
that program itself, on data only, and allows nothing but the texts, numbers, lists, dicts and dense
tensors that ``torch.save`` writes: no name in it is looked up, and no tensor is larger than its
bytes. Files that pass are read by ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.limits import MAX_OUT_MEMBERS, MAX_PROGRAM_BYTES
from keras2torch_birnn.readers.containers.zip_archive import open_archive
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.schema.batch_memory import check_batch_memory
from keras2torch_birnn.spec import ModelSpec

NOT_OURS = "not a file that k2t wrote, or damaged"
REMEDY = "make it with `k2t convert`"
_STATE_DICT = "a state_dict or a module? its data.pkl has the opcode BUILD"
STATE_DICT_REMEDY = f"{REMEDY}; `k2t compare` takes a port of your own, and its state_dict"

KERAS_MODEL = (
    "a Keras model, or another HDF5 file, and not one that k2t converted",
    "`k2t convert MODEL OUT` converts it; the order is k2t verify MODEL OUT, and "
    "k2t write-back OUT MODEL NEW",
)

# torch's name of a storage in ``data.pkl`` -> bytes of one number.
_STORAGES: Mapping[str, int] = {
    f"torch {name}Storage": size
    for name, size in (
        *(("Double", 8), ("Float", 4), ("Half", 2), ("BFloat16", 2)),
        *(("Long", 8), ("Int", 4), ("Short", 2), ("Char", 1), ("Byte", 1), ("Bool", 1)),
    )
}
_DTYPES = frozenset(
    (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
)


def _refused(what: str, place: str = "") -> InvalidModelFileError:
    return InvalidModelFileError(f"{NOT_OURS} ({what})", REMEDY, place=place)


# ---- the zip and its program --------------------------------------------------------------------


def check_archive(window: Window) -> None:
    """Refuse a ``.pt`` file that holds anything but texts, numbers and dense tensors.

    Raises:
        InvalidModelFileError: it holds something else, or is damaged.
    """
    with open_archive(window, MAX_PROGRAM_BYTES, MAX_OUT_MEMBERS) as (archive, members):
        sizes = {member.filename: member.file_size for member in members}
        program = next((name for name in sizes if name.endswith("/data.pkl")), None)
        if program is None and "config.json" in sizes:
            raise InvalidModelFileError(*KERAS_MODEL)
        if program is None:
            raise _refused("no data.pkl in it")
        folder = program.removesuffix("data.pkl")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.extract_version > 45:
                raise _refused("compressed", member.filename)
            if not member.filename.startswith(folder):
                raise _refused("of another archive", member.filename)
        if sizes[program] > MAX_PROGRAM_BYTES:
            raise _refused(f"longer than {MAX_PROGRAM_BYTES} bytes", "data.pkl")
        for key, wanted in _Machine().run(archive.read(program)).items():
            stored = sizes.get(f"{folder}data/{key}")
            if stored != wanted:
                raise _refused(f"{wanted} bytes of a tensor, {stored} stored", "data.pkl")
        for member in members:
            with archive.open(member) as content:  # its checksum is checked at its end
                while content.read(1 << 20):
                    pass


@dataclass(frozen=True)
class _Name:
    """Name that the program refers to. It is compared, never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Bytes of a tensor: the member ``data/KEY``."""

    key: str
    item: int
    count: int


@dataclass
class _Machine:
    """Stack machine of pickles (see ``pickletools``), reduced to harmless operations."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, int] = field(default_factory=dict)

    def run(self, program: bytes) -> dict[str, int]:
        """Run the program; return the size in bytes of each storage that its tensors use."""
        try:
            for opcode, argument, _ in pickletools.genops(program):
                step = _STEPS.get(opcode.name)
                if opcode.name == "BUILD":
                    raise InvalidModelFileError(f"{NOT_OURS} ({_STATE_DICT})", STATE_DICT_REMEDY)
                if step is None:
                    raise _refused(f"its data.pkl has the opcode {opcode.name}")
                step(self, argument)
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise _refused("its data.pkl is damaged") from None
        return self.storages

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark."""
        at = self.marks.pop()
        found = self.stack[at:]
        del self.stack[at:]
        return found

    def call(self) -> None:
        """Run one of the two allowed calls: an empty OrderedDict, or a tensor of a storage."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if function == _Name("collections OrderedDict") and arguments == ():
            self.stack.append({})
            return
        if function != _Name("torch._utils _rebuild_tensor_v2"):
            raise _refused(f"its data.pkl calls {printable(getattr(function, 'name', function))}")
        storage, offset, shape, strides, gradient, hooks = arguments
        if not (isinstance(storage, _Storage) and all(type(n) is int and n >= 0 for n in shape)):
            raise _refused("its data.pkl is damaged")
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        dense = all(size == 1 or a == b for size, a, b in zip(shape, steps, strides, strict=True))
        inside = type(offset) is int and 0 <= offset <= storage.count - math.prod(shape)
        if gradient or hooks or not inside or (math.prod(shape) and not dense):
            raise _refused("a tensor that is not dense")
        self.storages[storage.key] = storage.count * storage.item
        self.stack.append(storage)

    def storage(self) -> None:
        """Push a reference to a member of the archive."""
        kind, name, key, place, count = self.stack.pop()
        if kind != "storage" or place != "cpu" or not key.isdecimal() or type(count) is not int:
            raise _refused("a tensor that is not on the CPU")
        self.stack.append(_Storage(key, _STORAGES[name.name], count))

    def put(self, pairs: list[Any]) -> None:
        """Fill the dict on top; keys are texts."""
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, str):
                raise _refused("a key that is not text")
            self.stack[-1][key] = value

    def extend(self, values: list[Any]) -> None:
        """Fill the list on top."""
        if not isinstance(self.stack[-1], list):
            raise _refused("its data.pkl is damaged")
        self.stack[-1] += values


def _push(self: _Machine, argument: Any) -> None:
    self.stack.append(argument)


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    def step(self: _Machine, argument: Any) -> None:
        found = tuple(self.stack[len(self.stack) - count :])
        if len(found) != count:
            raise IndexError
        del self.stack[len(self.stack) - count :]
        self.stack.append(found)

    return step


def _two(self: _Machine) -> list[Any]:
    value = self.stack.pop()
    return [self.stack.pop(), value]


_Step = Callable[[_Machine, Any], None]
_STEPS: Mapping[str, _Step] = {
    **dict.fromkeys(("PROTO", "STOP", "FRAME"), lambda self, argument: None),
    **dict.fromkeys(
        ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
        _push,
    ),
    "NONE": lambda self, _: self.stack.append(None),
    "NEWTRUE": lambda self, _: self.stack.append(True),
    "NEWFALSE": lambda self, _: self.stack.append(False),
    "EMPTY_DICT": lambda self, _: self.stack.append({}),
    "EMPTY_LIST": lambda self, _: self.stack.append([]),
    "EMPTY_TUPLE": lambda self, _: self.stack.append(()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "TUPLE": lambda self, _: self.stack.append(tuple(self.since_mark())),
    "MARK": lambda self, _: self.marks.append(len(self.stack)),
    "SETITEM": lambda self, _: self.put(_two(self)),
    "SETITEMS": lambda self, _: self.put(self.since_mark()),
    "APPEND": lambda self, _: self.extend([self.stack.pop()]),
    "APPENDS": lambda self, _: self.extend(self.since_mark()),
    **dict.fromkeys(
        ("BINPUT", "LONG_BINPUT"),
        lambda self, argument: self.memo.__setitem__(argument, self.stack[-1]),
    ),
    **dict.fromkeys(
        ("BINGET", "LONG_BINGET"), lambda self, argument: self.stack.append(self.memo[argument])
    ),
    "GLOBAL": lambda self, argument: self.stack.append(_Name(argument)),
    "BINPERSID": lambda self, _: self.storage(),
    "REDUCE": lambda self, _: self.call(),
}


# ---- its content --------------------------------------------------------------------------------


def check_tensors(tensors: Mapping[str, Any], place: str, *, arrays: bool = False) -> None:
    """Refuse values that are not dense CPU tensors, or that are larger than their memory.

    arrays: refuse those that NumPy does not have, too.

    Raises:
        InvalidModelFileError: there is such a value.
    """
    for name, tensor in tensors.items():
        if not (
            isinstance(name, str)
            and type(tensor) is Tensor
            and tensor.layout is torch.strided
            and tensor.device.type == "cpu"
            and tensor.dtype in _DTYPES
            and not (arrays and tensor.dtype is torch.bfloat16)
            and tensor.is_contiguous()
            and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
        ):
            raise _refused(f"{printable(name)} is not a dense tensor", place)


def check_golden(spec: ModelSpec, inputs: tuple[Tensor, ...]) -> None:
    """Refuse golden inputs that do not fit the model.

    Raises:
        InvalidModelFileError: their number or shapes differ from the model's inputs.
        UnsupportedOptionError: the model would need too much memory for them.
    """
    layers = spec.input_layers()
    if len(layers) != len(inputs):
        raise _refused(f"{len(inputs)} inputs, the model takes {len(layers)}", "golden")
    for layer, given in zip(layers, inputs, strict=True):
        shape = layer.config["shape"]
        if shape is not None and len(shape) != given.dim():
            raise _refused(
                f"an input of {given.dim()} dimensions, the model takes {len(shape)}", "golden"
            )
        if not given.numel():
            raise _refused("an input without a number", "golden")
    check_batch_memory(spec, [tuple(given.shape) for given in inputs])
