# One image for every service of a coordinator and of a site; docker-compose.yml says which runs where.
# It holds no key, no certificate and no data. docs/containers.md says how to pin the base by digest.
ARG BASE=python:3.11.13-slim-bookworm

FROM ${BASE} AS build
# Some packages of the lock have no wheel. Their compiler stays in this stage.
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends gcc g++ make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/pm1
RUN python -m venv .venv
COPY requirements.lock ./
RUN .venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check -r requirements.lock
COPY . ./
# Editable, as `flwr` bundles a study's code from this folder; nobody but root can write to it.
RUN .venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation \
        --editable . --editable examples/tabular \
    && .venv/bin/python -m compileall -q pm1_core strategies client server simulations configs \
    && chmod -R a+rX,go-w /opt/pm1

FROM ${BASE}
RUN apt-get update -qq \
    && apt-get install -y -qq --no-install-recommends nginx-light \
    && rm -rf /var/lib/apt/lists/* /var/log/nginx /etc/nginx/sites-enabled
RUN groupadd --gid 10001 pm1 \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin pm1 \
    && install -d -o 10001 -g 10001 -m 0700 /var/lib/pm1
COPY --from=build /opt/pm1 /opt/pm1
ENV PATH=/opt/pm1/.venv/bin:/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin
ENV HOME=/tmp
ENV PYTHONUNBUFFERED=1
ENV PYTHONDONTWRITEBYTECODE=1
ENV FLWR_TELEMETRY_ENABLED=0
ENV FLWR_DISABLE_UPDATE_CHECK=1
ENV PM1_CONSORTIUM=/var/lib/pm1
ENV PM1_SITE=/var/lib/pm1
WORKDIR /var/lib/pm1
USER 10001:10001
# A container runs one service, whose health is asked by `pm1-server health` or `pm1-site health`.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=3 \
    CMD ["/bin/sh", "-c", "exec ${PM1_HEALTH:?set it to such as: pm1-site health door}"]
ENTRYPOINT ["/bin/sh", "-c", "umask 077 && exec \"$@\"", "pm1"]
CMD ["pm1-site", "--help"]
