"""A model is changed after its calls were prepared: it computes what its layers compute then."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from types import CellType, FunctionType
from typing import Any

import fixture_files
import pytest
import torch
from chained_models import one_by_one, without_programs
from kernel_layers import native
from sampling import rest_thorough
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import keras2torch_birnn as k2t
from keras2torch_birnn.layers import merging
from keras2torch_birnn.readers import read_model
from keras2torch_birnn.reference.sample_inputs import draw_inputs
from keras2torch_birnn.rnn import change_signals, masked_run, modules
from keras2torch_birnn.rnn.modules import RecurrentModule

pytestmark = [native, pytest.mark.usefixtures("native_where_it_pays")]

FIXTURES = fixture_files.FIXTURES / "keras-3.15.1"
MODELS = {
    "dense layers and BiLSTM": "mask_td_dense.h5",
    "masked embedding, BiLSTM and GRU": "mask_stack_bi_dense.h5",
    "convolutions": "arch_sound_events.keras",
    "attention and merges": "arch_reader.h5",
    "GRUs": "arch_last_step.h5",
}


@cache
def base_of(name: str) -> tuple[Any, tuple[Tensor, ...]]:
    file = FIXTURES / MODELS[name]
    inputs = [torch.from_numpy(x)[:2] for x in draw_inputs(read_model(str(file)), steps=7, seed=1)]
    return k2t.convert(file), tuple(inputs)


class Scene:
    """A model and its inputs; what is patched is undone at the end."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        base, self.inputs = base_of(name)
        self.model: Any = deepcopy(base)
        self.stack, self.patch = stack, stack.enter_context(pytest.MonkeyPatch.context())
        torch.manual_seed(0)

    def call(self) -> Any:
        """Return the outputs, or the error."""
        try:
            with torch.no_grad():
                result = self.model(*self.inputs)
        except Exception as error:
            return type(error)
        return [result] if isinstance(result, Tensor) else list(result)

    @property
    def leaf(self) -> Any:
        """The last layer with a matrix, or the recurrent one."""
        found = [m for m in self.model.modules() if isinstance(getattr(m, "weight", None), Tensor)]
        matrices = [m for m in found if m.weight.dim() > 1]
        return matrices[-1] if matrices else self.recurrent

    @property
    def weight(self) -> str:
        return next(iter(self.leaf._parameters))

    @property
    def recurrent(self) -> Any:
        return next(m for m in self.model.modules() if isinstance(m, RecurrentModule))

    @property
    def place(self) -> tuple[Any, str]:
        """The module that holds the leaf, and its name there."""
        leaf = self.leaf
        return next(
            (m, name)
            for m in self.model.modules()
            for name, child in m.named_children()
            if child is leaf
        )


def halved(module: nn.Module) -> dict[str, Any]:
    return {n: None if p is None else nn.Parameter(p * 0.5) for n, p in module._parameters.items()}


def halved_copy(module: nn.Module) -> nn.Module:
    changed: Any = deepcopy(module)
    changed._parameters = halved(changed)
    return changed


def raised(module: nn.Module) -> dict[str, Any]:
    return {n: b + 0.25 for n, b in module._buffers.items() if b.is_floating_point()}


def tripled(function: Callable[..., Any]) -> Callable[..., Any]:
    def found(*args: Any, **kwargs: Any) -> Any:
        return times(3.0, function(*args, **kwargs))

    return found


def times(factor: float, result: Any) -> Any:
    if isinstance(result, Tensor):
        return result * factor if result.is_floating_point() else result
    return tuple(times(factor, x) for x in result) if isinstance(result, tuple) else result


ATTACKS: dict[str, Callable[[Scene], Any]] = {}


def attack(function: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
    ATTACKS[function.__name__.replace("_", " ")] = function
    return function


def attack_each(*parts: str) -> Callable[[Callable[[Scene, Any], Any]], None]:
    """Try the same change of each of these parts of a scene."""

    def add(function: Callable[[Scene, Any], Any]) -> None:
        for part in parts:
            title = f"{function.__name__.replace('_', ' ')}: {part}"
            ATTACKS[title] = lambda s, part=part: function(s, getattr(s, part))

    return add


# ---- objects ------------------------------------------------------------------------------------


@attack_each("leaf", "recurrent")
def another_dictionary_of_parameters(s: Scene, module: Any) -> None:
    module._parameters = halved(module)


@attack
def parameters_filled_again(s: Scene) -> None:
    new = halved(s.leaf)
    s.leaf._parameters.clear()
    s.leaf._parameters.update(new)


@attack
def recurrent_parameters_filled_again(s: Scene) -> None:
    s.recurrent._parameters.update(halved(s.recurrent))


@attack
def another_dictionary_of_buffers(s: Scene) -> None:
    for module in s.model.modules():
        module._buffers = raised(module)


@attack
def buffers_filled_again(s: Scene) -> None:
    for module in s.model.modules():
        module._buffers.update(raised(module))


@attack
def another_dictionary_of_modules(s: Scene) -> None:
    holder, name = s.place
    holder._modules = {**holder._modules, name: halved_copy(s.leaf)}


@attack
def modules_filled_again(s: Scene) -> None:
    holder, name = s.place
    holder._modules.update({name: halved_copy(s.leaf)})


@attack_each("leaf", "recurrent")
def another_dict(s: Scene, module: Any) -> None:
    module.__dict__ = {**vars(module), "_parameters": halved(module)}


@attack
def dict_updated(s: Scene) -> None:
    vars(s.leaf).update(_parameters=halved(s.leaf))


@attack
def equal_dict_then_changed(s: Scene) -> None:
    s.leaf.__dict__ = dict(vars(s.leaf))
    s.leaf._parameters = dict(s.leaf._parameters)
    s.call()
    s.leaf._parameters.update(halved(s.leaf))


@attack_each("leaf", "recurrent")
def state_set(s: Scene, module: Any) -> None:
    module.__setstate__({**vars(module), "_parameters": halved(module)})


@attack
def a_parameter_set(s: Scene) -> None:
    setattr(s.leaf, s.weight, nn.Parameter(getattr(s.leaf, s.weight) * 0.5))


@attack
def a_parameter_of_another_name(s: Scene) -> None:
    s.leaf._parameters["other"] = s.leaf._parameters.popitem()[1]


@attack
def equal_parameters_then_changed(s: Scene) -> None:
    for module in s.model.modules():
        for name, p in list(module._parameters.items()):
            if p is not None:
                setattr(module, name, nn.Parameter(p.detach().clone()))
    s.call()
    for p in s.model.parameters():
        p.data.add_(0.25)


@attack
def one_bias_replaced_by_an_equal_one_then_changed(s: Scene) -> None:
    name, p = list(s.leaf._parameters.items())[-1]
    s.leaf._parameters = {**s.leaf._parameters, name: nn.Parameter(p.detach().clone())}
    s.call()
    s.leaf._parameters[name].data.add_(0.25)


@attack
def no_bias(s: Scene) -> None:
    s.leaf.bias = None


@attack
def a_layer_in_the_dict(s: Scene) -> None:
    holder, name = s.place
    vars(holder)[name] = nn.Identity()


@attack
def another_layer(s: Scene) -> None:
    holder, name = s.place
    setattr(holder, name, nn.Identity())


@attack
def another_recurrent_layer(s: Scene) -> None:
    name = next(
        n for n, m in s.model.named_children() if any(c is s.recurrent for c in m.modules())
    )
    other = deepcopy(getattr(s.model, name))
    for p in other.parameters():
        p.data.mul_(0.5)
    s.model.add_module(name, other)


@attack
def a_layer_removed(s: Scene) -> None:
    holder, name = s.place
    delattr(holder, name)


@attack_each("leaf", "recurrent")
def another_class(s: Scene, module: Any) -> None:
    kind = type(module)
    module.__class__ = type("Other", (kind,), {"forward": tripled(kind.forward)})


@attack_each("leaf", "recurrent", "model")
def a_forward_of_its_own(s: Scene, module: Any) -> None:
    module.forward = tripled(module.forward)


@attack
def a_call_of_its_own(s: Scene) -> None:
    s.leaf._call_impl = tripled(s.leaf._call_impl)


@attack_each("leaf", "recurrent")
def a_compiled_call(s: Scene, module: Any) -> None:
    vars(module)["_compiled_call_impl"] = tripled(module._call_impl)


@attack_each("leaf", "model")
def a_note_and_no_note(s: Scene, module: Any) -> None:
    module.note = "x"
    s.call()
    del module.note


@attack
def an_option_removed(s: Scene) -> None:
    options = [n for n in vars(s.leaf) if not n.startswith("_") and n != "training"]
    for name in options:
        del vars(s.leaf)[name]


# ---- hooks and modes of layers ------------------------------------------------------------------


def triple_output(module: Any, given: Any, result: Any) -> Any:
    return times(3.0, result)


@attack_each("leaf", "recurrent")
def a_hook(s: Scene, module: Any) -> None:
    module.register_forward_hook(triple_output)


@attack
def a_hook_before(s: Scene) -> None:
    s.recurrent.register_forward_pre_hook(lambda module, given: times(0.5, given))


@attack
def another_dictionary_of_hooks(s: Scene) -> None:
    s.leaf._forward_hooks = OrderedDict({7: triple_output})


@attack
def hooks_filled(s: Scene) -> None:
    s.leaf._forward_hooks[7] = triple_output


@attack
def equal_hooks_then_filled(s: Scene) -> None:
    s.leaf._forward_hooks = OrderedDict()
    s.call()
    s.leaf._forward_hooks[7] = triple_output


@attack
def a_hook_of_all_layers(s: Scene) -> None:
    handle = nn.modules.module.register_module_forward_hook(triple_output)
    s.stack.callback(handle.remove)


@attack
def a_hook_before_all_layers(s: Scene) -> None:
    handle = nn.modules.module.register_module_forward_pre_hook(lambda m, given: times(0.5, given))
    s.stack.callback(handle.remove)


@attack
def a_hook_for_gradients(s: Scene) -> None:
    s.leaf.register_full_backward_hook(lambda *_: None)


@attack
def layers_that_train(s: Scene) -> None:
    for module in s.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()


# ---- weights ------------------------------------------------------------------------------------


@attack
def values(s: Scene) -> None:
    for p in s.model.parameters():
        p.data.mul_(0.5)


@attack
def memory(s: Scene) -> None:
    for p in s.model.parameters():
        p.data = p.data * 0.5


@attack
def memory_of_another_tensor(s: Scene) -> None:
    with torch.no_grad():
        getattr(s.leaf, s.weight).set_((getattr(s.leaf, s.weight) * 0.5).detach())


def give_data(s: Scene, change: Callable[[Tensor], Tensor]) -> None:
    weight = getattr(s.leaf, s.weight)
    weight.data = change(weight.data)


ATTACKS |= {
    "a turned weight": partial(give_data, change=lambda x: x.transpose(0, 1)),
    "a weight of other sizes": partial(give_data, change=Tensor.flatten),
    "a part of a weight": partial(give_data, change=lambda x: x[:1]),
    "a negated weight": partial(give_data, change=torch._neg_view),
}


@attack
def an_embedding_of_other_sizes(s: Scene) -> None:
    for module in s.model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.data = module.weight.data.view(1, -1)


@attack
def a_weight_of_integers(s: Scene) -> None:
    weight = getattr(s.leaf, s.weight).requires_grad_(False)
    weight.data = weight.data.view(torch.int32)


@attack
def a_weight_of_another_class(s: Scene) -> None:
    class Tripled(nn.Parameter):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            with torch._C.DisableTorchFunctionSubclass():
                return times(3.0, func(*args, **(kwargs or {})))

    getattr(s.leaf, s.weight).__class__ = Tripled


@attack
def a_swapped_weight(s: Scene) -> None:
    weight = getattr(s.leaf, s.weight)
    torch.utils.swap_tensors(weight, nn.Parameter(weight.detach() * 0.5))


@attack
def a_state_loaded(s: Scene) -> None:
    s.model.load_state_dict({n: v * 0.5 for n, v in s.model.state_dict().items()})


@attack
def a_state_assigned(s: Scene) -> None:
    state = {n: v * 0.5 for n, v in s.model.state_dict().items()}
    s.model.load_state_dict(state, assign=True)


@attack_each("model", "leaf")
def double_numbers(s: Scene, module: Any) -> None:
    module.double()


@attack
def a_parametrization(s: Scene) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    parametrize.register_parametrization(s.leaf, s.weight, Doubled())


@attack
def a_pruned_weight(s: Scene) -> None:
    prune.l1_unstructured(s.leaf, s.weight, amount=0.5)


@attack
def a_pruned_recurrent_weight(s: Scene) -> None:
    prune.l1_unstructured(s.recurrent, "weight_hh_l0", amount=0.5)


@attack
def weights_that_are_frozen(s: Scene) -> None:
    s.model.requires_grad_(False)


@attack
def weights_shared(s: Scene) -> None:
    s.recurrent.weight_hh_l0 = nn.Parameter(s.recurrent.weight_hh_l0.detach() * 0.5)
    s.recurrent.weight_hh_l0.data = s.recurrent.weight_hh_l0.data * 2.5


# ---- options ------------------------------------------------------------------------------------


@attack
def other_activations(s: Scene) -> None:
    for module in s.model.modules():
        for name in ("activation", "function"):
            if name in vars(module):
                setattr(module, name, torch.sigmoid)


@attack
def other_numbers(s: Scene) -> None:
    for module in list(s.model.modules())[1:]:
        for name in ("eps", "negative_slope", "alpha"):
            if name in vars(module):
                setattr(module, name, 0.7)


@attack
def another_plan(s: Scene) -> None:
    plan = s.recurrent.plan
    s.recurrent.plan = replace(plan, return_sequences=not plan.return_sequences)


@attack
def a_plan_changed_in_place(s: Scene) -> None:
    plan = s.recurrent.plan
    object.__setattr__(plan, "return_sequences", not plan.return_sequences)
    s.stack.callback(object.__setattr__, plan, "return_sequences", plan.return_sequences)


@attack
def another_cell(s: Scene) -> None:
    s.recurrent.cell = replace(s.recurrent.cell, activation=torch.sigmoid)
    s.recurrent.native = None


@attack
def another_native_cell(s: Scene) -> None:
    s.recurrent.native = replace(s.recurrent.native, activation=2)


@attack
def a_native_cell_changed_in_place(s: Scene) -> None:
    object.__setattr__(s.recurrent.native, "activation", 2)


@attack
def another_engine(s: Scene) -> None:
    k2t.set_engine(s.model, "loop")


@attack
def another_engine_of_the_process(s: Scene) -> None:
    s.patch.setattr("keras2torch_birnn.rnn.engines.REQUESTED", "torch")


# ---- code ---------------------------------------------------------------------------------------


def patch_code(s: Scene, function: FunctionType) -> None:
    before = function.__code__
    copy = FunctionType(before, function.__globals__, "copy", function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    s.patch.setitem(function.__globals__, "_copied", copy)
    s.patch.setitem(function.__globals__, "_times", times)
    s.stack.callback(setattr, function, "__code__", before)
    function.__code__ = call_copy.__code__


def call_copy(*args: Any, **kwargs: Any) -> Any:
    found = globals()  # of the function that has this code now
    return found["_times"](3.0, found["_copied"](*args, **kwargs))


def patch(s: Scene, holder: Any, name: str) -> None:
    if hasattr(holder, name):
        s.patch.setattr(holder, name, tripled(getattr(holder, name)))


@attack_each("leaf", "recurrent", "model")
def forward_of_a_class(s: Scene, module: Any) -> None:
    patch(s, type(module), "forward")


@attack
def forward_of_all_classes(s: Scene) -> None:
    for kind in {type(m) for m in list(s.model.modules())[1:]}:
        patch(s, kind, "forward")


@attack_each("leaf", "recurrent")
def a_call_of_a_class(s: Scene, module: Any) -> None:
    s.patch.setattr(type(module), "__call__", tripled(nn.Module.__call__), raising=False)


@attack
def attributes_of_all_modules(s: Scene) -> None:
    real = nn.Module.__getattr__

    def get(module: nn.Module, name: str) -> Any:
        return times(0.5, real(module, name))

    s.patch.setattr(nn.Module, "__getattr__", get)


@attack
def a_weight_of_the_class(s: Scene) -> None:
    changed = getattr(s.leaf, s.weight).detach() * 0.5
    s.patch.setattr(type(s.leaf), s.weight, property(lambda _: changed), raising=False)


@attack
def a_weight_of_the_base_class(s: Scene) -> None:
    changed = getattr(s.leaf, s.weight).detach() * 0.5
    s.patch.setattr(nn.Module, s.weight, property(lambda _: changed), raising=False)


@attack
def a_plan_of_the_class(s: Scene) -> None:
    plan = replace(s.recurrent.plan, return_sequences=not s.recurrent.plan.return_sequences)
    s.patch.setattr(type(s.recurrent), "plan", property(lambda _: plan), raising=False)


@attack
def a_layer_of_the_class(s: Scene) -> None:
    name, child = list(s.model.named_children())[-1]
    s.patch.setattr(type(s.model), name, tripled(child), raising=False)


@attack
def a_method_that_describes_recurrent_layers(s: Scene) -> None:
    real = RecurrentModule.rnn_layer

    def described(module: Any) -> Any:
        layer = real(module)
        return layer._replace(parameters=[p if p is None else p * 0.5 for p in layer.parameters])

    s.patch.setattr(RecurrentModule, "rnn_layer", described)


FUNCTIONS = {
    functional: ("linear", "embedding", "relu", "max_pool2d", "batch_norm", "dropout", "softmax"),
    torch: ("softmax", "cat", "relu", "tanh", "sigmoid", "conv2d", "embedding", "logical_or"),
    modules: ("merge_outputs", "run_masked", "run", "recurrent_forward", "check_tensor"),
    masked_run: ("scatter_steps", "gather_steps"),
    merging: ("multiply_valid", "_expanded", "reduce"),
    nn.Module: ("__call__", "_call_impl", "_wrapped_call_impl"),
    nn.Dropout: ("forward",),
    RecurrentModule: ("forward", "run_sequence"),
    Tensor: ("unsqueeze", "split", "reshape", "sum", "mean", "transpose", "flatten"),
}


CODE = (nn.Linear.forward, modules.recurrent_forward, functional.embedding)
ATTACKS |= {
    f"{holder.__name__}.{name}": partial(patch, holder=holder, name=name)
    for holder, names in FUNCTIONS.items()
    for name in names
}
ATTACKS |= {f"code of {one.__qualname__}": partial(patch_code, function=one) for one in CODE}


@attack
def a_table_of_functions(s: Scene) -> None:
    for name in merging.FUNCTIONS:
        s.patch.setitem(merging.FUNCTIONS, name, tripled(merging.FUNCTIONS[name]))


@attack
def a_builtin_of_a_module(s: Scene) -> None:
    s.patch.setattr(merging, "zip", lambda *_, **__: iter(()), raising=False)


@attack
def defaults_of_a_function(s: Scene) -> None:
    before = functional.embedding.__defaults__
    s.stack.callback(setattr, functional.embedding, "__defaults__", before)
    functional.embedding.__defaults__ = (3, 0.001, 2.0, False, False)


@attack
def another_graph(s: Scene) -> None:
    graph: fx.Graph = s.model.graph
    (output,) = [node for node in graph.nodes if node.op == "output"]
    with graph.inserting_before(output):
        output.args = (
            fx.node.map_arg(output.args[0], lambda n: graph.call_function(torch.neg, (n,))),
        )
    s.model.recompile()


# ---- modes --------------------------------------------------------------------------------------


@attack
def lower_precision(s: Scene) -> None:
    s.stack.enter_context(torch.autocast("cpu", torch.bfloat16))


@attack
def another_dtype_of_new_tensors(s: Scene) -> None:
    s.stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(torch.float64)


@attack
def a_mode_that_sees_functions(s: Scene) -> None:
    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            return times(3.0, result) if func in (functional.linear, torch.softmax) else result

    s.stack.enter_context(Mode())


@attack
def a_mode_that_sees_operators(s: Scene) -> None:
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            return times(3.0, result) if func is torch.ops.aten.addmm.default else result

    s.stack.enter_context(Mode())


@attack
def a_device_of_new_tensors(s: Scene) -> None:
    s.stack.enter_context(torch.device("cpu"))


# ---- the tests ----------------------------------------------------------------------------------


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def same(got: Any, wanted: Any) -> bool:
    if isinstance(got, type) or isinstance(wanted, type):
        return got is wanted
    return all(
        a.dtype is b.dtype
        and a.shape == b.shape
        and torch.allclose(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)
        for a, b in zip(got, wanted, strict=True)
    )


def by_layers(name: str, change: Callable[[Scene], Any]) -> tuple[Any, Any]:
    """Return outputs of the layers of a fresh copy, changed, and when patches are undone."""
    with ExitStack() as around:
        around.enter_context(without_programs())
        around.enter_context(one_by_one())
        with ExitStack() as inner:
            scene = Scene(name, inner)
            change(scene)
            changed = scene.call()
        return changed, scene.call()


def changed(name: str, change: Callable[[Scene], Any], way: str) -> tuple[Any, list[Any], Any]:
    """Return outputs by a way of calling: before a change, after it, and undone."""
    with ExitStack() as around:
        if way == "chains":
            around.enter_context(without_programs())
        with ExitStack() as inner:
            scene = Scene(name, inner)
            scene.call()  # prepares
            before = scene.call()
            change(scene)
            got = [scene.call(), scene.call()]
        return before, got, scene.call()


# Each change is tried by the one way in every other model, by the other in the rest.
@pytest.mark.parametrize("name", rest_thorough(MODELS, ["masked embedding, BiLSTM and GRU"]))
def test_every_change_is_noticed(name: str) -> None:
    missed, effects = [], 0
    for number, (title, change) in enumerate(ATTACKS.items(), [*MODELS].index(name)):
        way = ("programs", "chains")[number % 2]
        wanted, after = by_layers(name, change)
        before, got, undone = changed(name, change, way)
        if not all(same(x, wanted) for x in got) or not same(undone, after):
            missed.append(f"{title} ({way})")
        effects += not same(wanted, before)
    assert not missed
    assert effects > 60


# Above, a change is tried by one way alone in the model that ``make test`` runs.
@pytest.mark.parametrize(
    ("way", "title"),
    [
        *(
            ("programs", title)
            for title in (
                *("values", "memory", "a state assigned", "a turned weight", "another plan"),
                *("another layer", "a forward of its own: leaf", "a hook: leaf", "a hook before"),
                *("a parametrization", "a hook of all layers", "lower precision"),
                *("forward of a class: recurrent", "RecurrentModule.run_sequence"),
            )
        ),
        *(("chains", title) for title in ("another recurrent layer", "a hook: recurrent")),
        ("chains", "a forward of its own: recurrent"),
    ],
)
def test_what_was_prepared_does_not_stand_for_what_was_changed(way: str, title: str) -> None:
    model = "masked embedding, BiLSTM and GRU"
    wanted, _ = by_layers(model, ATTACKS[title])
    before, got, _ = changed(model, ATTACKS[title], way)
    assert all(same(x, wanted) for x in got)
    assert not same(wanted, before)


def test_a_module_that_a_function_imports_where_it_runs_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = k2t.convert(FIXTURES.parent / "keras-2.3.1" / "arch_forecast.h5")
    spec = read_model(str(FIXTURES.parent / "keras-2.3.1" / "arch_forecast.h5"))
    inputs = [torch.from_numpy(x)[:2] for x in draw_inputs(spec, steps=7, seed=1)]
    fresh = deepcopy(model)
    with torch.no_grad():
        before = [model(*inputs) for _ in range(3)][-1]
        monkeypatch.setattr(torch, "cat", tripled(torch.cat))  # of merge_modes._concat_tensors
        found, wanted = model(*inputs), fresh(*inputs)
    assert not same([found], [before])
    assert same([found], [wanted])


@pytest.mark.parametrize(
    ("where", "signal", "instead"),
    [
        (change_signals, "_find_word", lambda: None),
        (change_signals, "_find_places", dict),
        (change_signals, "watch_tensors", lambda _: None),
    ],
)
def test_changes_are_noticed_without_the_signals_of_torch(
    where: Any, signal: str, instead: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(where, signal, instead)
    for title in (
        *("forward of a class: leaf", "code of embedding", "defaults of a function"),
        *("another dict: leaf", "a turned weight", "memory", "a note and no note: leaf"),
    ):
        wanted, after = by_layers("attention and merges", ATTACKS[title])
        _, got, undone = changed("attention and merges", ATTACKS[title], "programs")
        assert all(same(x, wanted) for x in got), title
        assert same(undone, after), title


PARTS = [(kind, part) for kind, parts in change_signals._PARTS.items() for part in parts]


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_a_part_of_an_object_that_is_replaced_is_noticed(kind: type, part: str) -> None:
    one, other = {
        FunctionType: (lambda x: x, lambda x=1, *, y=2: x + y),
        CellType: (CellType(None), CellType(1)),
        object: (nn.Linear(1, 1), nn.Conv1d(1, 1, 1)),
    }[kind]
    states = change_signals.States([], [one])
    assert states.hold() is (change_signals._find_word() is not None)
    setattr(one, part, getattr(other, part))
    assert not states.hold()


def test_signals_that_tell_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not change_signals._tells_dicts_apart(lambda _: 7)
    assert not change_signals._tells_dicts_apart(id)
    numbers = iter(range(10_000))
    assert not change_signals._tells_dicts_apart(lambda _: next(numbers))
    monkeypatch.setattr(change_signals, "_sees_tensors", change_signals._sees_tensors.__wrapped__)
    monkeypatch.setattr(change_signals, "_make_check", lambda _: lambda *_: True)
    assert change_signals.watch_tensors([torch.zeros(2)]) is None
