# The image of the head, of the workers and of the pod that submits jobs.
#
#   docker build --target gpu --tag YOUR-REGISTRY/ray-detr:0.1.0-gpu .
#   docker build --target cpu --build-arg TORCH_INDEX=URL --tag YOUR-REGISTRY/ray-detr:0.1.0-cpu .
#
# TORCH_INDEX is the index of PyTorch's CPU-only wheels (pytorch.org, "Get started", Linux, Pip, CPU). The wheels of
# the default index bring 4 GB of CUDA libraries. Both targets run as the user `ray` (1000:100) of Ray's images.
ARG RAY_VERSION=2.60.0

FROM rayproject/ray:${RAY_VERSION}-py311-cpu AS wheel
WORKDIR /tmp/source
COPY --chown=ray:users . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /tmp/wheel .

FROM rayproject/ray:${RAY_VERSION}-py311-gpu AS gpu
COPY requirements.lock /tmp/requirements.lock
RUN python -m pip install --no-cache-dir --no-deps --requirement /tmp/requirements.lock
COPY --from=wheel /tmp/wheel /tmp/wheel
RUN python -m pip install --no-cache-dir --no-deps /tmp/wheel/*.whl && ray-detr --version

FROM rayproject/ray:${RAY_VERSION}-py311-cpu AS cpu
ARG TORCH_INDEX
COPY requirements.lock /tmp/requirements.lock
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN grep --extended-regexp '^(torch|torchvision)==' /tmp/requirements.lock > /tmp/torch.lock \
    && grep --invert-match --extended-regexp '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' /tmp/requirements.lock > /tmp/rest.lock \
    && python -m pip install --no-cache-dir --no-deps --requirement /tmp/rest.lock \
    && python -m pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX:?}" --requirement /tmp/torch.lock
COPY --from=wheel /tmp/wheel /tmp/wheel
RUN python -m pip install --no-cache-dir --no-deps /tmp/wheel/*.whl && ray-detr --version
