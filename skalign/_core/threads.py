"""Settings that belong to the whole process, shared by threads that want them alike. Knows the standard library only."""

import threading


class Shared:
    """A context entered once for all threads inside: the first sets it, the last puts back what was there before.

    Were each thread to save and restore for itself, the last one out would restore what another had set.
    """

    def __init__(self, open_context):
        self._open_context = open_context
        self._lock, self._n_inside, self._context = threading.Lock(), 0, None

    def __enter__(self):
        with self._lock:
            if self._n_inside == 0:
                self._context = self._open_context()
                self._context.__enter__()
            self._n_inside += 1

    def __exit__(self, *_):
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._context.__exit__(None, None, None)
