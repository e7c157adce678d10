"""The checks of one comparison, in the order of cause and effect."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from linen2nnx import mapping
from linen2nnx.leaves import Variables, flatten
from linen2nnx.parity import divergence as modules
from linen2nnx.parity import randomness as keys
from linen2nnx.parity.differences import Tolerance, is_float, leaves
from linen2nnx.parity.divergence import Divergence
from linen2nnx.parity.edit import (
    Edit,
    assert_changes,
    assert_untouched,
    linen_edit,
    nnx_edit,
)
from linen2nnx.parity.equal import ParityError, assert_equal, record
from linen2nnx.parity.programs import (
    gradients_of,
    like,
    optimizer_step,
    pull_back,
    random_loss,
    snapshot,
    state_of,
)
from linen2nnx.parity.report import Row

CHECKS = (
    "structure",
    "edit",
    "outputs",
    "state",
    "gradients",
    "optimizer step",
    "round trip",
)


GRADIENTS = ("gradients", "optimizer step")


@dataclass
class Comparison:
    """The checks of one comparison.

    Attributes:
        check: the one that is being made.
    """

    apply: Callable[[Any, Any], tuple[Any, Any]]
    call: Callable[[Any, Any], Any]
    linen_arrays: list[Any]
    nnx_arrays: list[Any]
    edit: Edit | None
    rename: Mapping[str, str]
    jit: bool
    optimizer: optax.GradientTransformation
    checks: list[str]
    tolerance: Mapping[str, Tolerance]
    statistics: bool
    returns_state: bool
    check: str = "structure"

    def run(self, variables: Variables, nnx_model: nnx.Module) -> None:
        """Make the checks in order."""
        if "structure" in self.checks:
            self._compare("structure", variables, nnx.state(nnx_model))
        for path, leaf in flatten(variables).items():
            if is_float(leaf) and np.isnan(np.asarray(leaf)).any():
                raise ValueError(
                    f"{path} holds nan; parity takes values that are not nan"
                )
        maybe_jit: Callable[..., Any] = jax.jit if self.jit else lambda run: run
        graphdef, state = nnx.split(nnx_model)
        self.drop_sown = "intermediates" not in variables
        self.linen_values: Any = variables
        self.nnx_values: Any = (graphdef, state)
        if self.edit is not None:
            edit_linen, edit_nnx = (
                maybe_jit(linen_edit(self.edit)),
                maybe_jit(nnx_edit(self.edit, graphdef)),
            )
            self.linen_values, linen_source = edit_linen(variables)
            *edited, nnx_source = edit_nnx(state)
            self.nnx_values = tuple(edited)
            if "edit" in self.checks:
                self._compare("edit", self.linen_values, self.nnx_values[1])
                assert_changes(variables, self.linen_values, self.edit.changes)
                assert_untouched(variables, linen_source)
                if nnx_source is not None:
                    self._compare("edit", variables, nnx_source, "source of the edit")
        if self.statistics:
            self._compare_statistics()
        elif {*self.checks} - {"structure", "edit", "round trip"}:
            linen = maybe_jit(self._linen_program())(
                variables, self.linen_values, self.linen_arrays
            )
            ours = maybe_jit(self._nnx_program(graphdef, self.nnx_values[0]))(
                state, self.nnx_values[1], self.nnx_arrays
            )
            self._compare_results(linen, ours)
        if "round trip" in self.checks:
            back = mapping.to_nnx(variables, state, rename=self.rename)
            self._compare_trees(
                "round trip", nnx.to_pure_dict(state), nnx.to_pure_dict(back)
            )

    def _compare(self, check: str, linen: Any, state: Any, part: str = "") -> None:
        """`state` is nnx state to be read as Linen variables like `linen`."""
        self.check = check
        try:
            values = mapping.to_linen(state, linen, rename=self.rename)
        except mapping.MappingError as error:
            raise ParityError(f"{check}: {part}{error}") from error
        self._compare_trees(check, linen, values, part)

    def _compare_trees(self, check: str, linen: Any, nnx: Any, part: str = "") -> None:
        self.check = check
        if part:
            linen, nnx = {part: linen}, {part: nnx}
        assert_equal(linen, nnx, check=check, tolerance=self.tolerance.get(check))

    def _compare_results(self, linen: dict[str, Any], ours: dict[str, Any]) -> None:
        if "outputs" in self.checks:
            self._compare_trees("outputs", linen["output"], ours["output"])
            for path, leaf in leaves(linen["output"]).items():
                if leaf.size and is_float(leaf) and np.isnan(leaf).all():
                    raise ValueError(
                        f"the output {path} is nan throughout on both sides, which "
                        "shows nothing; parity takes inputs that give numbers"
                    )
        if "state" in self.checks:
            self._compare("state", linen["state"], ours["state"])
        for check in ("gradients", "optimizer step"):
            parts = linen.get(check, {}) if check in self.checks else {}
            for part, values in parts.items():
                self._compare(check, values, ours[check][part], part)

    def _compare_statistics(self) -> None:
        if "outputs" not in self.checks:
            return
        self.check = "outputs"
        graphdef, state = self.nnx_values
        found = keys.compare_statistics(
            lambda: self.apply(self.linen_values, self.linen_arrays)[0],
            lambda: self.call(nnx.merge(graphdef, snapshot(state)), self.nnx_arrays),
        )
        record(
            [
                Row("outputs", name, value.shape, str(value.dtype), size, note)
                for name, value, size, note in found
            ]
        )

    def located(self, rows: Sequence[Row]) -> tuple[Divergence | None, str]:
        """Where the check that differs first does, and the same in words."""
        wrong = [row for row in rows if row.check == self.check and row.note]
        if self.check == "structure" and wrong:
            return None, (
                "nnx_model does not hold the values of variables; "
                "linen2nnx.mapping.to_nnx(variables, nnx_model) gives one that does"
            )
        if self.statistics or self.check in ("structure", "edit", "round trip"):
            return None, ""
        try:
            found = self._divergence(wrong)
        except Exception as error:  # the difference is what counts
            kind = type(error).__name__
            return None, f"no module is named: op by op, {kind}: {error}"
        return found, str(found)

    def _divergence(self, wrong: Sequence[Row]) -> Divergence:
        """Where the forward passes first differ; `wrong` are the leaves that do."""
        paths = [row.path for row in wrong]
        graphdef, state = self.nnx_values
        model = nnx.merge(graphdef, snapshot(state))
        linen_calls = modules.record_linen(
            lambda: self.apply(self.linen_values, self.linen_arrays)
        )
        with keys.counted() as drawn:
            nnx_calls = modules.record_nnx(
                model, lambda: self.call(model, self.nnx_arrays)
            )
        found = modules.first_divergence(
            linen_calls,
            nnx_calls,
            rename=_module_names(self.linen_values, model, self.rename),
            tolerance=self.tolerance.get("outputs"),
        )
        hints = [*found.hints]
        if drawn and found.found:
            hints.append(
                f"the nnx model drew {len(drawn)} random keys; nnx_model.eval() turns "
                "dropout off, and randomness='same keys' gives both sides the same"
            )
        if self.check == "outputs" and not found.found:
            if self.jit:
                hints.append("run op by op both are equal: it arises under jax.jit")
            elif found.compared:
                hints.append("the output is changed after the last of these calls")
        if self.check == "state" and not found.found:
            names = dict.fromkeys(_module(path, 1) for path in paths)
            hints.append(f"what is kept differs, in {', '.join(names)}")
            if not self.returns_state:
                hints.append(
                    "linen_module is a function, whose updates are not seen; give the "
                    "module, or leave out the check 'state'"
                )
        largest = max((row.difference for row in wrong), default=0.0)
        if self.check in GRADIENTS and 0 < largest <= modules.ROUNDING:
            hints.append(
                f"none differs by more than {largest:.2g}, which may be rounding; if "
                "one side sums in another order, tolerance= takes that as its cause"
            )
        if self.check == "gradients" and not found.found:
            hints += _gradient_hints({_module(path, 2) for path in paths}, linen_calls)
        if self.check == "optimizer step" and "gradients" in self.checks:
            hints.append("the gradients match: what the optimizer updates differs")
        return dataclasses.replace(found, hints=tuple(hints))

    def _linen_program(self) -> Callable[..., dict[str, Any]]:
        """Everything that the Linen side computes, as one function to be jitted."""

        def run(variables: Any, edited: Any, arrays: Any) -> dict[str, Any]:
            def loss(edited: Any) -> Any:
                return random_loss(self.apply(edited, arrays)[0])

            output, state = self.apply(edited, arrays)
            result = {"output": output, "state": state}
            if not {"gradients", "optimizer step"} & {*self.checks}:
                return result
            gradients = {"model": gradients_of(loss, edited)}
            if self.edit is not None:
                through = pull_back(self.edit.linen, variables, gradients["model"])
                gradients["before the edit"] = through
            result["gradients"] = gradients
            if "optimizer step" in self.checks and "params" in edited:
                params, of_params = edited["params"], gradients["model"]["params"]
                start = self.optimizer.init(params)
                updates, _ = self.optimizer.update(of_params, start, params)
                stepped = {**edited, "params": optax.apply_updates(params, updates)}
                result["optimizer step"] = {"model": like(edited, stepped)}
            return result

        return run

    def _nnx_program(
        self, graphdef: Any, edited_graphdef: Any
    ) -> Callable[..., dict[str, Any]]:
        """Everything that the nnx side computes, as one function to be jitted."""

        def run(state: Any, edited: Any, arrays: Any) -> dict[str, Any]:
            def loss(edited: Any) -> Any:
                model = nnx.merge(edited_graphdef, snapshot(edited))
                return random_loss(self.call(model, arrays))

            model = nnx.merge(edited_graphdef, snapshot(edited))
            output = self.call(model, arrays)
            sown = nnx.Intermediate if self.drop_sown else nnx.Nothing()
            result = {"output": output, "state": state_of(model, nnx.Not(sown))}
            if not {"gradients", "optimizer step"} & {*self.checks}:
                return result
            gradients = {"model": gradients_of(loss, edited)}
            if self.edit is not None:
                make = nnx_edit(self.edit, graphdef)
                gradients["before the edit"] = pull_back(
                    lambda start: make(start)[1], state, gradients["model"]
                )
            result["gradients"] = gradients
            if "optimizer step" in self.checks:
                model = nnx.merge(edited_graphdef, snapshot(edited))
                of_params = nnx.filter_state(gradients["model"], nnx.Param)
                optimizer_step(model, self.optimizer, of_params)
                result["optimizer step"] = {"model": state_of(model)}
            return result

        return run


def _module_names(
    variables: Variables, model: nnx.Module, rename: Mapping[str, str]
) -> dict[str, str]:
    """The nnx path of every Linen module that the mapping of leaves tells."""
    names = {}
    for row in mapping.table(variables, model, rename=rename):
        linen, _, leaf = row.linen.partition("/")[2].rpartition("/")
        ours, _, nnx_leaf = row.nnx.rpartition("/")
        if linen and ours and leaf == nnx_leaf and row.columns is None:
            names[linen] = ours
    return names | dict(rename)


def _module(path: str, prefix: int) -> str:
    """`model/params/layers_0/kernel` without its prefix is of module `layers_0`."""
    return "/".join(path.split("/")[prefix:-1]) or "the model"


def _gradient_hints(differing: set[str], calls: Sequence[modules.Call]) -> list[str]:
    found = modules.last_before_match(differing, calls)
    if found is None:
        return []
    last, following = found
    between = f", or between it and {following}, called next" if following else ""
    return [
        f"gradients flow from the last call to the first, and {last} is called last of "
        f"the modules whose gradients differ: look there{between}"
    ]
