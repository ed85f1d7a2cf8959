"""Sentences of the report that are about the run itself: what protects it, and what its numbers do not say."""

from __future__ import annotations

from simulations.report_run import Run


def duration(seconds: float) -> str:
    """`38 s`, `6 min 5 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def privacy(run: Run) -> str:
    """What protects the updates, in one sentence; an epsilon with all that it depends on."""
    facts = run.results["run"]["privacy"]
    sums = "secure aggregation" if facts["secure_aggregation"] else "no secure aggregation"
    if facts["mechanism"] == "none":
        return f"No differential privacy, {sums}."
    text = f"Differential privacy by {facts['mechanism']}, {sums}"
    if "epsilon" in facts:
        text += f": ε = {facts['epsilon']:g} per {facts['unit']} at δ = {facts['delta']:g}"
        text += f" ({facts['accountant']} accountant)"
    return text + "."


def notes(run: Run) -> list[str]:
    """What the numbers do not say; each note only where it applies."""
    results, said = run.results, []
    simulated = results["run"]["data"] == "simulated"
    if simulated:
        said.append(
            "The people are simulated. The figures show that the method and the software work together;"
            " they say nothing about patients."
        )
    if any(line["phase"].startswith("fusion") for line in run.metrics):
        said.append(
            "The contrastive (InfoNCE) loss takes its negatives from the people of one site's batch. It does"
            " not add up over sites, so federated and pooled training minimise different sums here, and"
            " losses of sites of different size are not on one scale."
        )
    if any(s["role"] == "evaluation" for s in (run.participants or {"sites": []})["sites"]):
        said.append(
            "People marked as test only come from the same population but from no site. They narrow the"
            " intervals; they do not show how the model would do at a new hospital."
        )
    diseases = results.get("diseases")
    if diseases and diseases.get("raised"):
        raised = [
            f"{label} {share['population']:.1%} to {share['cohort']:.1%}"
            for label, share in diseases["raised"].items()
        ]
        said.append(
            "Prevalences were raised so that a small cohort has cases: "
            + ", ".join(raised)
            + ". ROC-AUC does"
            " not depend on prevalence, predictive values would."
        )
    if diseases:
        said.append(
            "Intervals are over people (DeLong) for one training run; another seed or another split would"
            " move the figures too."
        )
    if results["run"]["privacy"]["mechanism"] == "none":
        said.append(
            "Without differential privacy, the updates and the model may give away who was trained on."
        )
    if any(line["site"] is not None for line in run.metrics):
        said.append(
            "Lines per site exist in simulations and in studies in the clear only. Under secure"
            " aggregation nothing of a single site is visible: no metric, norm or loss."
        )
    return said + list(results.get("notes", []))
