"""Checks links within built pages: `python docs/check_links.py build/docs`. Knows HTML files, nothing of sphinx."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """Names a page can be entered by, and where it leads or what it shows."""

    def __init__(self, path):
        super().__init__()
        self.names, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.names.add(attributes.get("id"))
        self.links += [attributes[key] for key in ("href", "src") if attributes.get(key)]


def broken_links(root):
    """Yield (page, link) of links that lead to no file, or to no place in it; other sites are left alone."""
    pages = {path: Page(path) for path in root.rglob("*.html") if "_static" not in path.parts}
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.exists() or (place and target in pages and place not in pages[target].names):
                yield path.relative_to(root), link


if __name__ == "__main__":
    broken = list(broken_links(Path(sys.argv[1]).resolve()))
    for page, link in broken:
        print(f"{page}: {link} leads nowhere")
    sys.exit(len(broken) > 0)
