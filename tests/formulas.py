"""Evaluate the formulas that a page prints: a small part of TeX, read as arithmetic."""

import re

import torch

STRUCTURE = r"\\d?frac|\\sqrt|\\log|\\cos|[{}()^/+-]|\d+"
FUNCTIONS = {"\\sqrt": torch.sqrt, "\\log": torch.log, "\\cos": torch.cos}


def evaluate(tex, names):
    """The value of a formula; ``names`` gives that of each symbol, such as ``{"\\sigma": 2.0}``."""
    symbols = sorted((re.escape(name) for name in names), key=len, reverse=True)
    pattern = re.compile("|".join([*symbols, STRUCTURE]))
    unread = pattern.sub("", tex).replace("\\,", "").strip()
    if unread:
        raise ValueError(f"cannot read {unread!r} in {tex!r}")
    value, rest = _sum(pattern.findall(tex), names)
    if rest:
        raise ValueError(f"cannot read {tex!r} from {rest[0]!r} on")
    return value


def _sum(tokens, names):
    """A sum of products, up to a closing bracket or the end; with what is left of the tokens."""
    value, sign = 0.0, 1.0
    if tokens[0] == "-":
        sign, tokens = -1.0, tokens[1:]
    while True:
        term, tokens = _product(tokens, names)
        value = value + sign * term
        if not tokens or tokens[0] not in "+-":
            return value, tokens
        sign, tokens = 1.0 if tokens[0] == "+" else -1.0, tokens[1:]


def _product(tokens, names):
    value, tokens = _power(tokens, names)
    while tokens and tokens[0] not in "+-)}":
        if tokens[0] == "/":
            factor, tokens = _power(tokens[1:], names)
            factor = 1 / factor
        else:
            factor, tokens = _power(tokens, names)
        value = value * factor
    return value, tokens


def _power(tokens, names):
    value, tokens = _atom(tokens, names)
    if tokens and tokens[0] == "^":
        exponent, tokens = _atom(tokens[1:], names)
        value = value**exponent
    return value, tokens


def _atom(tokens, names):
    head, tokens = tokens[0], tokens[1:]
    if head in names:
        return names[head], tokens
    if head.isdigit():
        return float(head), tokens
    if head in ("(", "{"):
        value, tokens = _sum(tokens, names)
        return value, tokens[1:]
    if head in ("\\frac", "\\dfrac"):
        above, tokens = _atom(tokens, names)
        below, tokens = _atom(tokens, names)
        return above / below, tokens
    value, tokens = _power(tokens, names)
    return FUNCTIONS[head](torch.as_tensor(value, dtype=torch.float64)), tokens
