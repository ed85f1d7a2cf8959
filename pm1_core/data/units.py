"""Units of measurement: conversion to the study's unit, exactly or not at all."""

from __future__ import annotations

from dataclasses import dataclass

# dimension -> unit -> (factor, offset) to the dimension's first unit: base = value * factor + offset
_DIMENSIONS: dict[str, dict[str, tuple[float, float]]] = {
    "mass": {
        "kg": (1, 0),
        "g": (1e-3, 0),
        "mg": (1e-6, 0),
        "lb": (0.45359237, 0),
        "st": (6.35029318, 0),
        "oz": (0.028349523125, 0),
    },
    "length": {
        "m": (1, 0),
        "cm": (0.01, 0),
        "mm": (1e-3, 0),
        "um": (1e-6, 0),
        "in": (0.0254, 0),
        "ft": (0.3048, 0),
    },
    "time": {
        "years": (1, 0),
        "months": (1 / 12, 0),
        "weeks": (7 / 365.25, 0),
        "days": (1 / 365.25, 0),
        "hours": (1 / 8766, 0),
        "minutes": (1 / 525960, 0),
    },
    "temperature": {"C": (1, 0), "F": (5 / 9, -160 / 9), "K": (1, -273.15)},
    "pressure": {"mmHg": (1, 0), "kPa": (7.500615758, 0), "cmH2O": (0.735559, 0)},
    "share": {"%": (1, 0), "fraction": (100, 0), "permille": (0.1, 0)},
    "energy": {"kJ": (1, 0), "kcal": (4.184, 0)},
    "rate": {"/min": (1, 0), "Hz": (60, 0)},
    "angle": {"deg": (1, 0), "rad": (57.29577951308232, 0)},
    "bmi": {"kg/m2": (1, 0), "lb/in2": (703.06957964, 0)},
    "mass concentration": {
        "g/L": (1, 0),
        "g/dL": (10, 0),
        "mg/dL": (0.01, 0),
        "mg/L": (1e-3, 0),
        "ug/mL": (1e-3, 0),
        "ug/L": (1e-6, 0),
        "ng/mL": (1e-6, 0),
        "ng/L": (1e-9, 0),
        "pg/mL": (1e-9, 0),
    },
    "molar concentration": {
        "mmol/L": (1, 0),
        "umol/L": (1e-3, 0),
        "nmol/L": (1e-6, 0),
        "pmol/L": (1e-9, 0),
        "mol/L": (1e3, 0),
    },
    "cells": {"10^9/L": (1, 0), "10^12/L": (1e3, 0), "/uL": (1e-3, 0)},
    "refraction": {"D": (1, 0)},
}

_SPELLINGS: dict[str, str] = {
    "year": "years", "yr": "years", "y": "years", "a": "years", "month": "months", "day": "days", "d": "days",
    "week": "weeks", "hour": "hours", "h": "hours", "minute": "minutes", "kgs": "kg", "lbs": "lb", "pounds": "lb",
    "stone": "st", "inch": "in", "inches": "in", "feet": "ft", "µm": "um", "μm": "um", "°c": "C", "celsius": "C",
    "°f": "F", "fahrenheit": "F", "mm[hg]": "mmHg", "mmhg": "mmHg", "kpa": "kPa", "percent": "%", "kg/m^2": "kg/m2",
    "kg/m²": "kg/m2", "mg/dl": "mg/dL", "g/dl": "g/dL", "g/l": "g/L", "mg/l": "mg/L", "mmol/l": "mmol/L",
    "µmol/l": "umol/L", "μmol/l": "umol/L", "umol/l": "umol/L", "nmol/l": "nmol/L", "pmol/l": "pmol/L",
    "ng/ml": "ng/mL", "pg/ml": "pg/mL", "ug/ml": "ug/mL", "ug/l": "ug/L", "ng/l": "ng/L", "bpm": "/min",
    "1/min": "/min", "diopters": "D", "dioptres": "D", "dpt": "D", "mmol/mol": "mmol/mol",
}  # fmt: skip

# Molar mass in g/mol; it alone turns mg/dL into mmol/L. Triglycerides by the convention for triolein.
MOLAR_MASS: dict[str, float] = {
    "cholesterol": 386.65, "triglycerides": 885.43, "glucose": 180.156, "creatinine": 113.12, "urate": 168.11,
    "urea": 60.056, "bilirubin": 584.66, "calcium": 40.078, "phosphate": 30.974, "vitamin d": 400.64,
    "testosterone": 288.42, "oestradiol": 272.38, "sodium": 22.990, "potassium": 39.098,
}  # fmt: skip


@dataclass(frozen=True)
class Conversion:
    """study value = value * factor + offset."""

    factor: float = 1.0
    offset: float = 0.0


def spelling(unit: str) -> str:
    """The one spelling of a unit, e.g. "years" for "yr"; an unknown unit stays as it is."""
    return _SPELLINGS.get(unit, _SPELLINGS.get(unit.lower(), unit))


def _find(unit: str) -> tuple[str, float, float] | None:
    for dimension, units in _DIMENSIONS.items():
        if unit in units:
            return dimension, *units[unit]
    return None


def conversion(have: str, want: str, analyte: str | None = None) -> Conversion | None:
    """How to turn `have` into `want`; None if there is no way.

    analyte: a key of MOLAR_MASS, needed between mass and molar concentration; "hba1c" between % and
    mmol/mol (NGSP % = 0.09148 * IFCC + 2.152, Hoelzel et al., Clin Chem 2004;50:166).

    >>> conversion("lb", "kg")
    Conversion(factor=0.45359237, offset=0.0)
    >>> round(200 * conversion("mg/dL", "mmol/L", "cholesterol").factor, 2)
    5.17
    >>> conversion("mg/dL", "mmol/L") is None
    True
    """
    have, want = spelling(have), spelling(want)
    if have == want:
        return Conversion()
    if analyte == "hba1c" and {have, want} == {"%", "mmol/mol"}:
        return Conversion(1 / 0.09148, -2.152 / 0.09148) if have == "%" else Conversion(0.09148, 2.152)
    source, target = _find(have), _find(want)
    if source is None or target is None:
        return None
    scale = 1.0
    kinds = (source[0], target[0])
    if kinds[0] != kinds[1]:
        mass = MOLAR_MASS.get(analyte or "")
        if mass is None or set(kinds) != {"mass concentration", "molar concentration"}:
            return None
        scale = 1000 / mass if kinds[0] == "mass concentration" else mass / 1000  # g/L <-> mmol/L
    return Conversion(source[1] * scale / target[1], (source[2] * scale - target[2]) / target[1])
