"""Damaged SavedModels, checkpoints and TF.js models.

Half of the mutants have damaged bytes. In the other half the damage is under right checksums: an
entry of the index, the graph of objects, a text of Keras, or the JSON is changed, and written anew.
What is read must be the undamaged values: the checksums see every other. TF.js has none: there the
arrays are compared with what the manifest of the mutant says.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fixture_files import FIXTURES
from tensorflow_files import (
    GRAPH_KEY,
    Node,
    bundle_files,
    checkpoint_tensors,
    masked_crc,
    message,
    model_tree,
    number,
    saved_model_files,
    varint,
    write_tfjs,
)

from fuzz import changes
from fuzz.seeds import Seed

MASKED = FIXTURES / "tf.keras-2.15.0" / "mask_stack_bi_dense.h5"
NESTED = FIXTURES / "tf.keras-2.15.0" / "graph_nested_twice.h5"
VARIABLES = "variables/variables"


def _saved_model(root: Node, *, in_metadata: bool, **options: Any) -> dict[str, bytes]:
    bundle = bundle_files(checkpoint_tensors(root), **options)
    return {
        **saved_model_files(root, in_metadata=in_metadata),
        **{f"{VARIABLES}{ending}": data for ending, data in bundle.items()},
    }


def _tfjs(source: Path, **options: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        file = write_tfjs(Path(folder, "m"), source, **options)
        return {path.name: path.read_bytes() for path in sorted(file.parent.iterdir())}


def models() -> tuple[Seed, ...]:
    """The good models that the damaged ones come from."""
    masked, nested = model_tree(MASKED)[0], model_tree(NESTED)[0]
    old = _saved_model(masked, in_metadata=False, shards=2)
    new = _saved_model(nested, in_metadata=True, per_block=5)
    bundle = bundle_files(checkpoint_tensors(nested))
    noted = {f"ckpt{ending}": data for ending, data in bundle.items()}
    noted["checkpoint"] = b'model_checkpoint_path: "ckpt"\n'
    noted["arch.json"] = json.dumps(model_tree(NESTED)[1]).encode()
    whole, packed = _tfjs(MASKED, shard_bytes=999), _tfjs(NESTED, quantized="uint8")

    def seed(name: str, files: dict[str, bytes], main: str = "", **more: Any) -> Seed:
        victims = sorted(files.keys() - {"arch.json"})
        return Seed(name, files, main, tuple(victims), tensorflow=True, **more)

    return (
        seed("saved-model-2.4", old, root=masked),
        seed("saved-model-2.15", new, root=nested),
        seed("checkpoint", noted, config="arch.json", root=nested),
        seed("tfjs", whole, "model.json"),
        seed("tfjs-uint8", packed, "model.json"),
    )


# ---- damage under right checksums --------------------------------------------------------------


def changed(model: Seed, random: Random) -> dict[str, bytes]:
    """The files of a mutant."""
    files = dict(model.files)
    if "model.json" in files and random.random() < 0.5:
        tree = json.loads(files["model.json"])
        text = changes.as_text(changes.changed_tree(tree, random), random)
        return files | {"model.json": text.encode("utf-8", "surrogatepass")}
    if model.root is None or random.random() < 0.5:
        victim = random.choice(model.victims)
        return files | {victim: changes.damaged(files[victim], random)}
    if model.main == "" and "saved_model.pb" in files and random.random() < 0.5:
        return files | _changed_texts(model, random)
    prefix = VARIABLES if "saved_model.pb" in files else "ckpt"
    bundle = _changed_bundle(model.root, random)
    kept = {name: data for name, data in files.items() if not name.startswith(prefix)}
    return kept | {f"{prefix}{ending}": data for ending, data in bundle.items()}


def _changed_texts(model: Seed, random: Random) -> dict[str, bytes]:
    """One text of Keras changed."""
    assert model.root is not None
    told = [node for node in model.root.walk() if node.metadata is not None]
    victim = told[0] if random.random() < 0.5 else random.choice(told)
    good = victim.metadata
    odd = changes.changed_tree(good, random)
    victim.metadata = odd if isinstance(odd, dict) else {"x": odd}
    try:
        return saved_model_files(model.root, in_metadata="keras_metadata.pb" in model.files)
    finally:
        victim.metadata = good


def _changed_bundle(root: Node, random: Random) -> dict[str, bytes]:
    """One entry of the index changed or left out, the header, or the graph of objects."""
    tensors = checkpoint_tensors(root)
    match random.randrange(4):
        case 0:
            graph = tensors[GRAPH_KEY]
            assert isinstance(graph, bytes)
            return bundle_files({**tensors, GRAPH_KEY: changes.damaged(graph, random)})
        case 1:
            key = random.choice(sorted(tensors))
            return bundle_files(tensors, changes={key: _odd_entry(random)})
        case 2:
            return bundle_files(
                tensors, header=number(1, random.choice((0, 1, 2, 10**9))) + random.randbytes(3)
            )
        case _:
            missing = random.choice(sorted(tensors))
            return bundle_files({key: one for key, one in tensors.items() if key != missing})


_ODD = (0, 1, 2, 3, 7, 8, 19, 20, 255, 10**6, 2**31, 2**48, 2**63, 2**64 - 1)


def _odd_entry(random: Random) -> bytes:
    dims = b"".join(
        message(2, number(1, random.choice(_ODD))) for _ in range(random.choice((0, 1, 2, 40)))
    )
    out = number(1, random.choice(_ODD)) + message(2, dims)
    for tag in (3, 4, 5):
        out += number(tag, random.choice(_ODD)) if random.random() < 0.5 else b""
    out += varint(6 << 3 | 5) + masked_crc(random.randbytes(random.choice((0, 4, 12))))
    return changes.damaged(out, random) if random.random() < 0.3 else out


# ---- what may be read --------------------------------------------------------------------------


def independent_tfjs(files: Mapping[str, bytes], name: str) -> np.ndarray[Any, Any] | None:
    """Read a weight by the manifest, in a few lines."""
    for group in json.loads(files["model.json"])["weightsManifest"]:
        data = b"".join(files[path.removeprefix("./")] for path in group["paths"])
        at = 0
        for weight in group["weights"]:
            facts = weight.get("quantization")
            kind = facts["dtype"] if facts else weight["dtype"]
            kind = "bool" if kind == "bool" else np.dtype(kind).newbyteorder("<")
            count = int(np.prod(weight["shape"], dtype=object))
            found = np.frombuffer(data, kind, count, at)
            at += found.nbytes
            if weight["name"] == name:
                if facts and kind != "<f2":
                    found = found.astype("f8") * facts.get("scale", 1) + facts.get("min", 0)
                    if weight["dtype"] == "int32":
                        found = np.rint(found)
                return found.reshape(weight["shape"])
    return None
