"""A notebook server and a real browser (Debian's chromium), for the tests and for looking at pages by hand."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from conftest import ROOT
from playwright.sync_api import Page, sync_playwright

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
CHROMIUM = shutil.which("chromium")


@contextlib.contextmanager
def page(width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Page]:
    """A page of a headless chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser.new_page(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
        finally:
            browser.close()


@contextlib.contextmanager
def server(command: list[str], home: Path, folder: Path, answers: str, wait: float = 90) -> Iterator[str]:
    """A server in a process group of its own, with a Jupyter configuration of its own; gives its address.

    Args:
        command: arguments after `python -m`; `{port}` is replaced.
        home: where configuration, data and runtime files go.
        folder: working directory.
        answers: path that answers when the server is up.
        wait: seconds until then.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{what}": str(home / what.lower()) for what in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")}
    labconfig = home / "config_dir" / "labconfig"
    labconfig.mkdir(parents=True, exist_ok=True)
    (labconfig / "page_config.json").write_text(
        json.dumps({"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}})
    )
    address = f"http://127.0.0.1:{port}"
    with open(home / "server.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *(word.replace("{port}", str(port)) for word in command)],
            cwd=folder,
            env={**os.environ, **places, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + wait
        while True:
            try:
                with urllib.request.urlopen(address + answers, timeout=wait):
                    break
            except urllib.error.HTTPError:  # an answer too: voila shows its files to pages only
                break
            except (urllib.error.URLError, OSError):
                if time.monotonic() > end or process.poll() is not None:
                    raise RuntimeError(f"no answer from {command}: {(home / 'server.log').read_text()}") from None
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def lab(home: Path, notebooks: Path) -> contextlib.AbstractContextManager[str]:
    """JupyterLab on a folder of notebooks."""
    options = ["--no-browser", "--ServerApp.ip=127.0.0.1", "--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    options += ["--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True", "--allow-root"]
    return server(["jupyter", "lab", *options], home, notebooks, "/api")


def voila(home: Path, notebook: Path) -> contextlib.AbstractContextManager[str]:
    """A notebook as a page."""
    options = ["--no-browser", "--Voila.ip=127.0.0.1", "--port={port}"]
    return server(["voila", str(notebook), *options], home, notebook.parent, "/static/voila.js")


def explore(home: Path, *options: str) -> contextlib.AbstractContextManager[str]:
    """The explorers' page as `make explore` serves it, without its token; it and what it keeps lie in `home`."""
    given = ["--out", str(home / "page.ipynb"), "--no-browser", "--port={port}", "--Voila.token=", *options]
    return server(["workbook.explorer.serve", *given], home, ROOT, "/static/voila.js")


def kernels(address: str) -> list[psutil.Process]:
    """The kernels of the server at an address."""
    port = int(address.rpartition(":")[2])
    (pid,) = {c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr.port == port}
    return [child for child in psutil.Process(pid).children() if "ipykernel_launcher" in child.cmdline()]


def open_notebook(page: Page, address: str, name: str) -> None:
    """Open a notebook in JupyterLab and wait for its kernel."""
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook", timeout=60_000)
    page.evaluate(
        "async () => { const w = jupyterapp.shell.currentWidget; await w.context.ready; await w.sessionContext.ready }"
    )


def run_all(page: Page, timeout: float = 240) -> None:
    """Run all cells and wait until they are done."""
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    idle(page, timeout)


def idle(page: Page, timeout: float = 60) -> None:
    """Wait until every cell has run, or one has failed, and the kernel is idle; there must be no error."""
    errors = page.wait_for_function(
        """() => { const w = jupyterapp.shell.currentWidget;
        const code = w.content.widgets.filter(c => c.model.type === 'code' && c.model.sharedModel.source.trim());
        const errors = code.flatMap(c => c.model.outputs.toJSON()).filter(o => o.output_type === 'error')
            .map(o => o.ename + ': ' + o.evalue);
        const done = errors.length || code.every(c => c.model.executionCount);
        return w.sessionContext.session.kernel.status === 'idle' && done && {errors} }""",
        timeout=timeout * 1000,
    ).json_value()["errors"]
    assert not errors, errors


def source(page: Page, selector: str) -> str:
    """The `src` of the picture that is shown now."""
    return page.locator(selector).first.get_attribute("src") or ""


def settled(page: Page, selector: str, unlike: str = "", still: float = 0.6, timeout: float = 60) -> str:
    """The `src` of a picture once it is another than `unlike` and has not changed for a while.

    (A new picture may come late, and pass through others.)
    """
    end = time.monotonic() + timeout
    seen, since = unlike, time.monotonic()
    while time.monotonic() < end:
        src = source(page, selector)
        if src != seen:
            seen, since = src, time.monotonic()
        elif src not in ("", unlike) and time.monotonic() - since > still:
            return src
        page.wait_for_timeout(50)
    raise TimeoutError(f"{selector} did not come to rest within {timeout} s")


def shown(page: Page, selector: str, unlike: str = "") -> bytes:
    """The bytes of the picture that is shown once it has settled."""
    settled(page, selector, unlike)
    data = page.evaluate(
        """async (selector) => { const b = await (await fetch(document.querySelector(selector).src)).arrayBuffer();
        return Array.from(new Uint8Array(b)) }""",
        selector,
    )
    return bytes(data)


def screenshot(out: Path, model: str = "kav6") -> None:
    """The kernel explorer's page, of one model."""
    with TemporaryDirectory() as home, explore(Path(home)) as address, page(1280, 860) as shot:
        shot.goto(address)
        shot.wait_for_selector(".ka-model select", timeout=120_000)
        before = settled(shot, ".ka-picture img, img.ka-picture")
        shot.locator(".ka-model select").first.select_option(model)
        settled(shot, ".ka-picture img, img.ka-picture", before)
        out.parent.mkdir(parents=True, exist_ok=True)
        shot.screenshot(path=out)


if __name__ == "__main__":
    screenshot(Path(sys.argv[1]))
