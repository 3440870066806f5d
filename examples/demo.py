"""Compare a converted model with what real Keras computed: ``python demo.py OUT RECORDED.npz``."""

import sys

import numpy as np
import torch

import keras2torch_birnn as k2t

out, recorded = sys.argv[1:3]
model = k2t.load(out)
with np.load(recorded) as arrays, torch.no_grad():
    y = model(torch.from_numpy(arrays["in_0"])).numpy()
    wanted = arrays["out_0"]

error = float(np.abs(y - wanted).max())
print(f"{y.shape} outputs; real Keras gave {wanted.flat[0]:.7f} first, this model {y.flat[0]:.7f}")
print(f"largest difference from what real Keras recorded: {error:.1e}")
sys.exit(not np.allclose(y, wanted, rtol=1e-4, atol=1e-5))
