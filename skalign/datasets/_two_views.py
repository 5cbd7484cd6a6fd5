"""Two views of one hidden cloud, with the map between them planted. Knows NumPy, nothing of estimators."""

from numbers import Integral, Real

import numpy as np
from sklearn.utils import Bunch, check_random_state

_N_LATENT = 8


def make_two_views(
    n_pairs=100,
    n_unpaired_x=200,
    n_unpaired_y=300,
    n_test=100,
    *,
    n_features_x=20,
    n_features_y=30,
    n_latent=None,
    rotation=None,
    noise=0.1,
    nonlinearity=0.0,
    random_state=None,
):
    r"""Make two views of one latent cloud, with few pairs, many unpaired rows, and a known truth.

    .. math::
        X = Z A^\top + \sigma E_x, \qquad Y = h(Z B^\top) + \sigma E_y, \qquad Z_{ik} \sim N(0, 1 / k)

    with semi-orthogonal :math:`A`, :math:`B` and standard normal :math:`E_x`, :math:`E_y`. The variance of the latent
    columns decays as 1, 1/2, 1/3, ..., so that no two directions look alike. Without noise and bend, Y is a rotation
    of X: ``Y = X @ rotation``.

    Paired rows come first in X and in Y, row ``i`` with row ``i``. Unpaired rows of X and of Y follow; they are drawn
    apart, so no hidden pairs are among them. Each part has its own stream of random numbers: with the same seed, more
    rows of one part leave the rows that were there, and all other parts, unchanged.

    Parameters
    ----------
    n_pairs : int, default=100
        Number of pairs, at least 1.
    n_unpaired_x, n_unpaired_y, n_test : int, default=200, 300 and 100
        Number of unpaired rows of X and of Y, and of test pairs, each at least 0.
    n_features_x, n_features_y : int, default=20 and 30
        Number of columns of X and of Y, at least 1. With `rotation` they are not read; its shape says both.
    n_latent : int, default=None
        Number of latent columns, at most the smaller number of features. None means 8 (or the smaller number of
        features, if that is less); with `rotation` it means its rank, ``min(rotation.shape)``, so that the rows show
        all of it.
    rotation : array-like of shape (n_features_x, n_features_y), default=None
        The truth to plant, with orthonormal rows or columns (whichever are fewer). None draws one of rank `n_latent`.
    noise : float, default=0.1
        Standard deviation sigma of what is added to each entry of X and of Y, at least 0.
    nonlinearity : float, default=0.0
        How far Y is bent away from a linear function of X, 0 to 1. With this number as ``w``,
        ``h(t) = (1 - w) t + w s tanh(2 t / s)`` entry by entry, ``s`` being the root mean square of ``Z @ B.T``.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same data every time.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        - ``X`` : float64 array of shape (n_pairs + n_unpaired_x, n_features_x).
        - ``Y`` : float64 array of shape (n_pairs + n_unpaired_y, n_features_y).
        - ``paired_idx`` : int array of shape (n_pairs, 2), (row of X, row of Y), as ``fit`` takes it.
        - ``X_test``, ``Y_test`` : float64 arrays of shape (n_test, n_features_x) and (n_test, n_features_y).
        - ``test_idx`` : int array of shape (n_test, 2), (row of X_test, row of Y_test).
        - ``rotation`` : array of shape (n_features_x, n_features_y), the planted truth.
        - ``x_map``, ``y_map`` : arrays of shape (n_latent, n_features_x) and (n_latent, n_features_y), ``A.T`` and
          ``B.T``, with orthonormal rows; ``y_map = x_map @ rotation``.
        - ``latent_X``, ``latent_Y``, ``latent_test`` : the rows of Z behind X, Y and the test pairs.

    Raises
    ------
    ValueError
        If a number is out of its range, `n_latent` exceeds the smaller number of features, or `rotation` is not a
        finite matrix with orthonormal rows or columns.

    Examples
    --------
    >>> import numpy as np
    >>> from skalign.datasets import make_two_views
    >>> data = make_two_views(n_pairs=50, noise=0.0, random_state=0)
    >>> data.X.shape, data.Y.shape
    ((250, 20), (350, 30))
    >>> np.allclose(data.X[:50] @ data.rotation, data.Y[:50])
    True
    """
    _check_integer("n_pairs", n_pairs, 1)
    for name, value in (("n_unpaired_x", n_unpaired_x), ("n_unpaired_y", n_unpaired_y), ("n_test", n_test)):
        _check_integer(name, value, 0)
    _check_real("noise", noise, np.inf)
    _check_real("nonlinearity", nonlinearity, 1)
    if rotation is not None:
        rotation = _check_rotation(rotation)
        n_features_x, n_features_y = rotation.shape
    _check_integer("n_features_x", n_features_x, 1)
    _check_integer("n_features_y", n_features_y, 1)
    rank = min(n_features_x, n_features_y)
    if n_latent is None:
        n_latent = rank if rotation is not None else min(_N_LATENT, rank)
    _check_integer("n_latent", n_latent, 1)
    if n_latent > rank:
        raise ValueError(
            f"Expected `n_latent` to be at most the smaller number of features, min({n_features_x}, {n_features_y}) "
            f"= {rank}, got {n_latent}. Lower it, or ask for more features."
        )

    map_rng, *part_rngs = _spawn(check_random_state(random_state), 5)
    x_map, y_map, rotation = _plant(map_rng, n_features_x, n_features_y, n_latent, rotation)
    (z, X, Y), (z_test, X_test, Y_test), (z_x, X_free, _), (z_y, _, Y_free) = (
        _draw_views(rng, n, x_map, y_map, noise, nonlinearity)
        for rng, n in zip(part_rngs, (n_pairs, n_test, n_unpaired_x, n_unpaired_y), strict=True)
    )
    return Bunch(
        X=np.concatenate([X, X_free]),
        Y=np.concatenate([Y, Y_free]),
        paired_idx=np.column_stack([np.arange(n_pairs)] * 2),
        X_test=X_test,
        Y_test=Y_test,
        test_idx=np.column_stack([np.arange(n_test)] * 2),
        rotation=rotation,
        x_map=x_map,
        y_map=y_map,
        latent_X=np.concatenate([z, z_x]),
        latent_Y=np.concatenate([z, z_y]),
        latent_test=z_test,
    )


def _spawn(random_state, n):
    """Independent generators, so that the length of one part does not move the others."""
    return [np.random.RandomState(seed) for seed in random_state.randint(2**31 - 1, size=n)]


def _plant(rng, d_x, d_y, n_latent, rotation=None):
    """Draw the two maps (orthonormal rows) so that ``y_map = x_map @ rotation``; without rotation, make it from them."""
    if rotation is None:
        x_map, y_map = _orthonormal_rows(rng, n_latent, d_x), _orthonormal_rows(rng, n_latent, d_y)
        return x_map, y_map, x_map.T @ y_map
    if d_x <= d_y:
        x_map = _orthonormal_rows(rng, n_latent, d_x)
        return x_map, x_map @ rotation, rotation
    # A tall rotation would shorten a free direction of X: keep X inside the span of its columns.
    y_map = _orthonormal_rows(rng, n_latent, d_y)
    return y_map @ rotation.T, y_map, rotation


def _orthonormal_rows(rng, n_rows, n_columns):
    """Random matrix of shape (n_rows, n_columns), n_rows <= n_columns, whose rows are orthonormal."""
    return np.linalg.qr(rng.standard_normal((n_columns, n_rows)))[0].T


def _draw_views(rng, n, x_map, y_map, noise, nonlinearity):
    """Draw n latent rows and both their views; the first rows do not depend on n."""
    n_latent, d_x = x_map.shape
    d_y = y_map.shape[1]
    draws = rng.standard_normal((n, n_latent + d_x + d_y))
    z, e_x, e_y = np.split(draws, [n_latent, n_latent + d_x], axis=1)
    variance = 1 / np.arange(1, n_latent + 1)
    z = z * np.sqrt(variance)
    y = z @ y_map  # (n, d_y)
    scale = np.sqrt(variance.sum() / d_y)
    y = (1 - nonlinearity) * y + nonlinearity * scale * np.tanh(2 * y / scale)
    return z, z @ x_map + noise * e_x, y + noise * e_y


def _check_integer(name, value, least):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"Expected `{name}` to be an int of at least {least}, got {value!r}. Round or raise it.")


def _check_real(name, value, most):
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or not 0 <= value <= most or value == np.inf:
        bound = "of at least 0" if most == np.inf else f"between 0 and {most}"
        raise ValueError(f"Expected `{name}` to be a finite number {bound}, got {value!r}. Pass 0 to do without it.")


def _check_rotation(rotation):
    rotation = np.array(rotation, dtype=np.float64)  # a copy: the truth must not change with the caller's array
    if rotation.ndim != 2 or rotation.size == 0:
        raise ValueError(
            f"Expected `rotation` to be a matrix of shape (n_features_x, n_features_y), got shape {rotation.shape}. "
            "Pass one row per feature of X and one column per feature of Y."
        )
    wide = rotation if rotation.shape[0] <= rotation.shape[1] else rotation.T
    error = np.abs(wide @ wide.T - np.eye(len(wide))).max()
    if not error <= 1e-6:  # also when NaN; float32 rotations pass
        raise ValueError(
            f"Expected `rotation` to have orthonormal rows or columns, got one that misses by {error:.2g}. "
            "Take an orthonormal factor of it, e.g. `numpy.linalg.qr(matrix)[0]`."
        )
    return rotation
