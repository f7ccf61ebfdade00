"""Check the built site in headless Chromium: no axe violations, no requests to other hosts, a working search.

Takes screenshots of the start page on desktop and phone, light and dark. Needs Chromium and the extra `site`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

SIZES = {"desk": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
SEARCHED, FOUND = "attention mask", "masks.html"


def check(site: Path, pictures: Path) -> None:
    """Check the site. Raises `SystemExit` that names the problems."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("Chromium is missing: apt-get install chromium")
    pictures.mkdir(parents=True, exist_ok=True)
    with served(site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        problems = [
            line for size in SIZES for scheme in SCHEMES for line in _start(browser, address, size, scheme, pictures)
        ]
        problems += _search(browser, address)
        browser.close()
    if problems:
        raise SystemExit("\n".join(problems))
    print(f"the start page has no axe violations, and the search works; pictures are in {pictures}")


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a folder on this machine while the block runs, and yield its address."""
    handler = partial(_Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...


def _start(browser: Browser, address: str, size: str, scheme: str, pictures: Path) -> Iterator[str]:
    """Take a picture of the start page in one size and colour scheme, and return its problems."""
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    elsewhere = _requests_elsewhere(page, address)
    page.goto(f"{address}/index.html")
    page.wait_for_load_state("networkidle")
    page.screenshot(path=pictures / f"start-{size}-{scheme}.png")
    for violation in Axe().run(page).response["violations"]:
        for node in violation["nodes"]:
            yield f"{size}, {scheme}: {violation['id']}: {violation['help']}: {node['html'][:120]}"
    yield from (f"{size}, {scheme}: asks {url}" for url in elsewhere)
    page.close()


def _requests_elsewhere(page: Page, address: str) -> list[str]:
    """The page's requests to other hosts; the list grows as they happen."""
    urls: list[str] = []
    page.on(
        "request", lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else urls.append(asked.url)
    )
    return urls


def _search(browser: Browser, address: str) -> list[str]:
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    page.keyboard.press("/")
    page.keyboard.type(SEARCHED)
    try:
        page.wait_for_selector(f"a[href*='{FOUND}']:visible", timeout=10_000)
        return []
    except Exception:  # noqa: BLE001 - of Playwright, whatever its kind
        return [f"a search for {SEARCHED} does not find {FOUND}"]
