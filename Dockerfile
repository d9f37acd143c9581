FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/florette
WORKDIR /src
# The libraries change seldom, so they have a layer of their own.
COPY requirements.lock ./
RUN pip --python /opt/florette/bin/python install --no-deps --require-hashes --requirement requirements.lock
COPY . ./
# setuptools builds, and serves nothing.
RUN pip --python /opt/florette/bin/python install --no-deps --no-build-isolation . \
    && pip --python /opt/florette/bin/python uninstall --yes setuptools

FROM build AS build-kernels
RUN pip --python /opt/florette/bin/python install --no-deps --require-hashes --requirement .ci/gateway.lock \
    && pip --python /opt/florette/bin/python uninstall --yes setuptools

FROM python:3.12-slim AS base
# What isolates kernels, and Chinese, Japanese and Korean letters for their figures.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap fonts-wqy-microhei \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/florette/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin florette

# docker build --target kernels: a Jupyter Kernel Gateway whose kernels are in sandboxes, for `kernels: {backend: gateway}`.
FROM base AS kernels
COPY --from=build-kernels /opt/florette /opt/florette
# All that it writes: the keys of kernels, and links to their sockets. The root file system may be read-only.
ENV HOME=/tmp JUPYTER_NO_CONFIG=1
USER 10001
WORKDIR /tmp
EXPOSE 8888
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8888/api', timeout=2)"]
# It asks for no token unless KG_AUTH_TOKEN says which: give it one, or a network that nobody else is on.
ENTRYPOINT ["jupyter-kernelgateway", "--ip=0.0.0.0", "--port=8888", "--KernelGatewayApp.port_retries=0"]
# More kernels than Florette's `sessions` and `pool`, as some are being ended; one that nobody is connected to any more,
# as its Florette was killed, ends after five minutes, and what it puts out meanwhile is not kept, or it would fill the
# memory; and that a kernel has died is seen in half a second.
CMD ["--KernelGatewayApp.default_kernel_name=florette", "--KernelGatewayApp.max_kernels=24", \
     "--MappingKernelManager.cull_idle_timeout=300", "--MappingKernelManager.cull_interval=60", \
     "--MappingKernelManager.buffer_offline_messages=False", \
     "--KernelRestarter.time_to_dead=0.5"]

# The last one is what is built by default: Florette itself.
FROM base AS florette
COPY --from=build /opt/florette /opt/florette
# A number, so that Kubernetes can see that it is not root.
USER 10001
# The place to mount a configuration at.
WORKDIR /etc/florette
EXPOSE 8080
# Asks the port that CMD serves on, and never through a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD ["python", "-c", "import urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:8080/healthz', timeout=2)"]
# It listens on every address of the container, and so does not start before it is told FLORETTE_API_KEYS (keys to ask
# callers for), or FLORETTE_ALLOW_UNAUTHENTICATED=true.
# No shell in between: SIGTERM reaches florette, which lets running answers finish.
ENTRYPOINT ["florette"]
CMD ["serve", "--host", "0.0.0.0"]
