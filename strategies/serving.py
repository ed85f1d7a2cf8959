"""How every HTTP server of ours listens: quietly, without a word of what it is."""

from __future__ import annotations

from typing import Any

import uvicorn
from starlette.types import ASGIApp


def configuration(app: ASGIApp, host: str, port: int, **more: Any) -> uvicorn.Config:
    """What uvicorn needs to serve `app` on an address. more: as uvicorn.Config takes it"""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="asyncio",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=2,
        **more,
    )
