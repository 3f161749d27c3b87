"""Hold together the files that run the app elsewhere: images, Compose, dev container, CI and docs/deploy.md."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from streamlit import config

from pages.shared.guard import settings as guard
from tests.conftest import ROOT
from tests.container import (
    DOCKERFILE,
    IGNORE,
    STAGES,
    TARGETS,
    copied,
    files_in_image,
    instructions,
    is_ignored,
    patterns,
    stages,
)

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
DEVCONTAINER = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
DOCUMENT = (ROOT / "docs/deploy.md").read_text()
PORT, UID = 8501, "10001"
# Each tracked file or folder is in the image, or needs a reason to stay out: it is for people who change the code.
NOT_IN_IMAGE = {
    *(".ci", ".devcontainer", ".dockerignore", ".github", ".gitignore", ".pre-commit-config.yaml"),
    *("CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile", "Makefile", "README.md", "SECURITY.md", "compose.yaml"),
    *("docs", "tests"),
    # They install the command will-it-fit, the tools of tests, and libraries in stages of their own.
    *("pyproject.toml", "requirements-dev.txt", "requirements-plan.txt", "requirements.txt"),
    # A check for hosts without make; the image has the module that it calls.
    "gpu_check.sh",
}


def tracked() -> list[str]:
    # CI's checkout may belong to another user than its tests.
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, re.S | re.M)


def makefile_start() -> list[str]:
    """The words of `make run` behind the interpreter."""
    recipe = (ROOT / "Makefile").read_text().partition("\nrun: ")[2].splitlines()[1]
    assert recipe.startswith("\t$(BIN)/python ")
    return recipe.split()[1:]


# The Dockerfile


def test_instructions_are_read_as_docker_reads_them():
    text = """# a
ARG V=1
FROM a:${V} AS one
ENV A=1 \\
    # why
    B="2 3"
CMD ["x", "y"]
FROM one AS two
ENV A=4
"""
    assert [name for name, _ in instructions(text)] == ["ARG", "FROM", "ENV", "CMD", "FROM", "ENV"]
    found = stages(text)
    assert (found["one"].env, found["two"].env) == ({"A": "1", "B": "2 3"}, {"A": "4", "B": "2 3"})
    assert found["two"].command == ["x", "y"]
    with pytest.raises(ValueError):
        _ = stages("FROM a AS b\nCMD x y\n")["b"].command


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_starts_the_app_as_make_run_does_and_as_nobody_special(target):
    stage = STAGES[target]
    assert stage.command == ["python", *makefile_start()]
    assert stage.health[:2] == ["python", "-c"] and "/_stcore/health" in stage.health[2]
    assert stage.last["USER"] == f"{UID}:{UID}"
    assert any(name == "RUN" and f"--uid {UID}" in arguments for name, arguments in stage.steps)
    assert (stage.last["EXPOSE"], stage.last["VOLUME"], stage.last["STOPSIGNAL"]) == (str(PORT), "/data", "SIGTERM")
    assert stage.env["PLANNER_DB"] == "/data/planner.db"
    assert stage.env["STREAMLIT_SERVER_PORT"] == str(PORT)
    assert stage.env["PIP_NO_CACHE_DIR"] == "1"
    assert stage.last["WORKDIR"] == "/app"


def test_only_a_container_listens_on_every_address():
    settings = tomllib.loads((ROOT / ".streamlit/config.toml").read_text())
    assert settings["server"]["address"] == "127.0.0.1"
    assert {STAGES[target].env["STREAMLIT_SERVER_ADDRESS"] for target in TARGETS} == {"0.0.0.0"}


def test_the_last_stage_is_the_small_one():
    """`docker build .` without a target makes it."""
    assert list(STAGES)[-1] == "plan"


@pytest.mark.parametrize(
    ("target", "lists"), [("plan", ["requirements-plan.txt"]), ("gpu", ["requirements-plan.txt", "requirements.txt"])]
)
def test_an_image_installs_its_lists_before_the_code_comes(target, lists):
    steps = STAGES[target].steps
    code = steps.index(("COPY", "--from=code /app ./"))
    installs = [index for index, (name, what) in enumerate(steps) if name == "RUN" and "pip install" in what]
    assert [steps[index] for index in installs] == [("RUN", f"pip install -r {name}") for name in lists]
    assert copied(STAGES[target]) == lists
    assert max(installs) < code
    for index, name in zip(installs, lists, strict=True):
        assert steps.index(("COPY", f"{name} ./")) < index


def test_every_tracked_file_is_in_the_image_or_has_no_place_there():
    sources = copied(STAGES["code"])
    assert {name.partition("/")[0] for name in tracked()} == {*sources, *NOT_IN_IMAGE}
    here = set(files_in_image(STAGES["code"]))
    of_app = {name for name in tracked() if name.partition("/")[0] in sources}
    assert len(of_app) > 150 and of_app <= here
    assert {"LICENSE", ".streamlit/config.toml", "planner/programs/sd15.bin", "pages/1_Verify.py"} <= here
    # A new file is not tracked yet; whatever else lies about stays out.
    assert not {name for name in here - of_app if not name.endswith(".py")}


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        (".git/config", True),
        (".venv/bin/python", True),
        ("README.md", True),
        ("planner.db", True),
        (".streamlit/secrets.toml", True),
        ("cache/planner.db-wal", True),
        ("planner/__pycache__/fit.cpython-311.pyc", True),
        (".streamlit/config.toml", False),
        ("requirements-plan.txt", False),
        ("cache/history/reference_runs/published.jsonl", False),
    ],
)
def test_a_build_is_sent_the_app_and_no_secrets(path, ignored):
    assert is_ignored(path, patterns(IGNORE.read_text())) == ignored


def test_a_container_asks_no_server_for_its_address(tmp_path):
    """Streamlit does as it starts on every address, unless it is told a name."""
    (tmp_path / "app.py").touch()
    # Everything of a start but the server.
    code = (
        "import sys; from streamlit import net_util; from streamlit.web import bootstrap, cli\n"
        "net_util.get_external_ip = lambda: sys.exit('asked')\n"
        "bootstrap.run = lambda *_: bootstrap._print_url(False)\n"
        "cli.main(['run', 'app.py'])"
    )
    environment = {name: value for name, value in STAGES["plan"].env.items() if name.startswith("STREAMLIT_")}

    def start(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )

    named = start(environment)
    assert (named.returncode, named.stderr) == (0, "") and f"http://localhost:{PORT}" in named.stdout
    del environment["STREAMLIT_BROWSER_SERVER_ADDRESS"]
    assert start(environment).stderr.strip() == "asked"


# Compose, the dev container and CI


@pytest.mark.parametrize("target", TARGETS)
def test_a_service_of_compose_is_one_of_the_images(target):
    assert set(COMPOSE["services"]) == set(TARGETS)
    service = COMPOSE["services"][target]
    assert service["build"] == {"context": ".", "target": target}
    [port] = service["ports"]
    assert re.fullmatch(rf"\$\{{PLANNER_ADDRESS:-127\.0\.0\.1\}}:\$\{{\w+:-\d+\}}:{PORT}", port)
    [volume] = service["volumes"]
    assert volume.split(":") == [next(iter(COMPOSE["volumes"])), STAGES[target].last["VOLUME"]]
    assert service["restart"] == "unless-stopped"
    assert service["read_only"] is True and STAGES[target].env["HOME"] in service["tmpfs"]
    # The image's own health check holds.
    assert "healthcheck" not in service and "user" not in service and "command" not in service


def test_only_the_gpu_service_has_a_profile_and_a_gpu():
    plan, gpu = COMPOSE["services"]["plan"], COMPOSE["services"]["gpu"]
    assert "profiles" not in plan and "deploy" not in plan
    assert gpu["profiles"] == ["gpu"]
    [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    # Both can run at once.
    assert plan["ports"] != gpu["ports"]


def test_the_dev_container_starts_the_app():
    image, _, version = DEVCONTAINER["image"].rpartition(":")
    assert image.endswith("/python") and f"ARG PYTHON={version}\n" in DOCKERFILE.read_text()
    assert DEVCONTAINER["forwardPorts"] == [PORT] and list(DEVCONTAINER["portsAttributes"]) == [str(PORT)]
    start = shlex.split(DEVCONTAINER["postAttachCommand"])
    assert start[: 1 + len(makefile_start())] == [".venv/bin/python", *makefile_start()]
    make = shlex.split(DEVCONTAINER["postCreateCommand"])
    assert make[0] == "make"
    assert subprocess.run([*make, "-n"], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_ci_runs_everything_and_builds_both_images():
    # YAML 1.1 reads the key `on` as true.
    assert set(WORKFLOW[True]) == {"push", "pull_request"}
    test, images = WORKFLOW["jobs"]["test"], WORKFLOW["jobs"]["images"]
    assert ".ci/run" in [step.get("run") for step in test["steps"]]
    assert sorted(images["strategy"]["matrix"]["target"]) == sorted(TARGETS)
    [build] = [step for step in images["steps"] if "build-push" in step.get("uses", "")]
    assert build["with"]["push"] is False and build["with"]["target"] == "${{ matrix.target }}"
    uses = [step["uses"] for job in WORKFLOW["jobs"].values() for step in job["steps"] if "uses" in step]
    assert uses and all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", one) for one in uses)


# docs/deploy.md


def manifests() -> dict[str, dict]:
    return {one["kind"]: one for one in yaml.safe_load_all(blocks("yaml")[0])}


def test_every_snippet_parses():
    for text in blocks("yaml"):
        assert all(isinstance(one, dict) for one in yaml.safe_load_all(text))
    for text in blocks("toml"):
        assert tomllib.loads(text)
    for language in ("nginx", "caddyfile"):
        for text in blocks(language):
            assert text.count("{") == text.count("}") > 0
    assert [len(blocks(name)) for name in ("yaml", "toml", "ini", "nginx", "caddyfile")] == [5, 2, 1, 1, 2]
    # A language that is not listed would be checked by nothing.
    assert set(re.findall(r"^```(\w+)$", DOCUMENT, re.M)) == {"console", "yaml", "toml", "ini", "nginx", "caddyfile"}


def test_the_manifests_refer_to_each_other_and_to_the_image():
    claim, deployment, service = (manifests()[kind] for kind in ("PersistentVolumeClaim", "Deployment", "Service"))
    template = deployment["spec"]["template"]
    pod, [container] = template["spec"], template["spec"]["containers"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (1, {"type": "Recreate"})
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert {str(pod["securityContext"][name]) for name in ("runAsUser", "runAsGroup", "fsGroup")} == {UID}
    [port] = container["ports"]
    assert port == {"name": "http", "containerPort": PORT}
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"] == {"path": "/_stcore/health", "port": port["name"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts == {"history": STAGES["plan"].last["VOLUME"], "tmp": STAGES["plan"].env["HOME"]}
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    assert volumes.keys() == mounts.keys()
    assert volumes["history"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert container["image"] == COMPOSE["services"]["plan"]["image"]
    patch = yaml.safe_load(blocks("yaml")[1])["spec"]["template"]["spec"]
    [patched] = patch["containers"]
    assert (patched["name"], patched["image"]) == (container["name"], COMPOSE["services"]["gpu"]["image"])
    assert patched["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_own_settings_of_compose_name_what_is_there():
    """A volume of the same target replaces the service's."""
    for text in blocks("yaml")[2:]:
        for name, service in yaml.safe_load(text)["services"].items():
            own = COMPOSE["services"][name]
            for volume in service.get("volumes", []):
                assert volume == f"{own['volumes'][0]}:ro"
            for variable, path in service.get("environment", {}).items():
                assert variable in STAGES[name].env and path.rpartition("/")[0] in own["tmpfs"]


def test_the_settings_that_the_document_lists_exist():
    listed = re.findall(r"^\| `(\w+)` \| .* \| ([^|]*) \| ([^|]*) \|$", DOCUMENT, re.M)
    known = {option.env_var for option in config.get_config_options().values()}
    assert len(listed) == 7
    for name, _, in_container in listed:
        assert name in known or name in STAGES["gpu"].env, name
        value = STAGES["gpu"].env.get(name)
        assert value in in_container if value else in_container == "none", name


def test_the_apps_own_settings_are_listed_and_handed_on():
    listed = dict(re.findall(r"^\| `(PLANNER_\w+)` \| [^|]* \| (\w+) \|$", DOCUMENT, re.M))
    known = {value for value in vars(guard).values() if isinstance(value, str) and value.startswith("PLANNER_")}
    limits = {name for name in listed if name.startswith("PLANNER_MAX_")}
    assert set(listed) - limits == known
    assert limits and all(name in (ROOT / "cache/settings.py").read_text() for name in limits)
    assert int(listed[guard.EVENTS]) == guard.MOST_EVENTS and int(listed[guard.SECONDS]) == guard.DEADLINE_S
    # What is documented for a container can be set there.
    assert set(COMPOSE["services"]["plan"]["environment"]) == known - {guard.EVENTS, guard.SECONDS}
    published = COMPOSE["services"]["plan"]["environment"][guard.PUBLISHED]
    assert all(port.startswith(f"{published}:") for port in COMPOSE["services"]["gpu"]["ports"])


def test_the_unit_of_systemd_starts_the_app(tmp_path):
    [text] = blocks("ini")
    # A unit may name a key again.
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(text)
    service = unit["Service"]
    python, *rest = service["ExecStart"].split()
    assert rest == makefile_start() and python == f"{service['WorkingDirectory']}/.venv/bin/python"
    assert f"PLANNER_DB=/var/lib/{service['StateDirectory']}/planner.db" in text
    if not shutil.which("systemd-analyze"):
        return
    path = tmp_path / "will-it-fit.service"
    path.write_text(text.replace(python, sys.executable).replace(service["WorkingDirectory"], "/"))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_proxy_hands_on_what_a_page_needs():
    [nginx] = blocks("nginx")
    handed_on = ("Upgrade $http_upgrade", "Connection $connection_upgrade", "Host $http_host")
    for header in (*handed_on, "X-Forwarded-For $remote_addr"):
        assert f"proxy_set_header {header};" in nginx
    limit = tomllib.loads((ROOT / ".streamlit/config.toml").read_text())["server"]["maxUploadSize"]
    assert f"client_max_body_size {limit}m;" in nginx
    for text in (nginx, *blocks("caddyfile")):
        assert f"127.0.0.1:{PORT}" in text
