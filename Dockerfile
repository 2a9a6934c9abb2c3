# The merge server on a CPU. Nothing is public by accident: it listens on all of the container's
# addresses, and therefore asks for a token.
#
#   docker build -t safegraft .
#   docker run -p 50051:50051 -e SAFEGRAFT_TOKEN=... -v safegraft-data:/data -v /path/to/models:/models:ro safegraft
#
# --build-arg PIP_INDEX_URL=... and PIP_EXTRA_INDEX_URL=... choose where packages come from. With
# PyTorch's CPU index as the extra one, the image leaves CUDA out and is several GB smaller.

FROM python:3.11.13-slim-bookworm AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
RUN python -m venv /opt/safegraft
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY service service
COPY plugins plugins
COPY trainers trainers
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/safegraft/bin/pip wheel -c constraints.txt --wheel-dir wheels '.[fast]' \
    && /opt/safegraft/bin/pip install --no-index --find-links wheels 'safegraft[fast]' \
    && /opt/safegraft/bin/pip uninstall --yes pip

FROM python:3.11.13-slim-bookworm
COPY --from=build /opt/safegraft /opt/safegraft
RUN install --directory --owner=10001 --group=10001 /data /models
ENV PATH=/opt/safegraft/bin:$PATH \
    HOME=/tmp \
    SAFEGRAFT_CACHE=/data/cache \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 50051
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s CMD ["safegraft", "health"]
ENTRYPOINT ["safegraft"]
CMD ["serve", "--listen", "0.0.0.0:50051", "--data", "/data", "--models", "/models"]
