"""Servers as the Makefile starts them."""

import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "program", "page"),
    [("lab", "jupyter", "api/contents"), ("explore", "python -m workbook.explorer.serve", "")],
)
def test_servers_listen_on_loopback_only_and_want_a_token(
    target: str, program: str, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the Makefile starts them."""
    recipe = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in recipe.splitlines() if f".venv/bin/{program} " in line]
    command = shlex.split(line.replace(".venv/bin", str(Path(sys.executable).parent)))
    for part in ("CONFIG", "DATA", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{part}_DIR", str(tmp_path / part))
    (tmp_path / "notebooks").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    more = ["--no-browser", f"--port={port}"] + (["--out", str(tmp_path / "page.ipynb")] if target == "explore" else [])
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen([*command, *more], cwd=tmp_path, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not (listening := listens(server.pid, port)):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        assert listening == {"127.0.0.1"}
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        asked.request("GET", f"/{page}")
        answer = asked.getresponse()
        assert answer.status == 403 or (answer.status == 302 and answer.headers["Location"].startswith("/login"))
        asked.close()
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def listens(pid: int, port: int) -> set[str]:
    """Addresses at which a process listens at a port."""
    found = psutil.Process(pid).net_connections("inet")
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN and each.laddr.port == port}
