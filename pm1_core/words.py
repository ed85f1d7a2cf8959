"""Times, sizes and whatever others wrote, in the words of terminals and pages."""

from __future__ import annotations

from datetime import UTC, datetime


def size(count: float | None) -> str:
    """A number of bytes.

    >>> size(999), size(134_178), size(4.38e9), size(None)
    ('999 B', '134.2 kB', '4.4 GB', '-')
    """
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float | None) -> str:
    """A time span, to two units.

    >>> duration(0.4), duration(95), duration(7300), duration(200_000), duration(None)
    ('0.4 s', '1 min 35 s', '2 h 1 min', '2 d 7 h', '-')
    """
    if seconds is None:
        return "-"
    whole = max(0, int(seconds))
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    for large, small, step, unit in (
        ("d", "h", 86400, 3600),
        ("h", "min", 3600, 60),
        ("min", "s", 60, 1),
    ):
        if whole >= step:
            rest = whole % step // unit
            return f"{whole // step} {large} {rest} {small}" if rest else f"{whole // step} {large}"
    return f"{whole} s"


def ago(when: str | None, now: datetime | None = None) -> str:
    """How long ago something was, ISO 8601 with a time zone.

    >>> ago("2026-03-01T12:00:00+00:00", datetime(2026, 3, 1, 12, 1, 35, tzinfo=UTC))
    '1 min 35 s ago'
    >>> ago(None), ago("yesterday")
    ('never', 'yesterday')
    """
    if not when:
        return "never"
    try:
        return f"{duration(((now or datetime.now(UTC)) - datetime.fromisoformat(when)).total_seconds())} ago"
    except (ValueError, TypeError):
        return plain(when)


def plain(text: object) -> str:
    r"""What somebody else wrote on one line, with everything escaped that a terminal would not show, but obey.

    >>> plain("leeds\x1b[2J\nglasgow")
    'leeds\\x1b[2J\\nglasgow'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
