"""Masks: textbook one by one, repelling within a block, and the same everywhere for ever."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropserve.dropout import masks
from dropserve.dropout.cache import ByteCache
from dropserve.dropout.masks import block_size, common_block, draw, keep_masks
from dropserve.errors import UsageError
from dropserve.signature import Axis, Site

GOLDEN = Path(__file__).with_name("golden_masks.json")


def site(name="a", p=0.5, shape=(64,), kind="dropout"):
    shift = f"{name}_shift" if "alpha" in kind else None
    return Site(name=name, kind=kind, p=p, shape=shape, scale=f"{name}_scale", shift=shift)


def golden_cases():
    for scheme in masks.SCHEMES:
        for name, seed, p in (("layers.2", 0, 0.5), ("layers.2", 7, 0.2), ("é", 2**53 - 1, 0.37)):
            yield scheme, name, seed, p


def golden_hash(scheme, name, seed, p):
    keep = keep_masks(name, 33, p, 47, seed=seed, scheme=scheme, block=block_size(p))
    return hashlib.sha256(np.packbits(keep).tobytes()).hexdigest()


def test_masks_are_what_they_were_on_every_platform():
    """To change a hash here is to change what every seed of every deployed model means."""
    golden = json.loads(GOLDEN.read_text())
    found = {"|".join(map(str, case)): golden_hash(*case) for case in golden_cases()}
    assert found == golden


@pytest.mark.parametrize(
    ("p", "size"), [(0.5, 10), (0.2, 10), (0.1, 10), (0.25, 12), (0.15, 20), (0.01, 10), (1 / 3, 12), (0, 10)]
)
def test_block_size_is_enlarged_until_the_count_is_whole(p, size):
    assert block_size(p) == size


def test_sites_of_one_model_share_a_block_that_suits_all_of_them():
    assert common_block([0.5, 0.25]) == 12
    assert common_block([0.2, 1 / 3]) == 15
    assert common_block([0.01, 0.25]) == 10
    assert common_block([]) == 10


@given(
    p=st.floats(0, 0.999),
    seed=st.integers(0, 2**53 - 1),
    units=st.integers(1, 40),
    block=st.integers(10, 20),
)
def test_each_unit_of_a_block_is_kept_floor_or_ceil_times(p, seed, units, block):
    counts = keep_masks("s", units, p, block, seed=seed, scheme="balanced", block=block).sum(axis=0)
    exact = block * (1 - p)
    assert np.all((counts >= np.floor(exact - 1e-9)) & (counts <= np.ceil(exact + 1e-9)))


@pytest.mark.parametrize("scheme", masks.SCHEMES)
@pytest.mark.parametrize("p", [0.5, 0.2, 0.37])
def test_every_single_mask_keeps_each_unit_with_probability_one_minus_p(scheme, p):
    keep = keep_masks("s", 40_000, p, 10, seed=1, scheme=scheme)
    sigma = np.sqrt(p * (1 - p) / 40_000)
    assert np.all(np.abs(keep.mean(axis=1) - (1 - p)) < 5 * sigma)


def test_all_orders_of_a_balanced_block_are_equally_likely():
    """At p=0.9 one of ten samples keeps the unit: each of the ten, by the chi-square test."""
    keep = keep_masks("s", 100_000, 0.9, 10, seed=3, scheme="balanced")
    expected = 10_000
    chi2 = np.sum((keep.sum(axis=1) - expected) ** 2 / expected)
    assert chi2 < 33.7  # 9 degrees of freedom, one in ten thousand


def test_pairs_within_a_balanced_block_repel_as_sampling_without_replacement_does():
    keep = keep_masks("s", 200_000, 0.5, 20, seed=5, scheme="balanced").astype(float)
    covariance = np.cov(keep)
    within, across = covariance[0, 1:10], covariance[0, 10:]
    sigma = 5 * 0.25 / np.sqrt(200_000)
    assert np.allclose(within, -0.25 / 9, atol=sigma)  # -variance / (block - 1)
    assert np.allclose(across, 0, atol=sigma)


def test_units_are_independent_of_each_other():
    keep = keep_masks("s", 2, 0.5, 100_000, seed=5, scheme="balanced").astype(float)
    assert abs(np.corrcoef(keep.T)[0, 1]) < 5 / np.sqrt(100_000)


@given(
    few=st.integers(1, 45),
    many=st.integers(1, 45),
    scheme=st.sampled_from(masks.SCHEMES),
    p=st.sampled_from([0.1, 0.25, 0.37, 0.5]),
)
def test_more_samples_extend_fewer(few, many, scheme, p):
    masks._cache.__init__(2**27)  # the first draw is really the first
    first = draw([site(p=p)], few, seed=2, scheme=scheme)["a_scale"]
    second = draw([site(p=p)], many, seed=2, scheme=scheme)["a_scale"]
    shared = min(few, many)
    assert np.array_equal(first[:shared], second[:shared])
    masks._cache.__init__(2**27)
    assert np.array_equal(second, draw([site(p=p)], many, seed=2, scheme=scheme)["a_scale"])


def test_seed_site_and_scheme_each_give_other_masks_and_neighbours_do_not():
    base = draw([site()], 10, seed=0)["a_scale"]
    assert np.array_equal(base, draw([site("b"), site()], 10, seed=0)["a_scale"])
    assert not np.array_equal(base, draw([site()], 10, seed=1)["a_scale"])
    assert not np.array_equal(base, draw([site("b")], 10, seed=0)["b_scale"])
    assert not np.array_equal(base, draw([site()], 10, seed=0, scheme="iid")["a_scale"])


def test_scale_is_zero_or_one_over_keep_and_the_override_replaces_every_rate():
    sites = [site(p=0.2), site("b", p=0.5, shape=(4, 1, 1), kind="dropout2d")]
    drawn = draw(sites, 20, seed=0)
    assert set(np.unique(drawn["a_scale"])) == {0, np.float32(1 / 0.8)}
    assert drawn["b_scale"].shape == (20, 4, 1, 1)
    drawn = draw(sites, 20, seed=0, rate=0.1)
    assert {float(v) for name in drawn for v in np.unique(drawn[name])} == {0, float(np.float32(1 / 0.9))}
    assert np.all(draw(sites, 20, seed=0, rate=0)["a_scale"] == 1)


def test_alpha_dropout_keeps_the_mean_and_variance_of_standard_normal_activations():
    drawn = draw([site(p=0.3, shape=(200_000,), kind="alpha_dropout")], 1, seed=0)
    x = np.random.default_rng(0).standard_normal(200_000)
    y = x * drawn["a_scale"][0] + drawn["a_shift"][0]
    assert abs(y.mean()) < 0.012
    assert abs(y.var() - 1) < 0.02


def test_variable_axes_are_drawn_at_their_maximum():
    shape = (Axis(name="L", maximum=7), 3)
    assert draw([site(shape=shape)], 4, seed=0)["a_scale"].shape == (4, 7, 3)


def test_masks_are_shared_and_so_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        draw([site()], 4, seed=0)["a_scale"][0] = 1


@pytest.mark.parametrize(
    ("arguments", "lesson"),
    [
        ({"seed": -1}, "2\\*\\*53"),
        ({"seed": 2**53}, "2\\*\\*53"),
        ({"seed": 0, "scheme": "sobol"}, "balanced, iid"),
        ({"seed": 0, "rate": 1.0}, "not including, 1"),
        ({"seed": 0, "samples": 0}, "at least 1"),
        ({"seed": 0, "samples": 2**24}, "at most 1048576 samples"),
    ],
)
def test_what_is_out_of_range_is_refused_with_what_to_do(arguments, lesson):
    with pytest.raises(UsageError, match=lesson):
        draw([site()], arguments.pop("samples", 5), **arguments)


def test_the_cache_is_bounded_and_forgets_what_was_used_longest_ago():
    cache = ByteCache(100)
    for key in "abc":
        cache.put(key, object(), 40)
    assert cache.get("a") is None
    assert cache.get("b") is not None
    cache.put("d", object(), 40)
    assert cache.get("c") is None
    assert cache.get("b") is not None
    cache.put("huge", object(), 4000)
    assert cache.get("huge") is None
    assert cache.size == 80
    assert len(cache) == 2


RATES = st.one_of(st.sampled_from([0.1, 0.15, 0.2, 0.25, 1 / 3, 0.5, 0.9]), st.floats(0, 0.99))


@given(
    p=RATES,
    others=st.lists(RATES, max_size=3),
    kind=st.sampled_from(["dropout", "alpha_dropout"]),
    samples=st.integers(1, 45),
    seed=st.integers(0, 2**53 - 1),
)
def test_other_sites_never_change_an_iid_mask(p, others, kind, samples, seed):
    own = site("a", p, kind=kind)
    added = [site(f"b{place}", rate) for place, rate in enumerate(others)]
    alone = draw([own], samples, seed=seed, scheme="iid")
    among = draw([*added, own], samples, seed=seed, scheme="iid")
    assert all(np.array_equal(among[name], values) for name, values in alone.items())


@given(p=RATES, other=RATES, samples=st.integers(1, 45), seed=st.integers(0, 2**53 - 1))
def test_another_site_changes_a_balanced_mask_only_by_the_block(p, other, samples, seed):
    alone = draw([site("a", p)], samples, seed=seed)["a_scale"]
    among = draw([site("a", p), site("b", other)], samples, seed=seed)["a_scale"]
    if common_block([p, other]) == common_block([p]):
        assert np.array_equal(among, alone)
    assert np.array_equal(draw([site("a", p), site("c", other)], samples, seed=seed)["a_scale"], among)


@given(p=RATES, other=RATES, more=st.integers(1, 30), scheme=st.sampled_from(masks.SCHEMES))
def test_more_samples_keep_the_earlier_ones_with_other_sites_too(p, other, more, scheme):
    sites = [site("a", p), site("b", other)]
    few, many = draw(sites, 7, seed=3, scheme=scheme), draw(sites, 7 + more, seed=3, scheme=scheme)
    assert all(np.array_equal(many[name][:7], values) for name, values in few.items())
