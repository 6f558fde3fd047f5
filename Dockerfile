FROM python:3.12-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/groqchat
WORKDIR /build
# Before the source, which changes more often.
COPY requirements.lock ./
RUN /opt/groqchat/bin/pip install --requirement requirements.lock
COPY LICENSE README.md pyproject.toml ./
COPY src src
RUN /opt/groqchat/bin/pip install --no-deps .

FROM python:3.12-slim
# A fixed id, so that a policy can name it.
RUN groupadd --gid 10001 groqchat \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin groqchat
COPY --from=build /opt/groqchat /opt/groqchat
ENV PATH=/opt/groqchat/bin:$PATH \
    HOST=0.0.0.0 \
    WORKERS=0 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# Empty, and not to be written to: settings come from the environment.
WORKDIR /srv
USER 10001:10001
EXPOSE 5000
# Past any proxy that the environment names. An empty PORT is the default, as in the settings.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + (os.environ.get('PORT') or '5000') + '/healthz', timeout=3)"]
CMD ["groqchat", "serve"]
