"""Conversions between device units and SI."""

import pytest

from ekd_nemo import units


def test_conversions_are_powers_of_ten_and_the_hour() -> None:
    assert units.joules(1_500) == 1.5
    assert units.watts(250_000) == 250.0
    assert units.seconds(2_000_000_000) == 2.0
    assert units.kilowatt_hours(3_600_000) == 1.0


@pytest.mark.parametrize(
    ("energy_j", "text"),
    [
        (0.0, "0 J"),
        (0.0123, "12.3 mJ"),
        (0.00005, "0.05 mJ"),
        (1.0, "1 J"),
        (999.4, "999.4 J"),
        (1_234.0, "1.234 kJ"),
        (1.2e6, "1.2 MJ"),
        (-4_500.0, "-4.5 kJ"),
    ],
)
def test_energy_is_printed_with_a_fitting_unit(energy_j: float, text: str) -> None:
    assert units.format_energy(energy_j) == text


def test_a_kilojoule_is_never_called_a_megajoule() -> None:
    # The earlier framework printed kJ as MJ and kWh 1000 times too small.
    assert units.format_energy(812_000.0) == "812 kJ"
    assert units.kilowatt_hours(812_000.0) == pytest.approx(0.22556, rel=1e-4)
