"""What holds of every declared problem, whatever it declares."""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linen2nnx.suite import catalog

NAMES = [problem.name for problem in catalog.problems()]


def file_of(name):
    return importlib.import_module("parity_tests." + name.replace("/", ".test_"))


@pytest.mark.parametrize("name", NAMES)
def test_its_tests_are_collected_and_compare_something(name):
    module = file_of(name)
    declared = [
        value
        for key, value in vars(module).items()
        if key.startswith("Test") and inspect.isclass(value)
    ]
    assert [tests.problem for tests in declared] == [module.problem]
    assert len(module.problem.cases()) >= 1
    assert module.problem.mistakes
    assert module.problem.cost


def state_of_seed(problem, seed, kind):
    model = problem.pair(*problem.sizes[0]).model_from(seed)
    return nnx.to_flat_state(nnx.state(model, kind))


@pytest.mark.parametrize("name", NAMES)
def test_initial_kernels_are_random_and_of_the_seed(name):
    """Parity starts from given values, so that it does not see how a model begins."""
    problem = file_of(name).problem
    first, again, other = (
        [
            np.asarray(leaf[...])
            for path, leaf in state_of_seed(problem, seed, nnx.Param)
            if path[-1] == "kernel"
        ]
        for seed in (0, 0, 1)
    )
    assert first
    for leaf, same, differs in zip(first, again, other):
        np.testing.assert_array_equal(leaf, same)
        assert not np.array_equal(leaf, differs)
    values = np.concatenate([leaf.ravel() for leaf in first])
    assert len(np.unique(values)) > 0.9 * values.size  # no two layers are the same


@pytest.mark.parametrize("name", NAMES)
def test_random_streams_are_of_the_seed(name):
    problem = file_of(name).problem
    keys = [
        [
            jax.random.key_data(key[...])
            for _, key in state_of_seed(problem, seed, nnx.RngKey)
        ]
        for seed in (0, 1)
    ]
    for ours, others in zip(*keys):
        assert not jnp.array_equal(ours, others)
