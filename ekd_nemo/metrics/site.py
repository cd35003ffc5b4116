"""What a site's PUE, grid and price make of E_run: figures of their own, never folded into joules."""

from pathlib import Path
from typing import Any, Final, cast

import yaml
from pydantic import ValidationError

from ekd_nemo.errors import ConfigError
from ekd_nemo.metrics.quantity import Quantity
from ekd_nemo.records.identity import Factors, Sourced
from ekd_nemo.units import J_PER_KWH

_NOT_GIVEN: Final = "no {} was given with its source"
_G_PER_KWH: Final = {
    "g/kWh": 1.0,
    "gCO2e/kWh": 1.0,
    "gCO2/kWh": 1.0,
    "kg/MWh": 1.0,
    "kg/kWh": 1000.0,
    "kgCO2e/kWh": 1000.0,
}
_PER_KWH: Final = "/kWh"
_PLAIN: Final = ("1", "", "ratio")


def site_figures(e_run: Quantity, factors: Factors) -> dict[str, Quantity]:
    """Energy of the site for the run (E_run times PUE), its carbon and its price; missing where a factor is.

    Carbon and price are of the site's energy where a PUE is given, else of the accelerators' alone, flagged
    `without_pue`. Nothing here covers hosts, networks or the making of the hardware.

    Args:
        e_run: in J.
        factors: their units seen to be accepted (`check_factors`).
    """
    kwh = e_run.divided_by(Quantity(J_PER_KWH), "kWh")
    facility = _scaled(kwh, factors.pue, 1.0, "kWh", "PUE")
    base = facility if factors.pue is not None else kwh.flagged("without_pue")
    carbon, price = factors.grid_carbon, factors.price
    grams = 1.0 if carbon is None else _G_PER_KWH[carbon.unit]
    currency = "" if price is None else price.unit.removesuffix(_PER_KWH)
    return {
        "facility_kwh": facility,
        "carbon": _scaled(base, carbon, grams, "gCO2e", "grid carbon factor"),
        "cost": _scaled(base, price, 1.0, currency, "price"),
    }


def _scaled(
    energy: Quantity, factor: Sourced | None, scale: float, unit: str, name: str
) -> Quantity:
    if factor is None:
        return Quantity.missing(unit, _NOT_GIVEN.format(name))
    return energy.divided_by(Quantity(1 / (factor.value * scale)), unit)


def check_factors(factors: Factors, where: str = "factors") -> None:
    """Refuse units that no figure can be made of.

    Raises: ConfigError naming the factor and the units that it may have.
    """
    pue, carbon, price = factors.pue, factors.grid_carbon, factors.price
    if pue is not None and (pue.unit not in _PLAIN or pue.value < 1):
        raise ConfigError(
            f"{where}: pue: a ratio of at least 1 with unit '1' is accepted, not {_told(pue)}"
        )
    if carbon is not None and carbon.unit not in _G_PER_KWH:
        raise ConfigError(
            f"{where}: grid_carbon: unit must be one of {', '.join(_G_PER_KWH)}, not {_told(carbon)}"
        )
    if price is not None and (not price.unit.endswith(_PER_KWH) or price.unit == _PER_KWH):
        raise ConfigError(
            f"{where}: price: unit must be a currency per kWh, as in EUR/kWh, not {_told(price)}"
        )


def _told(factor: Sourced) -> str:
    return f"{factor.value:g} {factor.unit!r}"


def read_site(path: Path) -> Factors:
    """Factors from a YAML file: `pue`, `grid_carbon`, `price`, each with value, unit and source.

    They may also lie under a key `power`, as in a cluster file.

    Raises: ConfigError naming file and key if it is none.
    """
    try:
        raw = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None
    body = cast("dict[str, Any]", raw) if isinstance(raw, dict) else {}
    power = body.get("power", body)
    body = cast("dict[str, Any]", power) if isinstance(power, dict) else {}
    names = [name for name in Factors.model_fields if body.get(name) is not None]
    if not names:
        accepted = ", ".join(Factors.model_fields)
        raise ConfigError(f"{path}: none of {accepted}; each takes value, unit and source")
    try:
        factors = Factors.model_validate({name: body[name] for name in names})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg']}") from None
    check_factors(factors, str(path))
    return factors
