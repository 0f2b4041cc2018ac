"""Norms, gated MLPs and rotary embeddings of a language model by the fused ops of `mmblocks.ops`.

A module of transformers gets a subclass of its own class with another `forward`; parameters, names and hooks stay. It is
taken only if the reference of the op computes exactly what its own forward computes, in every type, on a few numbers.
Where the op would run its reference, as on a CPU, the module's own forward runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from mmblocks.compat import suppress_warning_errors
from mmblocks.ops import gated_product as gates
from mmblocks.ops import rms_norm as norms
from mmblocks.ops import rotary
from mmblocks.ops.choice import REFERENCE, Op, find_requested_backend, use_backends
from mmblocks.ops.gated_product import Activation
from mmblocks.ops.rms_norm import Style
from mmblocks.ops.triton_backend import find_device_type

log = logging.getLogger(__name__)
FUSED_OPS = (norms.OP.name, gates.OP.name, rotary.OP.name)
EPSILON_NAMES = ("variance_epsilon", "eps")
ACTIVATION_NAMES = ("act_fn", "activation_fn")
PROJECTIONS = ({"gate_proj", "up_proj", "down_proj"}, {"gate_up_proj", "down_proj"})
ROTARY_FUNCTION = "apply_rotary_pos_emb"
TYPES = ((torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32))
"""Of activations, and of weights or angles."""


def fuse_layers(model: nn.Module) -> None:
    """Have the modules of a language model run fused ops where these compute the same.

    On the meta device they then keep for backward what they keep on CUDA.
    """
    counts: dict[str, int] = {}
    for module in model.modules():
        own = type(module)
        if isinstance(module, FusedModule) or (fused := find_fused_class(module, own)) is None:
            continue
        setattr(module, "__class__", fused)  # noqa: B010 - a type checker does not know such a change
        counts[own.__name__] = counts.get(own.__name__, 0) + 1
    if counts:
        _log_once(", ".join(f"{count} {name}" for name, count in counts.items()))


@cache
def _log_once(fused: str) -> None:
    log.info("fused kernels for %s", fused)


def use_own_layers() -> AbstractContextManager[None]:
    """In a block of code, have all modules run their own forward, as they do on a CPU."""
    return use_backends(**dict.fromkeys(FUSED_OPS, REFERENCE))


def find_fused_backend(op: Op, x: Tensor, *inputs: object) -> str | None:
    """The name of the backend that runs an op instead of a module's own code, "" to choose when it runs; None for the latter.

    For a compiler that is known by the device alone, and on the meta device tensors stand for those on CUDA.
    """
    if torch.compiler.is_compiling():
        return "" if x.device.type == find_device_type() else None
    if x.is_meta:
        return None if find_requested_backend(op.name) == REFERENCE else ""
    backend = op.choose_backend(x, *inputs)
    return None if backend is op.reference else backend.name


class FusedModule(nn.Module):
    """A module of transformers with another forward. `make_class(own_class, *settings)` makes its class."""

    own_class: type[nn.Module]
    recipe: tuple[Any, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:  # the class is made at runtime: a copy or a pickle makes it again
        _, _, *state = super().__reduce_ex__(protocol)
        return (_make_empty, self.recipe, *state)


def _make_empty(make_class: Callable[..., type[FusedModule]], *settings: object) -> nn.Module:
    made = make_class(*settings)
    return made.__new__(made)


def _derive_class(
    own: type[nn.Module], forward: Callable[..., object], make_class: Callable[..., object], *settings: object
) -> type[FusedModule]:
    body = {"forward": forward, "own_class": own, "recipe": (make_class, own, *settings), "__module__": own.__module__}
    return type(own.__name__, (FusedModule, own), body)


def find_fused_class(module: nn.Module, own: type[nn.Module]) -> type[FusedModule] | None:
    """The class with a fused forward for a module of class `own`; None where it computes something else."""
    if "forward" in vars(module):  # somebody else has replaced it
        return None
    children, weights = dict(module.named_children()), dict(module.named_parameters(recurse=False))
    if list(weights) == ["weight"] and weights["weight"].ndim == 1 and not children:
        return _find_norm_class(module, own)
    if "down_proj" in children and set(children) - set(ACTIVATION_NAMES) in PROJECTIONS:
        return _find_mlp_class(module, own)
    return None if _find_rotary_forward(own) is None else _find_attention_class(own)


_classes: dict[tuple[Any, ...], type[FusedModule] | None] = {}
"""The found classes by what they were found for; modules of a model are alike."""


# Norms --------------------------------------------------------------------------------------------------------------


def _find_norm_class(module: nn.Module, own: type[nn.Module]) -> type[FusedModule] | None:
    epsilon = next((name for name in EPSILON_NAMES if isinstance(getattr(module, name, None), float)), None)
    if epsilon is None:
        return None
    # What its code may depend on, beside the weight.
    plain = tuple((name, value) for name, value in vars(module).items() if isinstance(value, int | float | str))
    key = (own, epsilon, plain)
    if key not in _classes:
        styles = [style for style in norms.STYLES if _computes_norm(module, own, epsilon, style)]
        _classes[key] = make_norm_class(own, epsilon, styles[0]) if styles else None
    return _classes[key]


@cache
def make_norm_class(own: type[nn.Module], epsilon: str, style: Style) -> type[FusedModule]:
    """A norm's class by `mmblocks.ops.rms_norm`; epsilon: the name of its attribute."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        inputs = self.weight, getattr(self, epsilon), style
        backend = find_fused_backend(norms.OP, hidden_states, *inputs)
        if backend is None:
            return own.forward(self, hidden_states)
        return norms.compute_norm(hidden_states, *inputs, backend)

    return _derive_class(own, forward, make_norm_class, epsilon, style)


def _computes_norm(module: nn.Module, own: type[nn.Module], epsilon: str, style: Style) -> bool:
    with torch.device("cpu"), torch.no_grad():
        x = _draw_numbers(4, 3, 8) * torch.tensor([1e-3, 1.0, 1e3])[:, None]  # the first near the epsilon
        weight = _draw_numbers(8)

        def compare() -> Iterator[tuple[Tensor, Tensor]]:
            for dtype, weight_dtype in TYPES:
                trial = _copy_shallowly(module, own)
                trial._parameters = {"weight": nn.Parameter(weight.to(weight_dtype))}
                inputs = x.to(dtype), trial.weight, getattr(module, epsilon)
                yield own.forward(trial, inputs[0]), norms.OP.reference.run(*inputs, style)[0]

        return _is_same(compare())


# Gated MLPs ---------------------------------------------------------------------------------------------------------


def _find_mlp_class(module: nn.Module, own: type[nn.Module]) -> type[FusedModule] | None:
    name = next((name for name in ACTIVATION_NAMES if callable(getattr(module, name, None))), None)
    if name is None:
        return None
    act = getattr(module, name)
    key = (own, name, repr(vars(act)) if isinstance(act, nn.Module) else act, type(act), "gate_proj" in module._modules)
    if key not in _classes:
        found = [a for a in gates.ACTIVATIONS if _computes_mlp(module, own, a)]
        _classes[key] = make_mlp_class(own, found[0], "gate_proj" in module._modules) if found else None
    return _classes[key]


@cache
def make_mlp_class(own: type[nn.Module], activation: Activation, has_gate: bool) -> type[FusedModule]:
    """An MLP's class by `mmblocks.ops.gated_product`; has_gate: gate and up are two layers, not one after the other."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        backend = find_fused_backend(gates.OP, hidden_states, hidden_states, activation)
        if backend is None:
            return own.forward(self, hidden_states)
        gate, up = _project(self, hidden_states, has_gate)
        is_expected = gate.dtype == up.dtype == hidden_states.dtype  # not under autocast
        product = gates.compute_product(gate, up, activation, backend if is_expected else "")
        # Of other layers, such as adapters, more is kept than the product, which must not be hidden.
        is_plain = type(self.down_proj) is nn.Linear
        with gates.recompute_product(product) if is_plain else nullcontext():
            return self.down_proj(product)

    return _derive_class(own, forward, make_mlp_class, activation, has_gate)


def _project(mlp: Any, x: Tensor, has_gate: bool) -> tuple[Tensor, Tensor]:
    if has_gate:
        return mlp.gate_proj(x), mlp.up_proj(x)
    gate, up = mlp.gate_up_proj(x).chunk(2, dim=-1)
    return gate, up


def _computes_mlp(module: nn.Module, own: type[nn.Module], activation: Activation) -> bool:
    with torch.device("cpu"), torch.no_grad():
        x = _draw_numbers(3, 8) * 3

        def compare() -> Iterator[tuple[Tensor, Tensor]]:
            for dtype in (torch.float32, torch.bfloat16):
                trial: Any = _copy_shallowly(module, own)
                has_gate = "gate_proj" in module._modules
                widths = {"gate_proj": (8, 6), "up_proj": (8, 6)} if has_gate else {"gate_up_proj": (8, 12)}
                layers = {name: _make_linear(*size, dtype) for name, size in {**widths, "down_proj": (6, 8)}.items()}
                trial._modules = {**module._modules, **layers}
                product = gates.OP.reference.run(*_project(trial, x.to(dtype), has_gate), activation)
                yield own.forward(trial, x.to(dtype)), trial.down_proj(product)

        return _is_same(compare())


def _make_linear(inputs: int, outputs: int, dtype: torch.dtype) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, device="meta")
    layer.weight = nn.Parameter(_draw_numbers(outputs, inputs).to(dtype))
    layer.bias = nn.Parameter(_draw_numbers(outputs).to(dtype))
    return layer


# Rotary embeddings --------------------------------------------------------------------------------------------------


def _find_rotary_forward(own: type[nn.Module]) -> FunctionType | None:
    """A class's forward that calls its file's rotary function, without transformers' translation of old keywords.

    None if it does not, or if it is wrapped in something else.
    """
    forward: Any = own.forward
    while hasattr(forward, "__wrapped__"):
        if forward.__globals__.get("__name__") != "transformers.utils.deprecation":
            return None
        forward = forward.__wrapped__
    if not isinstance(forward, FunctionType) or ROTARY_FUNCTION not in forward.__code__.co_names:
        return None
    return forward if callable(forward.__globals__.get(ROTARY_FUNCTION)) else None


def _find_attention_class(own: type[nn.Module]) -> type[FusedModule] | None:
    key = (own, ROTARY_FUNCTION)
    if key not in _classes:
        inner: Any = _find_rotary_forward(own)
        keeps_dtype = _find_kept_dtype(inner.__globals__[ROTARY_FUNCTION])
        _classes[key] = None if keeps_dtype is None else make_attention_class(own, keeps_dtype)
    return _classes[key]


@cache
def make_attention_class(own: type[nn.Module], keeps_dtype: bool) -> type[FusedModule]:
    """An attention's class whose own code calls `mmblocks.ops.rotary`; keeps_dtype: queries and keys stay in their type.

    Its code gets another namespace, so that nothing changes for other models of the family.
    """
    inner: Any = _find_rotary_forward(own)
    namespace = {
        **inner.__globals__,
        ROTARY_FUNCTION: make_rotary_function(inner.__globals__[ROTARY_FUNCTION], keeps_dtype),
    }
    # By this name a compiler would look names up in the module itself.
    namespace.pop("__name__", None)
    forward = FunctionType(inner.__code__, namespace, inner.__name__, inner.__defaults__, inner.__closure__)
    forward.__kwdefaults__, forward.__annotations__ = inner.__kwdefaults__, inner.__annotations__
    return _derive_class(own, forward, make_attention_class, keeps_dtype)


def make_rotary_function(
    own: Callable[..., tuple[Tensor, Tensor]], keeps_dtype: bool
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A family's function by `mmblocks.ops.rotary` where that takes its inputs."""

    def apply_rotary_pos_emb(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **others: object) -> tuple[Tensor, Tensor]:
        if others or q.ndim != 4 or cos.ndim != 3 or cos.shape[-1] != q.shape[-1] or cos.requires_grad:
            return own(q, k, cos, sin, **others)
        dtype = q.dtype if keeps_dtype else torch.promote_types(q.dtype, cos.dtype)
        backend = find_fused_backend(rotary.OP, q, k, cos, sin, dtype)
        if backend is None:
            return own(q, k, cos, sin)
        return rotary.compute_rotary(q, k, cos, sin, dtype, backend)

    return apply_rotary_pos_emb


def _find_kept_dtype(own: Callable[..., tuple[Tensor, Tensor]]) -> bool | None:
    """Whether a family's function keeps the type of queries under angles of a wider one; None if it computes otherwise."""
    with torch.device("cpu"), torch.no_grad():
        q, k = _draw_numbers(2, 3, 5, 8), _draw_numbers(2, 1, 5, 8)
        cos, sin = _draw_numbers(2, 5, 8), _draw_numbers(2, 5, 8)

        def compare(keeps_dtype: bool) -> Iterator[tuple[Tensor, Tensor]]:
            for dtype, table_dtype in TYPES:
                inputs = q.to(dtype), k.to(dtype), cos.to(table_dtype), sin.to(table_dtype)
                kept = dtype if keeps_dtype else torch.promote_types(dtype, table_dtype)
                yield from zip(own(*inputs), rotary.OP.reference.run(*inputs, kept), strict=True)

        return next((keeps_dtype for keeps_dtype in (True, False) if _is_same(compare(keeps_dtype))), None)


# What the comparisons share -----------------------------------------------------------------------------------------


@suppress_warning_errors()
def _is_same(pairs: Iterator[tuple[Tensor, Tensor]]) -> bool:
    """Whether all pairs agree in type and bits; whatever a family's code raises says that they do not."""
    try:
        return all(own.dtype == ours.dtype and torch.equal(own, ours) for own, ours in pairs)
    except Exception as cause:
        log.debug("not fused: %s: %s", type(cause).__name__, cause)
        return False


def _draw_numbers(*shape: int) -> Tensor:
    """Numbers of both signs; torch's own generator is not used."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _copy_shallowly(module: nn.Module, own: type[nn.Module]) -> nn.Module:
    """A module with the same attributes, whose weights and layers can be replaced."""
    copied = own.__new__(own)
    copied.__dict__ = {**vars(module), "training": True}  # where it may drop numbers
    return copied
