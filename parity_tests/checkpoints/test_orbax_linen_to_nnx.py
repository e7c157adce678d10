import contextlib
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from flax.core import unfreeze

from linen2nnx import mapping, parity
from linen_impl.checkpoints import orbax_linen_to_nnx as linen
from nnx_impl.checkpoints import orbax_linen_to_nnx as nnx_side
from parity_tests.entry_inputs import in_any_form
from parity_tests.random_pair import random_input, variable_shapes

CASES = [  # din, features, seed, jit
    (3, 3, 0, False),  # few shapes: each op is compiled for each
    (33, 1, 1, True),
]
ENTRY_CASES = [(3, 2), (33, 1)]  # din, features
RENAME = {"Dense_0": "hidden", "BatchNorm_0": "norm", "Dense_1": "output"}


@contextlib.contextmanager
def checkpoint_path():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "checkpoint"


@contextlib.contextmanager
def saved(tree):
    """The path of a checkpoint of these arrays."""
    with checkpoint_path() as path:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, tree)
        yield path


def restore(path, target=None):
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path, target)


def create_model(din, features, seed=0):
    return nnx_side.MLP(din=din, features=features, rngs=nnx.Rngs(seed))


def random_variables(din, features, seed=0, dtype=jnp.float32):
    """Random in every leaf; the statistics too are not those of a new model."""
    variables, _ = parity.random_pair(
        variable_shapes(linen.MLP(features), din),
        nnx.eval_shape(lambda: create_model(din, features)),
        seed=seed,
        dtype=dtype,
        rename=RENAME,
    )
    return unfreeze(variables)


def assert_holds(model, variables):
    """Every leaf is real: `assert_parity` would fill an abstract model by itself."""
    parity.assert_equal(variables, mapping.to_linen(model, variables, rename=RENAME))


def batch(din, seed=0):
    return random_input(5 * din, seed, jnp.float32).reshape(5, din)


@pytest.mark.parametrize(("din", "features", "seed", "jit"), CASES)
def test_load_checkpoint(din, features, seed, jit):
    """What Linen saved, with statistics that are not those of a new model."""
    variables = random_variables(din, features, seed)
    with checkpoint_path() as path:
        linen.save_checkpoint(path, variables)
        model = nnx_side.load_checkpoint(path, din, features)
        parity.assert_equal(variables, linen.load_checkpoint(path, din, features))
    assert_holds(model, variables)
    module, x = linen.MLP(features), batch(din, seed)
    parity.assert_parity(module, variables, model, x, rename=RENAME, jit=jit)


def test_training_goes_on():
    variables = random_variables(3, 3)
    with saved(variables) as path:
        model = nnx_side.load_checkpoint(path, 3, 3)
    model.train()
    parity.assert_parity(
        linen.MLP(3),
        variables,
        model,
        batch(3),
        linen_kwargs={"train": True},
        rename=RENAME,
        jit=True,
    )


def test_save_checkpoint():
    """The way back: Linen loads what nnx saved."""
    variables = random_variables(3, 2)
    target = nnx.eval_shape(lambda: create_model(3, 2))
    model = mapping.to_nnx(variables, target, rename=RENAME)
    with checkpoint_path() as path:
        nnx_side.save_checkpoint(path, model)
        parity.assert_equal(variables, linen.load_checkpoint(path, 3, 2))
        parity.assert_equal(
            linen.checkpoint_shapes(path), nnx_side.checkpoint_shapes(path)
        )


def test_linen_layout():
    abstract = nnx.eval_shape(lambda: create_model(3, 2))
    layout = linen.linen_layout(3, 2)
    assert jax.tree.structure(nnx_side.linen_layout(abstract)) == jax.tree.structure(
        layout
    )
    assert jax.tree.map(jnp.shape, nnx_side.linen_layout(abstract)) == jax.tree.map(
        jnp.shape, layout
    )


def test_load_params():
    """Random params and new statistics, in train mode."""
    variables = random_variables(3, 2)
    with saved(variables) as path:
        loaded = linen.load_params(path, 3, 2)
        model = nnx_side.load_params(path, 3, 2)
    parity.assert_equal(variables["params"], loaded["params"])
    fresh = {"mean": jnp.zeros(2), "var": jnp.ones(2)}
    parity.assert_equal({"BatchNorm_0": fresh}, loaded["batch_stats"])
    assert_holds(model, loaded)
    parity.assert_parity(
        linen.MLP(2),
        loaded,
        model,
        batch(3),
        linen_kwargs={"train": True},
        rename=RENAME,
        checks=["structure", "outputs", "state"],
    )


def test_checkpoint_shapes():
    with saved(random_variables(3, 2)) as path:
        for side in (linen, nnx_side):
            assert side.checkpoint_shapes(path) == {
                "params": {
                    "Dense_0": {"kernel": (3, 2), "bias": (2,)},
                    "BatchNorm_0": {"scale": (2,), "bias": (2,)},
                    "Dense_1": {"kernel": (2, 2), "bias": (2,)},
                },
                "batch_stats": {"BatchNorm_0": {"mean": (2,), "var": (2,)}},
            }


@pytest.mark.parametrize(("din", "features"), ENTRY_CASES)
def test_orbax_linen_to_nnx(din, features, nnx_mode):
    rng = np.random.default_rng([din, nnx_mode == "tree"])
    shapes = variable_shapes(linen.MLP(features), din)
    for _ in range(5):  # each is written to disk and read
        seed = rng.integers(0, 2**31)
        x = rng.standard_normal(din) * 10.0 ** rng.integers(-3, 4)
        x = x.astype(rng.choice([np.float32, np.float64, np.int32]))
        arguments = in_any_form(rng, seed), x, in_any_form(rng, features)
        model = create_model(din, features, int(seed))
        model.eval()
        variables = mapping.to_linen(model, shapes, rename=RENAME)

        output = nnx_side.orbax_linen_to_nnx(*arguments)

        parity.assert_equal(
            linen.orbax_linen_to_nnx(*arguments, variables=variables), output
        )
        hidden, norm, last = model.hidden, model.norm, model.output
        plain = jnp.dot(jnp.asarray(x, jnp.float32), hidden.kernel) + hidden.bias
        plain = (plain - norm.mean) * (
            jax.lax.rsqrt(norm.var + 1e-5) * norm.scale
        ) + norm.bias
        plain = jnp.dot(jnp.maximum(plain, 0), last.kernel) + last.bias
        parity.assert_equal(plain, output)


def test_linen_entry_with_trained_statistics():
    variables, x = random_variables(3, 2), random_input(3, 1, jnp.float32)
    expected = linen.MLP(2).apply(variables, x)
    output = linen.orbax_linen_to_nnx(0, x, 2, variables=variables)
    parity.assert_equal(expected, output)


def test_linen_entry_from_its_own_seed():
    x = jnp.arange(3.0)
    expected = linen.MLP(2).apply(linen.MLP(2).init(jax.random.key(7), x), x)
    parity.assert_equal(expected, linen.orbax_linen_to_nnx(7, x, 2))


def test_the_entry_leaves_no_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for side in (linen, nnx_side):
        side.orbax_linen_to_nnx(0, jnp.arange(3.0), 2)
        assert [*tmp_path.iterdir()] == []


def test_pitfall_a_checkpoint_of_another_width():
    """`ValueError: Requested shape: (3, 4) is not compatible with the stored shape: (3,
    2)`

    The target is of another width than the checkpoint. This is the one check of shapes
    on the way from disk to model: restore into a target.
    """
    kernel = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    with (
        saved({"kernel": jnp.ones((3, 2))}) as path,
        pytest.raises(ValueError, match="is not compatible with the stored shape"),
    ):
        restore(path, {"kernel": kernel})


def test_pitfall_the_target_names_every_collection():
    """`ValueError: User-provided restore item and on-disk value metadata tree
    structures do not match`

    The target names every collection that is in the checkpoint. One with `params` alone
    raises this. Restore all and take what you need, as in "The params only" above.
    """
    variables = random_variables(3, 2)
    with (
        saved(variables) as path,
        pytest.raises(ValueError, match="tree structures do not match"),
    ):
        restore(path, {"params": linen.linen_layout(3, 2)["params"]})


def test_pitfall_a_folder_that_exists():
    """`ValueError: Destination ... already exists`

    A save into a folder that exists raises this. Save each step under its own name.
    """
    with (
        saved(random_variables(3, 2)) as path,
        pytest.raises(ValueError, match=r"Destination .* already exists"),
    ):
        nnx_side.save_checkpoint(path, create_model(3, 2))


def test_pitfall_replace_by_pure_dict_takes_any_shape_and_a_part():
    """`nnx.replace_by_pure_dict` takes any shape, and a part

    It stores a (7, 7) array in a kernel of shape (3, 2). Leaves that the dict lacks
    keep the values they had: in a real model those it was initialised with. Restore
    into a target, so that orbax has compared both before.
    """
    graphdef, state = nnx.split(create_model(3, 2))
    before = nnx.to_pure_dict(state)
    values = {"hidden": {"kernel": jnp.zeros((7, 7))}}
    nnx.replace_by_pure_dict(state, values)
    model = nnx.merge(graphdef, state)
    assert model.hidden.kernel.shape == (7, 7)
    np.testing.assert_array_equal(model.output.kernel, before["output"]["kernel"])


def test_pitfall_layers_of_one_shape_swap_silently():
    """Two layers of one shape swap without an error

    With `Dense_0` and `Dense_1` swapped in the table of names, layers of the same shape
    load into each other's place. Names are yours to check: compare the outputs of both
    models.
    """
    variables, x = random_variables(3, 3), batch(3)
    swapped = {"hidden": "Dense_1", "norm": "BatchNorm_0", "output": "Dense_0"}
    with saved(variables) as path:
        model = nnx_side.load_checkpoint(path, 3, 3)
        with mock.patch.object(nnx_side, "LINEN_NAMES", swapped):
            wrong = nnx_side.load_checkpoint(path, 3, 3)
    assert np.abs(model(x) - wrong(x)).max() > 0.1


def test_pitfall_a_loaded_model_is_in_train_mode():
    """A loaded model is in train mode

    Without `model.eval()`, BatchNorm normalizes with the batch and overwrites the
    statistics that were just loaded: the outputs differ from Linen's, and nothing is
    raised.
    """
    variables, x = random_variables(3, 2), batch(3)
    target = nnx.eval_shape(lambda: create_model(3, 2))
    model = mapping.to_nnx(variables, target, rename=RENAME)
    expected = linen.MLP(2).apply(variables, x)
    mean = variables["batch_stats"]["BatchNorm_0"]["mean"]
    assert np.abs(model(x) - expected).max() > 0.1
    assert not np.array_equal(model.norm.mean, mean)
    model.norm.mean[...] = mean
    model.norm.var[...] = variables["batch_stats"]["BatchNorm_0"]["var"]
    model.eval()
    np.testing.assert_array_equal(model(x), expected)


def test_pitfall_params_without_their_statistics():
    """Params without their statistics

    With the params of the checkpoint and the statistics of a new model, evaluation
    gives other numbers, and nothing is raised.
    """
    variables, x = random_variables(3, 2), batch(3)
    with saved(variables) as path:
        model = nnx_side.load_params(path, 3, 2)
    model.eval()
    assert np.abs(model(x) - linen.MLP(2).apply(variables, x)).max() > 0.1


def test_pitfall_the_target_decides_the_dtype():
    """The target decides the dtype

    A bfloat16 checkpoint restored into a float32 target is float32, on both sides. Cast
    the target to keep what was saved.
    """
    variables = random_variables(3, 2, dtype=jnp.bfloat16)
    with saved(variables) as path:
        model = nnx_side.load_checkpoint(path, 3, 2)
        loaded = linen.load_checkpoint(path, 3, 2)
    kernel = variables["params"]["Dense_0"]["kernel"].astype(jnp.float32)
    np.testing.assert_array_equal(model.hidden.kernel, kernel)
    np.testing.assert_array_equal(loaded["params"]["Dense_0"]["kernel"], kernel)
    assert model.hidden.kernel.dtype == jnp.float32


def test_pitfall_a_saved_state_has_one_level_more():
    """A saved `nnx.State` has one level more

    Restored without a target, its kernel is at `["hidden"]["kernel"]["value"]`. A pure
    dict as target raises a `ValueError`, `tree structures do not match`; a state as
    target fits. Save `nnx.to_pure_dict(state)` and the level is gone.
    """
    model = create_model(3, 2)
    state = nnx.state(model)
    with saved(state) as path:
        assert {*restore(path)["hidden"]["kernel"]} == {"value"}
        with pytest.raises(ValueError, match="tree structures do not match"):
            restore(path, nnx.to_pure_dict(state))
        parity.assert_equal(state, restore(path, state))
    with saved(nnx.to_pure_dict(state)) as path:
        np.testing.assert_array_equal(
            restore(path)["hidden"]["kernel"], model.hidden.kernel
        )


def test_pitfall_indices_of_a_list_come_back_as_text():
    """Indices of a list come back as text

    The keys of an `nnx.List` are numbers in a pure dict. Without a target orbax
    restores `"0"`, `"1"`, `"10"`, in the order of text; into a target, numbers in their
    order.
    """
    layers = nnx.List(nnx.Linear(1, 1, rngs=nnx.Rngs(i)) for i in range(11))
    pure = nnx.to_pure_dict(nnx.state(layers))
    with saved(pure) as path:
        assert [*restore(path)][:3] == ["0", "1", "10"]
        assert [*restore(path, pure)] == [*range(11)]


def test_pitfall_dropout_keys_of_an_abstract_model():
    """`TypeError: 'ShapeDtypeStruct' object is not subscriptable`

    A model from `nnx.eval_shape` holds abstract values until they are replaced, and no
    Linen checkpoint has a value for its RNG keys. Dropout raises this when it draws.
    Give the layer keys, `dropout.rngs = nnx.Rngs(0).fork()`, or build the real model
    and replace its values.
    """
    dropout = nnx.eval_shape(lambda: nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="'ShapeDtypeStruct' object is not"):
        dropout(jnp.ones(3))
    dropout.rngs = nnx.Rngs(0).fork()
    dropout(jnp.ones(3))
