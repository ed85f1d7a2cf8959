"""The nine diseases of table 1: prevalence, risk factors, and the columns that give them away.

Counts are those of supplementary tables 3 and 4, summed over the three splits. Their column "Total (case
and control)" is taken as controls: only then do case + total + missing give the same 476,819 people for
all nine diseases. Masked columns are those of supplementary table 5 under names of this project.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from simulations.columns import TOUCHSCREEN, Field


@dataclass(frozen=True)
class Disease:
    """One target.

    cases, controls, missing: counts of the paper; risks: latent factor -> weight in the non-genetic risk
    (rescaled to RISK_SHARE of the liability variance); shared: name of a noise that other diseases share
    -> correlation; field: UK Biobank column; codes: ICD-10 prefixes; eye: drawn in each eye.
    """

    name: str
    label: str
    cases: int
    controls: int
    missing: int
    field: str
    risks: Mapping[str, float]
    shared: Mapping[str, float] = dataclasses.field(default_factory=dict)
    codes: tuple[str, ...] = ()
    eye: bool = False
    masked: tuple[str, ...] = ()

    @property
    def prevalence(self) -> float:
        """Share of cases among those with a known status in the paper."""
        return self.cases / (self.cases + self.controls)

    @property
    def missing_share(self) -> float:
        """Share of people whose status is not known in the paper."""
        return self.missing / (self.cases + self.controls + self.missing)


RISK_SHARE = 0.30

_RETINA = (
    "retinal_problem", "retinal_detachment", "retinal_vessel_occlusion",
    "first_chorioretinal_inflammation", "first_retinal_detachment", "first_retinal_occlusion",
    "first_other_retinal", "first_retinal_elsewhere",
)  # fmt: skip
_ISCHAEMIC = ("first_other_acute_ischaemic", "first_chronic_ischaemic")
_ALZHEIMER = (
    "alzheimers_disease",
    "dementia",
    "self_reported_dementia",
    "first_dementia",
    "first_alzheimers",
)

DISEASES: tuple[Disease, ...] = (
    Disease(
        "macular_degeneration", "Macular degeneration", 532, 476_279, 8, "20002_1528",
        {"age": 0.5, "smoking": 0.3, "lipids": 0.15}, {"retina": 0.2}, ("H35.3",), True,
        ("macular_eye_right", "macular_eye_left", "eye_problem_macular", "age_macular"),
    ),
    Disease(
        "diabetic_eye_disease", "Diabetic eye disease", 1_294, 475_517, 8, "20002_1276",
        {"glycaemia": 0.7, "pressure": 0.12, "renal": 0.15}, {"retina": 0.2}, ("H36.0", "E10.3", "E11.3"), True,
        ("diabetic_eye_right", "diabetic_eye_left", "eye_problem_diabetic", "age_diabetic_eye"),
    ),
    Disease(
        "glaucoma", "Glaucoma", 7_807, 157_935, 311_077, "6148_2",
        {"ocular_pressure": 0.5, "age": 0.35}, {"retina": 0.2}, (), True,
        ("self_reported_glaucoma", "glaucoma_surgery", "glaucoma_laser", "glaucoma_eye_right",
         "glaucoma_eye_left", "first_glaucoma", "age_glaucoma", *_RETINA),
    ),
    Disease(
        "cataract", "Cataract", 20_689, 156_310, 299_820, "6148_4",
        {"age": 0.6, "glycaemia": 0.2, "smoking": 0.15}, {}, (), True,
        ("self_reported_cataract", "cataract_surgery", "cataract_eye_right", "cataract_eye_left",
         "first_senile_cataract", "first_other_cataract", "age_cataract"),
    ),
    Disease(
        "heart_failure", "Heart failure", 8_883, 467_928, 8, "20002_1076",
        {"age": 0.35, "adiposity": 0.3, "pressure": 0.25, "renal": 0.25, "frailty": 0.2}, {"vessel": 0.5},
        ("I50",), False, ("first_heart_failure",),
    ),
    Disease(
        "ischaemic_stroke", "Ischaemic stroke", 5_754, 471_058, 7, "42008_status",
        {"pressure": 0.45, "age": 0.4, "smoking": 0.25, "deprivation": 0.1}, {"vessel": 0.45}, ("I63",), False,
        ("transient_ischaemic_attack", "first_transient_ischaemia", "first_cerebral_infarction",
         "first_precerebral_stenosis", "first_stroke_unspecified", "age_stroke", *_ISCHAEMIC),
    ),
    Disease(
        "heart_attack", "Heart attack", 19_785, 457_026, 8, "20002_1075",
        {"lipids": 0.35, "male": 0.3, "smoking": 0.3, "age": 0.3, "pressure": 0.15}, {"vessel": 0.5},
        ("I21", "I22"), False,
        ("defined_infarction", "vascular_problem_heart_attack", "first_infarction",
         "first_subsequent_infarction", "age_heart_attack", *_ISCHAEMIC),
    ),
    Disease(
        "dementia", "Dementia", 554, 476_258, 7, "130836_status",
        {"age": 0.5, "cognition": -0.35, "pressure": 0.1}, {"neuron": 0.85}, ("F00", "F03"), False, _ALZHEIMER,
    ),
    Disease(
        "alzheimers_disease", "Alzheimer's disease", 935, 475_877, 7, "42020_status",
        {"age": 0.5, "cognition": -0.35}, {"neuron": 0.85}, ("G30",), False,
        (*_ALZHEIMER, "defined_parkinsonism", "defined_parkinsons"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Related:
    """A column that follows from a disease.

    kind: eye_right / eye_left (that eye is affected), age (years at diagnosis), first (years of age at the
    first record), answer (yes/no that mostly agrees). agree: probability of "yes" (or of a value) in
    cases; background: in people without it. Ages are filled for those with the event alone.
    """

    name: str
    ukb: str
    disease: str
    kind: str
    block: str
    agree: float = 0.9
    background: float = 0.0
    missing: tuple[int, ...] = ()

    def as_field(self) -> Field:
        """Its study column."""
        if self.kind in ("age", "first"):
            return Field(
                self.name, self.ukb, "continuous", self.block, unit="years", missing=self.missing,
                unanswered=0.05 if self.missing else 0.0,
            )  # fmt: skip
        return Field(self.name, self.ukb, "binary", self.block, missing=self.missing, unanswered=0.01)


def _related() -> tuple[Related, ...]:
    rows = """
    macular_eye_right 5912_right macular_degeneration eye_right eye 0.95 0
    macular_eye_left 5912_left macular_degeneration eye_left eye 0.95 0
    eye_problem_macular 6148_5 macular_degeneration answer eye 0.9 0.004
    age_macular 5923-0.0 macular_degeneration age eye 0.85 0
    diabetic_eye_right 5890_right diabetic_eye_disease eye_right eye 0.95 0
    diabetic_eye_left 5890_left diabetic_eye_disease eye_left eye 0.95 0
    eye_problem_diabetic 6148_1 diabetic_eye_disease answer eye 0.9 0.004
    age_diabetic_eye 5901-0.0 diabetic_eye_disease age eye 0.85 0
    self_reported_glaucoma 20002_1277 glaucoma answer touchscreen 0.85 0.003
    glaucoma_surgery 5326-0.0 glaucoma answer eye 0.2 0.001
    glaucoma_laser 5327-0.0 glaucoma answer eye 0.35 0.002
    glaucoma_eye_right 6119_right glaucoma eye_right eye 0.95 0
    glaucoma_eye_left 6119_left glaucoma eye_left eye 0.95 0
    first_glaucoma 131186-0.0 glaucoma first core 0.8 0.004
    age_glaucoma 4689-0.0 glaucoma age eye 0.85 0
    retinal_problem 20002_1275 retina answer touchscreen 0.06 0.01
    retinal_detachment 20002_1281 retina answer touchscreen 0.03 0.008
    retinal_vessel_occlusion 20002_1282 retina answer touchscreen 0.03 0.005
    first_chorioretinal_inflammation 131172-0.0 retina first core 0.03 0.004
    first_retinal_detachment 131176-0.0 retina first core 0.04 0.01
    first_retinal_occlusion 131178-0.0 retina first core 0.03 0.006
    first_other_retinal 131180-0.0 retina first core 0.10 0.02
    first_retinal_elsewhere 131182-0.0 retina first core 0.05 0.005
    self_reported_cataract 20002_1278 cataract answer touchscreen 0.8 0.003
    cataract_surgery 5324-0.0 cataract answer eye 0.45 0.003
    cataract_eye_right 5441_right cataract eye_right eye 0.95 0
    cataract_eye_left 5441_left cataract eye_left eye 0.95 0
    first_senile_cataract 131164-0.0 cataract first core 0.5 0.004
    first_other_cataract 131166-0.0 cataract first core 0.6 0.006
    age_cataract 4700-0.0 cataract age eye 0.85 0
    first_heart_failure 131354-0.0 heart_failure first core 0.95 0.002
    transient_ischaemic_attack 20002_1082 ischaemic_stroke answer touchscreen 0.35 0.01
    first_transient_ischaemia 131056-0.0 ischaemic_stroke first core 0.4 0.012
    first_cerebral_infarction 131366-0.0 ischaemic_stroke first core 0.95 0.001
    first_precerebral_stenosis 131370-0.0 ischaemic_stroke first core 0.2 0.006
    first_stroke_unspecified 131368-0.0 ischaemic_stroke first core 0.5 0.006
    age_stroke 4056-0.0 ischaemic_stroke age touchscreen 0.7 0
    first_other_acute_ischaemic 131304-0.0 heart_attack first core 0.35 0.006
    first_chronic_ischaemic 131306-0.0 heart_attack first core 0.85 0.04
    defined_infarction 42000_status heart_attack answer core 0.97 0.001
    vascular_problem_heart_attack 6150_1 heart_attack answer touchscreen 0.85 0.004
    first_infarction 131298-0.0 heart_attack first core 0.95 0.001
    first_subsequent_infarction 131300-0.0 heart_attack first core 0.25 0
    age_heart_attack 3894-0.0 heart_attack age touchscreen 0.85 0
    self_reported_dementia 20002_1263 alzheimers_disease answer touchscreen 0.5 0.001
    first_dementia 130836-0.0 dementia first core 0.95 0
    first_alzheimers 131036-0.0 alzheimers_disease first core 0.95 0
    defined_parkinsonism 42030_status alzheimers_disease answer core 0.12 0.008
    defined_parkinsons 42032_status alzheimers_disease answer core 0.1 0.006
    """
    result = []
    for row in rows.strip().splitlines():
        name, ukb, disease, kind, block, agree, background = row.split()
        coded = TOUCHSCREEN if kind == "age" else (-3,) if block in ("eye", "touchscreen") else ()
        result.append(Related(name, ukb, disease, kind, block, float(agree), float(background), coded))
    return tuple(result)


RELATED: tuple[Related, ...] = _related()
"""`disease` is a disease or "retina": any of the three retinal diseases."""


def disease_field(disease: Disease) -> Field:
    """The study column of a target."""
    return Field(
        disease.name, disease.field, "binary", "eye" if disease.missing_share > 0.5 else "core",
        missing=TOUCHSCREEN if disease.missing_share > 0.5 else (),
        codes={"ICD-10": disease.codes} if disease.codes else {},
    )  # fmt: skip
