"""The converse: with masks on, outputs must differ, and in the way that theory says.

A model whose dropout is provably off could also be one whose dropout was lost on the way. These checks run
the masked program: every site alone, and all of them.
"""

from __future__ import annotations

import math
import time

import torch

from dropserve.dropout.masks import block_size, draw

from .differ import Difference, compare
from .masked_rows import ROWS, MaskedRows, affordable
from .outcome import Examination, Outcome, failed, passed, skipped

_SAMPLES = 20
_MOST_SAMPLES = 200
_EXPECTED_DROPS = 30.0  # below this many expected drops, equal samples prove nothing
_SECONDS = 2.0  # for the mean of samples: a deep model has many sites

_UNMASKABLE = 'export refuses it unless export/checks.toml waives "dropout-maskable"'


def dropout_sites(exam: Examination) -> Outcome:
    """Every dropout site is found, and can be replaced by a mask."""
    program = exam.program
    if exam.refusal:
        return Outcome("skipped", f"Monte Carlo cannot be offered: {exam.refusal}", _UNMASKABLE)
    if program is None:
        return skipped("the model has no dropout (or only p=0): there is nothing to sample")
    listed = ", ".join(f"{site.name} ({site.kind}, p={site.p:g})" for site in program.sites[:6])
    more = f" and {len(program.sites) - 6} more" if len(program.sites) > 6 else ""
    return passed(f"{len(program.sites)} sites: {listed}{more}")


def identity_masks(exam: Examination) -> Outcome:
    """Masks of 1 give the deterministic model's answer."""
    runner = MaskedRows.of(exam)
    difference = compare(runner.plain, runner.run(runner.program.identity_masks(ROWS)))
    if difference.within(exam.settings.tolerance):
        return passed(f"{len(runner.program.mask_names)} masks at identity: {difference.size}")
    return failed(
        f"with every mask at identity, {difference}",
        "report this: the masked program does not compute what the model computes",
        exam.probe.placer.root_place(),
    )


def every_site_acts(exam: Examination) -> Outcome:
    """Each site's own mask changes the output."""
    runner = MaskedRows.of(exam)
    effects = {site.name: runner.effect(site) for site in runner.program.sites}
    dead = [site for site in runner.program.sites if effects[site.name] == 0]
    if not dead:
        least = min(effects, key=lambda name: effects[name])
        return passed(
            f"each of {len(effects)} sites changes the output; the least, {least}, by {effects[least]:.2g} "
            "of its scale"
        )
    names = ", ".join(site.name for site in dead)
    places = ", ".join(dict.fromkeys(site.where for site in dead))
    could = runner.perturbed()
    waking = [site.name for site in dead if could.effect(site) > 0]
    reason = (
        f"they do with other weights ({', '.join(waking)}): these weights switch them off"
        if waking
        else "not with other weights either: what is dropped there reaches no output"
    )
    seen = f"{len(dead)} of {len(effects)} sites change nothing: {names} at {places}; {reason}"
    if len(dead) < len(effects):
        return Outcome("passed", f"warning: {seen}", "is the result of the dropout used?", places)
    if waking and exam.subject.rows is None:
        return skipped(f"untrained weights: {seen}")
    return failed(
        f"{seen}; Monte Carlo would claim certainty",
        "use the result of the dropout (x = self.drop(x)), train the model, or take the dropout out",
        places,
    )


def samples_differ(exam: Examination) -> Outcome:
    """Samples at the sites' own rates differ from the deterministic answer and from each other."""
    runner = MaskedRows.of(exam)
    drops = sum(site.p * site.units for site in runner.program.sites)
    number = max(_SAMPLES, math.ceil(_EXPECTED_DROPS / drops))
    if number > _MOST_SAMPLES:
        return skipped(f"a sample drops {drops:.2g} units on average: too few to show anything")
    number = min(number, affordable(runner.program.sites))
    drawn = draw(runner.program.sites, number, seed=11)
    samples = [runner.run(runner.masks(drawn, sample)) for sample in range(number)]
    apart = [compare(samples[0], sample) for sample in samples[1:]]
    away = [compare(runner.plain, sample) for sample in samples]
    if all(difference.identical for difference in [*apart, *away]):
        return failed(
            f"{number} samples are bit-equal to each other and to the deterministic answer",
            "see every-site-acts: no mask reaches the output",
            runner.program.sites[0].where,
        )
    count = sum(not difference.identical for difference in away)
    widest = max(apart, key=lambda difference: difference.relative)
    return passed(
        f"{count} of {number} samples differ from the deterministic answer; the widest two by "
        f"{widest.relative:.2g} of the scale"
    )


def mean_of_samples(exam: Examination) -> Outcome:
    """Where the output is affine in a site's mask, a balanced block averages to what theory says.

    That is the deterministic answer. Alpha dropout keeps mean and variance of standardised activations, not
    of each single one: there the mean is the answer under the mean mask, a(1-p) x (Klambauer et al. 2017).
    """
    runner = MaskedRows.of(exam)
    start = time.perf_counter()
    tested: list[str] = []
    worst = Difference()
    for site in runner.program.sites:
        if time.perf_counter() - start > _SECONDS:
            break
        block = block_size(site.p)
        if not _whole(block * (1 - site.p)) or not runner.affine(site, exam.settings.tolerance):
            continue
        drawn = draw([site], block, seed=12)  # alone: sites of other rates would share a longer block
        runs = [runner.run(runner.masks(drawn, sample, only=site)) for sample in range(block)]
        mean = {name: torch.stack([run[name].double() for run in runs]).mean(0) for name in runner.plain}
        expected = runner.plain if site.shift is None else runner.run(runner.mean_masks(site))
        difference = compare({name: t.double() for name, t in expected.items()}, mean)
        if not difference.within(10 * exam.settings.tolerance):
            return failed(
                f"{site.name}: the output is affine in its mask, and the mean of {block} balanced samples: "
                f"{difference}",
                "report this: the masks of this site do not average to what its dropout does",
                site.where,
            )
        tested.append(site.name)
        worst = max(worst, difference, key=lambda found: found.relative)
    if not tested:
        return skipped("the output is affine in no site's mask: theory gives no mean to compare with")
    return passed(
        f"{len(tested)} of {len(runner.program.sites)} sites have an affine rest ({', '.join(tested[:4])}): "
        f"a block averages to what theory says within {worst.relative:.2g} of the scale"
    )


def _whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-9
