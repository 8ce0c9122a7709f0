"""Say in one sentence how an answer differs from the right one."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["alike", "difference", "factor", "kind"]


def difference(got: Any, expected: Any, tolerance: float | None = None, name: str = "") -> str:
    """Return how ``got`` differs from ``expected``, or "" if it does not.

    Args:
        got: what the learner's function returned.
        expected: a tensor, a number, a string, a frozenset of strings, one of which it must be, or
            a tuple or dictionary of these.
        tolerance: the largest error that passes, relative to the largest right value (or to 0.01,
            if all are smaller); by default 1e-4 in single and 1e-8 in double precision.
        name: what to call the value; by default the result.
    """
    if isinstance(expected, tuple | dict):
        return _parts(got, expected, tolerance)
    what = name or "the result"
    if isinstance(expected, frozenset):
        known = isinstance(got, str) and got in expected
        return "" if known else f"{what} is {got!r}; it must be one of {_list(expected)}."
    if got is None:
        return f"{what} is None. Is there a `return` in every branch?"
    if isinstance(expected, Tensor):
        return _tensor(got, expected, tolerance, what)
    if isinstance(expected, float):
        return _number(got, expected, tolerance, what)
    same = type(got) is type(expected) and got == expected
    return "" if same else f"{what} is {got!r}; {expected!r} is right."


def alike(a: Any, b: Any, tolerance: float | None = None) -> bool:
    """Whether two answers, right or wrong, are the same within the tolerance."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(alike(x, y, tolerance) for x, y in pairs)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return set(a) == set(b) and all(alike(a[key], b[key], tolerance) for key in a)
    if isinstance(a, Tensor) and (a.is_meta or a.layout != torch.strided):
        return False  # nothing that could be compared
    if isinstance(a, Tensor | float):
        return not difference(a, b, tolerance)
    return isinstance(a, str | int | None) and a == b


def factor(got: Any, expected: Any) -> float | None:
    """Return c if got = c * expected everywhere, for a c that is not 1; else None."""
    if isinstance(got, float) and isinstance(expected, float):
        got, expected = torch.tensor(got).double(), torch.tensor(expected).double()
    tensors = isinstance(got, Tensor) and isinstance(expected, Tensor)
    if not tensors or got.shape != expected.shape or got.device != expected.device:
        return None
    if got.layout != expected.layout or not expected.is_floating_point():
        return None
    got, expected = got.double(), expected.double()
    size = expected.square().sum()
    if size == 0 or not torch.isfinite(got).all():
        return None
    c = ((got * expected).sum() / size).item()
    fits = (got - c * expected).abs().max() < 1e-4 * expected.abs().max()
    return c if fits and abs(c) > 1e-3 and abs(c - 1) > 1e-3 else None


def _parts(got: Any, expected: tuple[Any, ...] | dict[str, Any], tolerance: float | None) -> str:
    """Compare the members of a tuple or dictionary one by one."""
    if got is None:
        return "the result is None. Is there a `return` in every branch?"
    if isinstance(expected, dict):
        if not isinstance(got, dict) or set(got) != set(expected):
            keys = ", ".join(map(repr, expected))
            has = f"has the keys {list(got)}" if isinstance(got, dict) else f"is {kind(got)}"
            return f"the result {has}; it must be a dictionary with the keys {keys}."
        pairs = [(f"the value of {key!r}", got[key], expected[key]) for key in expected]
    else:
        if not isinstance(got, tuple | list) or len(got) != len(expected):
            return f"the result is {kind(got)}; it must be a tuple of {len(expected)} values."
        pairs = [
            (f"value {i + 1} of {len(expected)}", g, e)
            for i, (g, e) in enumerate(zip(got, expected, strict=True))
        ]
    found = (
        _parts(g, e, tolerance) if isinstance(e, dict | tuple) else difference(g, e, tolerance, n)
        for n, g, e in pairs
    )
    return next(filter(None, found), "")


def _tensor(got: Any, expected: Tensor, tolerance: float | None, what: str) -> str:
    if not isinstance(got, Tensor):
        return f"{what} is {kind(got)}; it must be a torch.Tensor."
    if got.shape != expected.shape:
        return f"{what} has shape {tuple(got.shape)}; {tuple(expected.shape)} is right."
    if got.layout != expected.layout:
        return f"{what} is a {str(got.layout).removeprefix('torch.')} tensor; it must be dense."
    if got.device != expected.device:
        return f"{what} is on {got.device}; {expected.device} is right, as the input."
    if got.dtype != expected.dtype:
        names = [str(x.dtype).removeprefix("torch.") for x in (got, expected)]
        # An index is an integer, whatever the input is.
        source = ", as in the input" if expected.is_floating_point() else ""
        return f"{what} has dtype {names[0]}; {names[1]} is right{source}."
    if expected.requires_grad and not got.requires_grad:
        return f"{what} has no gradient, so nothing can be learned from it. Is it detached?"
    got, expected = got.detach(), expected.detach()
    bad = ~torch.isfinite(got)
    if bad.any() and torch.isfinite(expected).all():
        if got.ndim == 0:
            return f"{what} is {got.item()}; {expected.item():.4g} is right."
        where = _place(bad.nonzero()[0].tolist())
        return f"{what} has {int(bad.sum())} values that are NaN or infinite, the first{where}."
    return _values(got, expected, tolerance, what)


def _values(got: Tensor, expected: Tensor, tolerance: float | None, what: str) -> str:
    if expected.numel() == 0:
        return ""
    single = expected.dtype in (torch.float32, torch.float16, torch.bfloat16)
    bound = (1e-4 if single else 1e-8) if tolerance is None else tolerance
    same = (got == expected) | (got.isnan() & expected.isnan())
    error = (got.double() - expected.double()).abs().masked_fill(same, 0.0)
    if error.max() <= bound * max(1e-2, expected.double().abs().max().item()):
        return ""
    at = [int(i) for i in torch.unravel_index(error.argmax(), error.shape)]
    yours, right = got[tuple(at)].item(), expected[tuple(at)].item()
    size = f"largest error {error.max():.3g}{_place(at)}"
    g = next((g for g in (".4g", ".7g", ".10g") if f"{yours:{g}}" != f"{right:{g}}"), ".17g")
    return f"{what} has wrong values: {size}, where yours is {yours:{g}} and {right:{g}} is right."


def _number(got: Any, expected: float, tolerance: float | None, what: str) -> str:
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    if isinstance(got, bool) or not isinstance(got, int | float):
        return f"{what} is {kind(got)}; it must be a number."
    bound = (1e-6 if tolerance is None else tolerance) * max(1e-2, abs(expected))
    if math.isfinite(got) and abs(got - expected) <= bound:
        return ""
    return f"{what} is {got:.4g}; {expected:.4g} is right."


def _list(options: frozenset[str]) -> str:
    return ", ".join(map(repr, sorted(options)))


def _place(index: list[int]) -> str:
    return f" at {index}" if index else ""


def kind(value: Any) -> str:
    """Describe a value by its type: "a list of 3", "an int", "a numpy ndarray", "None"."""
    if value is None:
        return "None"
    if type(value).__module__ == "numpy":
        return f"a numpy {type(value).__name__}"
    size = f" of {len(value)}" if isinstance(value, tuple | list | dict) else ""
    name = f"torch.Tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
    name = name or type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}{size}"
