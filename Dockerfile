# An image for NVIDIA GPUs. CUDA's libraries are Python packages: the machine needs a driver and the NVIDIA Container Toolkit.
#   docker build -t resnet-jax .
#   docker run --gpus all resnet-jax doctor
FROM python:3.12.11-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN python -m venv /venv && /venv/bin/pip install --no-cache-dir '.[train]' 'jax[cuda12]'

FROM python:3.12.11-slim-bookworm
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH
RUN useradd --create-home --uid 1000 resnet && install --directory --owner=resnet /resnet_jax/runs
WORKDIR /resnet_jax
COPY experiments experiments
USER 1000
RUN resnet-jax prepare digits
ENTRYPOINT ["resnet-jax"]
CMD ["--help"]
