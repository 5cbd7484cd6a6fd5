"""Data to align: a real set that ships with the package, a reader of embedding folders, and a maker of planted truth."""

from skalign.datasets._embeddings import load_embeddings
from skalign.datasets._emoji import load_emoji, load_emoji_thumbnails
from skalign.datasets._two_views import make_two_views

__all__ = ["load_embeddings", "load_emoji", "load_emoji_thumbnails", "make_two_views"]
