"""python -m simulations.learning FILE: write a learning.json and the document beside it anew, of its figures alone.

For changed words: claims, templates, or the reasons in the file. docs/learning.json is a copy of a run's.
"""

from __future__ import annotations

import sys
from pathlib import Path

from simulations.learning.page import write_document

if __name__ == "__main__":
    (given,) = sys.argv[1:]
    print(write_document(Path(given)))
