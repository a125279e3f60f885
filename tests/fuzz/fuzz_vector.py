# SPDX-License-Identifier: MIT
"""Fuzz the JSON reader with libFuzzer's arguments; see ``make fuzz``."""

from __future__ import annotations

import json
import random
import sys

import atheris

with atheris.instrument_imports(include=["pysampler.vector.measurement"]):
    import vector

KEYS = (
    *("page-size", "periods", "status", "sample-pages", "dirty-rate", "mode", "n-dirty-pages"),
    *("n-sampled-pages", "n-zero-pages", "n-total-pages", "start-time", "calc-time"),
    *("calc-time-unit", "vcpu-dirty-rate", "id", "x-pysampler", "periods-ns"),
)
ATOMS = (
    *(None, True, 0, -1, 1, 2, 125, 4095, 4096, 65536, 1 << 31, 1 << 40, 1 << 52, 1 << 62, 1 << 64),
    *(10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "4096", "\ud800", "\n"),
    *("measuring", "measured", "dirty-bitmap", "dirty-ring", "second", "millisecond"),
)


def invent(rng: random.Random) -> object:
    """Return a JSON value of a few parts."""
    kind = rng.randrange(8)
    if kind == 0:
        return [rng.choice(ATOMS)] * rng.choice((0, 1, 2, 22, 4096, 4097))
    if kind == 1:
        return [invent(rng) for _ in range(rng.randrange(4))]
    if kind == 2:
        return {rng.choice(KEYS): invent(rng) for _ in range(rng.randrange(4))}
    return rng.choice(ATOMS)


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Replace a member where there is a JSON object, and bytes where there is none.

    Bytes alone are hardly ever JSON again, and would test the standard library's parser only.
    """
    rng = random.Random(seed)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or rng.random() < 0.1:
        return atheris.Mutate(data, max_size)
    inner = rng.choice([value, *(v for v in value.values() if isinstance(v, dict))])
    for _ in range(rng.randint(1, 3)):
        key = rng.choice(KEYS)
        if rng.random() < 0.1:
            inner.pop(key, None)
        else:
            inner[key] = invent(rng)
    text = json.dumps(value).encode()
    return text if len(text) <= max_size else atheris.Mutate(data, max_size)


if __name__ == "__main__":
    atheris.Setup(sys.argv, vector.check, custom_mutator=mutate)
    atheris.Fuzz()
