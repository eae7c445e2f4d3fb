"""The engine against a plain loop over samples."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropserve.dropout.engine import MonteCarlo, Settings
from dropserve.dropout.masks import draw
from dropserve.errors import UsageError
from dropserve.signature import Axis, Site, TensorSpec

SITES = (Site(name="a", kind="dropout", p=0.5, shape=(6,), scale="m"),)


def head(fed):
    return {"output": fed["x"] * fed["m"], "other": fed["x"].sum(axis=1)}


@given(rows=st.integers(1, 30), samples=st.integers(2, 25), elements=st.integers(1, 600))
def test_chunks_of_any_size_give_what_a_loop_over_samples_gives(rows, samples, elements):
    x = np.arange(rows * 6, dtype=np.float32).reshape(rows, 6)
    engine = MonteCarlo(SITES, head, chunk_elements=elements)
    found = engine.samples({"x": x}, Settings(samples=samples, seed=3))
    masks = draw(SITES, samples, seed=3)["m"]
    assert np.array_equal(found["output"], np.stack([x * mask for mask in masks]))
    assert np.array_equal(found["other"], np.tile(x.sum(axis=1), (samples, 1)))


def test_a_call_is_bounded_in_elements():
    seen = []

    def spy(fed):
        seen.append(sum(array.size for array in fed.values()))
        return head(fed)

    engine = MonteCarlo(SITES, spy, chunk_elements=1200, steady=False)
    engine.samples({"x": np.ones((37, 6), np.float32)}, Settings())
    assert max(seen) <= 1200
    assert len(seen) > 10


def test_the_trunk_runs_on_the_rows_and_not_on_the_samples():
    calls = []

    def trunk(fed):
        calls.append(len(fed["raw"]))
        return {"x": fed["raw"] + 1}

    engine = MonteCarlo(SITES, head, trunk, head_inputs=["x"], steady=False)
    found = engine.samples({"raw": np.zeros((3, 6), np.float32)}, Settings(samples=20))
    assert calls == [3]
    assert np.array_equal(found["output"][:, 0], draw(SITES, 20, seed=0)["m"])


@given(first=st.integers(0, 24), rows=st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_samples_go_on_where_they_ended_for_any_of_the_rows(first, rows):
    x = np.arange(54, dtype=np.float32).reshape(9, 6)
    engine = MonteCarlo(SITES, head)
    whole = engine.samples({"x": x}, Settings(samples=25, seed=3))
    some = engine.prepare({"x": x}).take(np.array(rows))
    rest = engine.continue_samples(some, Settings(samples=25, seed=3), first)
    for name, values in whole.items():
        assert np.array_equal(rest[name], values[first:, rows])


@pytest.mark.parametrize("workers", [1, 3])
def test_calls_side_by_side_give_what_one_after_the_other_gives(workers):
    engine = MonteCarlo(SITES, head, chunk_elements=500, workers=workers)
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    found = engine.samples({"x": x}, Settings(samples=20))["output"]
    assert np.array_equal(found, x * draw(SITES, 20, seed=0)["m"][:, None])


def test_the_head_gets_the_tensors_it_takes_and_no_others():
    def strict(fed):
        assert set(fed) == {"x", "m"}
        return head(fed)

    inputs = {"x": np.ones((2, 6), np.float32), "unused": np.ones((2, 1), np.float32)}
    MonteCarlo(SITES, strict, head_inputs=["x"]).samples(inputs, Settings(samples=2))


def test_variable_axes_slice_masks_so_padding_keeps_each_position_s_mask():
    axis = Axis(name="L", maximum=9)
    sites = (Site(name="a", kind="dropout", p=0.5, shape=(axis, 2), scale="m"),)
    specs = (TensorSpec(name="x", shape=(axis, 2)),)
    engine = MonteCarlo(sites, lambda fed: {"output": fed["x"] * fed["m"]}, specs=specs)
    short = engine.samples({"x": np.ones((1, 4, 2), np.float32)}, Settings(samples=5))["output"]
    long = engine.samples({"x": np.ones((1, 9, 2), np.float32)}, Settings(samples=5))["output"]
    assert np.array_equal(short, long[:, :, :4])
    with pytest.raises(UsageError, match="at most 9"):
        engine.samples({"x": np.ones((1, 10, 2), np.float32)}, Settings(samples=5))


def test_inputs_that_differ_in_rows_are_refused():
    engine = MonteCarlo(SITES, head)
    with pytest.raises(UsageError, match="the same number"):
        engine.samples({"x": np.ones((2, 6)), "y": np.ones((3, 6))}, Settings())
    with pytest.raises(UsageError, match="at least 1"):
        engine.samples({"x": np.ones((0, 6))}, Settings())


@pytest.mark.parametrize(
    "wrong",
    [{"samples": 1}, {"samples": 2.5}, {"samples": True}, {"seed": -1}, {"seed": 2**53}, {"scheme": "x"},
     {"rate": 1.0}, {"rate": -0.1}, {"rate": "a"}, {"rate": float("nan")}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match="expected"):
        Settings(**wrong)
