"""Every argument of every entry function, on both sides: bad values and odd ones."""

import functools
import importlib
import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import freeze

NAN, INF = float("nan"), float("inf")

GOOD = {
    "seed": 0,
    "x": np.arange(1.0, 4.0),
    "features": 2,
    "hidden": 2,
    "num_layers": 2,
    "num_old_layers": 1,
    "num_extra_layers": 1,
    "replacement_value": 0.5,
    "scale": 0.5,
    "num_steps": 2,
    "learning_rate": 0.125,
    "rate": 0.5,
}
GOOD_BATCH = {"x": np.arange(1.0, 7.0).reshape(2, 3), "y": np.ones((2, 2))}
ENTRIES = {
    "surgery/replace_kernel": ("replace_kernel", "seed x features replacement_value"),
    "surgery/zero_last_layer": (
        "zero_last_layer_kernel",
        "seed x num_layers features",
    ),
    "surgery/warm_start": (
        "add_layer_warm_start",
        "seed x num_old_layers num_extra_layers features",
    ),
    "state/zero_by_path": ("state_zero_kernel", "seed x features"),
    "state/pure_update": ("pure_state_update", "seed x features scale"),
    "training/adam_optimizer": (
        "adam_losses",
        "seed x y num_layers num_steps learning_rate",
    ),
    "training/jit_train_step": (
        "jit_train_step",
        "seed x y num_layers num_steps learning_rate",
    ),
    "modes/batchnorm_train_step": (
        "batchnorm_losses",
        "seed x y hidden num_steps learning_rate",
    ),
    "definition/compact_mlp": ("compact_mlp", "seed x hidden features"),
    "definition/setup_submodules": ("setup_submodules", "seed x num_layers features"),
    "randomness/dropout_same_mask": ("dropout_same_mask", "seed x features rate"),
    "transforms/scan_over_layers": (
        "scan_over_layers",
        "seed x num_layers features",
    ),
    "checkpoints/orbax_linen_to_nnx": ("orbax_linen_to_nnx", "seed x features"),
}
NO_NUMBER = [
    True,
    np.True_,
    "2",
    None,
    [2],
    (2,),
    {},
    2j,
    np.ones(1),
    jnp.ones(2),
    b"2",
]
NO_COUNT = [*NO_NUMBER, 2.5, NAN, INF, -INF, np.float32(NAN), -1, -1.0, np.int32(-7)]
BAD = {
    "seed": [*NO_NUMBER, 2.5, NAN, INF, -INF, 2**32, -(2**31) - 1, 1e30],
    "features": [*NO_COUNT, 0, 0.0, np.float64(0), 2**31],
    "num_extra_layers": NO_COUNT,
    "replacement_value": [*NO_NUMBER, NAN, INF, -INF, np.float32(NAN)],
    "rate": [*NO_NUMBER, NAN, INF, -INF, -0.1, 1, 1.0, np.float64(1), 1.5],
    "x": [
        "1 2 3",
        None,
        3.0,
        True,
        {},
        {1.0, 2.0},
        [],
        np.ones((0,)),
        np.ones((1, 3)),
        jnp.ones((3, 1)),
        np.ones((1, 1, 1)),
        np.array([True, False]),
        np.array([1j, 2j]),
        np.array(["a", "b"]),
        np.array([1, "a"], dtype=object),
        np.array(["2026-11-20"], dtype="datetime64[D]"),
        [[1.0, 2.0], [3.0]],
        [1.0, None],
    ],
}
BAD["num_layers"] = BAD["num_old_layers"] = BAD["features"]
BAD["num_steps"] = BAD["features"]
BAD["scale"] = BAD["learning_rate"] = BAD["replacement_value"]
BAD_BATCH = {
    "x": [
        *(value for value in BAD["x"] if getattr(value, "ndim", 0) != 2),
        np.ones(3),
        jnp.ones((1, 2, 3)),
        np.ones((0, 3)),
        np.ones((2, 0)),
        np.ones((2, 3), bool),
        np.ones((2, 3), complex),
    ]
}
BAD_BATCH["y"] = [*BAD_BATCH["x"], np.ones((1, 2)), jnp.ones((3, 2)), [[1.0, 2.0]]]
BAD["hidden"] = BAD["features"]

DENSE = {"kernel": np.ones((3, 2), np.float32), "bias": np.ones(2, np.float32)}
LAYERED = {"params": {"layers_0": DENSE}}
SQUARE = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
NORM = {"scale": np.ones(2), "bias": np.ones(2)}
STACKED = {"dense": {"kernel": np.ones((1, 2, 2)), "bias": np.ones((1, 2))}}
PARAMS = {  # by problem: the params, where a layer from 3 to 2 is not all of them
    "surgery/zero_last_layer": lambda layer: {"layers_0": layer},
    "surgery/warm_start": lambda layer: {"layers_0": layer},
    "definition/compact_mlp": lambda layer: {"Dense_0": layer, "Dense_1": SQUARE},
    "definition/setup_submodules": lambda layer: {
        "layers_0": layer,
        "heads_value": SQUARE,
        "heads_gate": SQUARE,
    },
    "randomness/dropout_same_mask": lambda layer: {"linear": layer},
    "modes/batchnorm_train_step": lambda layer: {
        "hidden": layer,
        "norm": NORM,
        "head": SQUARE,
    },
    "training/adam_optimizer": lambda layer: {"layers_0": layer},
    "training/jit_train_step": lambda layer: {
        "blocks_0": {"linear": layer, "norm": NORM},
        "head": SQUARE,
    },
    "transforms/scan_over_layers": lambda layer: {"proj": layer, "layers": STACKED},
    "checkpoints/orbax_linen_to_nnx": lambda layer: {
        "Dense_0": layer,
        "BatchNorm_0": NORM,
        "Dense_1": SQUARE,
    },
}
STATISTICS = {"mean": np.ones(2), "var": np.ones(2)}
BATCH_STATS = {
    "modes/batchnorm_train_step": {"norm": STATISTICS},
    "training/jit_train_step": {"blocks_0": {"norm": STATISTICS}},
    "checkpoints/orbax_linen_to_nnx": {"BatchNorm_0": STATISTICS},
}
BAD_VARIABLES = {  # of a layer from 3 to 2, by what is wrong
    "no mapping": [DENSE],
    "text": "params",
    "number": 3.0,
    "empty": {},
    "no kernel": {"params": {"bias": DENSE["bias"]}},
    "extra leaf": {"params": {**DENSE, "scale": np.ones(2)}},
    "extra collection": {"params": DENSE, "batch_stats": {"mean": np.ones(2)}},
    "other name": {"params": {"weight": DENSE["kernel"], "bias": DENSE["bias"]}},
    "transposed": {"params": {**DENSE, "kernel": np.ones((2, 3))}},
    "integers": {"params": {**DENSE, "kernel": np.ones((3, 2), int)}},
    "bools": {"params": {**DENSE, "bias": np.ones(2, bool)}},
    "scalar": {"params": {**DENSE, "bias": 1.0}},
}


def entry(side, problem):
    module = importlib.import_module(f"{side}_impl.{problem.replace('/', '.')}")
    return getattr(module, ENTRIES[problem][0])


def short(value):
    text = " ".join(repr(value).split())
    return text if len(text) < 40 else f"{text[:37]}..."


def good(problem):
    """Good arguments by name; a problem with targets y takes a batch x."""
    names = ENTRIES[problem][1].split()
    table = GOOD | GOOD_BATCH if "y" in names else GOOD
    return {name: table[name] for name in names}


def bad(problem, name):
    return (BAD | BAD_BATCH if "y" in ENTRIES[problem][1].split() else BAD)[name]


CASES = [
    (side, problem, name)
    for side in ("linen", "nnx")
    for problem, (_, names) in ENTRIES.items()
    for name in names.split()
]


def refused(call, **arguments):
    """The message of a TypeError or ValueError of a call, or what comes instead."""
    try:
        call(**arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    except Exception as error:  # so that the values after it are tried as well
        return repr(error)
    return "no error"


@pytest.mark.parametrize(("side", "problem", "name"), CASES)
def test_a_bad_argument_is_named(side, problem, name):
    arguments = good(problem)
    wrong = []
    for value in bad(problem, name):
        message = refused(entry(side, problem), **{**arguments, name: value})
        if not (message.startswith(f"{name} takes ") and ", got " in message):
            wrong.append(f"{short(value)}: {message}")
    assert not wrong, "\n".join(wrong)


def test_the_table_is_not_empty():
    assert all(len(values) >= 8 for values in BAD.values())
    assert len(BAD_VARIABLES) >= 8
    assert sum(len(bad(problem, name)) for _, problem, name in CASES) > 700


@pytest.mark.parametrize("problem", ENTRIES)
def test_bad_starting_variables_are_named(problem):
    arguments = good(problem)
    if "num_layers" in arguments:
        arguments["num_layers"] = 1
    keyword = "small_variables" if "num_old_layers" in arguments else "variables"
    wrong = []
    for what, got in BAD_VARIABLES.items():
        if isinstance(got, dict) and "params" in got:
            params = PARAMS.get(problem, lambda layer: layer)(got["params"])
            got = {**got, "params": params}
            if problem in BATCH_STATS:
                got = {"batch_stats": BATCH_STATS[problem], **got}
        message = refused(entry("linen", problem), **arguments, **{keyword: got})
        named = what not in ("transposed", "integers", "no kernel") or (
            "['kernel']" in message
        )
        if not (re.match(rf"{keyword}.* takes ", message) and named):
            wrong.append(f"{what}: {message}")
    assert not wrong, "\n".join(wrong)


def test_bad_big_variables_are_named():
    add_layers = entry("linen", "surgery/warm_start")
    with pytest.raises(ValueError, match=r"(?s)^big_variables takes .*\['layers_1'\]"):
        add_layers(0, GOOD["x"], 1, 1, 2, big_variables=LAYERED)


def test_every_differing_leaf_is_listed():
    replace_kernel = entry("linen", "surgery/replace_kernel")
    with pytest.raises(ValueError, match="variables takes") as error:
        replace_kernel(
            0, GOOD["x"], 2, 0.5, variables={"params": {"kernel": np.ones(1)}}
        )
    lines = str(error.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "['params']['bias'] takes (2,), got nothing",
        "['params']['kernel'] takes (3, 2), got (1,)",
    ]


@pytest.mark.parametrize("kind", [dict, freeze])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_good_starting_variables_replace_those_of_the_seed(kind, dtype):
    replace_kernel = entry("linen", "surgery/replace_kernel")
    params = {name: jnp.asarray(leaf, dtype) for name, leaf in DENSE.items()}
    x = jnp.asarray(GOOD["x"], dtype)
    output = replace_kernel(0, x, 2, 0.5, variables=kind({"params": params}))
    np.testing.assert_array_equal(np.asarray(output, float), [4, 4])  # bias is one


ODD = {  # by argument: values that are the same as the good one
    "seed": [0.0, np.int8(0), np.float64(0), jnp.int32(0), np.asarray(0.0)],
    "features": [2.0, np.int64(2), np.float32(2), jnp.float32(2), np.asarray(2)],
    "hidden": [2.0, np.uint8(2), np.float16(2)],
    "num_layers": [2.0, np.uint8(2), np.float16(2)],
    "num_old_layers": [1.0, np.uint8(1)],
    "num_extra_layers": [1.0, np.uint8(1)],
    "replacement_value": [np.float32(0.5), np.float64(0.5), jnp.float32(0.5)],
    "scale": [np.float32(0.5), np.float64(0.5), jnp.bfloat16(0.5)],
    "rate": [np.float32(0.5), np.float64(0.5), jnp.bfloat16(0.5)],
    "x": [
        np.arange(1, 4),
        np.arange(1, 4, dtype=np.uint8),
        np.arange(1, 4, dtype=np.float32),
        jnp.arange(1, 4),
        jnp.arange(1.0, 4.0),
        [1, 2, 3],
        (1.0, 2.0, 3.0),
    ],
}
ODD["num_steps"] = ODD["num_layers"]
ODD["learning_rate"] = [np.float32(0.125), np.float64(0.125), jnp.bfloat16(0.125)]
ODD_BATCH = {
    name: [
        values.astype(np.uint8),
        values.astype(np.float32),
        jnp.asarray(values, int),
        jnp.asarray(values),
        values.tolist(),
        tuple(map(tuple, values)),
    ]
    for name, values in GOOD_BATCH.items()
}


def compile_once(side, problem, monkeypatch):
    """A Linen TrainState whose module or optimizer is a new one is compiled again."""
    if side == "linen" and "num_steps" in ENTRIES[problem][1]:
        file = importlib.import_module(f"linen_impl.{problem.replace('/', '.')}")
        monkeypatch.setattr(file, "MLP", functools.cache(file.MLP))
        monkeypatch.setattr(optax, "adam", functools.cache(optax.adam))


@pytest.mark.parametrize("side", ["linen", "nnx"])
@pytest.mark.parametrize("problem", ENTRIES)
def test_numbers_may_come_in_other_forms(side, problem, monkeypatch):
    arguments = good(problem)
    odd = ODD | ODD_BATCH if "y" in arguments else ODD
    compile_once(side, problem, monkeypatch)
    expected = entry(side, problem)(**arguments)
    assert expected.dtype == jnp.float32
    assert expected.shape == (2,)
    for i in range(max(len(odd[name]) for name in arguments)):
        odd_ones = {name: odd[name][i % len(odd[name])] for name in arguments}
        output = entry(side, problem)(**odd_ones)
        np.testing.assert_array_equal(output, expected, err_msg=f"{odd_ones!r}")


@pytest.mark.parametrize("side", ["linen", "nnx"])
@pytest.mark.parametrize("seed", [-(2**31), -1, 2**31, 2**32 - 1])
def test_seeds_of_32_bits(side, seed):
    assert entry(side, "state/pure_update")(seed, [1.0], 1, 1.0).shape == (1,)
    assert entry(side, "surgery/warm_start")(seed, [1.0], 1, 0, 1).shape == (1,)
    dropout = entry(side, "randomness/dropout_same_mask")
    assert dropout(seed, [1.0], 1, 0.5).shape == (1,)
