"""Check a checkpoint before torch or the builder sees it: it may come from a stranger.

A ``.pt`` file is a zip whose ``data.pkl`` is a program for a stack machine. ``check_archive`` lets
only a short list of operations and names pass, those of what ``torch.save`` writes of texts,
numbers, lists, dicts and tensors, and reads all checksums. ``torch.load(weights_only=True)`` reads
the rest; ``check_tensors`` refuses what is not dense.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from keras2torch_birnn.errors import InvalidModelFileError, printable
from keras2torch_birnn.limits import MAX_OUT_MEMBERS, MAX_PROGRAM_BYTES
from keras2torch_birnn.readers.containers.zip_archive import open_archive
from keras2torch_birnn.readers.input_files import Window
from keras2torch_birnn.schema.shape_inference import check_batch_memory
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

# Operations of ``data.pkl`` that make texts, numbers, lists and dicts; and the names that it calls.
_OPCODES = frozenset(
    "PROTO STOP FRAME MARK BINPUT LONG_BINPUT BINGET LONG_BINGET BINUNICODE SHORT_BINUNICODE "
    "BININT BININT1 BININT2 LONG1 BINFLOAT NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS GLOBAL BINPERSID "
    "REDUCE".split()
)
_KINDS = "Double Float Half BFloat16 Long Int Short Char Byte Bool".split()
_NAMES = frozenset(("collections OrderedDict", "torch._utils _rebuild_tensor_v2")) | frozenset(
    f"torch {kind}Storage" for kind in _KINDS
)
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
    """Refuse a ``.pt`` file that holds anything but texts, numbers and dense tensors."""
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
        _check_program(archive.read(program))
        for member in members:
            with archive.open(member) as content:  # its checksum is checked at its end
                while content.read(1 << 20):
                    pass


def _check_program(program: bytes) -> None:
    """Refuse a program with any operation or name but those of what ``save`` writes."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "BUILD":
                raise InvalidModelFileError(f"{NOT_OURS} ({_STATE_DICT})", STATE_DICT_REMEDY)
            if opcode.name not in _OPCODES:
                raise _refused(f"its data.pkl has the opcode {opcode.name}")
            if opcode.name == "GLOBAL" and argument not in _NAMES:
                raise _refused(f"its data.pkl names {printable(argument)}")
    except ValueError:
        raise _refused("its data.pkl is damaged") from None


# ---- its content --------------------------------------------------------------------------------


def check_tensors(tensors: Mapping[str, Any], place: str, *, arrays: bool = False) -> None:
    """Refuse values that are not dense CPU tensors, or that are larger than their memory.

    arrays: refuse those that NumPy does not have, too.
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
            and not tensor.requires_grad
            and tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()
        ):
            raise _refused(f"{printable(name)} is not a dense tensor", place)


def check_golden(spec: ModelSpec, inputs: tuple[Tensor, ...]) -> None:
    """Refuse golden inputs that do not fit the model."""
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
