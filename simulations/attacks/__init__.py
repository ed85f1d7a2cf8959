"""Attacks on what a study gives away, as measurements: `pm1-sim attack`, docs/privacy.md."""
