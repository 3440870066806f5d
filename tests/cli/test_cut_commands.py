"""``--from`` and ``--to`` as users meet them: OUT, the file of vocabularies, verify, inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import assert_refused, changed_h5, contents, k2t
from cut_fixtures import CUT, recorded
from plugin_files import unregister_all
from specs import FIXTURES

import keras2torch_birnn
from keras2torch_birnn.errors import UsageError
from keras2torch_birnn.inspection import inspect
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.spec import Cut

TEXT = CUT / "keras-3.15.1" / "classify.keras"
OCR = CUT / "keras-3.15.1" / "captcha.keras"
OWN = CUT / "keras-3.15.1" / "behind_a_users_layer.h5"


@pytest.fixture(autouse=True)
def no_plugins() -> None:
    """Forget plugins of other tests: advice depends on them."""
    unregister_all()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TEXT, converted once; its vocabulary is beside it."""
    out = tmp_path_factory.mktemp("cut") / "text.pt"
    assert k2t("convert", TEXT, out, "--from", "embed").code == 0
    return out


def test_the_vocabulary_is_written_beside_out(converted: Path) -> None:
    assert sorted(contents(converted.parent)) == ["text.pt", "text.pt.vocabulary.json"]
    written = json.loads((converted.parent / "text.pt.vocabulary.json").read_text("utf-8"))
    assert written["format"] == "keras2torch_birnn.vocabulary/1"
    assert [layer["layer"] for layer in written["layers"]] == ["vectorize"]
    (ids,), (wanted,) = recorded("keras-3.15.1/classify.keras")
    model = keras2torch_birnn.load(converted)
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.from_numpy(ids)).numpy(), wanted, atol=1e-5)


def test_json_names_the_vocabulary(tmp_path: Path) -> None:
    done = k2t("convert", TEXT, tmp_path / "m.pt", "--from", "embed", "--json")
    assert json.loads(done.out)["vocabulary"] == str(tmp_path / "m.pt.vocabulary.json")
    done = k2t("convert", OCR, tmp_path / "o.pt", "--to", "dense2", "--json")
    assert json.loads(done.out)["vocabulary"] is None
    assert not (tmp_path / "o.pt.vocabulary.json").exists()


def test_verify_remembers_the_cut(converted: Path) -> None:
    done = k2t("verify", TEXT, converted)
    assert done.code == 0, done.err
    assert any("the model is a part of the file's" in note for note in done.lines("note"))
    assert k2t("verify", TEXT, converted, "--from", "embed").code == 0
    assert k2t("verify", converted).code == 0


def test_verify_refuses_another_cut(converted: Path) -> None:
    done = k2t("verify", TEXT, converted, "--from", "embed", "--to", "read")
    words = "was converted with --from embed; leave these options out, or convert again"
    assert_refused(done, 2, converted, words)
    done = k2t("verify", TEXT, converted, "--against", "keras")
    assert done.code == 2
    assert "a part of a model is not compared with Keras; use --against reference" in done.err
    done = k2t("verify", converted, "--from", "embed")
    assert "OUT alone can be compared with its golden vectors only" in done.err


def test_verify_refuses_a_cut_of_what_is_whole(tmp_path: Path) -> None:
    model = FIXTURES / "keras-2.2.4" / "stacked.h5"
    keras2torch_birnn.save(keras2torch_birnn.convert(model), tmp_path / "m.pt")
    first = read_model(model).graph.layers[1].name
    with pytest.raises(UsageError, match="was converted without --from and --to"):
        keras2torch_birnn.verify(model, tmp_path / "m.pt", from_layer=first)


def test_a_vocabulary_of_ours_is_replaced_with_force_only(tmp_path: Path) -> None:
    out = tmp_path / "m.pt"
    assert k2t("convert", TEXT, out, "--from", "embed").code == 0
    out.unlink()
    before = contents(tmp_path)
    done = k2t("convert", TEXT, out, "--from", "embed")
    assert_refused(done, 5, tmp_path / "m.pt.vocabulary.json", "use --force to replace it")
    assert contents(tmp_path) == before
    assert k2t("convert", TEXT, out, "--from", "embed", "--force").code == 0


@pytest.mark.parametrize(("name", "vocabulary_goes"), [("m.pt", True), ("m.safetensors", False)])
def test_a_vocabulary_goes_with_the_model_that_it_was_for(
    name: str, vocabulary_goes: bool, tmp_path: Path
) -> None:
    assert k2t("convert", TEXT, tmp_path / "m.pt", "--from", "embed").code == 0
    assert k2t("convert", OCR, tmp_path / name, "--to", "dense2", "--force").code == 0
    assert (tmp_path / "m.pt.vocabulary.json").exists() is not vocabulary_goes


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no OUT be written."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("keras2torch_birnn.saving.checkpoint.torch.save", fail)


def test_an_old_pair_stays_where_the_new_out_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the new vocabulary beside the old model, and not the old model alone."""
    out = tmp_path / "m.pt"
    assert k2t("convert", TEXT, out, "--from", "embed").code == 0
    beside = tmp_path / "m.pt.vocabulary.json"
    beside.write_text(beside.read_text("utf-8").replace("vectorize", "earlier"), encoding="utf-8")
    before = contents(tmp_path)
    fill_the_disk(monkeypatch)
    for again in ((TEXT, out, "--from", "embed"), (OCR, out, "--to", "dense2")):
        assert_refused(k2t("convert", *again, "--force"), 5, out, "No space left on device")
        assert contents(tmp_path) == before
    monkeypatch.undo()
    assert k2t("convert", TEXT, out, "--from", "embed", "--force").code == 0
    assert "earlier" not in beside.read_text("utf-8")


FORMAT = '"format": "keras2torch_birnn.vocabulary/1"'


@pytest.mark.parametrize(
    "text",
    [
        f'{{"note": "mine", {FORMAT}}}',
        f"{{{FORMAT}}}",
        '{"mine": 1}',
    ],
)
def test_a_file_that_is_not_ours_is_not_replaced(text: str, tmp_path: Path) -> None:
    (tmp_path / "m.pt.vocabulary.json").write_text(text, encoding="utf-8")
    before = contents(tmp_path)
    done = k2t("convert", TEXT, tmp_path / "m.pt", "--from", "embed", "--force")
    assert_refused(done, 5, tmp_path / "m.pt.vocabulary.json", "and k2t did not write it")
    assert contents(tmp_path) == before


def test_no_vocabulary_but_ours_is_removed(tmp_path: Path) -> None:
    out, beside = tmp_path / "m.pt", tmp_path / "m.pt.vocabulary.json"
    linked, foreign = tmp_path / "elsewhere.json", '{"format": "mine"}'
    beside.write_text(foreign, encoding="utf-8")
    assert k2t("convert", OCR, out, "--to", "dense2", "--force").code == 0
    assert beside.read_text("utf-8") == foreign
    beside.unlink()
    assert k2t("convert", TEXT, out, "--from", "embed", "--force").code == 0
    beside.rename(linked)
    beside.symlink_to(linked)
    assert k2t("convert", OCR, out, "--to", "dense2", "--force").code == 0
    assert beside.is_symlink() and linked.exists()


def test_inspect_shows_a_part(tmp_path: Path) -> None:
    whole, part = inspect(OCR), inspect(OCR, to_layer="dense2")
    assert [problem.place for problem in whole.problems] == ["ctc_loss"]
    assert part.problems == ()
    assert part.rows[-1].path == "dense2"
    assert k2t("inspect", OCR, "--to", "dense2").code == 0
    assert_refused(k2t("inspect", OCR), 4, OCR, "layer class CTCLayer is not supported")


def test_the_architecture_of_the_prediction_reads_the_training_file() -> None:
    inputs, (wanted,) = recorded("keras-3.15.1/captcha.h5")
    config = CUT / "keras-3.15.1" / "captcha.prediction.json"
    model = keras2torch_birnn.convert(CUT / "keras-3.15.1" / "captcha.h5", config=config)
    with torch.no_grad():
        got = model(*map(torch.from_numpy, inputs))
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-5)


# ---- weights ------------------------------------------------------------------------------------


def weights_of(file: h5py.File) -> Any:
    return file["model_weights"]


def test_weights_of_the_part_are_still_counted(tmp_path: Path) -> None:
    def lose(file: h5py.File) -> None:
        group = weights_of(file)["head"]
        group.attrs["weight_names"] = group.attrs["weight_names"][:1]

    broken = changed_h5(OWN, tmp_path / "m.h5", lose)
    assert_refused(
        k2t("convert", broken, tmp_path / "m.pt", "--from", "read"),
        3,
        broken,
        "1 weights where the configuration implies 2",
    )


def test_a_known_layer_that_was_cut_off_must_have_its_weights(tmp_path: Path) -> None:
    def lose(file: h5py.File) -> None:
        weights_of(file)["embed"].attrs["weight_names"] = np.array([], dtype="S1")

    broken = changed_h5(OWN, tmp_path / "m.h5", lose)
    done = k2t("convert", broken, tmp_path / "m.pt", "--from", "read")
    assert_refused(done, 3, broken, "no weights for layer embed")


def test_weights_of_a_layer_that_is_nowhere_are_refused(tmp_path: Path) -> None:
    def add(file: h5py.File) -> None:
        group = weights_of(file)
        group.attrs["layer_names"] = [*group.attrs["layer_names"], "more"]
        extra = group.create_group("more")
        extra["kernel:0"] = np.ones((2, 3), "f4")
        extra.attrs["weight_names"] = ["kernel:0"]

    broken = changed_h5(OWN, tmp_path / "m.h5", add)
    done = k2t("convert", broken, tmp_path / "m.pt", "--from", "read")
    assert_refused(done, 3, broken, "weights for layer more, which needs none")


def test_the_group_of_an_unknown_layer_is_skipped_whole(tmp_path: Path) -> None:
    def change(file: h5py.File) -> None:
        group = weights_of(file)["places"]
        group["strange"] = np.ones((2, 3), "i8")
        group.attrs["weight_names"] = [*group.attrs["weight_names"], "strange"]

    changed = changed_h5(OWN, tmp_path / "m.h5", change)
    wanted = read_model(OWN, cut=Cut(("read",)))
    found = read_model(changed, cut=Cut(("read",)))
    for one, other in zip(wanted.root.walk(), found.root.walk(), strict=True):
        assert {k: v.tolist() for k, v in one.weights.items()} == {
            k: v.tolist() for k, v in other.weights.items()
        }
