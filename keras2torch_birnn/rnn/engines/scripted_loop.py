"""The loop that ``torch.jit.script`` compiles. Its annotations are not postponed: it reads them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def make_loop(step: Any) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return a loop over a traced step: (product, valid, h, c, weight, bias, masks) -> (h, c)."""

    def loop(
        products: Tensor,
        valid: Tensor,
        h: Tensor,
        c: Tensor,
        weight: Tensor,
        bias: Tensor,
        masks: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        outputs: list[Tensor] = []
        for t in range(products.size(0)):
            h, c = step(products[t], valid[t], h, c, weight, bias, masks)
            outputs.append(h)
        return torch.stack(outputs), h, c

    return loop
