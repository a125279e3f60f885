# SPDX-License-Identifier: MIT
"""Remedies: what would make a migration converge, and the least value of each.

A remedy is one change of a migration: more max-bandwidth, a longer downtime-limit, throttled vCPUs,
a dirty limit, compression, or post-copy.

The model of pre-copy is run with many values of a remedy. So the values found here agree with what
`predict` says of them. The model is run for each guest of the bootstrap, the guests that the vector
could be of (ensemble.py):

- The least value is the smallest one with which half of these guests converge.
- The safe value is the smallest one with which 95 % of them converge.

The quick rule is apart from that. It needs no model: what gets dirty during the downtime must fit
through the link in that time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from pysampler.errors import FormatError
from pysampler.prediction.ensemble import Ensemble, build_ensemble
from pysampler.prediction.least import least_candidate, remembering
from pysampler.prediction.monotone import BANDWIDTH_AXIS, DOWNTIME_AXIS, migrate_table
from pysampler.prediction.postcopy_model import postcopy
from pysampler.prediction.precopy_model import LIMITS, MULTIFD_CHANNELS, Precopy
from pysampler.prediction.prediction import MEMBERS, check_measurement, checked_draw
from pysampler.prediction.unreadable import unreadable_samples
from pysampler.prediction.unseen import share_with_missed
from pysampler.qemu.dirty_rate import PAGE_SIZE
from pysampler.qemu.migration import (
    DIRTY_LIMIT_PERIOD_MS,
    MOST_DOWNTIME_MS,
    PAGE_HEADER_BYTES,
    default_of,
)
from pysampler.units import MIB, format_duration, format_rate, format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pysampler.vector.measurement import Measurement

SAFE = 0.95
_LIKELY = 0.5
_LEAST_DOWNTIME_MS = 10.0  # of which stopping the guest takes some
_DIRTY_LIMIT_PERIOD_S = DIRTY_LIMIT_PERIOD_MS / 1000
_MOST_THROTTLE = default_of("max-cpu-throttle")
_FIRST_THROTTLE = default_of("cpu-throttle-initial")
_THROTTLE_STEP = default_of("cpu-throttle-increment")
_SHARES = 9  # of the unreadable samples, that are tried
_MANY = 100  # dirty samples, of which the normal distribution is near enough
_MOST_CODECS = 16  # there are three; each costs a run of the model


@dataclass(frozen=True, slots=True)
class Advice:
    """One remedy, or the migration as it is.

    Attributes:
        remedy: the name in JSON; ``none`` for the migration as it is.
        value: the least value, in ``unit``: with it the probability of convergence is 50 % or more.
            None where no value does that, and where the remedy has no value.
        safe_value: the safe value, in ``unit``: with it that probability is 95 % or more. None as
            for ``value``.
        unit: unit of both values: ``bytes/s``, ``ms``, ``%`` or ``MiB/s``. Empty where the remedy
            has no value.
        p_converge: probability of convergence, from 0 to 1, with ``value``; without a value, with
            the remedy. None where no value makes the migration converge.
        reasoning: the advice in words, one line.
        figures: further numbers of the remedy, by their JSON names, which have the units.
    """

    remedy: str
    value: float | None
    safe_value: float | None
    unit: str
    p_converge: float | None
    reasoning: str
    figures: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the advice's JSON object."""
        return {
            "remedy": self.remedy,
            "value": self.value,
            "safe-value": self.safe_value,
            "unit": self.unit,
            "p-converge": self.p_converge,
            "reasoning": self.reasoning,
            **self.figures,
        }


class _Model:
    """Answers how likely this migration converges when something about it is changed."""

    def __init__(
        self, ensemble: Ensemble, bandwidth: float, limit_ms: float | None, precopy: Precopy
    ) -> None:
        self.ensemble, self.precopy = ensemble, precopy
        self.bandwidth, self.limit_ms = bandwidth, limit_ms

    def p(
        self,
        *,
        ensemble: Ensemble | None = None,
        bandwidths: Sequence[float] | None = None,
        limits: Sequence[float] | None = None,
        precopy: Precopy | None = None,
    ) -> list[float]:
        """Return the probabilities with each bandwidth and each limit."""
        outcomes = migrate_table(
            ensemble or self.ensemble,
            precopy or self.precopy,
            bandwidths or [self.bandwidth],
            limits or [self.limit_ms],
        )
        return [float(p) for p in (outcomes["converged"] > 0).mean(axis=0).ravel()]


def advise(
    measurement: Measurement,
    bandwidth: float,
    downtime_limit_ms: float | None,
    *,
    precopy: Precopy | None = None,
    vcpus: int | None = None,
    unfinished: bool = False,
    members: int = MEMBERS,
    seed: int = 0,
) -> list[Advice]:
    """Return what would make this migration converge.

    Args:
        measurement: the vector of the guest.
        bandwidth: max-bandwidth, bytes per second.
        downtime_limit_ms: downtime-limit, ms. None: unlimited.
        precopy: the setup of the migration. None: QEMU's defaults.
        vcpus: number of the guest's vCPUs. None: the number of vCPUs whose dirty rates the vector
            has, or 1 where it has none.
        unfinished: accept a measurement whose status is not ``measured``.
        members: number of guests in the bootstrap.
        seed: seed of the random numbers; the same seed gives the same advice.

    Returns:
        The migration as it is, then each remedy: bandwidth, downtime-limit, throttle, dirty-limit,
        compression with each codec that the vector has figures of, and post-copy.

    Raises:
        FormatError: nothing can be predicted from the measurement; the message names the key.
        UsageError: ``members`` or ``seed`` is out of range.
    """
    check_measurement(measurement, unfinished=unfinished)
    members, seed = checked_draw(members, seed)
    codecs = _codecs(measurement)
    precopy = precopy or Precopy()
    ensemble = build_ensemble(measurement, members, seed)
    model = _Model(ensemble, bandwidth, downtime_limit_ms, precopy)
    vcpus = vcpus or max(1, len(measurement.vcpu_dirty_rate))
    throttle = _throttle(model)
    return [
        _as_it_is(model),
        _least_bandwidth(model),
        _least_downtime(model),
        throttle,
        _dirty_limit(model, throttle, vcpus),
        *(_compressed(model, codec, *figures) for codec, figures in codecs.items()),
        _post_copy(model, vcpus),
    ]


def _as_it_is(model: _Model) -> Advice:
    (p,) = model.p()
    say = "converges" if p >= SAFE else "does not converge" if p <= 1 - SAFE else "may converge"
    limit = model.limit_ms
    if limit is None:
        why = "the downtime is unlimited: it ends after one pass"
    else:
        dirty = _volume(model, limit / 1000)
        why = (
            f"{format_size(dirty)} get dirty in {format_duration(limit / 1000)}, in which "
            f"{format_rate(model.bandwidth)} carries {format_size(model.bandwidth * limit / 1000)}"
        )
    return Advice("none", None, None, "", p, f"{say}: {why}", {})


def _volume(model: _Model, seconds: float) -> float:
    """Bytes that the pages dirtied in this time cost on the wire."""
    pages = float(model.ensemble.curve(np.asarray(seconds)))
    return pages * (model.ensemble.page_size + PAGE_HEADER_BYTES)


def _both(least: Callable[[float], float | None]) -> tuple[float | None, float | None]:
    likely = least(_LIKELY)
    return likely, None if likely is None else least(SAFE)


def _least_bandwidth(model: _Model) -> Advice:
    p_of = remembering(lambda bandwidths: model.p(bandwidths=bandwidths))
    # From what takes the deadline for the bulk alone.
    start = model.ensemble.page_size * float(model.ensemble.guests["nonzero_pages"].mean())
    low = min(max(1000.0, start / model.precopy.deadline_ms * 1000 / 2), BANDWIDTH_AXIS.most)
    candidates = BANDWIDTH_AXIS.values(low, BANDWIDTH_AXIS.most)
    value, safe = _both(lambda p: least_candidate(p_of, candidates, (256, 16, 1), p))
    if value is None:
        return Advice(
            "bandwidth", None, None, "bytes/s", None, "no bandwidth makes it converge", {}
        )
    text = f"from {format_rate(_rounded(value))} it converges as likely as not"
    if safe is not None:
        text += f", from {format_rate(_rounded(safe))} with {SAFE:.0%}"
    return Advice(
        "bandwidth", float(round(value)), safe and float(round(safe)), "bytes/s",
        p_of([value])[0], text, {},
    )  # fmt: skip


def _rounded(value: float) -> float:
    """To three digits, upwards."""
    step = math.pow(10, math.floor(math.log10(value)) - 2)
    return math.ceil(value / step) * step


def _least_downtime(model: _Model) -> Advice:
    p_of = remembering(lambda limits: model.p(limits=limits))
    candidates = DOWNTIME_AXIS.values(_LEAST_DOWNTIME_MS, MOST_DOWNTIME_MS)

    def least(p: float) -> float | None:
        found = least_candidate(p_of, candidates, (32, 1), p)
        return None if found is None else float(max(_LEAST_DOWNTIME_MS, math.ceil(found)))

    value, safe = _both(least)
    if value is None:
        return Advice(
            "downtime-limit", None, None, "ms", None, "no downtime-limit makes it converge", {}
        )
    text = f"a downtime-limit of {value:.0f} ms converges as likely as not"
    if safe is not None:
        text += f", {safe:.0f} ms with {SAFE:.0%}"
    return Advice("downtime-limit", value, safe, "ms", p_of([value])[0], text, {})


def throttled(ensemble: Ensemble, percent: float) -> Ensemble:
    """Return the guests with throttled vCPUs, as auto-converge throttles them.

    A vCPU that is throttled by a share p sleeps for p of the time. So all that it writes takes
    1 / (1 - p) of the time that it took before. The single sleeps are much shorter than the windows
    in which the rate is limited, so the model has a slower guest and not a pausing one.

    Args:
        ensemble: the guests.
        percent: p in percent, from 0 to below 100.
    """
    speed = 1 - percent / 100
    components, guests = ensemble.components.copy(), ensemble.guests.copy()
    components["rate"] *= speed
    return replace(
        ensemble, components=components, guests=guests, knots_ms=ensemble.knots_ms / speed
    )


def _throttle(model: _Model) -> Advice:
    p_of = remembering(
        lambda percents: [
            model.p(ensemble=throttled(model.ensemble, percent))[0] for percent in percents
        ]
    )
    percents = [float(percent) for percent in range(_MOST_THROTTLE + 1)]
    value, safe = _both(lambda p: least_candidate(p_of, percents, (32, 16, 8, 4, 2, 1), p))
    if value is None:
        text = f"not even {_MOST_THROTTLE} % make it converge"
        return Advice("throttle", None, None, "%", None, text, {})
    text = f"auto-converge must reach {value:.0f} % to converge as likely as not"
    if safe is not None:
        text += f", {safe:.0f} % for {SAFE:.0%}"
    if value == 0:
        text = "no throttling is needed"
        if safe:
            text = f"{safe:.0f} % make it {SAFE:.0%} likely instead of as likely as not"
    # QEMU adds a step at every second check that finds too little progress.
    steps = 0
    if value > 0:
        steps = 1 + max(0, math.ceil((value - _FIRST_THROTTLE) / _THROTTLE_STEP))
    return Advice("throttle", value, safe, "%", p_of([value])[0], text, {"throttle-steps": steps})


def _dirty_limit(model: _Model, throttle: Advice, vcpus: int) -> Advice:
    def rate_of(percent: float | None) -> float | None:
        if percent is None:
            return None
        # What dirty-limit measures: pages of one period, of a guest that is held back.
        seconds = _DIRTY_LIMIT_PERIOD_S * (1 - percent / 100)
        pages = float(model.ensemble.curve(np.asarray(seconds)))
        rate = pages * model.ensemble.page_size / _DIRTY_LIMIT_PERIOD_S / MIB / vcpus
        return float(max(1, math.floor(rate)))

    value, safe = rate_of(throttle.value), rate_of(throttle.safe_value)
    if value is None:
        text = "no dirty limit makes it converge"
    elif throttle.value == 0:
        text = "no limit is needed"
    else:
        held = "the vCPU" if vcpus == 1 else f"each of {vcpus} vCPUs"
        text = f"{held} held to {value:.0f} MiB/s does what {throttle.value:.0f} % do"
    return Advice("dirty-limit", value, safe, "MiB/s", throttle.p_converge, text, {"vcpus": vcpus})


def _codecs(measurement: Measurement) -> dict[str, tuple[float, float]]:
    """Return ratio and speed (bytes/s) of each codec that the vector has them of."""
    found = measurement.details.get("compression")
    codecs = found.get("codecs") if isinstance(found, dict) else None
    if not isinstance(codecs, dict):
        return {}
    if len(codecs) > _MOST_CODECS:
        raise FormatError(f"x-pysampler.compression.codecs: more than {_MOST_CODECS}")
    known = {}
    for codec, figures in codecs.items():
        # Dirtied pages decide over convergence; where none was dirtied, all pages.
        pages = figures.get("dirtied") or figures.get("all") if isinstance(figures, dict) else None
        ratio = _figure(pages, "ratio-mean", 1e-6, 2.0)
        speed = _figure(pages, "bytes-per-s", 1e3, 1e15)
        if ratio is None or speed is None:
            raise FormatError(f"x-pysampler.compression.codecs.{codec}: no ratio and speed")
        known[codec] = ratio, speed
    return known


def _figure(pages: object, key: str, least: float, most: float) -> float | None:
    value = pages.get(key) if isinstance(pages, dict) else None
    return float(value) if isinstance(value, (int, float)) and least <= value <= most else None


def _compressed(model: _Model, codec: str, ratio: float, speed: float) -> Advice:
    # The pipeline is as fast as its slower half: the wire, or the channels' compressors.
    compressors = MULTIFD_CHANNELS * speed * ratio
    on_wire = min(model.bandwidth, compressors)
    # The same as pages of full size on a link that is faster by the ratio.
    slowest, fastest = LIMITS["link"]
    link = min(max((model.precopy.link or on_wire) / ratio, slowest), fastest)
    (p,) = model.p(bandwidths=[on_wire / ratio], precopy=replace(model.precopy, link=link))
    verdict = "converges" if p >= SAFE else "does not converge" if p <= 1 - SAFE else "may converge"
    held = (
        "the link sets" if model.bandwidth <= compressors else f"{MULTIFD_CHANNELS} compressors set"
    )
    text = (
        f"{verdict} with {codec}: pages shrink to {ratio:.0%}; {held} the pace of "
        f"{format_rate(_rounded(on_wire / ratio))} of pages"
    )
    return Advice(f"compression-{codec}", None, None, "", p, text, {"ratio": ratio})


def _post_copy(model: _Model, vcpus: int) -> Advice:
    found = postcopy(
        model.ensemble.curve,
        bandwidth=model.precopy.link or model.bandwidth,
        page_bytes=model.ensemble.page_size + PAGE_HEADER_BYTES,
        latency_s=model.precopy.latency_ms / 1000,
        precopy_s=_first_pass_s(model),
        vcpus=vcpus,
    )
    text = (
        f"always ends: after one pass at least {found.fetches:.0f} page fetches wait "
        f"{format_duration(found.total_wait_s)} in all, "
        f"each vCPU is blocked for {format_duration(found.blocktime_s)}"
    )
    figures = {
        "page-fetches": round(found.fetches, 1),
        "total-wait-ms": round(found.total_wait_s * 1000, 3),
        "vcpu-blocktime-ms": round(found.blocktime_s * 1000, 3),
        "fetch-ms": round(found.fetch_s * 1000, 4),
        "duration-ms": round(found.duration_s * 1000, 1),
    }
    return Advice("post-copy", None, None, "", 1.0, text, figures)


def _first_pass_s(model: _Model) -> float:
    curve = model.ensemble.curve
    return curve.nonzero_pages * (model.ensemble.page_size + PAGE_HEADER_BYTES) / model.bandwidth


@dataclass(frozen=True, slots=True)
class QuickVerdict:
    """The verdict of the quick rule.

    The rule: a migration converges when the pages that get dirty during one downtime-limit fit
    through the link in that time.

    Attributes:
        converges: the verdict.
        dirty_bytes: bytes on the wire of the pages that get dirty in that time.
        carried_bytes: bytes that the link carries in that time.
        p_converge: probability, from 0 to 1, that the dirty pages fit, as far as the samples tell.
            None where the number of samples is not known.
        reasoning: the verdict in words, one line.
    """

    converges: bool
    dirty_bytes: float
    carried_bytes: float
    p_converge: float | None
    reasoning: str

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict's JSON object."""
        return {
            "remedy": "quick",
            "converges": self.converges,
            "dirty-bytes": round(self.dirty_bytes),
            "carried-bytes": round(self.carried_bytes),
            "p-converge": self.p_converge,
            "reasoning": self.reasoning,
        }


def quick(
    measurement: Measurement,
    bandwidth: float,
    downtime_limit_ms: float,
    *,
    unfinished: bool = False,
) -> QuickVerdict:
    """Apply the quick rule to a vector.

    QEMU 8.2 takes a calc-time in milliseconds for the sake of this rule: one downtime-limit can be
    measured.

    Args:
        measurement: the vector. One of its periods must be within 10 % of the downtime-limit.
        bandwidth: rate of the link, bytes per second.
        downtime_limit_ms: downtime-limit, ms.
        unfinished: accept a measurement whose status is not ``measured``.

    Raises:
        FormatError: nothing was sampled, no period is near the downtime-limit, or nothing can be
            predicted from the measurement. The message names the key.
    """
    check_measurement(measurement, unfinished=unfinished)
    if not measurement.n_sampled_pages or not measurement.periods:
        raise FormatError("n-sampled-pages: nothing was sampled, so nothing can be predicted")
    nearest = min(
        range(len(measurement.periods)),
        key=lambda i: abs(measurement.periods[i] - downtime_limit_ms),
    )
    period, dirty = measurement.periods[nearest], measurement.n_dirty_pages[nearest]
    if abs(period - downtime_limit_ms) > 0.1 * downtime_limit_ms:
        raise FormatError(
            f"periods: none is {downtime_limit_ms:.0f} ms long, the nearest {period} ms; measure "
            f"with a calc-time of the downtime-limit"
        )
    page_bytes = measurement.page_size + PAGE_HEADER_BYTES
    sampled, total = measurement.n_sampled_pages, measurement.n_total_pages
    # The rule is about a line through the origin near the period, so ms more or less do not matter.
    most = bandwidth * period / 1000 / page_bytes / total * sampled
    if sampled == total:
        p = float(dirty < most)
    else:
        # Any share of what could not be read may be dirty, too.
        shares = [(i + 0.5) / _SHARES for i in range(_SHARES)]
        counts = [dirty + round(share * unreadable_samples(measurement)) for share in shares]
        p = sum(_p_at_most(count, sampled, most) for count in counts) / _SHARES
    return _verdict(dirty / sampled * total * page_bytes, bandwidth * period / 1000, period, p)


def _p_at_most(dirty: int, sampled: int, most: float) -> float:
    """Return how likely fewer than ``most`` samples' worth of pages get dirty: as unseen.py has it.

    Some guests have pages that as many samples as were dirty stand for, the others one more.
    """
    share = min(most / sampled, 1.0)
    if dirty > _MANY or share == 1:
        # Normal approximation of the binomial, half a sample away from certainty.
        own = min(max(dirty, 0.5), sampled - 0.5) / sampled
        return NormalDist(dirty, math.sqrt(sampled * own * (1 - own))).cdf(most)
    chance, fewer = math.exp(sampled * math.log1p(-share)), 0.0
    for i in range(dirty):
        fewer += chance
        chance *= (sampled - i) / (i + 1) * share / (1 - share)
    return max(0.0, 1 - fewer - share_with_missed(dirty) * chance)


def quick_from_rate(
    dirty_rate: float, calc_time_ms: float, bandwidth: float, downtime_limit_ms: float
) -> QuickVerdict:
    """Apply the quick rule to QEMU's own reply to query-dirty-rate.

    The reply does not tell the number of samples. So the verdict has no probability.

    Args:
        dirty_rate: the reply's dirty-rate, MiB/s.
        calc_time_ms: the reply's calc-time, ms. It must be within 10 % of the downtime-limit.
        bandwidth: rate of the link, bytes per second.
        downtime_limit_ms: downtime-limit, ms.

    Raises:
        FormatError: calc-time is not near the downtime-limit.
    """
    if abs(calc_time_ms - downtime_limit_ms) > 0.1 * downtime_limit_ms:
        raise FormatError(
            f"calc-time: {calc_time_ms:.0f} ms is not the downtime-limit, "
            f"{downtime_limit_ms:.0f} ms"
        )
    seconds = calc_time_ms / 1000
    dirty = dirty_rate * MIB * seconds * (1 + PAGE_HEADER_BYTES / PAGE_SIZE)
    return _verdict(dirty, bandwidth * seconds, calc_time_ms, None)


def _verdict(dirty: float, carried: float, period_ms: float, p: float | None) -> QuickVerdict:
    fits = dirty < carried
    converges = fits and (p is None or p >= _LIKELY)
    text = (
        f"{'converges' if converges else 'does not converge'}: {format_size(dirty)} get dirty in "
        f"{period_ms:.0f} ms, {'less' if fits else 'not less'} than the "
        f"{format_size(carried)} that the link carries in that time"
    )
    if fits and not converges:
        text += "; but so few samples may well have missed more than that"
    return QuickVerdict(converges, dirty, carried, p, text)
