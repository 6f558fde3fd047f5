FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/groqchat && python -m venv /opt/build
WORKDIR /build
# Before the source: the source changes more often than the dependencies. Hashes make sure that
# these are the files that `make lock` pinned.
COPY requirements.lock requirements-build.lock ./
RUN /opt/groqchat/bin/pip install --require-hashes --only-binary :all: --requirement requirements.lock \
    && /opt/build/bin/pip install --require-hashes --only-binary :all: --requirement requirements-build.lock
COPY LICENSE README.md pyproject.toml ./
COPY src src
RUN /opt/build/bin/python -m hatchling build --target wheel --directory dist \
    && /opt/groqchat/bin/pip install --no-deps --no-index dist/*.whl

FROM python:3.12-slim
# A fixed user id: security policies can refer to it.
RUN groupadd --gid 10001 groqchat \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin groqchat
COPY --from=build /opt/groqchat /opt/groqchat
ENV PATH=/opt/groqchat/bin:$PATH \
    HOST=0.0.0.0 \
    WORKERS=0 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# An empty directory without a .env file: settings come from the environment.
WORKDIR /srv
USER 10001:10001
EXPOSE 5000
# ProxyHandler({}) ignores the proxy variables of the environment. An empty PORT means the default.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + (os.environ.get('PORT') or '5000') + '/healthz', timeout=3)"]
CMD ["groqchat", "serve"]
