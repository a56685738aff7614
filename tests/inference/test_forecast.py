"""The line that says how long a folder will take: once, early, and only where it is worth a line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from medmamba.inference.folder.forecast import Forecast


def watched(cases: int, **options: int) -> tuple[Forecast, list[str], Callable[[float], None]]:
    """A forecast, what it has told, and a clock to advance."""
    now, told = [100.0], list[str]()

    def advance(seconds: float) -> None:
        now[0] += seconds

    return Forecast(cases, told.append, clock=lambda: now[0], **options), told, advance


def test_it_is_told_after_a_quarter_of_the_first_case_without_what_is_done_once() -> None:
    forecast, told, advance = watched(30)
    advance(3)  # reading, preprocessing, the first patch with all that is prepared for it
    forecast.on_patch(1, 16)
    for done in (2, 3):
        advance(0.5)
        forecast.on_patch(done, 16)
    assert not told
    advance(0.5)
    forecast.on_patch(4, 16)
    # 3 s, and 15 patches of 0.5 s: 10.5 s for each of 30 cases, of which 4.5 s are over
    assert told == ["About 5 minutes for 30 cases if all are as large as the first."]
    for done in range(5, 17):
        forecast.on_patch(done, 16)
    forecast.on_case()
    assert len(told) == 1


def test_ten_seconds_are_enough() -> None:
    forecast, told, advance = watched(1)
    for done in (1, 2, 3):
        forecast.on_patch(done, 1000)
        advance(6)
    assert told == ["About 100 minutes for 1 case."]  # 6 s a patch


def test_cases_of_one_patch_are_told_after_the_first() -> None:
    forecast, told, advance = watched(205)
    advance(1.0)
    forecast.on_patch(1, 1)
    advance(0.1)
    forecast.on_case()
    assert told == ["About 4 minutes for 205 cases if all are as large as the first."]


def test_workers_share_the_cases() -> None:
    forecast, told, advance = watched(9, together=4)
    advance(20)
    forecast.on_case()
    assert told == ["About 40 seconds for 9 cases if all are as large as the first."]  # three rounds, one is over


@pytest.mark.parametrize("cases", [0, 1, 3])
def test_little_work_is_not_worth_a_line(cases: int) -> None:
    forecast, told, advance = watched(cases)
    advance(2)
    forecast.on_patch(1, 2)
    advance(1)
    forecast.on_patch(2, 2)
    forecast.on_case()
    assert not told


def test_many_hours_are_hours() -> None:
    forecast, told, advance = watched(1000)
    advance(60)
    forecast.on_case()
    assert told == ["About 16.6 hours for 1000 cases if all are as large as the first."]
