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

FROM python:3.12-slim
ENV PATH=/opt/florette/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin florette
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
