"""What a hospital knows of a person: blocks, items and codes that are missing.

Blocks go together (a person who skipped the eye questionnaire has none of its answers), so that the missing
patterns which copy masking borrows from other rows are realistic ones.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from simulations.columns import BLOCKS
from simulations.diseases import DISEASES
from simulations.phenotypes import study_fields
from simulations.scenarios import EVALUATION, Scenario, stream

NO_CODE = 0


def missing_cells(scenario: Scenario, roster: pd.DataFrame, values: pd.DataFrame) -> pd.DataFrame:
    """Which cells are not known: object frame [n, fields] of None (known), NO_CODE (empty) or a code.

    Everybody with a photograph answered the eye questionnaire. Test-only people have a known status of
    every disease; the rest of their table is as incomplete as the members'. Over the members the missing
    shares of the nine diseases are exactly those of supplementary tables 3 and 4.
    """
    members = (roster.phenotype & (roster.place != EVALUATION)).to_numpy()
    tested = (roster.place == EVALUATION).to_numpy()
    rng = stream(scenario.seed, "blocks")
    count = len(roster)
    absent = {block: rng.random(count) < share for block, share in BLOCKS.items()}
    absent["genetic"] = ~roster.genotype.to_numpy()
    photographed = (roster.left | roster.right).to_numpy()
    able = np.flatnonzero(members & ~photographed)
    least = min(disease.missing_share for disease in DISEASES if disease.missing_share > 0.5)
    skipped = min(len(able), round(least * int(members.sum())))
    absent["eye"] = np.zeros(count, dtype=bool)
    absent["eye"][rng.permutation(able)[:skipped]] = True

    wanted = {disease.name: disease.missing_share for disease in DISEASES}
    cells: dict[str, np.ndarray] = {}
    for number, field in enumerate(study_fields()):
        rng = stream(scenario.seed, "missing", number)
        column = np.full(count, None, dtype=object)
        column[np.isnan(values[field.name].to_numpy())] = NO_CODE
        drawn = rng.random(count)
        codes = rng.integers(0, max(1, len(field.missing)), count)
        if field.name in wanted:
            gone = absent["eye"] & members if field.block == "eye" else np.zeros(count, dtype=bool)
            more = round(wanted[field.name] * int(members.sum())) - int(gone.sum())
            unanswered = np.zeros(count, dtype=bool)
            unanswered[rng.permutation(np.flatnonzero(members & ~gone))[: max(0, more)]] = True
            gone = gone & ~tested
        else:
            gone = absent[field.block]
            unanswered = drawn < field.unanswered
        if field.missing:
            given = np.array(field.missing, dtype=object)[codes]
            # "When was it diagnosed" is not put to those without the disease.
            asked = column == None  # noqa: E711
            column[unanswered & asked] = given[unanswered & asked]
        else:
            column[unanswered] = NO_CODE
        column[gone] = NO_CODE
        cells[field.name] = column
    return pd.DataFrame(cells, index=roster.index)
