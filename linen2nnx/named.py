"""What the command `linen2nnx compare` names: models, pairs, inputs, checkpoints.

Models are named `package.module:name`. The name is a module class, an instance, or a
function without arguments that makes one. An nnx class or function may take `rngs`. A
`Pair` is named likewise, alone.
"""

import ast
import dataclasses
import importlib
import inspect
import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.serialization
import flax.traverse_util
import jax
import numpy as np
from flax import nnx

from linen2nnx.leaves import Variables
from linen2nnx.parity import Pair
from linen2nnx.parity.randomness import Randomness

_SPEC = re.compile(r"(\w+)\[([\d,\s]*)\](?:<(\d+))?")


class CompareError(ValueError):
    """What the command line names cannot be compared."""


def pair_of(
    linen: str,
    port: str,
    *,
    inputs: Sequence[str],
    linen_kwargs: Sequence[str] = (),
    nnx_kwargs: Sequence[str] = (),
    rename: Sequence[str] = (),
    variables: Path | None = None,
    eval_mode: bool = False,
    randomness: Randomness = "deterministic",
) -> Pair:
    """The pair of two models that are named by where they are.

    Args:
        linen: `package.module:name` of the Linen model.
        port: likewise of the nnx model.
        inputs: as for `read_inputs`.
        linen_kwargs: `name=value` each, a Python literal.
        nnx_kwargs: likewise.
        rename: `linen/path=nnx/path` each, or JSON files of such pairs.
        variables: a checkpoint as for `read_variables`; None is random values.
        eval_mode: whether to call `.eval()` on the nnx model.
        randomness: as for `linen2nnx.parity.assert_parity`.

    Raises:
        CompareError: naming what cannot be read or made.
    """
    module = _linen_model(linen)
    arguments, keywords = read_inputs(inputs)

    def create(*, rngs: nnx.Rngs) -> nnx.Module:
        model = _nnx_model(port, rngs)
        if eval_mode:
            model.eval()
        return model

    pair = Pair(
        module,
        create,
        arguments,
        rename=_renames(rename),
        randomness=randomness,
        linen_kwargs=keywords | _literals(linen_kwargs),
        nnx_kwargs=keywords | _literals(nnx_kwargs),
    )
    if variables is not None:
        loaded = read_variables(variables, pair.abstract_variables)
        pair = dataclasses.replace(pair, checkpoint=loaded)
    return pair


def named_pair(spec: str) -> Pair:
    """The `Pair` that is named by where it is, `package.module:name`.

    Raises:
        CompareError: if there is none.
    """
    found = _named(spec)
    if not isinstance(found, Pair):
        raise CompareError(
            f"{spec} is {_kind(found)}, and no Pair; name the nnx model beside it"
        )
    return found


def read_inputs(specs: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Random arrays, or those of files, as positional and keyword inputs.

    Args:
        specs: a shape and dtype such as `float32[8,32]`, `bool[4,16]`, or, for integers
            from 0, `int32[4,16]<100`; a `.npy` file; or a `.npz` file, whose arrays are
            positional if they have no names and else keyword inputs. `name=` in front
            makes a keyword input.

    Raises:
        CompareError: if one is none of these.

    Example:
        >>> inputs, keywords = read_inputs(["int32[2,3]<10", "mask=bool[2,3]"])
        >>> inputs[0].shape, keywords["mask"].dtype
        ((2, 3), dtype('bool'))
    """
    rng = np.random.default_rng(0)
    inputs: list[Any] = []
    keywords: dict[str, Any] = {}
    for spec in specs:
        name, equals, value = spec.rpartition("=")
        if value.endswith(".npz"):
            arrays = {**_load(value)}
            if equals:
                keywords[name] = arrays
            elif all(re.fullmatch(r"arr_\d+", key) for key in arrays):
                inputs += arrays.values()
            else:
                keywords |= arrays
            continue
        array = _load(value) if value.endswith(".npy") else _random(value, rng)
        if equals:
            keywords[name] = array
        else:
            inputs.append(array)
    return inputs, keywords


def read_variables(path: Path, shapes: Variables) -> dict[str, Any]:
    """The Linen variables in a checkpoint.

    Args:
        path: a msgpack file of `flax.serialization.to_bytes`; a `.npz` file whose names
            are paths, `params/Dense_0/kernel`; or a folder that orbax wrote. It holds
            the variables, a train state with `params`, or the params themselves.
        shapes: what `module.init` gives; says which collections are read.

    Raises:
        CompareError: if the file cannot be read or lacks a collection.
    """
    if not path.exists():
        raise CompareError(f"{path} does not exist")
    try:
        if path.is_dir():
            restored = _restore(path)
        elif path.suffix == ".npz":
            flat = {tuple(name.split("/")): a for name, a in _load(str(path)).items()}
            restored = flax.traverse_util.unflatten_dict(flat)
        else:
            restored = flax.serialization.msgpack_restore(path.read_bytes())
    except CompareError:
        raise
    except Exception as error:
        raise CompareError(
            f"{path} is no checkpoint of msgpack, npz or orbax: {error}"
        ) from error
    if "params" not in restored and {*restored} == {*shapes.get("params", {})}:
        restored = {"params": restored}
    missing = [name for name in shapes if name not in restored]
    if missing:
        raise CompareError(
            f"{path} holds {', '.join(map(str, restored))}; "
            f"the Linen model needs {', '.join(missing)}"
        )
    return {name: restored[name] for name in shapes}


def _restore(path: Path) -> Any:
    try:
        import orbax.checkpoint
    except ImportError as error:
        raise CompareError(
            f"{path} is a folder, which takes orbax-checkpoint"
        ) from error
    return orbax.checkpoint.PyTreeCheckpointer().restore(path.absolute())


def _load(file: str) -> Any:
    try:
        return np.load(file)
    except (OSError, ValueError) as error:
        raise CompareError(f"{file} cannot be read: {error}") from error


def _random(spec: str, rng: np.random.Generator) -> np.ndarray:
    takes = "it takes a .npy or .npz file, float32[8,32], bool[8] or int32[4,16]<100"
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise CompareError(f"input {spec!r} is none; {takes}")
    name, sizes, bound = match.groups()
    try:
        dtype = jax.numpy.dtype(name)
    except TypeError:
        raise CompareError(f"input {spec!r} has no dtype; {takes}") from None
    shape = [int(size) for size in sizes.split(",") if size.strip()]
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if jax.numpy.issubdtype(dtype, jax.numpy.integer):
        if not int(bound or 0):
            raise CompareError(f"input {spec!r} needs a bound, such as {name}[...]<100")
        return rng.integers(0, int(bound), shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _literals(texts: Sequence[str]) -> dict[str, Any]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier()):
            raise CompareError(f"keyword {text!r} is none; it takes train=False")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def _renames(texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        linen, equals, port = text.partition("=")
        if equals:
            found[linen] = port
            continue
        try:
            found |= json.loads(Path(text).read_text())
        except (OSError, ValueError, TypeError) as error:
            raise CompareError(
                f"rename {text!r} is neither Dense_0=hidden nor a JSON file of such "
                f"pairs: {error}"
            ) from error
    return found


def _linen_model(spec: str) -> nn.Module:
    model = _model(spec, {})
    if not isinstance(model, nn.Module):
        raise CompareError(f"{spec} gives {_kind(model)}, and no Linen module")
    return model


def _nnx_model(spec: str, rngs: nnx.Rngs) -> nnx.Module:
    model = _model(spec, {"rngs": rngs})
    if not isinstance(model, nnx.Module):
        raise CompareError(f"{spec} gives {_kind(model)}, and no nnx module")
    return model


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"


def _named(spec: str) -> Any:
    module_name, colon, name = spec.partition(":")
    if not (colon and module_name and name):
        raise CompareError(f"{spec!r} names no model; it takes package.module:Model")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise CompareError(
                f"there is no module {error.name} in {folder}"
            ) from error
        raise
    for part in name.split("."):
        if not hasattr(found, part):
            raise CompareError(f"{module_name} has no {name}")
        found = getattr(found, part)
    return found


def _model(spec: str, offered: dict[str, Any]) -> Any:
    """What is named, or what it makes, given those of the offered that it takes."""
    named = _named(spec)
    if isinstance(named, nn.Module | nnx.Module):
        return named
    if not callable(named):
        raise CompareError(f"{spec} is {_kind(named)}, and no model, class or function")
    init = getattr(named, "__init__") if isinstance(named, type) else None  # noqa: B009
    signature = inspect.signature(partial(init, None) if init else named)
    parameters = signature.parameters.values()
    given = {p.name: offered[p.name] for p in parameters if p.name in offered}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in variadic and p.name not in given
    ]
    if needed:
        raise CompareError(
            f"{spec} needs {', '.join(needed)}; name a function without arguments that "
            "makes the model"
        )
    return named(**given)
