"""Headless Chromium for tests of pages, which are skipped if Chromium or the extra `browser` is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="NOT TESTED: Playwright is missing (make test-browser)")
    if not CHROMIUM:
        pytest.skip("NOT TESTED: Chromium is missing (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("chromium")), executable_path=CHROMIUM, headless=True, args=FLAGS
        )
        yield context
        context.close()


@pytest.fixture
def expect(browser: Any) -> Any:
    """Playwright's assertions, which wait: a browser draws what a page shows with a short delay."""
    return pytest.importorskip("playwright.sync_api").expect
