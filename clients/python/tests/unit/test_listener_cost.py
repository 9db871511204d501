"""The benchmark of the listener runs and measures every case; its figures are printed, never judged here."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import listener


def test_the_benchmark_measures_the_listener_with_a_daemon_in_every_state() -> None:
    logging.disable(logging.CRITICAL)
    try:
        figures = listener.run(events=200, rounds=1)
    finally:
        logging.disable(logging.NOTSET)
    assert len(figures) >= 3
    for daemon, case in figures.items():
        assert 0 < case["cpu90"] <= case["cpu"], daemon
