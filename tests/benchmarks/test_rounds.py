"""Medians of ratios within rounds, by hand; the order of turns; what counts as wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from answers import Oracle, mc, plain, read_by
from contestants import Contestant
from load import Figures
from rounds import GENERATOR, Record, Turn, order


def turn(rate: float, cost: float) -> Turn:
    figures = Figures(int(rate), rate, {}, {"p50": 1.0}, [], 0, int(rate))
    return Turn(figures, {"frontend": cost / 4, "workers": 3 * cost / 4, GENERATOR: 1000.0}, others=0.5)


def contestant(name: str, *, steady: bool = False) -> Contestant:
    oracle = Oracle(np.array([[0.25, 0.75], [0.5, 0.5]]), np.zeros((2, 2, 2)))
    judge = read_by(lambda document: document["p"], oracle)
    return Contestant(name, name, "", "http://127.0.0.1/", ["", ""], judge, dict, steady)


def test_a_ratio_is_the_median_of_ratios_within_rounds() -> None:
    """A machine that slows down by half after each round changes no ratio; medians of rates would differ."""
    ours = [turn(rate, 10) for rate in (4000, 2100, 900)]
    theirs = [turn(rate, cost) for rate, cost in ((2000, 30), (1000, 40), (500, 20))]
    record = Record({("a", 8): ours, ("b", 8): theirs})
    assert vars(record.ratio("a", "b", 8)) == {"median": 2.0, "least": 1.8, "greatest": 2.1}
    assert vars(record.saving("a", "b", 8)) == {"median": 3.0, "least": 2.0, "greatest": 4.0}
    assert record.rate("a", 8) == 2100
    assert record.cost("b", 8) == 30  # without the load generator


def test_every_contestant_is_first_in_some_round_and_neighbours_change_sides() -> None:
    everyone = [contestant(name) for name in "abcdef"]
    orders = [[c.name for c in order(everyone, number, 6)] for number in range(6)]
    assert all(sorted(names) == list("abcdef") for names in orders)
    assert orders[0] == list("abcdef")
    assert orders[1] == list("afedcb")
    followers = {names[names.index("c") + 1] for names in orders if names[-1] != "c"}
    assert followers == {"b", "d"}


def answered(*texts: list[str], errors: dict[str, int] | None = None, varying: int = 0) -> Figures:
    count = sum(map(len, texts))
    return Figures(count, 1.0, errors or {}, {"p50": 1.0}, list(texts), varying, count)


def test_every_different_answer_is_compared() -> None:
    record = Record()
    right, close, off = ('{"p": [0.25, 0.75]}', '{"p": [0.250001, 0.749999]}', '{"p": [0.2501, 0.7499]}')
    record.file(contestant("a"), answered([right, close], ['{"p": [0.5, 0.5]}']))
    assert (record.checked, record.wrong) == (3, [])
    record.file(contestant("a"), answered([right, close, off], [right]))
    assert [line.split(":")[0] for line in record.wrong] == ["a, question 0", "a, question 1"]
    assert record.checked == 7


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", '{"p": [0.25]}', '{"p": [0.25, null]}', '{"p": "x"}', '{"p": [0.25, NaN]}', "[]"],
)
def test_what_is_no_answer_is_wrong(text: str) -> None:
    record = Record()
    record.file(contestant("a"), answered([text]))
    assert len(record.wrong) == 1


def test_only_the_steady_must_repeat_themselves_to_the_byte() -> None:
    both = ['{"p": [0.25, 0.75]}', '{"p": [0.25, 0.7500001]}']
    for steady in (True, False):
        record = Record()
        record.file(contestant("a", steady=steady), answered(both, varying=1))
        assert bool(record.wrong) == steady


def test_more_than_a_hundredth_of_errors_is_refusing() -> None:
    texts = ['{"p": [0.25, 0.75]}'] * 300
    for errors, refusing in (({}, 0), ({"503": 3}, 0), ({"503": 2, "closed": 2}, 1)):
        record = Record()
        record.file(contestant("a"), answered(texts, errors=errors))
        assert len(record.refusing) == refusing
        assert sum(record.errors.values()) == sum(errors.values())
    record = Record()
    record.file(contestant("a"), answered([]))
    assert len(record.refusing) == 1


def test_our_answers_are_read_as_they_are_written() -> None:
    samples = np.random.default_rng(0).dirichlet(np.ones(3), size=(50, 1))
    oracle = Oracle(samples.mean(0), samples)
    labels = ["a", "b", "c"]

    def document(mean: np.ndarray, std: np.ndarray) -> dict[str, object]:
        entry = {"probabilities": dict(zip(labels, mean, strict=True))}
        entry["uncertainty"] = {"standard_deviation": dict(zip(labels, std, strict=True))}
        return json.loads(json.dumps({"predictions": [entry]}))

    mean, std = samples.mean(0)[0], samples.std(0)[0]
    assert plain(oracle)(document(mean, std), 0) == mc(oracle)(document(mean, std), 0) == ""
    assert plain(oracle)(document(mean[::-1], std), 0)
    assert mc(oracle)(document(mean, std * 1.001), 0)
