"""Script that changes one HDF5 file with the HDF5 library, in a process that may crash or hang.

Started by ``copies.py``, isolated (``-I -S``), with our own copy of the file and the new values as
inherited open files. It gives up the rights of ``readers/hdf5/parser_child.py`` before the library
sees the file, all but that to make it longer.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def change(h5py: Any, numpy: Any, job: dict[str, Any]) -> None:
    """Remove groups, and put new values into datasets."""
    values_file = os.fdopen(job["data"], "rb")
    with values_file, os.fdopen(job["fd"], "r+b") as raw, h5py.File(raw, "r+") as file:
        for path in job["remove"]:
            del file[path]
        for edit in job["edits"]:
            values_file.seek(edit["at"])
            data = values_file.read(edit["size"])
            dataset = file[edit["path"]]
            values = numpy.frombuffer(data, edit["dtype"]).reshape(dataset.shape)
            if dataset.dtype.kind == "V":  # bfloat16, the upper half of a float32
                upper = (values.view("u4") >> 16).astype("<u2")
                values = upper.view(dataset.dtype).reshape(dataset.shape)
            dataset[...] = values


def serve(job: dict[str, Any]) -> dict[str, str]:
    """Do the job; return why it failed, if it did."""
    sys.path += job["import_from"]
    import h5py
    import numpy

    from keras2torch_birnn.readers.hdf5.parser_child import give_up_rights

    give_up_rights(job["limits"])
    try:
        change(h5py, numpy, job)
    except Exception as error:  # h5py raises nine kinds
        return {"refused": f"{type(error).__name__}: {error}"[:300]}
    return {}


if __name__ == "__main__":
    answer = serve(json.loads(sys.stdin.buffer.readline()))
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()
    # Not sys.exit: see parser_child.py
    os._exit(0)
