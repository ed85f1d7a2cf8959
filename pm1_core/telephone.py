"""How two people make sure that a file is the one that was sent: a fingerprint, read out by telephone."""

from __future__ import annotations

import sys

from pm1_core.enrolment import grouped, same
from pm1_core.errors import InputError
from pm1_core.validate import refusal


def compare(what: str, whose: str, fingerprint: str, heard: str | None) -> None:
    """Show a fingerprint, and go on only if somebody says that it is the one that was read out.

    what, whose: such as "request of leeds", "the site"; heard: what was read out, None to ask at the terminal
    Raises InputError on another fingerprint, or if nobody can be asked.
    """
    print(f"Fingerprint of the {what}:\n\n  {grouped(fingerprint)}\n", file=sys.stderr)
    remedy = f"call {whose} by a number that you had before, and give what is read out as --fingerprint"
    if heard is None:
        if not sys.stdin.isatty():
            raise InputError(refusal(what, "nobody has compared its fingerprint", remedy))
        print(
            f"Call {whose} by a number that you had before and have it read out. Type its first four groups.",
            file=sys.stderr,
        )
        try:
            heard = input("heard: ")
        except EOFError:
            heard = ""
    if not same(fingerprint, heard):
        raise InputError(
            refusal(what, "the fingerprint that was read out is another, or shorter than 16 digits", remedy)
        )
