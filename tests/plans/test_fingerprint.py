"""The fingerprint: exact statistics, the same for any order and any number of workers, and bad cases by name."""

from __future__ import annotations

import numpy as np
import pytest
from planning_cases import case, fingerprint

from medmamba.errors import InputErrors
from medmamba.plans.fingerprint import build_fingerprint, channel_intensity, draw_foreground, samples_per_case, seal

LABELS = {"background": 0, "organ": 1}


SAMPLE = np.arange(5.0)


def build(cases, samples=(SAMPLE,)):
    return build_fingerprint("set", ["MRI"], LABELS, cases, list(samples))


def test_statistics_are_those_of_numpy_in_float64() -> None:
    values = np.random.default_rng(0).normal(1e6, 1.0, 10_000).astype(np.float32)
    result = channel_intensity(values)
    exact = values.astype(np.float64)
    assert result.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert result.std == pytest.approx(exact.std(), rel=1e-9)
    assert result.percentile_00_5 == np.percentile(exact, 0.5)
    assert result.percentile_99_5 == np.percentile(exact, 99.5)
    assert result.percentiles["25"] == np.percentile(exact, 25)


def test_the_order_of_the_cases_does_not_matter() -> None:
    cases = [case("b", (4, 5, 6)), case("a", (7, 8, 9)), case("c", (1, 2, 3))]
    assert build(cases) == build(cases[::-1])
    assert [c.case_id for c in build(cases).cases] == ["a", "b", "c"]


def test_the_content_hash_covers_every_fact() -> None:
    cases = [case("a", (4, 5, 6))]
    first = build(cases)
    assert first.content_hash == build(cases).content_hash
    assert first.content_hash != build([case("a", (4, 5, 7))]).content_hash
    assert seal(first) == first


def test_relative_size_is_the_median_over_the_cases() -> None:
    cases = [case("a", (10, 10, 10), shape_after_crop=(10, 10, 5)), case("b", (10, 10, 10))]
    assert build(cases).median_relative_size_after_cropping == 0.75


def test_a_drawn_sample_depends_on_seed_and_case_alone() -> None:
    voxels = np.arange(200.0).reshape(2, 100)
    first = draw_foreground(voxels, 30, case_id="a")
    np.testing.assert_array_equal(first, draw_foreground(voxels, 30, case_id="a"))
    assert not np.array_equal(first, draw_foreground(voxels, 30, case_id="b"))
    assert not np.array_equal(first, draw_foreground(voxels, 30, case_id="a", seed=1))
    np.testing.assert_array_equal(first[0] + 100, first[1])  # the same voxels in every channel


def test_a_case_without_foreground_gives_an_empty_sample() -> None:
    assert draw_foreground(np.zeros((3, 0)), 10, case_id="a").shape == (3, 0)


def test_every_case_gets_an_equal_share() -> None:
    assert samples_per_case(7, total=100) == 14
    assert samples_per_case(1000, total=100) == 1


def test_all_bad_cases_are_named_at_once() -> None:
    bad = [
        case("zero", (4, 4, 4), (1.0, 1.0, 0.0)),
        case("huge", (4, 4, 4), (1e6, 1.0, 1.0)),
        case("nothing", (4, 4, 4), shape_after_crop=(4, 0, 4)),
    ]
    with pytest.raises(InputErrors) as caught:
        build(bad)
    text = str(caught.value)
    assert "zero: spacing along axis k is 0 mm" in text
    assert "huge: spacing along axis i is 1e+06 mm" in text
    assert "nothing: axis j has 4 voxels, 0 after cropping" in text
    assert len(caught.value.args) - 1 == 3


def test_a_spacing_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        case("a", (4, 4, 4), (1.0, float("nan"), 1.0))


def test_a_dataset_without_any_foreground_is_refused_by_name() -> None:
    with pytest.raises(InputErrors, match="set: no foreground voxel in any of the 1 cases"):
        build([case("a", (4, 4, 4))], [np.zeros(0)])


def test_images_with_and_without_millimetres_do_not_mix() -> None:
    with pytest.raises(InputErrors, match="b: no spacing in mm, as in 1 of 2 cases"):
        build([case("a", (1, 4, 4)), case("b", (1, 4, 4), None)])


def test_no_case_at_all_is_refused() -> None:
    with pytest.raises(InputErrors, match="no usable case"):
        build([])


def test_one_intensity_entry_per_channel_is_needed() -> None:
    whole = fingerprint([case("a", (4, 4, 4))])
    with pytest.raises(ValueError, match="1 channel names but 0 intensity entries"):
        type(whole).model_validate({**whole.model_dump(), "intensities": []})


def test_field_of_view_and_volumes_are_in_millimetres_and_millilitres() -> None:
    one = case("a", (10, 20, 30), (2.0, 1.0, 0.5), label_voxels={"organ": 2000})
    assert one.field_of_view_mm == (20.0, 20.0, 15.0)
    assert one.volume_ml == {"organ": 2.0}
    pixels = case("a", (1, 20, 30), None)
    assert pixels.field_of_view_mm is None
    assert pixels.volume_ml is None
