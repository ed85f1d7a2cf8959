"""The run report: one self-contained page, a pure function of the files in a run's folder.

    runs/NAME/
      results.json                     `Results` of simulations/report_schema.py; required
      participants.json                `Participants`; sections "Who took part", "Preparation"
      metrics.jsonl                    a `MetricsLine` a line; section "Training"
      config.yaml                      shown at the end, its bytes hashed; secrets are blanked
      embeddings.npz                   arrays below; section "Embeddings"
      association.npz                  arrays below; Manhattan plot of section "Pigmentation"
      sample_photographs/index.json    list of `SamplePhotograph`; section "Photographs"
      report.html                      written here

metrics.jsonl, for example:

    {"phase": "genotype.22", "round": 3, "site": "leeds", "split": "train", "examples": 123,
     "seconds": 0.8, "metrics": {"loss": 0.41, "kl": 0.02}}

with "site": null for the aggregate over sites. embeddings.npz holds two families of arrays, either
of which may be absent; coordinates are computed by the run (pm1_core.evaluation.embedding), not here:

    tokens.pca, tokens.tsne     float [n, 2]   one point per present token of the sampled people
    tokens.kind                 str [n]        a name of pm1_core.fields.TOKENS ("genotype.7", "fundus.left")
    tokens.ancestry             str [n]        label of the token's person, "" unknown
    people.pca, people.tsne     float [m, 2]   pooled fusion embedding of a person
    people.ancestry             str [m]

association.npz (pm1_core.evaluation.association.Scan):

    chrom int [S], pos int [S], log10_p float [S]  (NaN where a SNP does not vary)

Every section is optional and is left out, heading and all, when its data are absent.

>>> from simulations.report_schema import Results
>>> sorted(Results.__required_keys__)
['run']
"""

from __future__ import annotations

from pathlib import Path

from pm1_core import atomic
from pm1_core.page import page
from simulations.report_check import conform
from simulations.report_run import read_run, require_whole_epsilon
from simulations.report_schema import Participants, Results
from simulations.report_sections import sections


def write_report(run: Path) -> Path:
    """Write `run`/report.html and return its path.

    Raises StateError if results.json is missing, or if any file is not what the types say.
    """
    loaded = read_run(run)
    path = run / "report.html"
    atomic.write_text(path, page("simulations", "report.html.j2", sections(loaded)))
    return path


def write_results(run: Path, results: Results) -> Path:
    """Check `results` against the schema and write `run`/results.json. Raises StateError."""
    conform("results", results, Results)
    require_whole_epsilon(results)
    path = run / "results.json"
    atomic.write_json(path, results)
    return path


def write_participants(run: Path, participants: Participants) -> Path:
    """Check `participants` against the schema and write `run`/participants.json. Raises StateError."""
    conform("participants", participants, Participants)
    path = run / "participants.json"
    atomic.write_json(path, participants)
    return path
