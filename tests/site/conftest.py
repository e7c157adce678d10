"""The pages, built from a copy of the sources, and one browser to look at them."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
SOURCES = ["docs", "linen2nnx", "linen_impl", "nnx_impl", "pages", "parity_tests"]
FLAGS = ["--no-sandbox", "--disable-background-networking"]
TWO_FRAMES = "new Promise(f => requestAnimationFrame(() => requestAnimationFrame(f)))"
HEIGHTS = {1440: 900, 390: 844}


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.allow_hosts(["127.0.0.1"]))


def copy_sources(folder):
    """All that a build reads, in a folder of its own."""
    for name in SOURCES:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("mkdocs.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_build(folder, *arguments):
    """Build the copy in `folder` with the code that is in it."""
    return subprocess.run(
        [sys.executable, "-m", "pages", "build", *arguments],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


def build(folder, *arguments):
    run = run_build(copy_sources(folder), *arguments)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder / "site"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    return build(tmp_path_factory.mktemp("mkdocs"))


@pytest.fixture(scope="session")
def zensical_site(tmp_path_factory):
    return build(tmp_path_factory.mktemp("zensical"), "--builder", "zensical")


@pytest.fixture(scope="session")
def serve():
    """A function that serves a folder on this machine and returns its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            """Say nothing."""

    servers = []

    def start(folder):
        handler = functools.partial(Handler, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="session")
def address(site, serve):
    return serve(site)


@pytest.fixture(scope="session")
def browser():
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, names)), ""
    )
    assert found, "the tests of the pages need chromium; CHROMIUM may say where it is"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


class Reader:
    """A browser window of one width and colour scheme, and what went wrong in it."""

    def __init__(self, browser, width, scheme):
        self.context = browser.new_context(
            viewport={"width": width, "height": HEIGHTS[width]},
            color_scheme=scheme,
            permissions=["clipboard-read", "clipboard-write"],
        )
        self.context.add_init_script("localStorage.clear(), sessionStorage.clear()")
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on(
            "console",
            lambda message: (
                message.type in ("error", "warning")
                and self.errors.append(message.text)
            ),
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.context.on("request", lambda request: self.requests.append(request.url))

    def open(self, url):
        self.errors.clear()
        self.requests.clear()
        self.page.goto(url)
        self.page.evaluate(TWO_FRAMES)
        return self.page


@pytest.fixture(scope="session")
def readers(browser):
    """A function that gives the window of a width and scheme, one for all tests."""

    @functools.cache
    def reader(width=1440, scheme="light"):
        return Reader(browser, width, scheme)

    return reader
