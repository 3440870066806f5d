"""Convert small files whose options ask for much; print what k2t said, and the peak of memory.

python tests/attacks/memory_child.py
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import synthetic

import keras2torch_birnn as k2t

N = 20_000_000
LAST = {"data_format": "channels_last"}
PLAIN = {**LAST, "use_bias": False, "strides": [1], "filters": 1, "kernel_size": [2]}
ONE = {**PLAIN, "kernel_size": [1, 1], "padding": "valid"}
Layer = tuple[str, dict[str, Any], dict[str, tuple[int, ...]]]


def plain(class_name: str, **config: Any) -> Layer:
    return class_name, config, {}


def convolution(**config: Any) -> Layer:
    return "Conv1D", {**PLAIN, **config}, {"kernel:0": (2, 1, 1)}


def transposed(**config: Any) -> Layer:
    return "Conv2DTranspose", {**ONE, **config}, {"kernel:0": (1, 1, 1, 1)}


def separable(**config: Any) -> Layer:
    kernels = {"depthwise_kernel:0": (2, 1, 1), "pointwise_kernel:0": (1, 1, 1)}
    return "SeparableConv1D", {**PLAIN, "depth_multiplier": 1, **config}, kernels


LSTM: Layer = (
    "LSTM",
    {"units": 64, "recurrent_activation": "sigmoid"},
    {"kernel:0": (1, 256), "recurrent_kernel:0": (64, 256), "bias:0": (256,)},
)


def inside(*layers: Layer) -> dict[str, Any]:
    """Put layers into a Sequential, as the layer of a TimeDistributed."""
    first, *rest = [
        (name, {"name": f"inner_{at}", **config}) for at, (name, config, _) in enumerate(layers)
    ]
    entries = [{"class_name": name, "config": config} for name, config in (first, *rest)]
    entries[0]["config"] = {**first[1], "batch_input_shape": [None, 1]}
    return {"class_name": "Sequential", "config": {"name": "inner", "layers": entries}}


# name: (shape of the input, layers)
MODELS: dict[str, tuple[list[int | None], list[Layer]]] = {
    "half": ([None, 1], [plain("RepeatVector", n=7_000_000)]),
    "RepeatVector": ([None, 1], [plain("RepeatVector", n=N)]),
    "RepeatVector, LSTM": ([None, 1], [plain("RepeatVector", n=N // 100), LSTM]),
    "ZeroPadding1D": ([None, 7, 1], [plain("ZeroPadding1D", padding=[N, 0])]),
    "ZeroPadding1D, Cropping1D": (
        [None, 7, 1],
        [plain("ZeroPadding1D", padding=[N, 0]), plain("Cropping1D", cropping=[N, 0])],
    ),
    "ZeroPadding2D": ([None, 7, 7, 1], [plain("ZeroPadding2D", padding=[4000, 4000], **LAST)]),
    "UpSampling1D": ([None, 1, 1], [plain("UpSampling1D", size=N)]),
    "UpSampling2D": ([None, 1, 1, 1], [plain("UpSampling2D", size=[4000, N // 4000], **LAST)]),
    "UpSampling1D, twelve times": ([None, 1, 1], [plain("UpSampling1D", size=4)] * 12),
    "Input": ([None, N], [plain("Activation", activation="relu")]),
    "Input of most": ([None, 10**9], [plain("Activation", activation="relu")]),
    "Reshape": ([None, 1], [plain("RepeatVector", n=N), plain("Reshape", target_shape=[N])]),
    "TimeDistributed": (
        [None, 1],
        [
            plain("RepeatVector", n=2),
            plain(
                "TimeDistributed",
                layer={"class_name": "RepeatVector", "config": {"name": "r", "n": N}},
            ),
        ],
    ),
    "a model in TimeDistributed": (
        [None, 2, 1],
        [plain("TimeDistributed", layer=inside(plain("RepeatVector", n=N)))],
    ),
    "Flatten": ([None, 7, N], [plain("Flatten")]),
    "Softmax": ([None, N], [plain("Softmax")]),
    "Concatenate itself": ([None, 7, N // 7], [plain("Permute", dims=[2, 1]), plain("Flatten")]),
    "ZeroPadding3D": (
        [None, 1, 1, 1, 1],
        [plain("ZeroPadding3D", padding=[[200, 0], [200, 0], [500, 0]], **LAST)],
    ),
    "UpSampling3D": ([None, 1, 1, 1, 1], [plain("UpSampling3D", size=[200, 200, 500], **LAST)]),
    "UpSampling2D, bilinear": (
        [None, 7, 7, 1],
        [plain("UpSampling2D", size=[600, 700], interpolation="bilinear", **LAST)],
    ),
    "Resizing": ([None, 7, 7, 1], [plain("Resizing", height=4000, width=5000, **LAST)]),
    "Resizing of one axis": ([None, 7, 7, 1], [plain("Resizing", height=N, width=1, **LAST)]),
    "CategoryEncoding": (
        [None, 7],
        [plain("CategoryEncoding", num_tokens=N, output_mode="multi_hot")],
    ),
    "causal dilation": ([None, 7, 1], [convolution(padding="causal", dilation_rate=[N])]),
    "same dilation": ([None, 7, 1], [convolution(padding="same", dilation_rate=[N])]),
    "separable dilation": ([None, 7, 1], [separable(padding="same", dilation_rate=[N])]),
    "stride of a transposed one": ([None, 1, 1, 1], [transposed(strides=[N, 1])]),
    "MaxPooling1D": (
        [None, 7, 1],
        [plain("MaxPooling1D", pool_size=[N], strides=[1], padding="same", **LAST)],
    ),
    "AveragePooling2D": (
        [None, 7, 7, 1],
        [plain("AveragePooling2D", pool_size=[4000, 4000], strides=[1, 1], padding="same", **LAST)],
    ),
}


def write(path: Path, shape: list[int | None], layers: list[Layer]) -> None:
    entries, weights = [], {}
    for number, (class_name, config, arrays) in enumerate(layers):
        name = f"layer_{number}"
        more = {} if number else {"batch_input_shape": shape}
        if class_name == "TimeDistributed":
            arrays = {}
        entries.append({"class_name": class_name, "config": {"name": name, **config, **more}})
        weights[name] = {f"{name}/{key}": size for key, size in arrays.items()}
    synthetic.write(path, {"class_name": "Sequential", "config": entries}, weights)


def convert(path: Path) -> str:
    try:
        k2t.save(k2t.convert(path), path.with_suffix(".pt"))
    except k2t.K2TError as error:
        return str(error)
    return "converted"


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "model.h5")
        write(path, [None, 1], [("Dense", {"units": 3}, {"kernel:0": (1, 3), "bias:0": (3,)})])
        said = {"small": convert(path)}
        start = peak()
        for key, (shape, layers) in MODELS.items():
            write(path, shape, layers)
            said[key] = convert(path)
    print(json.dumps({"start": start, "peak": peak(), "said": said}))


if __name__ == "__main__":
    main()
