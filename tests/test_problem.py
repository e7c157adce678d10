"""What a problem gets from its declaration, and that its mistakes must be found."""

import dataclasses

import jax.numpy as jnp
import pytest

from linen2nnx.suite import problem as problems
from linen2nnx.suite.problem import Compare, Edit, Mistake, Problem
from parity_tests.state import test_pure_update as pure_update
from parity_tests.training import test_jit_train_step as jit_train_step

PROBLEM = pure_update.problem
TESTS = {
    "test_parity": None,
    "test_idiom": "training",
    "test_a_mistake_is_found": "mistakes",
    "test_entry": "entry",
    "test_bad_arguments": "entry",
    "test_arguments_in_other_forms": "entry",
    "test_bad_starting_variables": "entry",
    "test_cost": "cost",
}


def bare(**declared):
    return Problem(
        pure_update.linen,
        pure_update.nnx_side,
        pair=pure_update.dense,
        sizes=[(5, 5)],
        **declared,
    )


def declared_tests(problem):
    tests = problem.tests()
    return {name for name in TESTS if getattr(tests, name) is not None}


def test_what_is_not_declared_has_no_test():
    assert declared_tests(bare()) == {"test_parity"}
    assert declared_tests(PROBLEM) == {*TESTS} - {"test_idiom"}
    ours = {name for name, needs in TESTS.items() if needs != "entry"}
    assert declared_tests(jit_train_step.problem) == ours


def test_what_is_misspelt_is_an_error():
    with pytest.raises(TypeError, match="mistaks"):
        bare(mistaks=[])


def test_every_comparison_at_every_size():
    problem = bare(
        compared={
            "as it is": Compare(),
            "scaled": pure_update.scale_params,
            "of a norm": Compare(pair=pure_update.norm, sizes=[(5,), (5,), (5,)]),
        }
    )
    assert [case.id for case in problem.cases()] == [
        "as it is-5x5-op_by_op",
        "scaled-5x5-op_by_op",
        "of a norm-5-op_by_op",
        "of a norm-5-jit",
        "of a norm-5-op_by_op",
    ]
    ids = [case.id for case in jit_train_step.problem.cases()]
    assert ids == ["model-1x2x1-jit", "training-33x1x3-jit", "training-1x2x1-jit"]


def test_a_case_fails_where_the_sides_differ():
    twice, once = (lambda tree: pure_update.linen.scale_state(tree, 2.0)), PROBLEM
    edit = Edit(twice, once.nnx.scale_state, 2.0)
    (case,) = bare(compared={"scaled": edit}).cases()
    with pytest.raises(TypeError, match="takes 1 positional argument but 2"):
        case.run()
    edit = Edit(
        lambda tree, scale: pure_update.linen.scale_state(tree, 2 * scale),
        once.nnx.scale_state,
        2.0,
    )
    (case,) = bare(compared={"scaled": edit}).cases()
    with pytest.raises(problems.ParityError, match="edit: 2 of 2 leaves differ"):
        case.run()


def test_an_edit_that_does_nothing_is_found():
    edit = Edit(lambda tree: tree, lambda model: None)
    (case,) = bare(compared={"nothing": edit}).cases()
    with pytest.raises(problems.ParityError, match="not changed, though"):
        case.run()


def test_a_cast_starts_in_float32():
    cast = Edit(
        pure_update.linen.cast_to_bfloat16,
        pure_update.nnx_side.cast_to_bfloat16,
        casts_to=jnp.bfloat16,
    )
    jitted = [problems.JITTED_BFLOAT16]
    (case,) = bare(compared={"cast": cast}, runs=jitted).cases()
    case.run()
    not_said = Edit(
        pure_update.linen.cast_to_bfloat16, pure_update.nnx_side.cast_to_bfloat16
    )
    (case,) = bare(compared={"cast": not_said}, runs=jitted).cases()
    with pytest.raises(problems.ParityError, match="not changed"):
        case.run()


def test_a_mistake_that_changes_nothing_is_not_found():
    with pytest.raises(AssertionError, match="no case fails with 'scale \\* leaf'"):
        PROBLEM.assert_found(Mistake("nnx", "leaf * scale", "scale * leaf", "scale"))


def test_a_mistake_needs_a_case_that_passes_without_it():
    """Else every mistake would be found, by what fails anyway."""
    name = "test_that_always_fails"

    def fail():
        raise AssertionError(name)

    problem = dataclasses.replace(PROBLEM)
    unchanged, changed = (problem.with_twins() for _ in range(2))
    for module in (unchanged, changed):
        setattr(module, name, fail)
    vars(problem)["_unchanged"] = unchanged
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Problem, "with_twins", lambda self, **sources: changed)
        with pytest.raises(AssertionError, match=name):
            problem.assert_found(Mistake("nnx", "leaf * scale", "leaf / scale", name))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (Mistake("nnx", "no such line", "x"), "'no such line' is not in the nnx twin"),
        (Mistake("nnx", "leaf", "leav", "no such"), "compares no 'no such'"),
    ],
)
def test_a_mistake_that_cannot_be_made(mistake, message):
    with pytest.raises(ValueError, match=message):
        PROBLEM.assert_found(mistake)


def test_a_twin_is_changed_for_one_run_alone():
    source = PROBLEM.files.path("nnx").read_text()
    module = PROBLEM.with_twins(nnx=source.replace("leaf * scale", "leaf - scale"))
    assert module.problem.nnx is not PROBLEM.nnx
    assert module.problem.linen is PROBLEM.linen
    model = pure_update.dense(2, 2).model
    kernel = model.kernel[...]
    assert (module.problem.nnx.scale_state(model, 0.0).kernel[...] == kernel).all()
    assert (pure_update.nnx_side.scale_state(model, 0.0).kernel[...] == 0).all()


def test_a_test_function_is_run_for_all_its_cases():
    module = PROBLEM.with_twins()
    seen = []

    @pytest.mark.parametrize("a", [1, 2])
    @pytest.mark.parametrize(("b", "c"), [(3, 4), (5, 6)])
    def test_made(a, b, c, nnx_mode):
        seen.append((a, b, c, nnx_mode))

    module.test_made = test_made
    for case in problems.runnable(module, "test_made"):
        case.run()
    assert len({*seen}) == len(seen) == 8
    assert (2, 3, 4, "tree") in seen


def test_a_problem_without_a_cost_has_no_benchmark():
    with pytest.raises(ValueError, match="state/pure_update declares no cost"):
        _ = bare().benchmark


def test_the_benchmark_times_every_idiom():
    cases = list(PROBLEM.benchmark.cases(is_timed=True))
    assert ("edit", "split/map/merge", "tree", None) in cases
    assert ("jitted", "nnx.jit", "graph", None) in cases
    untimed = list(PROBLEM.benchmark.cases(is_timed=False))
    assert [c for c in untimed if c[0] == "first call: trace"] == [
        ("first call: trace", "Linen", None, None)
    ]
