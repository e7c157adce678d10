"""Break a twin, and its parity test goes red.

Each line of the table is one mistake in one twin: a line dropped, an index, a sign or a
name changed. The named test of the problem must fail with it, and pass without.
"""

import importlib
import inspect
import sys
import types

import pytest

from linen2nnx.mapping import MappingError
from linen2nnx.parity import ParityError
from linen2nnx.suite import catalog

MISTAKES = """
surgery/replace_kernel nnx test_set_kernel
    full_like(model.kernel[...], value)
    zeros_like(model.kernel[...])
surgery/replace_kernel nnx test_set_kernel
    model.kernel = nnx.Param(kernel)
    model.bias = nnx.Param(kernel)
surgery/replace_kernel nnx test_set_kernel
    model.kernel = nnx.Param(kernel)
    model.kernel = kernel
surgery/replace_kernel nnx test_set_kernel
    model.kernel = nnx.Param(kernel)
    pass
surgery/replace_kernel nnx test_copy_kernel
    donor.kernel[...]
    model.kernel[...]
surgery/replace_kernel linen test_set_kernel
    "params": params
    "params": {"kernel": kernel}
surgery/replace_kernel linen test_set_kernel
    params = {**variables["params"], "kernel": kernel}
    params = {**variables["params"], "bias": kernel[0]}
surgery/replace_kernel linen test_copy_kernel
    donor["params"]["kernel"]
    -donor["params"]["kernel"]
surgery/zero_last_layer nnx test_zero_last_kernel
    model.layers[-1]
    model.layers[0]
surgery/zero_last_layer nnx test_zero_last_kernel
    last.kernel = nnx.Param(jnp.zeros_like(last.kernel[...]))
    last.bias = nnx.Param(jnp.zeros_like(last.bias[...]))
surgery/zero_last_layer nnx test_zero_last_kernel
    zeros_like(last
    ones_like(last
surgery/zero_last_layer nnx test_ablation_sweep
    layer.kernel, layer.bias = kernel, bias
    layer.kernel = kernel
surgery/zero_last_layer nnx test_ablation_sweep
    layer.bias = nnx.Param(jnp.zeros_like(bias[...]))
    pass
surgery/zero_last_layer nnx test_ablation_sweep
    model(x) - intact
    model(x) + intact
surgery/zero_last_layer linen test_zero_last_kernel
    len(params) - 1
    len(params) - 2
surgery/zero_last_layer linen test_zero_last_kernel
    name = f"layers_{len(params) - 1}"
    name = max(params)
surgery/zero_last_layer linen test_ablation_sweep
    y - intact
    y
surgery/warm_start nnx test_copy_layers
    big.layers[i].bias = nnx.Param(layer.bias[...])
    pass
surgery/warm_start nnx test_copy_layers
    big.layers[i].kernel
    big.layers[i - 1].kernel
surgery/warm_start nnx test_grow_by_identity
    len(small.layers) :
    len(small.layers) + 1 :
surgery/warm_start nnx test_grow_by_identity
    layer.bias = nnx.Param(jnp.zeros_like(bias))
    pass
surgery/warm_start nnx test_grow_by_residual
    x + branch(nnx.relu(x))
    x + branch(x)
surgery/warm_start nnx test_grow_by_residual
    nnx.Param(jnp.zeros_like(bias))
    nnx.Param(bias)
surgery/warm_start linen test_copy_layers
    {**big["params"], **small["params"]}
    {**small["params"], **big["params"]}
surgery/warm_start linen test_grow_by_identity
    jnp.eye(width, dtype=dtype)
    -jnp.eye(width, dtype=dtype)
surgery/warm_start linen test_grow_by_residual
    x + branch(nn.relu(x))
    x - branch(nn.relu(x))
state/zero_by_path nnx test_zero_kernels
    "kernel" in names
    "bias" in names
state/zero_by_path nnx test_zero_kernels
    "kernel" in names
    "value" in names
state/zero_by_path nnx test_zero_kernels
    return nnx.merge(graphdef, state)
    return model
state/zero_by_path nnx test_zero_params
    nnx.Param, ...)
    nnx.BatchStat, ...)
state/zero_by_path linen test_zero_kernels
    zeros_like(leaf) if
    ones_like(leaf) if
state/zero_by_path linen test_set_bias_to_ones
    jnp.ones_like(params["bias"])
    jnp.zeros_like(params["bias"])
state/pure_update nnx test_every_leaf
    leaf * scale
    leaf / scale
state/pure_update nnx test_every_leaf
    state = jax.tree.map(lambda leaf: leaf * scale, state)
    pass
state/pure_update nnx test_every_leaf
    jax.random.key(seed)
    jax.random.key(seed + 1)
state/pure_update nnx test_every_leaf
    jnp.bfloat16
    jnp.float16
state/pure_update nnx test_params_only_leaves_the_statistics
    nnx.state(model, nnx.Param)
    nnx.state(model)
state/pure_update nnx test_params_only
    nnx.update(model, params)
    pass
state/pure_update linen test_params_only
    optax.sgd(1 - scale)
    optax.sgd(1 + scale)
state/pure_update linen test_every_leaf
    stddev * jax
    -stddev * jax
training/jit_train_step nnx test_train
    nnx.relu(self.norm
    nnx.gelu(self.norm
training/jit_train_step nnx test_train
    optimizer.update(model, grads)
    pass
training/jit_train_step nnx test_train
    nnx.update((model, optimizer), state)
    nnx.update(model, state[0])
training/jit_train_step nnx test_train
    return self.dropout(x, rngs=rngs)
    return x
training/jit_train_step nnx test_the_idioms_compute_the_same
    return [step(x, y) for x, y in batches]
    return [step(y, y) if x.shape == y.shape else step(-x, y) for x, y in batches]
training/jit_train_step linen test_train
    apply_gradients(grads=grads, **updates)
    apply_gradients(grads=grads)
training/jit_train_step linen test_train
    (output - y) ** 2
    jnp.abs(output - y)
training/jit_train_step linen test_train
    deterministic=not train
    deterministic=train
training/adam_optimizer nnx test_train_step
    nnx.relu(x) if i else x
    x
training/adam_optimizer nnx test_train_step
    optax.clip_by_global_norm(1.0)
    optax.clip_by_global_norm(0.5)
training/adam_optimizer nnx test_train_step
    num_steps // 10
    num_steps // 5
training/adam_optimizer nnx test_last_layer
    len(model.layers) - 1
    len(model.layers) - 2
training/adam_optimizer nnx test_load_opt_state
    (adam.mu, adam.nu)
    (adam.nu, adam.mu)
training/adam_optimizer nnx test_load_opt_state
    schedule.count[...] = old_schedule.count
    pass
training/adam_optimizer linen test_train_step
    (prediction - y) ** 2
    jnp.abs(prediction - y)
training/adam_optimizer linen test_last_layer
    False: optax.set_to_zero()
    False: tx
training/adam_optimizer linen test_load_opt_state
    step=step, opt_state=opt_state
    step=step
definition/compact_mlp nnx test_model
    x = nnx.relu(self.hidden(x))
    x = self.hidden(x)
definition/compact_mlp nnx test_nested
    self.output(nnx.relu(self.hidden(x)))
    nnx.relu(self.output(self.hidden(x)))
definition/compact_mlp nnx test_loop
    nnx.relu(layer(x))
    layer(nnx.relu(x))
definition/compact_mlp nnx test_load_params
    nnx.update(model, new)
    pass
definition/compact_mlp linen test_nested
    nn.relu(nn.Dense(self.hidden)(x))
    nn.Dense(self.hidden)(nn.relu(x))
definition/compact_mlp linen test_load_params
    {"Dense_0": "output", "Dense_1": "hidden"}
    {"Dense_0": "hidden", "Dense_1": "output"}
definition/compact_mlp linen test_load_params
    {names[name]: layer for name, layer in params.items()}
    params
definition/compact_mlp linen test_load_params_of_a_loop
    f"layers_{i}"
    f"layers_{num_layers - 1 - i}"
definition/setup_submodules nnx test_model
    value=nnx.Linear(features, features, rngs=rngs)
    values=nnx.Linear(features, features, rngs=rngs)
definition/setup_submodules nnx test_model
    self.heads["value"](x) * gate
    self.heads["value"](x)
definition/setup_submodules nnx test_apply_head
    model.heads[name](model.body(x))
    model.heads["value"](model.body(x))
definition/setup_submodules nnx test_activations
    outputs.append(x)
    outputs.insert(0, x)
definition/setup_submodules nnx test_add_layer
    model.layers.append(layer)
    model.layers.insert(0, layer)
definition/setup_submodules nnx test_add_layer
    model.layers.append(layer)
    pass
definition/setup_submodules nnx test_scales
    x = nnx.relu(x * scale[...])
    x = x * nnx.relu(scale[...])
definition/setup_submodules linen test_model
    gate = nn.sigmoid(self.heads["gate"](x))
    gate = self.heads["gate"](x)
definition/setup_submodules linen test_add_layer
    f"layers_{module.num_layers}"
    f"layers_{module.num_layers - 1}"
definition/setup_submodules linen test_apply_head
    m.heads[name](m.body(x))
    m.heads["gate"](m.body(x))
definition/setup_submodules linen test_scales
    x * scale
    x + scale
randomness/dropout_same_mask nnx test_model
    self.dropout(self.linear(x), rngs=key)
    self.linear(self.dropout(x, rngs=key))
randomness/dropout_same_mask nnx test_model
    self.dropout(self.linear(x), rngs=key)
    self.dropout(self.linear(x))
randomness/dropout_same_mask nnx test_linen_run
    return model(x, drawn)
    return model(x, key)
randomness/dropout_same_mask nnx test_linen_run
    bound.dropout.make_rng("dropout")
    bound.make_rng("dropout")
randomness/dropout_same_mask nnx test_apply_mask
    y / (1 - model.dropout.rate)
    y / model.dropout.rate
randomness/dropout_same_mask nnx test_run_steps
    [model(x, rngs) for
    [model(x, key) for
randomness/dropout_same_mask linen test_model
    deterministic=False
    deterministic=True
randomness/dropout_same_mask linen test_apply_mask
    jnp.where(mask, y / (1 - module.rate), 0)
    jnp.where(mask, y, 0)
randomness/dropout_same_mask linen test_run_steps
    jax.random.fold_in(key, i)
    jax.random.fold_in(key, i + 1)
randomness/dropout_same_mask linen test_linen_run
    {"dropout": key}
    {"dropout": jax.random.fold_in(key, 1)}
modes/batchnorm_train_step nnx test_train_step
    model(x) - y) ** 2)  # (1)!
    nnx.view(model, use_running_average=True)(x) - y) ** 2)
modes/batchnorm_train_step nnx test_train_step
    optimizer.update(model, grads)
    optimizer.update(model, grads), model.norm(x)
modes/batchnorm_train_step nnx test_train_step
    nnx.BatchNorm(width, rngs=rngs)
    nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
modes/batchnorm_train_step nnx test_train_step
    use_running_average=True
    use_running_average=False
modes/batchnorm_train_step nnx test_train_step
    rate, momentum=0.9
    rate, momentum=0.9, nesterov=True
modes/batchnorm_train_step linen test_train_step
    grads=grads, **updates
    grads=grads
modes/batchnorm_train_step linen test_train_step
    use_running_average=not train
    use_running_average=train
modes/batchnorm_train_step linen test_model
    nn.relu(x)
    nn.gelu(x)
transforms/scan_over_layers nnx test_scanned_mlp
    x + nnx.relu(self.dense(x))
    nnx.relu(self.dense(x))
transforms/scan_over_layers nnx test_scanned_mlp
    in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
    in_axes=(nnx.Carry, 0), out_axes=nnx.Carry, reverse=True
transforms/scan_over_layers nnx test_scanned_mlp
    return forward(self.proj(x), self.layers)
    return forward(forward(self.proj(x), self.layers), self.layers)
transforms/scan_over_layers nnx test_each_layer_has_its_own_initial_values_and_masks
    return DropoutBlock(features, rate, rngs=rngs)
    return DropoutBlock(features, rate, rngs=nnx.Rngs(0))
transforms/scan_over_layers nnx test_stack_and_unstack
    leaf[i], state
    leaf[0], state
transforms/scan_over_layers nnx test_stack_and_unstack
    layer in layers]  #
    layer in layers[::-1]]  #
transforms/scan_over_layers nnx test_dropout_stack
    self.dropout(self.norm(self.dense(x)))
    self.norm(self.dropout(self.dense(x)))
transforms/scan_over_layers linen test_scanned_mlp
    x + nn.relu(
    x + (
transforms/scan_over_layers linen test_stack_and_unstack
    params[f"layers_{i}"] for i in indices
    params[name] for name in sorted(params.keys() - rest.keys())
transforms/scan_over_layers linen test_stack_and_unstack
    {**rest, "layers": stack}
    {"layers": stack}
transforms/scan_over_layers linen test_linen_masks_differ_by_layer
    "dropout": True
    "dropout": False
transforms/scan_over_layers linen test_each_layer_has_its_own_initial_values_and_masks
    "params": True, "dropout": True
    "params": False, "dropout": True
transforms/scan_over_layers linen test_dropout_stack
    "batch_stats": 0
    "batch_stats": 1
checkpoints/orbax_linen_to_nnx nnx test_load_checkpoint
    model.eval()
    pass
checkpoints/orbax_linen_to_nnx nnx test_load_checkpoint
    params[linen_name] | stats.get(linen_name, {})
    params[linen_name]
checkpoints/orbax_linen_to_nnx nnx test_load_checkpoint
    nnx.replace_by_pure_dict(state, values)
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(state))
checkpoints/orbax_linen_to_nnx nnx test_save_checkpoint
    linen_layout(model))
    jax.tree.map(jnp.zeros_like, linen_layout(model)))
checkpoints/orbax_linen_to_nnx nnx test_load_params
    nnx.state(loaded, nnx.Param)
    nnx.state(loaded)
checkpoints/orbax_linen_to_nnx nnx test_linen_layout
    "norm": "BatchNorm_0"
    "norm": "norm"
checkpoints/orbax_linen_to_nnx linen test_load_checkpoint
    return checkpointer.restore(path, target)
    return jax.tree.map(jnp.zeros_like, checkpointer.restore(path, target))
checkpoints/orbax_linen_to_nnx linen test_load_checkpoint
    use_running_average=not train
    use_running_average=train
checkpoints/orbax_linen_to_nnx linen test_load_params
    {**fresh, "params": loaded["params"]}
    loaded
checkpoints/orbax_linen_to_nnx linen test_linen_layout
    jnp.ones(din)
    jnp.ones(din + 1)
"""


def mistakes():
    lines = [line.strip() for line in MISTAKES.strip().splitlines()]
    for heading, right, wrong in zip(lines[::3], lines[1::3], lines[2::3]):
        problem, side, test = heading.split()
        yield pytest.param(
            problem, side, test, right, wrong, id=f"{problem}-{side}-{wrong}"
        )


def with_broken_twin(name, side, right, wrong, monkeypatch):
    """The tests of a problem, with one twin in which `right` reads `wrong`."""
    chapter, _, file = name.partition("/")
    tests = importlib.import_module(f"parity_tests.{chapter}.test_{file}")
    source = catalog.find(name).path(side).read_text()
    assert right in source
    twin = types.ModuleType("broken")
    monkeypatch.setitem(sys.modules, "broken", twin)
    exec(compile(source.replace(right, wrong), "broken", "exec"), vars(twin))
    monkeypatch.setattr(tests, "linen" if side == "linen" else "nnx_side", twin)
    return tests


def run(tests, name, *, jitted=True):
    """Run a test for each of its cases, or those not jitted, as pytest would."""
    test = getattr(tests, name)
    cases = [{}]
    for mark in getattr(test, "pytestmark", []):
        names = mark.args[0]
        names = [names] if isinstance(names, str) else names
        values = [v if isinstance(v, tuple) else (v,) for v in mark.args[1]]
        cases = [{**c, **dict(zip(names, v))} for c in cases for v in values]
    cases = [case for case in cases if jitted or not case.get("jit")]
    assert cases
    for case in cases:
        test(**{name: case[name] for name in inspect.signature(test).parameters})


@pytest.mark.parametrize(("problem", "side", "test", "right", "wrong"), [*mistakes()])
def test_a_mistake_is_found(problem, side, test, right, wrong, monkeypatch):
    tests = with_broken_twin(problem, side, right, wrong, monkeypatch)
    with pytest.raises(
        (ParityError, MappingError, AssertionError, TypeError, KeyError)
    ):
        run(tests, test)


@pytest.mark.parametrize("side", ["linen", "nnx"])
def test_the_same_without_a_mistake_passes(side, monkeypatch):
    with_broken_twin("surgery/replace_kernel", side, "value", "value", monkeypatch)
    run(
        importlib.import_module("parity_tests.surgery.test_replace_kernel"),
        "test_set_kernel",
        jitted=False,
    )
