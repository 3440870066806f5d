"""The comparisons with Keras notice it when a rule of an optimizer, schedule or loss is broken."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from compiled_fixtures import ROWS, recorded, unpack
from mutations.patches import Patch, edit, wrap
from recorded_rules import CASES, largest_difference, skip_other_norms

import keras2torch_birnn as k2t
from keras2torch_birnn.trainers.losses import build_loss
from keras2torch_birnn.trainers.losses.formulas import LOSSES
from keras2torch_birnn.trainers.rules import RULES

K3, NEW, TORCH = "keras-3.15.1", "tf.keras-2.15.0", "keras-3.15.1-torch"
OLD, OLDER = "tf.keras-2.15.0-legacy", "tf.keras-2.4.0"
EXACT = 1e-12


class Bug(NamedTuple):
    """An expression of a function that is replaced; ``label``, ``case``: what must notice it."""

    label: str
    case: str
    place: str
    old: str
    new: str

    def __str__(self) -> str:
        """Name the case and the expression."""
        return f"{self.case}-{self.old}"


SGD, RMSPROP, ADAM = "rules.sgd:SGD.apply", "rules.adagrad:RMSprop.apply", "rules.adam:Adam.apply"
ADAMAX, NADAM, FTRL = (
    "rules.adam:Adamax.apply",
    "rules.adam:Nadam.apply",
    "rules.ftrl:Ftrl.apply",
)
MUON, ADAFACTOR = "rules.muon:Muon.apply", "rules.adafactor:Adafactor.apply"
ADADELTA, LION = "rules.adagrad:Adadelta.apply", "rules.sgd:Lion.apply"
OF_OPTIMIZERS = (
    Bug(OLD, "sgd", SGD, "alpha=-now.rate)\n        return", "alpha=-1.0)\n        return"),
    Bug(K3, "momentum", SGD, "now.cast(self.momentum)", "self.momentum"),
    Bug(NEW, "momentum", SGD, "velocity, grads, alpha=-now.rate", "velocity, grads, alpha=-1.0"),
    Bug(OLD, "nesterov", SGD, "if self.nesterov:", "if False:"),
    Bug(K3, "lion", LION, "alpha=float(1 - b1)", "alpha=float(b1)"),
    Bug(NEW, "lion", LION, "grads, alpha=float(1 - b2)", "grads, alpha=float(b2)"),
    Bug(K3, "rmsprop", RMSPROP, "inside=not older or bool(self.momentum)", "inside=False"),
    Bug(OLD, "rmsprop", RMSPROP, "inside=not older or bool(self.momentum)", "inside=True"),
    Bug(OLD, "rms_m", RMSPROP, "inside=not older or bool(self.momentum)", "inside=False"),
    Bug(K3, "rms_centered", RMSPROP, "if self.centered:", "if False:"),
    Bug(NEW, "rms_m", RMSPROP, "steps, grads, root, now.rate", "steps, grads, root, 1.0"),
    Bug(OLD, "adam", ADAM, "self.epsilon", "self.epsilon * float(rise)"),
    Bug(K3, "adam", ADAM, "now.cast(self.beta_2)", "now.exact(self.beta_2)"),
    Bug(K3, "adam", "rules.rule:Now.weight", "return 1 - beta", "return 1 - single(beta)"),
    Bug(OLD, "adam", "rules.rule:Now.weight", "self.cast(beta)", "self.exact(beta)"),
    Bug(NEW, "amsgrad", ADAM, "if self.amsgrad:", "if False:"),
    Bug(K3, "adamw", "optimizer:KerasOptimizer._update", "1 - rate * float", "1 - float"),
    Bug(OLD, "adamax", ADAMAX, "now.cast(self.beta_2)", "self.beta_2"),
    Bug(K3, "adamax", ADAMAX, "now.exact(now.rate) / below", "now.exact(now.rate)"),
    Bug(K3, "nadam", "rules.adam:Nadam._products", "0.96**now.step", "0.97**now.step"),
    Bug(NEW, "nadam", NADAM, "self._factor(now.step + 1, now)", "self._factor(now.step, now)"),
    Bug(OLD, "nadam", "rules.adam:Nadam._factor", "now.exact(0.5)", "now.exact(0.4)"),
    Bug(OLD, "adagrad", "rules.adagrad:Adagrad.apply", '("keras3", "tf.keras")', '("legacy",)'),
    Bug(K3, "adagrad", "rules.adagrad:Adagrad.start", "self.first", "0.0"),
    Bug(
        K3, "lamb", "rules.adam:Lamb.apply", "length / of_update).sqrt()", "1.0 / of_update).sqrt()"
    ),
    Bug(K3, "muon", MUON, "if self.nesterov", "if False"),
    Bug(K3, "muon_plain", MUON, "if self.nesterov", "if True"),
    Bug(K3, "muon_excluded", MUON, "now.exact(self.ratio)", "now.exact(1.0)"),
    Bug(TORCH, "muon", MUON, "root if now.on_tensorflow else single(root)", "root"),
    Bug(K3, "muon_excluded", "rules.muon:Muon.weight_decay", "self.adam_decay if", "common if"),
    Bug(
        K3, "muon_excluded", "rules.muon:Muon._excludes", "one.search(path)", "one.pattern in path"
    ),
    Bug(K3, "muon_all", "rules.muon:Muon._excludes", "self.excludes_embeddings", "True"),
    Bug(K3, "muon", "rules.muon:Muon._orthogonalize", "range(self.iterations)", "range(4)"),
    Bug(TORCH, "muon", "rules.rule:Now.rounded", "self.on_tensorflow", "True"),
    Bug(K3, "adafactor", ADAFACTOR, "np.minimum(now.exact(now.rate), ", "max(0.0, "),
    Bug(K3, "adafactor", ADAFACTOR, "_mean(squares, now, -2)", "_mean(squares, now, -2) * 2"),
    Bug(K3, "adafactor_options", ADAFACTOR, "squares + self.epsilon", "squares + 1e-30"),
    Bug(K3, "adafactor_options", ADAFACTOR, ".clamp_min(smallest)", ""),
    Bug(K3, "adafactor_options", ADAFACTOR, "size / self.limit", "size"),
    Bug(K3, "adafactor_options", ADAFACTOR, "now.cast(self.smallest)", "self.smallest"),
    Bug(TORCH, "adafactor", "rules.rule:Now.rounded", "self.on_tensorflow", "True"),
    Bug(OLD, "adadelta", ADADELTA, "now.cast(self.rho)", "self.rho"),
    Bug(K3, "adadelta", ADADELTA, "foreach.mul_(steps, rho)", "None"),
    Bug(OLD, "ftrl", FTRL, "2 * cast(self.shrinkage)", "cast(self.shrinkage)"),
    Bug(NEW, "ftrl", FTRL, "cast(self.beta) / (2 * rate)", "cast(self.beta) / rate"),
    Bug(K3, "ftrl", FTRL, "cast(self.l1)", "0.0"),
    Bug(OLDER, "ftrl_decay", FTRL, "by = rate if scaled else 1.0", "by = 1.0"),
    Bug(OLD, "ftrl_decay", FTRL, "by = rate if scaled else 1.0", "by = rate"),
    Bug(K3, "clipnorm", "clipping:_by_variable", "limit / norm", "1.0 / norm"),
    Bug(TORCH, "clipnorm", "clipping:Gradients.rounded", "norm.float()", "norm"),
    Bug(TORCH, "adam", "rules.rule:Now.cast", "self.on_tensorflow", "True"),
    Bug(TORCH, "s_cosine", "settings:Settings.rate_at", "self.on_tensorflow", "True"),
    Bug(K3, "clipvalue", "clipping:_by_value", "grad.clamp(-limit, limit)", "grad"),
    Bug(OLD, "global", "clipping:_by_all", "grads.norms()", "grads.norms()[:1]"),
    Bug(NEW, "ema3", "optimizer:KerasOptimizer._average", "(iterations + 1) % every", "iterations"),
    Bug(K3, "accum", "optimizer:_Batch.gather", "float(steps)", "1.0"),
    Bug(OLD, "decay", "settings:Settings.rate_at", "exact(iterations)", "exact(iterations + 1)"),
    Bug(K3, "s_exponential", "schedules:_falling", "/ steps", "// steps"),
    Bug(K3, "s_stairs", "schedules:_falling", "np.floor(p)", "np.ceil(p)"),
    Bug(K3, "s_piecewise", "schedules:_piecewise", "iteration > one", "iteration >= one"),
    Bug(K3, "s_cosine", "schedules:_cosine", "kind(0.5) *", "kind(0.4) *"),
    Bug(K3, "s_warmup", "schedules:_cosine", "if step < warmup:", "if step < 0:"),
    Bug(K3, "s_poly", "schedules:_polynomial", "** power", ""),
    Bug(K3, "s_cycle", "schedules:_polynomial", "if cycle:", "if False:"),
    Bug(K3, "s_inverse", "schedules:_falling", "rate * p", "(rate + 1) * p"),
    Bug(K3, "s_restarts", "schedules:_cosine_restarts", "* lower**restarts", "* lower"),
    Bug(K3, "s_restarts1", "schedules:_cosine_restarts", "if longer == 1:", "if False:"),
)


@pytest.mark.parametrize("bug", OF_OPTIMIZERS, ids=str)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a bug may divide by zero
def test_a_broken_rule_of_an_optimizer_is_noticed(
    bug: Bug, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_other_norms(bug.label, bug.case)
    assert largest_difference(bug.label, bug.case, "float64") <= EXACT
    edit(f"trainers.{bug.place}", bug.old, bug.new)(monkeypatch)
    assert not largest_difference(bug.label, bug.case, "float64") <= EXACT


def test_every_rule_is_broken_for_every_family() -> None:
    broken = {(bug.label, bug.case) for bug in OF_OPTIMIZERS}
    assert broken <= set(CASES)
    classes = {bug.place.partition(":")[2].partition(".")[0].lower() for bug in OF_OPTIMIZERS}
    assert {kind.__name__.lower() for kind in RULES.values()} <= classes


# ---- losses -------------------------------------------------------------------------------------

# Files whose models have an output for each of several losses.
A, B, C = (f"tf.keras-2.10.0/losses_{letter}.h5" for letter in "abc")
CLIPPED = "keras-3.5.0/clipped.keras"
RAISED = ("keras-3.5.0/clipped_binary.keras", "tf.keras-2.10.0/clipped_binary.h5")


def alone(loss: str) -> str:
    """Return the file of Keras 3 whose model has this loss."""
    return f"keras-3.15.1/loss_{loss}.keras"


FOCAL, FOCALS, POWER = map(alone, ("focal_binary", "focal_categorical", "generalized"))
# A loss, the file that must notice the bug, and its bug: another formula, or in a function of
# ``formulas`` another expression for one.
OF_LOSSES: tuple[tuple[Any, ...], ...] = (
    ("mean_squared_error", A, lambda y, p: (p - y).square().sum(-1)),
    ("mean_absolute_error", A, lambda y, p: (p - y).mean(-1).abs()),
    ("mean_absolute_percentage_error", A, lambda y, p: 100 * ((y - p) / p).abs().mean(-1)),
    ("mean_squared_logarithmic_error", A, "_mean_log_squares", "+ 1.0", "+ EPSILON"),
    ("huber", C, "_huber", "0.5 * delta**2", "delta**2"),
    ("huber", C, "_huber", "if style.single", "if not style.single"),
    ("log_cosh", B, "_log_cosh", "_LOG_2", "math.log(2.0)"),
    ("kl_divergence", B, "_divergence", "y * (y / p)", "y * (p / y)"),
    ("poisson", B, lambda y, p: (p - y * p.log()).mean(-1)),
    ("hinge", B, "_hinge", "_signs(y, style)", "(2.0 * y - 1.0)"),
    ("squared_hinge", B, "_squared_hinge", "_signs(y, style)", "y"),
    ("categorical_hinge", B, "_categorical_hinge", "amax(dim=-1)", "sum(dim=-1)"),
    ("cosine_similarity", B, "_cosine", "-(y * p)", "1 - (y * p)"),
    ("categorical_crossentropy", A, "_categorical", "_log(p)", "_clip(p).log().exp()"),
    ("categorical_crossentropy", C, "_smooth", "amount / classes", "amount / 2"),
    ("categorical_crossentropy", C, "_categorical", "functional.log_softmax(p, dim=axis)", "p"),
    ("sparse_categorical_crossentropy", A, "_sparse", "= _log(p)", "= p - 1"),
    ("sparse_categorical_crossentropy", C, "_sparse", "functional.log_softmax(p, dim=axis)", "p"),
    ("sparse_categorical_crossentropy", CLIPPED, "_sparse", "_clip(p).log()", "p.log()"),
    ("binary_crossentropy", A, "_each_binary", "(y * _log(p)", "(_log(p)"),
    ("binary_crossentropy", C, "_each_binary", "_with_logits(p, y", "_with_logits(y, p"),
    ("binary_crossentropy", RAISED[0], "_each_binary", 'style.binary == "raised"', "True"),
    ("binary_crossentropy", RAISED[1], "_each_binary", 'style.binary == "raised"', "False"),
    ("binary_focal_crossentropy", FOCAL, "_binary_focal", 'options["gamma"]', "2.0"),
    ("categorical_focal_crossentropy", FOCALS, "_categorical_focal", 'options["alpha"]', "0.25"),
    ("dice", alone("dice"), "_dice", "+ EPSILON", ""),
    ("tversky", alone("tversky"), "_tversky", 'wrong * options["beta"]', "wrong"),
    ("categorical_generalized_cross_entropy", POWER, "_generalized", '/ options["q"]', "/ 0.5"),
)


def patch_of(loss: str, *bug: Any) -> Patch:
    """Return the patch of a row."""
    if len(bug) == 3:
        place, old, new = bug
        return edit(f"trainers.losses.formulas:{place}", old, new)
    (formula,) = bug
    return wrap(LOSSES, loss, lambda one: one._replace(formula=lambda y, p, *_: formula(y, p)))


@cache
def first_batch(name: str) -> tuple[k2t.Training, Any, Any, float]:
    """Return the training of a file, outputs and targets of its first batch, and Keras' loss."""
    row = ROWS[name]
    data = recorded(row)
    with tempfile.TemporaryDirectory() as folder:
        state = k2t.training(unpack(row["file"], Path(folder)), dtype=row["floats"])
    with torch.no_grad():
        outputs, targets = state.model(*data.inputs(0)), data.targets(0)
    return state, outputs, targets if len(targets) > 1 else targets[0], float(data.losses[0])


def relative_difference(name: str) -> float:
    state, outputs, targets, wanted = first_batch(name)
    found = build_loss(state.compiled, state.spec)(outputs, targets).item()
    return abs(found - wanted) / abs(wanted)


@pytest.mark.parametrize("row", OF_LOSSES, ids=[f"{loss}-{file}" for loss, file, *_ in OF_LOSSES])
def test_a_broken_loss_is_noticed(row: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    loss, name, *bug = row
    assert relative_difference(name) <= EXACT
    patch_of(loss, *bug)(monkeypatch)
    assert not relative_difference(name) <= EXACT


def test_every_loss_is_broken() -> None:
    assert {loss for loss, *_ in OF_LOSSES} == set(LOSSES)
