# Two images: `docker build --target plan .` plans (no torch), `docker build --target gpu .` measures as well.
# docs/deploy.md says how to run them.
ARG PYTHON=3.11

# Settings come first: they change least. Both images inherit them.
FROM python:${PYTHON}-slim AS base
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    PLANNER_DB=/data/planner.db \
    # The log goes where a container's log is read. Locks are this container's own.
    PLANNER_LOG=stderr \
    PLANNER_STATE=/tmp/will-it-fit \
    # The replay is compiled once, and not at each start.
    NUMBA_CACHE_DIR=/data/numba \
    # A container has a network of its own, so the app must listen on all of it. Who reaches it is decided outside; it
    # answers under IP addresses, localhost and the names in PLANNER_HOSTS.
    STREAMLIT_SERVER_ADDRESS=0.0.0.0 \
    STREAMLIT_SERVER_PORT=8501 \
    STREAMLIT_SERVER_HEADLESS=true \
    # Without a name for itself, Streamlit asks a server on the internet for its public address at each start.
    STREAMLIT_BROWSER_SERVER_ADDRESS=localhost
# The uid is fixed, so that whoever owns a volume can be told. torch looks its name up.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /tmp planner \
    && install --directory --owner=planner --group=planner /data
WORKDIR /app
EXPOSE 8501
STOPSIGNAL SIGTERM
# http.client, unlike urllib.request, never goes through the proxy that http_proxy may name.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-c", "import os; from http.client import HTTPConnection; asked = HTTPConnection('127.0.0.1', int(os.environ['STREAMLIT_SERVER_PORT']), timeout=4); base = os.environ.get('STREAMLIT_SERVER_BASE_URL_PATH', '').strip('/'); asked.request('GET', f'/{base}/_stcore/health' if base else '/_stcore/health'); raise SystemExit(asked.getresponse().status != 200)"]
# The exec form: Python is the process that gets SIGTERM. It is the command of `make run`.
CMD ["python", "-m", "pages.shared.server"]

# Libraries come before the code, so that a change of the code installs nothing.
FROM base AS plan-libraries
COPY requirements-plan.txt ./
RUN pip install -r requirements-plan.txt

FROM plan-libraries AS gpu-libraries
COPY requirements.txt ./
# On Linux pip takes torch's CUDA build, which has the CUDA libraries in it. The host needs the driver only.
RUN pip install -r requirements.txt

# The app's files, once for both images, with the bytecode that a read-only container could not write.
FROM base AS code
COPY LICENSE streamlit_app.py ./
COPY .streamlit ./.streamlit
COPY notebooks ./notebooks
COPY planner ./planner
COPY cache ./cache
COPY pages ./pages
# A checkout may be closed to other users, and the app runs as one.
RUN chmod -R a+rX . && python -m compileall -q .

FROM gpu-libraries AS gpu
# NVML (utility) sees the GPUs and their free memory, CUDA (compute) runs on them.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    # `verify --weights hub` downloads 4 GB once, into the volume.
    HF_HOME=/data/huggingface
COPY --from=code /app ./
VOLUME /data
USER 10001:10001

# The last stage is the one that `docker build .` makes.
FROM plan-libraries AS plan
COPY --from=code /app ./
VOLUME /data
USER 10001:10001
