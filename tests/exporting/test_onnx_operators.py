"""Operators whose ONNX form is written here compute what torch computes, at any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from keras2torch_birnn.errors import UnsupportedLayerError
from keras2torch_birnn.exporting import onnx_graph
from keras2torch_birnn.exporting.onnx_operators import TRANSLATIONS
from keras2torch_birnn.exporting.torch_program import quiet, record_program


class Operators(nn.Module):
    """Every one of them, of numbers x (B, T, 3) and integers i (B, T)."""

    def forward(self, x: Tensor, i: Tensor) -> list[Tensor]:
        """Compute them."""
        return [
            x.amax(),
            x.amin(),
            i.amax((0, 1), keepdim=True),
            x.amin(-1),
            (x > 0.5).any(dim=-1),
            (i > 0).any(dim=1, keepdim=True),
            x.prod(),
            x.prod(1, keepdim=True),
        ]


def inputs(rows: int, steps: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(rows)
    return torch.randn(rows, steps, 3), torch.randint(-9, 13, (rows, steps))


def export(module: nn.Module, given: tuple[Tensor, ...]) -> Any:
    with quiet():
        program = record_program(module, given, ((0, 1),) * len(given))
        return torch.onnx.export(
            program, dynamo=True, opset_version=18, custom_translation_table=dict(TRANSLATIONS)
        )


def test_every_translation_is_exact_at_any_size() -> None:
    module, program = Operators(), export(Operators(), inputs(5, 7))
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [one.name for one in session.get_inputs()]
    for sizes in ((5, 7), (2, 11), (1, 1)):
        given = inputs(*sizes)
        found = session.run(None, dict(zip(names, (x.numpy() for x in given), strict=True)))
        for number, (y, wanted) in enumerate(zip(found, module(*given), strict=True)):
            assert y.dtype == wanted.numpy().dtype
            np.testing.assert_allclose(y, wanted, rtol=1e-5, err_msg=f"{number}, {sizes}")


def test_an_operator_without_onnx_form_is_named_with_its_module() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.lgamma(x)

    given = (torch.rand(5, 7, 3),)
    module: Any = nn.Sequential(nn.Identity(), Inner())
    with pytest.raises(UnsupportedLayerError, match=r"operator lgamma has no ONNX form") as caught:
        onnx_graph._export(module, given, ((0, 1),))
    assert (caught.value.place, caught.value.advice) == ("1", "export it as .pt2")
