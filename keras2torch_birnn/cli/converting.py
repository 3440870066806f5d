"""Convert one file for ``k2t convert``, and describe what was done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keras2torch_birnn.cli.console import count_words
from keras2torch_birnn.cli.input_files import refuse_missing
from keras2torch_birnn.plugins import load_plugins
from keras2torch_birnn.spec import NO_CUT, Cut


@dataclass(frozen=True)
class Options:
    """Options of a conversion, the same for all files of one command."""

    config: Path | None = None
    plugins: tuple[str, ...] = ()
    dtype: str | None = None
    cut: Cut = NO_CUT
    force: bool = False
    verify: bool = False


@dataclass(frozen=True)
class Done:
    """A written OUT, as data.

    layers, parameters: as Keras counts them. verified: the report of ``verify``, if it was asked.
    """

    out: str
    keras_version: str
    layers: int
    parameters: int | None
    notes: tuple[str, ...]
    vocabulary: str | None
    verified: dict[str, Any] | None = None

    @property
    def is_equal(self) -> bool:
        """True unless ``verify`` found a difference."""
        return self.verified is None or bool(self.verified["ok"])

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        facts = {"ok": self.is_equal, "exit": 0 if self.is_equal else 1, **self.__dict__}
        return facts if self.verified else {k: v for k, v in facts.items() if k != "verified"}


def convert_file(model: Path, out: Path, options: Options) -> Done:
    """Convert one file, and verify the result if that was asked.

    Raises:
        K2TError: as ``k2t.convert``; OutputError: OUT cannot be written.
    """
    from keras2torch_birnn.saving.atomic import check_output
    from keras2torch_birnn.saving.checkpoint_kind import CHECKPOINT

    sources = (model, options.config, *map(Path, options.plugins))
    check_output(out, CHECKPOINT, sources=sources)
    refuse_missing(model)
    load_plugins(options.plugins)
    from keras2torch_birnn.conversion import convert_to_file
    from keras2torch_birnn.inspection import count_parameters, layers_of

    spec, vocabularies = convert_to_file(
        model,
        out,
        config=options.config,
        dtype=options.dtype,
        cut=options.cut,
        overwrite=options.force,
    )
    return Done(
        out=str(out),
        keras_version=spec.generation.version,
        layers=len(layers_of(spec)),
        parameters=count_parameters(spec.root),
        notes=spec.notes,
        vocabulary=None if vocabularies is None else str(vocabularies),
        verified=verify_file(model, out, options) if options.verify else None,
    )


def verify_file(model: Path, out: Path, options: Options) -> dict[str, Any]:
    """Verify one file against its model; return the report as data."""
    from keras2torch_birnn.verification import verify

    return verify(model, out, config=options.config, plugins=options.plugins).to_dict()


def describe(done: Done, shown: str) -> tuple[str, ...]:
    """Write the lines of a converted file; ``shown``: OUT as the user named it."""
    verdict = "" if done.verified is None else describe_verdict(done.verified)
    layers = count_words(done.layers, "layer")
    parameters = "unknown" if done.parameters is None else f"{done.parameters:,}"
    line = f"{shown}: {layers}, {parameters} parameters{verdict}"
    if done.vocabulary is None:
        return (line,)
    return line, f"{done.vocabulary}: vocabulary of what was cut off"


def describe_verdict(verified: dict[str, Any]) -> str:
    """Write the end of the line of a file that was verified."""
    return ", verify: OK" if verified["ok"] else ", verify: NOT EQUAL"
