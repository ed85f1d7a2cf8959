"""`pm1-sim learn`: does PM1 learn what its paper says it learns? Claims over seeds, with intervals and verdicts.

One way: runs (work) -> figures of each seed (figures) -> claims (claims) -> page.
"""
