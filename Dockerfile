# syntax=docker/dockerfile:1
# batchgen without a toolchain, as a user without rights. The folder that is mounted at /data holds inputs and outputs:
#
#   docker build -t batchgen .                     (add --build-arg TORCH_INDEX=… for torch's CPU builds: gigabytes less)
#   docker run --rm -v "$PWD:/data" batchgen run prompts.txt -o out.jsonl
#   docker build -t batchgen:cuda --target cuda .  (then docker run --gpus all …)
ARG PYTHON=3.12

# Torch is the largest part and changes rarely, so it has a layer of its own.
FROM python:${PYTHON}-slim AS torch-cpu
ARG TORCH_INDEX=
COPY constraints.txt /src/
RUN python -m venv /opt/batchgen \
 && /opt/batchgen/bin/pip install --no-cache-dir -c /src/constraints.txt ${TORCH_INDEX:+--index-url $TORCH_INDEX} torch

# The default index has torch with CUDA's libraries; the driver comes from the host.
FROM python:${PYTHON}-slim AS torch-cuda
COPY constraints.txt /src/
RUN python -m venv /opt/batchgen \
 && /opt/batchgen/bin/pip install --no-cache-dir -c /src/constraints.txt torch

FROM torch-cpu AS installed-cpu
COPY pyproject.toml README.md LICENSE /src/
COPY batchgen /src/batchgen
COPY share /src/share
RUN /opt/batchgen/bin/pip install --no-cache-dir -c /src/constraints.txt '/src[constrained,fast,parquet,zstd]'

FROM torch-cuda AS installed-cuda
COPY pyproject.toml README.md LICENSE /src/
COPY batchgen /src/batchgen
COPY share /src/share
RUN /opt/batchgen/bin/pip install --no-cache-dir -c /src/constraints.txt '/src[constrained,fast,parquet,zstd]'

FROM python:${PYTHON}-slim AS base
RUN useradd --create-home --uid 1000 batchgen && mkdir /data && chown batchgen /data
ENV PATH=/opt/batchgen/bin:$PATH HF_HOME=/home/batchgen/.cache/huggingface
USER 1000
WORKDIR /data
ENTRYPOINT ["batchgen"]
CMD ["--help"]

FROM base AS cuda
COPY --from=installed-cuda /opt/batchgen /opt/batchgen

# The last stage is what a plain `docker build` makes.
FROM base AS cpu
COPY --from=installed-cpu /opt/batchgen /opt/batchgen
