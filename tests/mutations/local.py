"""Mutations of locally connected layers."""

from __future__ import annotations

from mutations.patches import K2, TF, Mutation, edit

MUTATIONS = {
    "windows of their own without stride": Mutation(
        edit("layers.local:_steps", "* axis.stride - axis.front", "- axis.front"),
        (f"{TF}/local_2_valid.keras", "tf-2.1.4/local_2_same.h5"),
    ),
    "the bias of LocallyConnected in channels_first as it ought to be": Mutation(
        edit("layers.local:locally_connected", "if not last:", "if False:"),
        (f"{TF}/local2_first.h5", f"{K2}/local2_first.h5", "keras-1.2.2/local2_th.h5"),
    ),
}
