"""Opens built pages in a browser: `python docs/check_pages.py build/docs`. Needs playwright and Chromium, so no test runs it.

Each page is opened on a desktop and on a phone. It may not complain, every picture must be there, and nothing may stand out
to the side. `--pictures folder` keeps what was seen.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTHS = {"desktop": 1280, "phone": 390}
MISSING_IMAGES = "[...document.images].filter(image => !image.naturalWidth).map(image => image.src)"
TOO_WIDE = """[document.scrollingElement, ...document.querySelectorAll("main, main div[class^=bd-], article")]
    .filter(box => box.scrollWidth > box.clientWidth).map(box => box.className || box.tagName)"""  # what scrolls by itself may


def complaints(browser, page_path, width, picture=None):
    """What is wrong with a page at this width; `picture` is where to keep how it looks."""
    page, found = browser.new_page(viewport={"width": width, "height": 900}), []
    page.set_default_timeout(120_000)
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("requestfailed", lambda request: found.append(f"{request.url} did not load"))
    page.goto(page_path.as_uri())
    found += [f"{source} is no picture" for source in page.evaluate(MISSING_IMAGES)]
    found += [f"{box} is wider than the screen" for box in page.evaluate(TOO_WIDE)]
    if picture is not None:
        page.screenshot(path=picture, full_page=True, animations="disabled")
    page.close()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--pictures", type=Path)
    arguments = parser.parse_args()
    root, n_wrong = arguments.root.resolve(), 0
    pages = sorted(path for path in root.rglob("*.html") if "_static" not in path.parts)
    with sync_playwright() as playwright:
        # the system's Chromium, else playwright's own; root, as in a container, has no sandbox
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for path in pages:
            name = path.relative_to(root)
            for device, width in WIDTHS.items():
                picture = arguments.pictures and arguments.pictures / device / name.with_suffix(".png")
                for complaint in complaints(browser, path, width, picture):
                    n_wrong += 1
                    print(f"{name} on a {device}: {complaint}")
    print(f"{len(pages)} pages, {n_wrong} complaints")
    sys.exit(n_wrong > 0)
