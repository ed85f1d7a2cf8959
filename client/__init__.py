"""A site: what runs next to patient data."""

import os

# Flower reads these when it is imported: a hospital's processes do not call home.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
