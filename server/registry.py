"""The registry of a run's global checkpoints: found by name, verified to the root, released, inherited.

A checkpoint is a candidate until a release names it (server.releases). Gates are those of the study that made it:
study.json must have the hash that the signed manifest states, so nobody moves a gate after seeing the figures.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.errors import BoundError, CheckpointError, InputError
from pm1_core.gates import Gates, Verdict, judge
from pm1_core.signing import Signer, Trust, public_file
from pm1_core.validate import refusal
from server.releases import Release, ReleaseFolder

if TYPE_CHECKING:
    from server.study import Study

KEY = "keys/coordinator.pem"
"""The coordinator's private key, below the folder of a run."""
STUDY = "study.json"
"""The resolved study, below the folder of a run or an export."""
ORIGIN_KEY = "origin.pub"
"""The key under which the origin was accepted, beside origin.json."""
LATEST, RELEASED, ORIGIN = "latest", "released", "origin"
_SHORTEST = 4


@dataclass(frozen=True)
class Verified:
    """What `Registry.verify` found whole.

    signers: fingerprint stated in the manifests -> how many; "" of those without a signature
    checked: whether signatures were checked against a key
    """

    lineage: Sequence[Checkpoint]
    releases: Sequence[Release]
    origin: Checkpoint | None
    signers: dict[str, int]
    checked: bool


class Registry:
    """The checkpoints and releases in the folder of a run. Raises CheckpointError if it holds no checkpoint."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.checkpoints = CheckpointFolder(run / "checkpoints")
        self.releases = ReleaseFolder(run / "checkpoints" / "releases")
        if not self.checkpoints.sequences():
            remedy = "name the folder of a run, runs/NAME"
            raise CheckpointError(refusal(self.checkpoints.folder, "found no checkpoint", remedy))

    def find(self, name: str = LATEST) -> Checkpoint:
        """A checkpoint by its number, the beginning of its hash, "latest", "released" or "origin".

        Raises InputError if there is none, or more than one, of that name.
        """
        sequences, name = self.checkpoints.sequences(), name.lower()
        if name == LATEST:
            return self.checkpoints.load(sequences[-1])
        if name == ORIGIN:
            origin = self.checkpoints.origin()
            if origin is None:
                raise InputError(
                    refusal(self.run, "this run started from no other", f"choose 1 to {sequences[-1]}")
                )
            return origin
        if name == RELEASED:
            releases = self.releases.all()
            if not releases:
                raise InputError(
                    refusal(self.run, "nothing is released yet", "promote a checkpoint, or name one")
                )
            return self.checkpoints.load(releases[-1].sequence)
        if name.isdecimal() and int(name) in sequences:
            return self.checkpoints.load(int(name))
        found = []
        if len(name) >= _SHORTEST and set(name) <= set(string.hexdigits.lower()):
            held = (self.checkpoints.load(sequence) for sequence in sequences)
            found = [checkpoint for checkpoint in held if checkpoint.hash.startswith(name)]
        if len(found) != 1:
            kinds = f"{LATEST}, {RELEASED}, {ORIGIN}, a number from 1 to {sequences[-1]}"
            reason = "found no such checkpoint" if not found else f"{len(found)} checkpoints begin so"
            remedy = f"give {kinds}, or at least {_SHORTEST} digits of one hash"
            raise InputError(refusal(f"checkpoint {name!r} of {self.run}", reason, remedy))
        return found[0]

    def default_trust(self) -> Trust | None:
        """The run's own public key, if it is there. It shows damage, not somebody who changed that file too."""
        file = public_file(self.run / KEY)
        return Trust.load(file) if file.exists() else None

    def verify(
        self, trust: Trust | None, origins: Trust | None = None, *, objects: bool = True, expected: str = ""
    ) -> Verified:
        """Walk the lineage to its root and origin, then the releases; raises CheckpointError at the first break.

        trust, origins, objects: as of CheckpointFolder.verify
        expected: hash of a checkpoint or release, or its beginning, that must be there: shows a cut-off end
        """
        lineage = self.checkpoints.verify(trust, origins, objects=objects)
        releases = self.releases.all(trust)
        for release in releases:
            where = self.releases.folder / f"{release.number:06d}.json"
            made = lineage[release.sequence - 1] if 0 < release.sequence <= len(lineage) else None
            if made is None or made.hash != release.checkpoint:
                found = f"it releases checkpoint {release.checkpoint[:12]}, which is not number {release.sequence}"
                raise CheckpointError(refusal(where, found, "restore the checkpoints from a copy"))
        hashes = [checkpoint.hash for checkpoint in lineage] + [release.hash for release in releases]
        if expected and not any(held.startswith(expected) for held in hashes):
            found = f"{len(lineage)} checkpoints and {len(releases)} releases, none of them {expected[:12]}"
            raise CheckpointError(
                refusal(self.checkpoints.folder, found, "its end is cut off; restore it from a copy")
            )
        signers: dict[str, int] = {}
        for checkpoint in lineage:
            signers[checkpoint.signer] = signers.get(checkpoint.signer, 0) + 1
        return Verified(lineage, releases, self.checkpoints.origin(), signers, trust is not None)

    def study(self, checkpoint: Checkpoint, file: Path | None = None) -> Study:
        """The resolved study that made `checkpoint`; default: study.json of the run.

        Raises InputError if it is absent, CheckpointError if the manifest states the hash of another.
        """
        # Imported here: a study knows its tasks, and they bring torch along.
        from server.study import Study

        file = file or self.run / STUDY
        if not file.is_file():
            raise InputError(
                refusal(file, "found no such file", "give the resolved study of this run with --study FILE")
            )
        try:
            study = Study.from_json(file.read_text(errors="replace"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                refusal(file, f"found no study ({error})", "restore it from a copy")
            ) from None
        if study.hash != checkpoint.config:
            found = f"its hash is {study.hash[:12]}, that of the checkpoint's study {checkpoint.config[:12]}"
            raise CheckpointError(refusal(file, found, "give the study as it was when the run began"))
        return study

    def promote(
        self, checkpoint: Checkpoint, gates: Gates, signer: Signer, by: str, because: str
    ) -> tuple[Release, list[Verdict]]:
        """Release `checkpoint` under the signature of `signer`, if all `gates` hold.

        by, because: who decides, and why; neither may be empty
        Raises InputError for a checkpoint that cannot be promoted, BoundError naming every gate that does not hold
        or cannot be computed, CheckpointError if the lineage, the releases or a signature is broken.
        """
        for option, text in (("--by", by), ("--because", because)):
            if not text.strip():
                raise InputError(refusal(option, "found nothing", "say who releases this, and why"))
        trust = Trust([signer.key.public_key()])
        self.checkpoints.verify(trust, self.origin_trust(trust), objects=False)
        for digest in (digest for held in checkpoint.parts.values() for digest in held):
            self.checkpoints.objects.check(digest)
        releases = self.releases.all(trust)
        before = self.checkpoints.load(releases[-1].sequence) if releases else None
        where = f"checkpoint {checkpoint.sequence}"
        for release in releases:
            if release.checkpoint == checkpoint.hash:
                found = f"release {release.number} by {release.by} is this checkpoint already"
                raise InputError(refusal(where, found, "choose a later one"))
        if checkpoint.round != checkpoint.rounds and not gates.none:
            found = f"it is round {checkpoint.round} of {checkpoint.rounds} of phase {checkpoint.phase!r}"
            raise InputError(refusal(where, found, "choose one that ends a phase: only those hold figures"))
        verdicts = judge(gates, checkpoint, before)
        failed = [verdict for verdict in verdicts if not verdict.passed]
        if failed:
            raise BoundError(refusal(f"{where} stays a candidate", "; ".join(map(sentence, failed)), _REMEDY))
        release = Release(
            number=len(releases) + 1,
            checkpoint=checkpoint.hash,
            sequence=checkpoint.sequence,
            study=checkpoint.study,
            config=checkpoint.config,
            by=by.strip(),
            because=because.strip(),
            gates={item.name: getattr(gates, item.name) for item in fields(gates)},
            figures=[asdict(verdict) for verdict in verdicts],
            parent=releases[-1].hash if releases else "",
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        ).signed(signer)
        return self.releases.add(release), verdicts

    def origin_trust(self, trust: Trust | None) -> Trust | None:
        """`trust` and the key that the origin was accepted under when this run started from it."""
        file = self.checkpoints.folder / ORIGIN_KEY
        if trust is None or not file.exists():
            return trust
        return Trust([*trust.keys, *Trust.load(file).keys])


_REMEDY = "train on, or decide in a new study which gates are right; gates of this one are fixed"


def sentence(verdict: Verdict) -> str:
    """A gate that does not hold, in words."""
    if verdict.found is None:
        return f"gate {verdict.gate} cannot be computed: {verdict.note}"
    return f"gate {verdict.gate} = {verdict.limit:g} fails with {verdict.found:.4g} ({verdict.note})"
