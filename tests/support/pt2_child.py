"""Run an archive of torch.export where this package cannot be imported.

    python -I pt2_child.py ARCHIVE IN.npz OUT.npz

IN holds the batches one after the other: ``batch_input``. OUT gets ``batch_output``.
"""

import sys

PACKAGE = "keras2torch_birnn"


class Forbidden:
    """Finder that refuses the package."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == PACKAGE:
            raise ImportError(f"{name} is forbidden here")


def main(archive, given, target):
    sys.meta_path.insert(0, Forbidden())
    import numpy as np
    import torch

    module = torch.export.load(archive).module()
    batches = {}
    with np.load(given) as data:
        for name in sorted(data.files, key=lambda name: tuple(map(int, name.split("_")))):
            batches.setdefault(int(name.split("_")[0]), []).append(torch.from_numpy(data[name]))
    found = {}
    with torch.no_grad():
        for number, inputs in batches.items():
            out = module(*inputs)
            for i, y in enumerate(torch.utils._pytree.tree_leaves(out)):
                found[f"{number}_{i}"] = y.numpy()
    np.savez(target, **found)
    print(*(name for name in sys.modules if name.startswith(PACKAGE)))


main(*sys.argv[1:])
