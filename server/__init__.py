"""The coordinator of a consortium."""

import os

# Flower reads this when it is imported: a hospital's processes do not call home.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
