"""The files of ``docs/deploy``: nginx really runs in front of two servers; the images are read, not built."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from vlm.cli.main import parser_of
from vlm.common.registry import resolve
from vlm.serve.http.limits import Limits

from .served import ROOT, Clients, Served, body, served

DEPLOY = ROOT / "docs" / "deploy"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@contextmanager
def balancer(folder: Path, servers: list[Served]) -> Iterator[str]:
    """nginx with the shipped configuration, on a free port of this machine; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = (DEPLOY / "nginx.conf").read_text()
    for number, server in enumerate(servers, start=1):
        assert f"replica{number}:8000" in text
        text = text.replace(f"replica{number}:8000", server.url.removeprefix("http://"))
    places = {"listen 80;": f"listen 127.0.0.1:{port};", "/dev/stdout": f"{folder}/access.log"}
    places["/dev/stderr"] = f"{folder}/error.log"
    for old, new in places.items():
        assert old in text
        text = text.replace(old, new)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = f"daemon off; pid {folder}/nginx.pid;\n" + text.replace("http {", "http {" + temporary)
    file = folder / "nginx.conf"
    file.write_text(text)
    assert NGINX is not None
    checked = subprocess.run(
        [NGINX, "-t", "-c", str(file), "-e", f"{folder}/start.log"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([NGINX, "-c", str(file), "-e", f"{folder}/start.log"])
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 20
        while True:
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.ConnectError:
                pass
            assert time.monotonic() < end, (folder / "error.log").read_text()
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.heavy
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_replica_that_is_terminated_costs_no_request(tmp_path: Path) -> None:
    with (
        served(tmp_path, name="one") as one,
        served(tmp_path, name="two") as two,
        balancer(tmp_path, [one, two]) as address,
    ):
        chunks = []
        with httpx.stream("POST", f"{address}/v1/completions", json=body(1, 100, True), timeout=60) as response:
            chunks = [time.monotonic() for _ in response.iter_raw()]
        assert len(chunks) > 10, "the answer did not come in pieces: it was buffered"
        assert httpx.get(f"{address}/metrics").status_code == 404
        too_large = httpx.post(f"{address}/v1/completions", content=b" " * (33 << 20))
        assert too_large.status_code == 413
        clients = Clients(address, 16).start()
        clients.wait_for(60)
        clients.since = time.monotonic()
        one.signal()
        assert one.wait() == 0
        clients.wait_for(clients.ends["answered"] + 60)
        clients.join(stop=True)
        log = (tmp_path / "access.log").read_text()
    assert set(clients.ends) == {"answered"}, clients.ends
    asked = [re.findall(r"POST [^\n]* to ([\d.:, ]+)$", line) for line in log.splitlines()]
    per_server = [
        sum(server.url.removeprefix("http://") in found[0] for found in asked if found) for server in (one, two)
    ]
    assert min(per_server) > 20, per_server


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word]


def test_the_dockerfile_names_what_is_there() -> None:
    lines = instructions()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text()
    for word, rest in lines:
        if word == "COPY" and not rest.startswith("--from"):
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists(), f"COPY {name}"
                assert f"!{name}\n" in ignored, f"{name} does not reach the build"
    project = (ROOT / "pyproject.toml").read_text()
    extras = next(rest for word, rest in lines if word == "ARG" and rest.startswith("EXTRAS=")).partition("=")[2]
    assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras.split(","))
    python = next(rest for word, rest in lines if word == "ARG" and rest.startswith("PYTHON=")).partition("=")[2]
    assert tuple(map(int, python.split("."))) >= (3, 11), "constraints.txt pins nothing for older versions"
    pins = (ROOT / "constraints.txt").read_text()
    for package in ("torch", "torchvision", "fastapi", "uvicorn", "prometheus-client", "llguidance"):
        assert re.search(rf"^{package}==", pins, re.MULTILINE), f"{package} is not pinned"
    assert all("-c constraints.txt" in rest for word, rest in lines if word == "RUN" and "pip install" in rest)


def test_the_image_runs_the_server_without_privileges() -> None:
    last = dict(instructions())
    assert last["USER"] == "vlm"
    assert last["STOPSIGNAL"] == "SIGTERM"
    start = json.loads(last["ENTRYPOINT"])
    assert start[:4] == ["tini", "--", "vlm", "serve"], "a shell would not pass on SIGTERM"
    parser_of("serve", resolve("command", "serve")()).parse_args([*start[4:], "/models/mine"])
    assert "/health" in last["HEALTHCHECK"]


def test_the_compose_file_fits_the_image_and_the_limits() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    replicas = [service for name, service in compose["services"].items() if name.startswith("replica")]
    assert len(replicas) == 2
    for replica in replicas:
        context = (DEPLOY / replica["build"]["context"]).resolve()
        assert (context / replica["build"]["dockerfile"]).is_file()
        assert replica["read_only"] is True
        assert int(replica["stop_grace_period"].removesuffix("s")) > Limits().drain_seconds
        assert all(volume.endswith(":ro") for volume in replica["volumes"])
        parser_of("serve", resolve("command", "serve")()).parse_args(replica["command"])
    for volume in compose["services"]["balancer"]["volumes"]:
        assert (DEPLOY / volume.partition(":")[0]).is_file()


def test_the_balancer_lets_through_what_the_server_takes() -> None:
    text, limits = (DEPLOY / "nginx.conf").read_text(), Limits()
    assert f"client_max_body_size {limits.body_mib}m;" in text
    assert int(re.findall(r"proxy_read_timeout (\d+)s", text)[0]) > limits.seconds
    assert f"client_body_timeout {limits.stall_seconds:g}s;" in text
    count, size = re.findall(r"large_client_header_buffers (\d+) (\d+)k", text)[0]
    assert int(count) * int(size) == limits.header_kib
