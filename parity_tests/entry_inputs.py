"""Random valid arguments for the entry functions."""

from collections.abc import Iterator

import numpy as np

NUMBER = 100  # in graph mode, and as many others in tree mode
WIDTHS = [(1, 33), (33, 1), (5, 5)]  # din, features


def entry_inputs(
    mode: str,
) -> Iterator[tuple[np.random.Generator, object, object, object]]:
    """Random `(rng, seed, x, features)`; the numbers come in every form they may take.

    There are few shapes, because each is compiled once, and many values. The parity
    tests that run op by op take the same widths, whose programs are then there.
    """
    rng = np.random.default_rng(["graph", "tree"].index(mode))
    for _ in range(NUMBER):
        din, features = rng.choice(WIDTHS)
        seed = rng.integers(0, 2**31)
        x = rng.standard_normal(din) * 10.0 ** rng.integers(-3, 4)
        x = x.astype(rng.choice([np.float32, np.float64, np.int32]))
        yield rng, in_any_form(rng, seed), x, in_any_form(rng, features)


def in_any_form(rng: np.random.Generator, number: int) -> object:
    return rng.choice([int, float, np.int64, np.float64, np.asarray])(number)
