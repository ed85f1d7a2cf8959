"""The coordinator's gateway: nginx, with TLS 1.3 and certificates of the consortium on both sides.

    /v1/fleet/          sites: to the guard (server.guard), which reads what is in a call
    /v1/control/, /v1/runtime/      the coordinator's own certificate: to the SuperLink
    /v1/consortium/     sites: released checkpoints, proposals and the list of revoked certificates, read only
    anything else       404

Who has no certificate of the consortium's authority, a revoked one or one that has run out ends at the handshake or
with 400. Sessions are not resumed, so that every connection is checked; and when the list of revoked certificates
changes, nginx is told to read it again and to end the connections that there are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from pm1_core import atomic, logs
from pm1_core.errors import StateError
from pm1_core.validate import refusal
from server.consortium import Consortium

PUBLIC = ("checkpoints", "proposals", "crl")
_LOOK = 0.2
_LOGS = ("access.jsonl", "gateway-error.log")
_CONFIGURATION = """\
daemon off;
worker_processes 2;
worker_shutdown_timeout 1s;
pid {run}/nginx.pid;
error_log {run}/gateway-error.log notice;
events {{ worker_connections 1024; }}
http {{
  log_format pm1 escape=json '{{"time":"$time_iso8601","address":"$remote_addr","site":"$site","verified":'
    '"$ssl_client_verify","subject":"$ssl_client_s_dn","request":"$request_method $uri","status":$status,'
    '"received":$request_length,"sent":$bytes_sent,"seconds":$request_time}}';
  access_log {run}/access.jsonl pm1;
  client_body_temp_path {run}/nginx-body; proxy_temp_path {run}/nginx-proxy;
  fastcgi_temp_path {run}/nginx-1; uwsgi_temp_path {run}/nginx-2; scgi_temp_path {run}/nginx-3;
  types {{ application/json json; application/octet-stream safetensors; }}
  server_tokens off;
  # Of the subject, and of nothing that a caller writes.
  map $ssl_client_s_dn $site {{ default ""; "~^CN=([a-z0-9_-]+),OU=site$" $1; }}
  map $ssl_client_s_dn $coordinator {{ default ""; "CN=coordinator,OU=coordinator" yes; }}
  limit_req_zone $site zone=sites:1m rate=200r/s;
  limit_conn_zone $site zone=connections:1m;
  server {{
    listen {listen} ssl;
    ssl_protocols TLSv1.3;
    ssl_certificate {folder}/gateway/server.crt;
    ssl_certificate_key {folder}/gateway/server.key;
    ssl_client_certificate {folder}/ca/ca.crt;
    ssl_crl {folder}/ca/ca.crl;
    ssl_verify_client on;
    ssl_verify_depth 1;
    ssl_session_tickets off;
    ssl_session_cache off;
    keepalive_timeout 75s;
    keepalive_time 10m;  # a certificate that runs out is noticed by then
    client_max_body_size 400m;
    client_body_timeout 120s;
    client_header_timeout 20s;
    send_timeout 120s;
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_read_timeout 300s;
    proxy_ssl_trusted_certificate {folder}/ca/ca.crt;
    proxy_ssl_verify on;
    proxy_ssl_name localhost;
    limit_req zone=sites burst=400 nodelay;
    limit_conn connections 64;
    location = /health {{ default_type text/plain; return 200 "ok\\n"; }}
    location /v1/fleet/ {{
      if ($site = "") {{ return 403; }}
      proxy_set_header X-PM1-Site $site;
      proxy_set_header Host $host;
      proxy_pass http://{guard};
    }}
    location /v1/control/ {{
      if ($coordinator = "") {{ return 403; }}
      proxy_pass https://{superlink};
    }}
    location /v1/runtime/ {{
      if ($coordinator = "") {{ return 403; }}
      proxy_pass https://{superlink};
    }}
    location /v1/consortium/ {{
      limit_except GET {{ deny all; }}
      alias {folder}/public/;
      autoindex on;
      autoindex_format json;
      disable_symlinks on;
    }}
    location / {{ return 404; }}
  }}
}}
"""


def configuration(consortium: Consortium, listen: str, guard: str, superlink: str) -> str:
    """nginx.conf. listen, guard, superlink: HOST:PORT. Raises StateError if the folder's path cannot be in it."""
    _ = consortium.facts
    folder = consortium.folder.resolve()
    if set(str(folder)) & set(" \t\n;{}$\"'\\"):
        raise StateError(
            refusal(folder, "nginx cannot read this path", "use a folder without blanks and quotes")
        )
    # Started by root, nginx would give its rights up for a user who cannot read the folder.
    user = "user root;\n" if os.geteuid() == 0 else ""
    return user + _CONFIGURATION.format(
        run=folder / "run", folder=folder, listen=listen, guard=guard, superlink=superlink
    )


def serve(consortium: Consortium, listen: str, guard: str, superlink: str) -> int:
    """Run nginx until this process is asked to end; the exit code. Raises StateError if nginx refuses to start."""
    folder = consortium.folder.resolve()
    file, ended = folder / "run" / "nginx.conf", threading.Event()
    publish(consortium)
    atomic.write_text(file, configuration(consortium, listen, guard, superlink))
    command = [
        "nginx",
        "-e",
        str(folder / "run/gateway-error.log"),
        "-p",
        str(folder / "run"),
        "-c",
        str(file),
    ]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    _tested(command, environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    crl, written = folder / "ca/ca.crl", [folder / "run" / name for name in _LOGS]
    with subprocess.Popen(command, env=environment) as nginx:
        seen = crl.stat().st_mtime_ns
        while nginx.poll() is None and not ended.wait(_LOOK):
            if (now := crl.stat().st_mtime_ns) != seen:
                seen = now
                publish(consortium)
                nginx.send_signal(signal.SIGHUP)
            turned = [logs.turned(log) for log in written]
            if any(turned):
                nginx.send_signal(signal.SIGUSR1)  # open logs anew
        nginx.terminate()
    return 0 if ended.is_set() else 1


def publish(consortium: Consortium) -> None:
    """Put what every site may read into public/: the list of revoked certificates, and folders for the rest."""
    public = consortium.folder / "public"
    for name in PUBLIC:
        (public / name).mkdir(parents=True, exist_ok=True)
    atomic.write_text(public / "crl" / "ca.crl", (consortium.folder / "ca/ca.crl").read_text())


def _tested(command: list[str], environment: Mapping[str, str]) -> None:
    """Raise StateError with nginx's own sentence if it would not start."""
    try:
        test = [*command, "-t", "-q"]
        done = subprocess.run(test, capture_output=True, text=True, check=False, env=dict(environment))
    except FileNotFoundError:
        raise StateError(refusal("nginx", "it is not installed", "apt-get install nginx-light")) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise StateError(refusal("nginx", said, "mend that and start it again"))


def is_quiet(folder: Path) -> bool:
    """Whether nothing of a gateway is left of an earlier start."""
    return not (folder / "run" / "nginx.pid").exists()
