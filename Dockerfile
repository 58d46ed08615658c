# Agents and trackers in one image: `shoal agent`, `shoal tracker`, `shoal containerd`. amd64 and arm64.
# Everything comes as wheels, so no stage has a compiler.
ARG PYTHON=3.13
# "@sha256:...": the very base image. The release looks it up once, builds both stages for both machines on it, and its
# provenance names it. Without it: whatever the tag means today.
ARG BASE_DIGEST=

FROM python:${PYTHON}-slim${BASE_DIGEST} AS build
WORKDIR /src
# The venv gets no pip of its own: the one of this stage installs into it, and stays behind.
RUN python -m venv --without-pip /opt/shoal
COPY pyproject.toml README.md LICENSE ./
COPY swarm swarm
COPY mirror mirror
COPY tracker tracker
# Given by BuildKit: files compiled with it are the same in every build (py_compile: checked hashes instead of times).
ARG SOURCE_DATE_EPOCH
RUN python -m pip --python /opt/shoal/bin/python install --no-cache-dir --only-binary=:all: .

FROM python:${PYTHON}-slim${BASE_DIGEST}
# What Kubernetes and `docker run` call it is a number: runAsNonRoot can only be checked on one.
RUN groupadd --gid 65532 shoal \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin shoal \
 && install -d -o 65532 -g 65532 -m 0700 /var/lib/shoal
COPY --from=build /opt/shoal /opt/shoal
ENV PATH=/opt/shoal/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
VOLUME /var/lib/shoal
EXPOSE 30000 6881 6882 6969 5004
# An agent answers on 5004, a tracker on 6969. Kubernetes has its own probes (charts/shoal).
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-c", "\
import sys, urllib.request\n\
for port in (5004, 6969):\n\
    try:\n\
        sys.exit(urllib.request.urlopen(f'http://127.0.0.1:{port}/healthz', timeout=2).status != 200)\n\
    except OSError:\n\
        pass\n\
sys.exit(1)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["shoal"]
CMD ["--help"]
