"""Approximate search with optional libraries, behind `fit` and `kneighbors` of scikit-learn. Loads a library when used."""

import importlib
import io

import numpy as np
from joblib import effective_n_jobs

_LINKS = 16  # of each node in the graph, the libraries' "M" or "connectivity"
_BREADTH = 200  # candidates looked at to place or find a row, the libraries' "ef" or "expansion"


class _Graph:
    """An HNSW graph over unit rows. A subclass builds it with a library, and asks it.

    ``_build(G, threads)`` returns the library's index of float32 rows; ``_ask(Q, k, breadth, threads)`` returns rows, negative
    where none was found.
    """

    def __init__(self, n_jobs=None):
        self.n_jobs = n_jobs

    def fit(self, G):
        self._index = self._build(_float32(G), effective_n_jobs(self.n_jobs))
        return self

    def kneighbors(self, Q, n_neighbors, return_distance=False):
        breadth = max(_BREADTH, 2 * n_neighbors)
        return self._ask(_float32(Q), n_neighbors, breadth, effective_n_jobs(self.n_jobs))


class Usearch(_Graph):
    """Keeps rows in half precision: half the memory and time, and what is found is ranked in full precision anyway."""

    def _build(self, G, threads):
        index = _library("usearch.index").Index(
            ndim=G.shape[1], metric="ip", dtype="f16", connectivity=_LINKS, expansion_add=_BREADTH
        )
        index.add(np.arange(len(G)), G, threads=threads)
        return index

    def _ask(self, Q, k, breadth, threads):
        self._index.expansion_search = breadth
        answer = self._index.search(Q, k, threads=threads)
        rows = np.full((len(Q), k), -1)
        for own, match in zip(rows, answer if len(Q) > 1 else [answer], strict=True):
            own[: len(match)] = match.keys
        return rows

    def __getstate__(self):
        return vars(self) | {"_index": self._index.save()}

    def __setstate__(self, state):
        vars(self).update(state, _index=_library("usearch.index").Index.restore(state["_index"]))


class Voyager(_Graph):
    def _build(self, G, threads):
        voyager = _library("voyager")
        index = voyager.Index(
            voyager.Space.InnerProduct,
            G.shape[1],
            M=_LINKS,
            ef_construction=_BREADTH,
            random_seed=0,
            max_elements=len(G),
        )
        index.add_items(G, num_threads=threads)
        return index

    def _ask(self, Q, k, breadth, threads):
        try:
            return self._index.query(Q, k, num_threads=threads, query_ef=breadth)[0]
        except _library("voyager").RecallError:  # one query has fewer, and takes the others with it
            return np.full((len(Q), k), -1)

    def __getstate__(self):
        return vars(self) | {"_index": self._index.as_bytes()}

    def __setstate__(self, state):
        vars(self).update(state, _index=_library("voyager").Index.load(io.BytesIO(state["_index"])))


class Hnswlib(_Graph):
    """Comes as source alone, so it has an extra of its own."""

    def _build(self, G, threads):
        index = _library("hnswlib").Index("ip", G.shape[1])
        index.init_index(len(G), M=_LINKS, ef_construction=_BREADTH, random_seed=0)
        index.add_items(G, num_threads=threads)
        return index

    def _ask(self, Q, k, breadth, threads):
        self._index.set_ef(breadth)
        try:
            return self._index.knn_query(Q, k, num_threads=threads)[0]
        except RuntimeError:  # one query has fewer, and takes the others with it
            return np.full((len(Q), k), -1)


INDEXES = {"usearch": Usearch, "voyager": Voyager, "hnswlib": Hnswlib}


def _float32(rows):
    return np.ascontiguousarray(rows, dtype=np.float32)


def _library(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        extra = "hnswlib" if package == "hnswlib" else "index"
        raise ImportError(
            f'index="{package}" needs the library {package}, which is not installed. '
            f'Install it with `pip install "skalign[{extra}]"`, or use index="exact".'
        ) from error
