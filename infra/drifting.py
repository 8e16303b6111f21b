"""river's ADWIN: whether a stream of confidences changed its mean."""

from collections.abc import Iterable

DELTA = 0.002
"""ADWIN's bound on the chance of a false alarm at each look."""


def count_drifts(values: Iterable[float], *, after: int = 0) -> int:
    """How often the mean changed behind the first `after` values, which are the reference.

    Nothing is kept between calls: the detector's state is river's own and cannot be written down as JSON, so a stream
    is read again from its beginning each time.
    """
    from river.drift import ADWIN  # takes a second to import

    detector, found = ADWIN(delta=DELTA), 0
    for n, value in enumerate(values):
        detector.update(value)
        found += n >= after and detector.drift_detected
    return found
