"""TimeDistributed."""

from __future__ import annotations

from collections.abc import Mapping

from keras2torch_birnn.schema.options import REQUIRED, choice
from keras2torch_birnn.schema.row import Schema

LAYERS: Mapping[str, Schema] = {
    # masking: the mask passes by (where the batch is fixed); or goes in and comes out as the inner
    # layer makes it (or the input's, reduced to steps); or goes in and comes out as it was (in
    # TensorFlow 1 to 2.1 where the batch is fixed; 2.2 calls itself the same as 2.1)
    "TimeDistributed": Schema(
        semantics={
            "masking": choice(
                REQUIRED,
                "passes by",
                "inner",
                "inner unless fixed",
                "inner, input if fixed",
                "inner, unknown if fixed",
                "input",
            )
        },
        parts=("layer",),
        refused=("a mask into a whole model", "layers with several outputs"),
    ),
}
