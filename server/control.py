"""The SuperLink's Control API, as the coordinator uses it: a run is started, asked after, stopped."""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.fab import Fab

from pm1_core.errors import FederationError
from pm1_core.validate import refusal

_REMEDY = "look whether it runs: pm1-server health superlink"


@dataclass(frozen=True)
class Control:
    """The SuperLink at `address`, HOST:PORT, whose certificate is of the authority in the file `root`."""

    address: str
    root: Path

    def start(self, bundle: bytes, run_config: Mapping[str, str]) -> int:
        """Start the app in `bundle`, and return the number of the run. Raises FederationError."""
        fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
        config = user_config_to_proto(dict(run_config))
        with self._client() as client:
            answer = client.StartRun(StartRunRequest(fab=fab_to_proto(fab), override_config=config))
        if not answer.HasField("run_id"):
            raise FederationError(refusal(f"SuperLink {self.address}", "it started no run", _REMEDY))
        return int(answer.run_id)

    def stop(self, run: int) -> bool:
        """Stop a run; False if it had ended before. Raises FederationError."""
        if self.status(run).startswith("finished"):
            return False
        with self._client() as client:
            return bool(client.StopRun(StopRunRequest(run_id=run)).success)

    def status(self, run: int) -> str:
        """Such as "running" or "finished:failed"; "unknown" to a SuperLink that has lost its database.

        Raises FederationError if it does not answer.
        """
        with self._client() as client:
            told = client.ListRuns(ListRunsRequest()).run_dict.get(run)
        return ":".join(filter(None, (told.status.status, told.status.sub_status))) if told else "unknown"

    @contextmanager
    def _client(self) -> Iterator[ControlHttpClient]:
        try:
            context = ssl.create_default_context(cafile=self.root)
            with ControlHttpClient(f"https://{self.address}", verify=context) as client:
                yield client
        except httpx.HTTPStatusError as error:
            told = FlowerError.from_json(error.response.text)
            found = f"it refuses ({told.message if told else error.response.status_code})"
            raise FederationError(
                refusal(f"SuperLink {self.address}", found, "look into run/superlink.log")
            ) from None
        except (httpx.HTTPError, OSError) as error:
            found = f"it does not answer ({error})"
            raise FederationError(refusal(f"SuperLink {self.address}", found, _REMEDY)) from None
