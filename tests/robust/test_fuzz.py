"""Any input to whatever reads input: success, or the error it documents. stress.py does it for hours."""

from __future__ import annotations

from random import Random

import pytest
from fuzz_targets import TARGETS
from hypothesis import given, settings
from hypothesis import strategies as st
from stress import fuzz, table


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # pickletools' of a damaged pickle
@pytest.mark.parametrize("kind", TARGETS)
@settings(max_examples=40)
@given(st.randoms(use_true_random=False))
def test_any_input_succeeds_or_is_refused(kind: str, draw: Random) -> None:
    TARGETS[kind](draw)


@pytest.mark.parametrize("kind", TARGETS)
def test_both_outcomes_occur(kind: str) -> None:
    """Inputs that are all refused, or all taken, would test nothing."""
    outcomes = [TARGETS[kind](Random(seed)) for seed in range(60)]
    assert set(outcomes) == {True, False}


def test_a_failure_is_counted_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def target(draw: Random) -> bool:
        if draw.random() < 0.5:
            raise KeyError("a bug")
        return True

    monkeypatch.setitem(TARGETS, "targets", target)
    rows = fuzz(40, seed=1, only="targets")
    counts = rows["targets"]
    assert counts["failures"] > 5
    assert counts["failures"] + counts["successes"] == counts["inputs"] == 40
    assert "KeyError: 'a bug'" in capsys.readouterr().err
    assert fuzz(40, seed=1, only="targets") == rows  # the seed decides
    last = table(rows).splitlines()[-1].split()
    assert last == ["all", "40", "0", str(counts["successes"]), str(counts["failures"])]


@pytest.mark.slow
def test_more_inputs() -> None:
    assert all(row["failures"] == 0 for row in fuzz(1_000, seed=7).values())
