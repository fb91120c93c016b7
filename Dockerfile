# A GPU node's image. The install line is the one of `make setup`, which CI runs.
FROM nvidia/cuda:12.6.3-base-ubuntu22.04
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential make python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/lacy-stream
COPY . .
RUN make setup
ENV PATH=/opt/lacy-stream/.venv/bin:$PATH
WORKDIR /workspace
CMD ["composer", "/opt/lacy-stream/recipes/lacy_334m.yaml"]
