# Two images from one file: `docker build --target tstack .` (all of tstack; the default) and `--target etcd` (the etcd that
# the tests run against). docker-compose.yml builds both.

FROM debian:bookworm-slim AS etcd
RUN apt-get update \
    && apt-get install -y --no-install-recommends etcd-server etcd-client \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -m 700 -o etcd -g etcd /var/lib/etcd
USER etcd
ENV ETCDCTL_API=3
VOLUME /var/lib/etcd
EXPOSE 2379
ENTRYPOINT ["etcd", "--data-dir=/var/lib/etcd"]

FROM python:3.11-slim-bookworm AS build
RUN python -m venv /opt/tstack
WORKDIR /src
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml setup.py README.md LICENSE ./
COPY tstack tstack
RUN /opt/tstack/bin/pip install --no-cache-dir --disable-pip-version-check .

FROM python:3.11-slim-bookworm AS tstack
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin tstack \
    && install -d -m 700 -o tstack -g tstack /data /certs
COPY --from=build /opt/tstack /opt/tstack
ENV PATH=/opt/tstack/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    TSTACK_DATA_DIR=/data TSTACK_CERTS_DIR=/certs
USER tstack
WORKDIR /data
VOLUME ["/data", "/certs"]
EXPOSE 8883 8000
# The broker's; docker-compose.yml has one for each service.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9883/healthz', timeout=4)"]
# Reachable from outside the container: MQTT over TLS and the registration service.
CMD ["tstack", "up", "-addr=", "-addrTls=0.0.0.0:8883", "-host=0.0.0.0"]
