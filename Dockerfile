# syntax=docker/dockerfile:1
#
#   docker build -t jaxserve .                                CPU
#   docker build -t jaxserve --build-arg ACCELERATOR=cuda13 . or cuda12, tpu
#   docker run -p 8000:8000 jaxserve                          the embedded model
#   docker run -p 8000:8000 --gpus all -v ~/.cache/huggingface:/cache/huggingface jaxserve Qwen/Qwen3-8B
#
# CUDA and libtpu come with the locked wheels: the host needs only the NVIDIA driver and container
# toolkit, or the TPU VM's devices (--privileged).

ARG PYTHON_IMAGE=python:3.12.12-slim-bookworm

FROM ${PYTHON_IMAGE} AS builder
ARG ACCELERATOR=cpu
ENV PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy
WORKDIR /src

# The locked packages change seldom and come first, so that a change of code reuses their layer.
COPY requirements*.lock ./
RUN python -m venv /opt/build && python -m venv --without-pip /opt/jaxserve \
 && /opt/build/bin/pip install --require-hashes -r requirements-build.lock \
 && lock=requirements-${ACCELERATOR}.lock \
 && if [ "${ACCELERATOR}" = cpu ]; then lock=requirements.lock; fi \
 && /opt/build/bin/uv pip install --python /opt/jaxserve --require-hashes -r "$lock"

COPY . .
RUN /opt/build/bin/uv build --wheel --no-build-isolation --python /opt/build --out-dir /dist \
 && /opt/build/bin/uv pip install --python /opt/jaxserve --no-deps /dist/*.whl

FROM ${PYTHON_IMAGE} AS runtime
ARG ACCELERATOR=cpu
# The kernels for CPUs are compiled for the processor that runs them.
RUN if [ "${ACCELERATOR}" = cpu ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; fi
RUN useradd --create-home --uid 10001 jaxserve && install --directory --owner jaxserve /cache
COPY --from=builder /opt/jaxserve /opt/jaxserve
ENV PATH="/opt/jaxserve/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache
USER jaxserve
WORKDIR /home/jaxserve
VOLUME /cache
EXPOSE 8000

# A large model loads for minutes before the server listens; after that, three misses are a failure.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15m --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/live', timeout=4)"]

ENTRYPOINT ["jaxserve", "serve", "--host", "0.0.0.0", "--port", "8000"]
