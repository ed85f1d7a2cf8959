"""The phenotype columns of simulated hospitals: UK Biobank fields, their missing codes and how they arise.

Field numbers and codes follow the UK Biobank showcase where a field is one cell a person; fields that are
lists there (family history, medication, self-reported illness) are one column a question here, named
FIELD_CODE. Loadings are invented; the related columns are those of supplementary table 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TOUCHSCREEN = (-1, -3)
"""-1 do not know, -3 prefer not to answer."""
FAMILY = (-11, -13)
FOLLOW_UP = (-818,)

BLOCKS: Mapping[str, float] = {
    "core": 0.0,
    "touchscreen": 0.004,
    "physical": 0.01,
    "biochemistry": 0.07,
    "haematology": 0.05,
    "spirometry": 0.25,
    "density": 0.40,
    "follow_up": 0.66,
    "eye": 0.64,
    "genetic": 0.0,
}
"""Share of people without a whole block. "eye" follows the missing shares of glaucoma and cataract in
supplementary table 3; "genetic" is missing where there is no genotype."""


@dataclass(frozen=True)
class Field:
    """One study column.

    kind: continuous, binary or categorical; mean, sd: of continuous values in `unit` (low, high cut them)
    prevalence: of a binary; shares: of the categories, from low to high; answers: their UK Biobank codes
    loadings: latent factor, "case=<disease>" (status) or "gene=<disease>" (planted SNPs) -> weight on the
    standardised value; the rest is noise
    missing: codes of the file that stand for no answer, given at rate `unanswered`
    codes: prefixes per coding system
    """

    name: str
    ukb: str
    kind: str
    block: str
    loadings: Mapping[str, float] = field(default_factory=dict)
    unit: str | None = None
    mean: float = 0.0
    sd: float = 1.0
    low: float = float("-inf")
    high: float = float("inf")
    decimals: int = 1
    prevalence: float = 0.5
    categories: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    answers: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    unanswered: float = 0.0
    codes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _weights(parts: list[str]) -> dict[str, float]:
    """{"age": 0.3} of ["age:0.3"]."""
    return {name: float(weight) for name, _, weight in (part.rpartition(":") for part in parts)}


def _measures(block: str, rows: str) -> list[Field]:
    """Continuous fields from lines "name field unit mean sd low high decimals factor:weight ..."."""
    fields = []
    for row in rows.strip().splitlines():
        name, ukb, unit, mean, sd, low, high, decimals, *loadings = row.split()
        fields.append(
            Field(
                name, f"{ukb}-0.0", "continuous", block, _weights(loadings), unit, float(mean), float(sd),
                float(low), float(high), int(decimals),
            )
        )  # fmt: skip
    return fields


def _questions(block: str, missing: tuple[int, ...], unanswered: float, rows: str) -> list[Field]:
    """Binary fields from lines "name field prevalence factor:weight ..."."""
    fields = []
    for row in rows.strip().splitlines():
        name, ukb, prevalence, *loadings = row.split()
        fields.append(
            Field(
                name, ukb, "binary", block, _weights(loadings), prevalence=float(prevalence),
                missing=missing, unanswered=unanswered,
            )
        )  # fmt: skip
    return fields


BODY = _measures(
    "physical",
    """
bmi 21001 kg/m2 27.4 4.7 15 60 2 adiposity:0.98
waist 48 cm 90 13 55 160 0 adiposity:0.8 male:0.45
hip 49 cm 103 9 70 160 0 adiposity:0.85
body_fat 23099 % 31 8.4 6 60 1 adiposity:0.65 male:-0.6
systolic_pressure 4080 mmHg 138 18.5 85 230 0 pressure:0.85
diastolic_pressure 4079 mmHg 82 10 50 130 0 pressure:0.7 adiposity:0.15
pulse_rate 102 1/min 69 11 35 140 0 adiposity:0.2 inflammation:0.2
grip_left 46 kg 29 11 2 75 0 male:0.7 frailty:-0.35 stature:0.2
grip_right 47 kg 31 11 2 75 0 male:0.7 frailty:-0.35 stature:0.2
""",
)

BLOOD = _measures(
    "biochemistry",
    """
hba1c 30750 mmol/mol 36 6.5 20 140 1 glycaemia:0.75
glucose 30740 mmol/L 5.1 1.1 2.5 25 2 glycaemia:0.5
cholesterol 30690 mmol/L 5.7 1.1 2 12 2 lipids:0.85
ldl 30780 mmol/L 3.56 0.87 0.8 9 2 lipids:0.9
hdl 30760 mmol/L 1.45 0.38 0.4 3.5 2 adiposity:-0.4 male:-0.4
triglycerides 30870 mmol/L 1.75 0.95 0.3 10 2 adiposity:0.4 lipids:0.3 male:0.15
apolipoprotein_a 30630 g/L 1.54 0.27 0.5 2.6 2 adiposity:-0.35 male:-0.35
apolipoprotein_b 30640 g/L 1.03 0.24 0.3 2.2 2 lipids:0.85
lipoprotein_a 30790 nmol/L 44 45 3 190 1 lipids:0.1
c_reactive_protein 30710 mg/L 2.6 3.5 0.1 40 2 inflammation:0.7
creatinine 30700 umol/L 72 15 30 300 1 renal:0.5 male:0.5
cystatin_c 30720 mg/L 0.91 0.16 0.4 4 3 renal:0.75
urea 30670 mmol/L 5.4 1.4 1.5 20 2 renal:0.5
urate 30880 umol/L 309 80 100 700 0 adiposity:0.35 male:0.5 renal:0.2
albumin 30600 g/L 45.2 2.6 30 56 2 inflammation:-0.3 frailty:-0.2
alanine_aminotransferase 30620 U/L 23 12 5 150 1 adiposity:0.35 male:0.25
aspartate_aminotransferase 30650 U/L 26 9 8 150 1 adiposity:0.15
alkaline_phosphatase 30610 U/L 83 25 25 300 1 inflammation:0.3 age:0.2
gamma_glutamyltransferase 30730 U/L 36 32 5 300 1 adiposity:0.3 male:0.2
bilirubin 30840 umol/L 9.1 4.2 2 50 2 inflammation:-0.15
vitamin_d 30890 nmol/L 49 21 10 160 1 deprivation:-0.2 adiposity:-0.2
calcium 30680 mmol/L 2.38 0.09 1.9 3 3 age:0.05
phosphate 30810 mmol/L 1.16 0.16 0.6 2 3 renal:0.1
igf_1 30770 nmol/L 21.4 5.6 3 60 2 age:-0.3 adiposity:-0.15
shbg 30830 nmol/L 51 27 5 200 1 adiposity:-0.4 male:-0.3
testosterone 30850 nmol/L 6.6 6 0.3 35 2 male:0.85
total_protein 30860 g/L 72.5 4 55 95 2 inflammation:0.15
""",
)

CELLS = _measures(
    "haematology",
    """
white_cells 30000 10^9/L 6.9 1.8 2 20 2 inflammation:0.5 smoking:0.25
red_cells 30010 10^12/L 4.5 0.4 2.8 6.5 3 male:0.55
haemoglobin 30020 g/dL 14.2 1.2 8 19 2 male:0.6 frailty:-0.15
mean_corpuscular_volume 30040 fL 91 4.4 65 115 2 smoking:0.2 age:0.1
platelets 30080 10^9/L 253 60 60 700 1 male:-0.25 inflammation:0.2
lymphocytes 30120 10^9/L 1.96 0.6 0.3 8 2 smoking:0.2
neutrophils 30140 10^9/L 4.2 1.4 0.8 14 2 inflammation:0.5 smoking:0.2
""",
)

FUNCTION = [
    *_measures("spirometry", """
forced_vital_capacity 3062 L 3.7 1 0.8 8 2 male:0.55 stature:0.4 age:-0.35
forced_expiratory_volume 3063 L 2.8 0.8 0.4 6.5 2 male:0.5 stature:0.35 age:-0.4 smoking:-0.25
"""),
    *_measures("density", """
heel_bone_density 78 SD -0.3 1.2 -5 5 2 age:-0.3 male:0.3 adiposity:0.1
"""),
    *_measures("eye", """
eye_pressure_right 5254 mmHg 16 3.6 6 45 2 ocular_pressure:0.85
eye_pressure_left 5262 mmHg 16 3.6 6 45 2 ocular_pressure:0.85
acuity_right 5201 logMAR 0.02 0.22 -0.4 1.3 2 age:0.3 case=cataract:0.15 case=macular_degeneration:0.1
acuity_left 5208 logMAR 0.02 0.22 -0.4 1.3 2 age:0.3 case=cataract:0.15 case=macular_degeneration:0.1
spherical_power_right 5084 D -0.3 2.6 -15 10 2 age:0.2
spherical_power_left 5085 D -0.3 2.6 -15 10 2 age:0.2
"""),
    *_measures("core", """
townsend_deprivation 22189 score -1.3 3.1 -6.3 11 2 deprivation:0.95
"""),
]  # fmt: skip


def _categorical(
    name: str,
    ukb: str,
    categories: str,
    shares: tuple[float, ...],
    answers: tuple[int, ...],
    loadings: Mapping[str, float],
) -> Field:
    return Field(
        name, ukb, "categorical", "touchscreen", loadings, categories=tuple(categories.split()),
        shares=shares, answers=answers, missing=(-3,), unanswered=0.006,
    )  # fmt: skip


HABITS = [
    _categorical("smoking", "20116-0.0", "never previous current", (0.55, 0.34, 0.11), (0, 1, 2),
                 {"smoking": 0.95}),
    _categorical("alcohol", "1558-0.0", "never monthly weekly daily", (0.2, 0.23, 0.37, 0.2), (6, 4, 2, 1),
                 {"deprivation": -0.3, "male": 0.2}),
    _categorical("health_rating", "2178-0.0", "excellent good fair poor", (0.17, 0.58, 0.2, 0.05), (1, 2, 3, 4),
                 {"frailty": 0.55, "mood": 0.2}),
    _categorical("salt", "1478-0.0", "never sometimes usually always", (0.55, 0.28, 0.12, 0.05), (1, 2, 3, 4),
                 {"deprivation": 0.15}),
]  # fmt: skip

LIFESTYLE = [
    Field(name, f"{ukb}-0.0", "continuous", "touchscreen", loadings, unit, mean, sd, low, high, 0,
          missing=missing, unanswered=0.03)
    for name, ukb, unit, mean, sd, low, high, missing, loadings in (
        ("sleep_hours", 1160, "h", 7.2, 1.1, 2, 14, TOUCHSCREEN, {"mood": -0.25}),
        ("television_hours", 1070, "h", 2.9, 1.6, 0, 14, (-1, -3, -10),
         {"deprivation": 0.3, "adiposity": 0.2}),
        ("active_days", 884, "days/week", 3.6, 2.3, 0, 7, TOUCHSCREEN, {"frailty": -0.3, "adiposity": -0.2}),
        ("walking_days", 864, "days/week", 5.4, 1.9, 0, 7, (-1, -2, -3), {"frailty": -0.3}),
        ("outdoors_hours", 1050, "h", 3.8, 2.4, 0, 16, (-1, -3, -10), {"male": 0.2}),
        ("tea_cups", 1488, "cups/day", 3.4, 2.5, 0, 20, (-1, -3, -10), {"age": 0.1}),
        ("medications", 137, "count", 2.5, 2.6, 0, 30, (),
         {"frailty": 0.45, "glycaemia": 0.25, "pressure": 0.2}),
    )
]  # fmt: skip

FAMILY_HISTORY = _questions(
    "touchscreen",
    FAMILY,
    0.05,
    """
family_heart_disease 20107_1 0.35 gene=heart_attack:0.35
family_stroke 20107_2 0.22 gene=ischaemic_stroke:0.35
family_high_pressure 20107_8 0.38 pressure:0.25
family_diabetes 20107_9 0.18 glycaemia:0.3
family_dementia 20107_10 0.14 gene=alzheimers_disease:0.4
""",
)

CONDITIONS = [
    *_questions("touchscreen", TOUCHSCREEN, 0.005, """
angina 6150_2 0.04 lipids:0.25 male:0.2 age:0.3 case=heart_attack:0.25
pressure_medication 6177_2 0.22 pressure:0.55 age:0.25
cholesterol_medication 6177_1 0.18 lipids:0.3 age:0.3 glycaemia:0.25
insulin 6177_3 0.03 glycaemia:0.5
wears_glasses 2207-0.0 0.88 age:0.3
hearing_difficulty 2247-0.0 0.26 age:0.35 male:0.2
falls 2296-0.0 0.2 frailty:0.35
long_standing_illness 2188-0.0 0.33 frailty:0.5 case=heart_failure:0.2
chest_pain 2335-0.0 0.16 case=heart_attack:0.12 frailty:0.2 smoking:0.15
"""),
    *_questions("follow_up", FOLLOW_UP, 0.02, """
ever_depressed 20446-0.0 0.5 mood:0.6
loss_of_interest 20441-0.0 0.38 mood:0.55
ever_anxious 20421-0.0 0.25 mood:0.55
"""),
]  # fmt: skip

FIELDS: tuple[Field, ...] = (
    Field("age", "21022-0.0", "continuous", "core", unit="years", decimals=0),
    Field("sex", "31-0.0", "binary", "core"),
    Field("height", "50-0.0", "continuous", "physical", {"stature": 0.7, "male": 0.68}, "cm",
          168.5, 9.3, 130, 215, 0),
    Field("weight", "21002-0.0", "continuous", "physical", unit="kg", decimals=1),
    *BODY, *BLOOD, *CELLS, *FUNCTION, *HABITS, *LIFESTYLE, *FAMILY_HISTORY, *CONDITIONS,
    Field("diabetes", "2443-0.0", "binary", "touchscreen", missing=TOUCHSCREEN, unanswered=0.004,
          codes={"ICD-10": ("E10", "E11")}),
    Field("hypertension", "6150_4", "binary", "touchscreen", {"pressure": 0.75, "age": 0.1}, prevalence=0.28,
          missing=(-3,), unanswered=0.003, codes={"ICD-10": ("I10",)}),
    *(Field(f"genetic_pc_{k}", f"22009-0.{k}", "continuous", "genetic", unit="score", decimals=4)
      for k in range(1, 11)),
)  # fmt: skip
"""Everything but the nine diseases and what is derived from them (diseases.py)."""
