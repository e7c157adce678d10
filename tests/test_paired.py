import contextlib
import gc
import itertools

import pytest
from flax import nnx

from linen2nnx.cost import paired
from linen2nnx.cost.paired import Arm, Comparison

CLOCK = "cpu time"


def work():
    return sum(range(3000))


def test_twice_the_work_takes_twice_as_long():
    times = paired.compare(
        [Arm("once", work), Arm("twice", lambda: (work(), work()))],
        clock=CLOCK,
        max_seconds=3,
    )
    assert 1.8 < times.ratio(("twice", None)) < 2.2
    assert times.ratio(("once", None)) == 1
    assert abs(times.control_ratio - 1) <= 0.05
    for key in times.samples[CLOCK]:
        low, high = times.interval(key)
        assert low <= times.ratio(key) <= high
        assert len(times.samples["wall time"][key]) == times.rounds >= 3


def test_the_interval_is_the_range_over_fifths_of_the_rounds():
    linen, ours = ("Linen", None), ("nnx.jit", "tree")
    ratios = [2.0, 2.0, 3.0, 2.5, 2.0]
    times = Comparison(
        CLOCK,
        linen,
        {
            CLOCK: {
                linen: [1.0, 1.0] * 5,
                ours: [s for ratio in ratios for s in (ratio, ratio + 1)],
            }
        },
        {CLOCK: [1.01] * 10},
    )
    assert times.ratio(ours) == 2
    assert times.interval(ours) == (2, 3)
    assert not times.is_tight
    assert times.control_ratio == 1.01
    assert times.rounds == 10


@pytest.fixture
def controls(monkeypatch):
    """Every sample of the first arm as the control takes the next of these factors."""
    factors = []

    def measure(lanes, clock, max_seconds):
        samples = {CLOCK: {lane.arm.key: [1.0] * 5 for lane in lanes[:-1]}}
        first = lanes[0].arm.key
        return Comparison(clock, first, samples, {CLOCK: [factors.pop(0)] * 5})

    monkeypatch.setattr(paired, "_measure", measure)
    return factors


def test_a_control_that_is_off_is_tried_again(controls):
    controls += [1.06, 0.94, 1.04]
    times = paired.compare([Arm("a", work), Arm("b", work)], clock=CLOCK)
    assert times.control_ratio == 1.04


def test_a_control_that_stays_off_rejects_the_comparison(controls):
    controls += [1.06, 0.94, 1.2]
    with pytest.raises(paired.ControlError, match=r"1\.060, 0\.940, 1\.200 in 3 tri"):
        paired.compare([Arm("a", work), Arm("b", work)], clock=CLOCK)


def test_a_sample_that_is_too_short_does_not_outlive_its_try(monkeypatch):
    seconds = iter([1.0, 1.0, 0.7])
    monkeypatch.setattr(paired, "_calibrate", lambda *_: (1, 1.0))
    monkeypatch.setattr(paired, "_sample", lambda *_: (next(seconds, 1.0), 1.0))
    times = paired.compare([Arm("a", work), Arm("b", work)], clock=CLOCK)
    assert times.control_ratio == 1


def test_the_control_is_timed_like_any_other_arm():
    """Time that depends on when the arm runs within a round shows in the control."""
    now = 0

    def slower_and_slower():
        nonlocal now
        now += 1
        return sum(range(1000 * now))

    order = []
    lanes = [
        paired._Lane(Arm("a", lambda: order.append("a")), 2, 1),
        paired._Lane(Arm("b", lambda: order.append("b")), 1, 1),
        paired._Lane(Arm("c", slower_and_slower), 1, 1),
    ]
    times = paired._measure([*lanes, lanes[0]], CLOCK, 0)
    each = "aaa", "b", "aaa"  # one call untimed if there are several; c appends nothing
    there, back = "".join(each), "".join(reversed(each))
    assert "".join(order) == there + back + there
    assert times.rounds == 3


def test_a_short_arm_has_several_samples_in_a_round_and_keeps_the_least(monkeypatch):
    seconds = {"long": 0.1, "half": 0.03, "short": 0.001}
    monkeypatch.setattr(paired, "_calibrate", lambda arm, _: (1, seconds[arm.idiom]))
    lanes = paired._lanes([Arm(name, work) for name in seconds], CLOCK)
    assert [lane.samples for lane in lanes] == [1, 1, 4, 1]

    times = itertools.count(9, -1)
    monkeypatch.setattr(paired, "_sample", lambda arm, calls: (next(times), 0.5))
    found = paired._measure(lanes[2:], CLOCK, 0)
    assert found.samples[CLOCK]["short", None][0] == 6
    assert found.control[CLOCK][0] == 5
    assert len(found.samples["wall time"]["short", None]) == found.rounds


@pytest.mark.parametrize("collects", [True, False])
def test_the_garbage_collector_is_off_while_timing_and_restored(collects):
    seen = []

    def look():
        seen.append(gc.isenabled())
        if len(seen) > 3:
            raise ZeroDivisionError

    try:
        gc.enable() if collects else gc.disable()
        with pytest.raises(ZeroDivisionError):
            paired.compare([Arm("a", look), Arm("b", look)], clock=CLOCK)
        assert gc.isenabled() == collects
    finally:
        gc.enable()
    assert {*seen} == {False}


def test_an_arm_runs_in_its_mode():
    seen, before = set(), nnx.set_graph_mode.current_value()

    def look():
        seen.add(nnx.set_graph_mode.current_value())

    arms = [Arm("a", look, "tree"), Arm("b", look, "tree")]
    with contextlib.suppress(paired.ControlError):
        paired.compare(arms, clock=CLOCK, max_seconds=0)
    assert seen == {False}
    assert before == nnx.set_graph_mode.current_value()


def test_graph_mode_is_the_only_one_where_flax_cannot_set_it(monkeypatch):
    monkeypatch.delattr(nnx, "set_graph_mode")
    with paired.in_mode("graph"):
        pass
    with pytest.raises(AttributeError, match="set_graph_mode"):
        paired.in_mode("tree")


def test_each_prepared_thing_is_used_once():
    prepared, used = iter(range(10**6)), []
    arm = Arm("a", lambda n: used.append(n), prepare=lambda: next(prepared))
    paired._sample(arm, 3)
    assert used == [0, 1, 2]


@pytest.mark.parametrize("names", [["a"], ["a", "b", "a"]])
def test_arms_must_differ(names):
    with pytest.raises(ValueError, match="two or more different arms"):
        paired.compare([Arm(name, work) for name in names], clock=CLOCK)


def row(idiom, ratio, **other):
    return {
        "problem": "c/p",
        "what": "jitted",
        "idiom": idiom,
        "mode": None,
        "layers": None,
        "ratio": ratio,
        "interval": [ratio, ratio],
        "clock": CLOCK,
        "seconds": ratio * 1e-5,
        **other,
    }


def test_processes_are_merged():
    """The second is slow on both sides, the last measured something else as well."""
    times = {"rounds": 10, "linen_seconds": 1.0, "control": 1.0}
    slow = {**times, "linen_seconds": 2.0, "seconds": 4.2}
    runs = [
        [row("x", 2.5, **times, seconds=2.5)],
        [row("x", 2.1, **slow)],
        [row("x", 2.2, **{**times, "control": 0.96}, seconds=2.2)],
        [row("y", 3.0, **times, seconds=3.0)],
    ]
    (merged,) = paired.merge(runs)
    ratio = merged.pop("ratio")
    assert ratio == pytest.approx((2.5 * 2.1 * 2.2) ** (1 / 3))
    assert merged | {"ratio": 2.2} == row(
        "x",
        2.2,
        interval=[2.1, 2.5],
        rounds=30,
        control=0.96,
        seconds=2.2,
        linen_seconds=1.0,
    )
