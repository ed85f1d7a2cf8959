"""What the numbers of a run say, in plain sentences; every figure in them is computed here from the results."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulations.report_schema import (
    Ancestry,
    Diseases,
    Genotype,
    Methods,
    Participants,
    Photographs,
    Pigmentation,
    Repeats,
    Results,
)


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def counted(count: int, noun: str) -> str:
    """`1 site`, `1,200 sites`."""
    if count == 1:
        return f"1 {noun}"
    plural = noun.removesuffix("person") + "people" if noun.endswith("person") else noun + "s"
    return f"{count:,} {plural}"


def power(log10_p: float) -> str:
    """A p-value from its -log10, as m × 10^-e."""
    exponent = int(np.ceil(log10_p))
    return f"{10 ** (exponent - log10_p):.1f} × 10<sup>−{exponent}</sup>"


def findings(results: Results, participants: Participants | None) -> list[str]:
    """Sentences (HTML without tags but <sup>) in the order of the page; only for what is in the results."""
    said: list[str] = []
    if participants:
        said.append(_people(participants))
    if "pm1" in _methods_of(results.get("genotype")):
        said.append(_genotype(results["genotype"]))
    if "diseases" in results:
        said += _diseases(results["diseases"])
    if "methods" in results:
        said += _methods(results["methods"])
    if "ancestry" in results:
        said.append(_ancestry(results["ancestry"]))
    if "pigmentation" in results:
        said.append(_pigmentation(results["pigmentation"]))
    if "superpopulation" in results:
        said.append(_repeats(results["superpopulation"], "trained", "Super-population balanced accuracy"))
    if "heart_disease" in results:
        said.append(_repeats(results["heart_disease"], "federated", "Heart disease ROC-AUC"))
    if "photographs" in results:
        said.append(_photographs(results["photographs"]))
    return said


def _people(participants: Participants) -> str:
    members = [s for s in participants["sites"] if s["role"] == "member"]
    test_only = [s for s in participants["sites"] if s["role"] == "evaluation"]
    total = sum(sum(s["people"].values()) for s in members)
    text = f"{counted(len(members), 'site')} with {counted(total, 'person')} took part"
    if test_only:
        extra = sum(sum(s["people"].values()) for s in test_only)
        text += f"; {counted(extra, 'further person')} were kept for testing only"
    return text + "."


def _genotype(data: Genotype) -> str:
    values = {m: [r["weighted_accuracy"].get(m, np.nan) for r in data["rows"]] for m in _methods_of(data)}
    ours = np.array(values["pm1"])
    text = f"Genotypes of {counted(data['people'], 'held-out person')} come back with a weighted accuracy of"
    text += f" {np.nanmean(ours):.3f}"
    text += f" on average over {len(data['rows'])} chromosomes"
    beside = []
    for method, name in (("shallow_vae", "a shallow VAE"), ("linear", "a linear projection")):
        if method in values:
            other = np.array(values[method])
            better = int((ours > other).sum())
            beside.append(f"{name} reaches {np.nanmean(other):.3f} and is beaten on {better} of {len(ours)}")
    if "majority" in values:
        beside.append(f"the most frequent dosage alone gives {np.nanmean(values['majority']):.3f}")
    return text + (f"; {listed(beside)}." if beside else ".")


def _methods_of(data: Genotype | None) -> list[str]:
    rows = data["rows"] if data else []
    return list(dict.fromkeys(method for row in rows for method in row["weighted_accuracy"]))


def _diseases(data: Diseases) -> list[str]:
    said = []
    by_inputs = {
        name: float(np.mean([r["auc"] for r in data["rows"] if r["inputs"] == name]))
        for name in dict.fromkeys(row["inputs"] for row in data["rows"])
    }
    targets = {row["target"] for row in data["rows"]}
    if by_inputs:
        means = listed([f"{value:.3f} from {name}" for name, value in by_inputs.items()])
        said.append(f"Mean ROC-AUC over {counted(len(targets), 'disease')}: {means}.")
    clear = [row for row in data["differences"] if row["p_holm"] < 0.05]
    gains = [
        f"{row['label']} {row['difference']:+.3f} with {row['inputs']}".replace("-", "−")
        for row in sorted(clear, key=lambda row: -abs(row["difference"]))
    ]
    total = len(data["differences"])
    if gains:
        extra = f" and {len(gains) - 4} more" if len(gains) > 4 else ""
        shown = ", ".join(gains[:4]) if extra else listed(gains)
        said.append(
            f"{len(gains)} of {total} differences from the phenotypes alone stand after correction for"
            f" {total} tests: {shown}{extra}."
        )
    elif total:
        said.append(
            f"None of the {total} differences from the phenotypes alone can be told from chance after"
            " correction for the number of tests."
        )
    return said


def _methods(data: Methods) -> list[str]:
    rows = data["rows"]
    targets = {r["target"] for r in rows}
    by_name: dict[str, dict[str, float]] = {}
    for row in rows:
        by_name.setdefault(row.get("site", row["method"]), {})[row["target"]] = row["auc"]
    # A site alone is compared only if it has every target, or its mean would be over easier ones.
    means = {name: float(np.mean(list(v.values()))) for name, v in by_name.items() if set(v) == targets}
    if "federated" not in means:
        return []
    text = f"Trained across the sites, the {data['phase']} reaches a mean ROC-AUC of {means['federated']:.3f}"
    if "pooled" in means:
        text += f"; on the pooled people it would reach {means['pooled']:.3f}"
    alone = {name: value for name, value in means.items() if name not in ("federated", "pooled")}
    if alone:
        best, worst = max(alone, key=lambda n: alone[n]), min(alone, key=lambda n: alone[n])
        text += f"; a site alone between {alone[worst]:.3f} ({worst}) and {alone[best]:.3f} ({best})"
    return [text + "."]


def _ancestry(data: Ancestry) -> str:
    first, *others = data["rows"]
    name = first["representation"]
    text = f"A linear probe tells ancestry from {name} with a balanced accuracy of"
    text += f" {first['balanced_accuracy']:.3f} ({first['test_people']:,} people)"
    beside = [f"{row['balanced_accuracy']:.3f} from {row['representation']}" for row in others]
    return text + (f"; {listed(beside)}." if beside else ".")


def _pigmentation(data: Pigmentation) -> str:
    text = f"The planted pigmentation SNP {data['name']} (chromosome {data['chrom']}) ranks"
    text += f" {data['rank']:,} of {data['snps']:,} SNPs, its region {data['region_rank']:,} among the loci,"
    text += f" with p = {power(data['lead']['log10_p'])} at the region's strongest SNP: "
    return text + (
        "it is recovered." if data["genome_wide"] and data["region_rank"] == 1 else "not recovered."
    )


def meets(data: Repeats) -> list[tuple[str, float, float, bool]]:
    """Per site ("" without sites): the first row's mean, the reference's mean, and whether the margin is kept."""
    first = data["rows"][0]["name"]
    result = []
    for site in dict.fromkeys(row.get("site", "") for row in data["rows"]):
        here = {r["name"]: float(np.mean(r["values"])) for r in data["rows"] if r.get("site", "") == site}
        if first in here and data["reference"] in here:
            ours, reference = here[first], here[data["reference"]]
            result.append((site, ours, reference, ours >= reference - data["margin"]))
    return result


def _repeats(data: Repeats, ours: str, quantity: str) -> str:
    parts = []
    for site, value, reference, within in meets(data):
        where = f"{site.capitalize()}: " if site else ""
        verdict = "within" if within else "not within"
        parts.append(
            f"{where}{value:.3f} {ours}, {reference:.3f} from {data['reference']} ({verdict} {data['margin']:g})"
        )
    others = [
        f"{np.mean(r['values']):.3f} {r['name']}"
        for r in data["rows"][1:]
        if r["name"] != data["reference"] and "site" not in r
    ]
    tail = f", {listed(others)}" if others else ""
    return f"{quantity}, mean over {len(data['keys'])} split keys. {'; '.join(parts)}{tail}."


def _photographs(data: Photographs) -> str:
    located, total = sum(s["located"] for s in data["sites"]), sum(s["total"] for s in data["sites"])
    return f"{located:,} of {total:,} photographs were located and cropped."
