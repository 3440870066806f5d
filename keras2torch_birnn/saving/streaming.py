"""Write a checkpoint one tensor at a time: the files of torch.save and safetensors, in less memory.

Both formats are the bytes of all tensors, one after another, with a table. The table is written
first, from the shapes alone; then each tensor is read, written in its place and freed.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from keras2torch_birnn.errors import OutputError
from keras2torch_birnn.functional.parameters import lazy_source
from keras2torch_birnn.progress import advance
from keras2torch_birnn.saving.atomic import find_cause

# ZIP, APPNOTE 6.3.10: sections 4.3.7 (local header), 4.3.9 (descriptor behind the data), 4.3.12
_LOCAL = struct.Struct("<4s22xHH")  # ..., lengths of name and extra field
_CENTRAL = struct.Struct("<4s24xHHH12x")  # ..., lengths of name, extra field and comment
_LOCAL_CRC, _CENTRAL_CRC, _DESCRIPTOR_CRC = 14, 16, 4
_DESCRIPTOR = b"PK\7\10"
_HAS_DESCRIPTOR = 1 << 3


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """Yield the bytes of a tensor in C order."""
    source = lazy_source(tensor)
    if source is not None:
        for block in source.blocks():
            yield block.data.cast("B")
        return
    dense = tensor.detach().cpu().contiguous()
    if dense.numel():
        yield dense.reshape(-1).view(torch.uint8).numpy().data


def _write_tensor(tensor: Tensor, file: BinaryIO) -> int:
    """Write the bytes of a tensor at the file's position; return their CRC-32."""
    check = written = 0
    for piece in _pieces(tensor):
        check, written = zlib.crc32(piece, check), written + len(piece)
        file.write(piece)
        advance(len(piece))
    if written != tensor.numel() * tensor.element_size():
        raise OutputError("a tensor is not as long as its shape says")
    return check


# ---- .pt ----------------------------------------------------------------------------------------


def stream_torch(content: Mapping[str, Any], path: Path) -> None:
    """Write the same file as ``torch.save(content)``."""
    tensors: list[Tensor] = []
    try:
        with path.open("wb") as file, torch.serialization.skip_data():
            torch.save(_without_data(content, tensors), file)
    except RuntimeError as error:
        raise find_cause(error) from None
    with path.open("r+b") as file:
        _fill_records(tensors, file)


def _without_data(value: Any, tensors: list[Tensor]) -> Any:
    """Replace every tensor by an untouched one, which takes no memory, and list the originals."""
    if isinstance(value, Mapping):
        return {key: _without_data(one, tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_data(one, tensors) for one in value]
    if isinstance(value, Tensor):
        tensors.append(value)
        return torch.empty(value.shape, dtype=value.dtype)
    return value


def _fill_records(tensors: list[Tensor], file: BinaryIO) -> None:
    """Fill the records ``data/0``, ``data/1``, ... of torch's archive, and their CRC-32."""
    with zipfile.ZipFile(file) as archive:
        records, directory = archive.infolist(), archive.start_dir
    checks: dict[str, int] = {}
    by_number = {record.filename.partition("/")[2]: record for record in records}
    for number, tensor in enumerate(tensors):
        record = by_number.get(f"data/{number}")
        size = tensor.numel() * tensor.element_size()
        if record is None or record.file_size != size or record.compress_size != size:
            raise OutputError("this version of torch writes files of an unknown form", "report it")
        checks[record.filename] = _fill_record(tensor, record, file)
    _fill_directory(records, checks, directory, file)


def _fill_record(tensor: Tensor, record: zipfile.ZipInfo, file: BinaryIO) -> int:
    file.seek(record.header_offset)
    _, name, extra = _LOCAL.unpack(file.read(_LOCAL.size))
    file.seek(record.header_offset + _LOCAL.size + name + extra)
    check = _write_tensor(tensor, file)
    at = record.header_offset + _LOCAL_CRC
    if record.flag_bits & _HAS_DESCRIPTOR:
        at = file.tell() + _DESCRIPTOR_CRC
        if file.read(len(_DESCRIPTOR)) != _DESCRIPTOR:
            raise OutputError("this version of torch writes files of an unknown form", "report it")
    file.seek(at)
    file.write(struct.pack("<I", check))
    return check


def _fill_directory(
    records: list[zipfile.ZipInfo], checks: Mapping[str, int], at: int, file: BinaryIO
) -> None:
    for record in records:  # in the order of the directory
        file.seek(at)
        _, name, extra, comment = _CENTRAL.unpack(file.read(_CENTRAL.size))
        if record.filename in checks:
            file.seek(at + _CENTRAL_CRC)
            file.write(struct.pack("<I", checks[record.filename]))
        at += _CENTRAL.size + name + extra + comment


# ---- .safetensors -------------------------------------------------------------------------------

# In the order of the tensors in a file.
_NAMES: Mapping[torch.dtype, str] = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def stream_safetensors(tensors: Mapping[str, Tensor], texts: Mapping[str, str], path: Path) -> None:
    """Write the same file as ``safetensors.torch.save_file``.

    Eight bytes with the length of the table, the table (JSON, padded to eight bytes), the tensors
    from large numbers to small ones.
    """
    rank = list(_NAMES)
    order = sorted(tensors, key=lambda name: (rank.index(tensors[name].dtype), name))
    table: dict[str, Any] = {"__metadata__": dict(texts)}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.element_size()
        facts = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape)}
        table[name] = {**facts, "data_offsets": [at, end]}
        at = end
    head = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in order:
            _write_tensor(tensors[name], file)
