"""One thread in every process that the tests start, and in this one.

The tensors of the tests are small. Two threads of OpenMP that share them wait for each other, four
times as long as one computes, and far longer on a machine that has other work to do. Tests of
threads ask for theirs by ``torch.set_num_threads``.
"""

from __future__ import annotations

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
