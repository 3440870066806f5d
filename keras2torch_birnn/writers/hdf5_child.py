"""Script that changes one HDF5 file with the HDF5 library, in a process that may crash or hang.

Started by ``hdf5.py``, isolated (``-I -S``), with our own copy of the file and the new values as
inherited open files. It gives up the rights of ``readers/hdf5/parser_child.py`` before the library
sees the file, all but that to make it longer.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def change(h5py: Any, numpy: Any, job: dict[str, Any]) -> None:
    """Remove groups, and put new values into regions of datasets."""
    with os.fdopen(job["fd"], "r+b") as raw, h5py.File(raw, "r+") as file:
        for path in job["remove"]:
            del file[path]
        for edit in job["edits"]:
            values = numpy.frombuffer(
                os.pread(job["data"], edit["size"], edit["at"]), edit["dtype"]
            )
            dataset = file[edit["path"]]
            region = tuple(slice(first, last) for first, last in edit["region"])
            block = values.reshape([last - first for first, last in edit["region"]])
            kind = dataset.dtype
            if kind.kind in "Vb":  # bfloat16 and bool, in bytes of their own
                block = block.view(kind)
            dataset[region] = block


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
