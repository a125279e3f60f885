"""Ensembles of guests whose writers are known, for the prediction tests."""

import numpy as np

from pysampler import Measurement
from pysampler.core import ComponentKind
from pysampler.prediction.curve import Component, DirtyCurve
from pysampler.prediction.ensemble import assemble

GIB_PAGES = 262_144


def guest(*components, nonzero=GIB_PAGES, zero=0, members=1, page_size=4096):
    """An ensemble of known guests."""
    curve = DirtyCurve(tuple(components), None, (), (), nonzero, zero, 0.0, 1)
    return guest_of(curve, members, page_size)


def guest_of(curve, members=1, page_size=4096):
    measurement = Measurement(
        page_size=page_size,
        periods=(1000,),
        n_dirty_pages=(0,),
        n_sampled_pages=1,
        n_zero_pages=0,
        n_total_pages=int(curve.nonzero_pages + curve.zero_pages),
    )
    return assemble(curve, [curve] * members, measurement, np.random.default_rng(7))


def uniform(share, seconds):
    return Component(share * GIB_PAGES, 1 / seconds, ComponentKind.RANDOM)


def in_order(share, seconds):
    return Component(share * GIB_PAGES, 1 / seconds, ComponentKind.SEQUENTIAL)
