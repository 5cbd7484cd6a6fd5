"""Emoji pictures and their names, shipped with the package. Knows NumPy and its own data folder, nothing else."""

from importlib.resources import files

import numpy as np
from sklearn.utils import Bunch

_DATA = files("skalign.datasets") / "data"
# The text rows 2 i and 2 i + 1 of emoji i are its name and its keywords.
_TEXT_COLUMNS = {"names": (0,), "keywords": (1,), "both": (0, 1)}
_N_EMOJI = 1870
_TILE = 36  # pixels, height and width of a thumbnail


def load_emoji(*, texts="names"):
    """Load emoji pictures and their English texts, a few of them paired.

    1,870 emoji, split into four disjoint parts: 300 whose picture and text are known to belong together, 585 pictures
    without text, 585 emoji whose texts come without picture, and 400 for evaluation. Pictures are MobileNetV2 features
    (256 columns), texts are all-MiniLM-L6-v2 sentence embeddings (384 columns). The picture encoder saw no text, the text
    encoder no pictures.

    Parameters
    ----------
    texts : {"names", "keywords", "both"}, default="names"
        The texts of the paired emoji: the name ("grinning face"), the keywords ("face, grin"), or both, which makes
        the pairs many-to-one (two texts a picture). The unpaired and the test texts are always both.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        With ``p = 300`` pairs, or 600 with ``texts="both"``:

        - ``X`` : float32 array of shape (885, 256), pictures: 300 paired, then 585 unpaired.
        - ``Y`` : float32 array of shape (p + 1170, 384), unit length, texts: the paired, then 1,170 unpaired.
        - ``paired_idx`` : int array of shape (p, 2), (row of X, row of Y), as ``fit`` takes it.
        - ``X_test`` : float32 array of shape (400, 256).
        - ``Y_test`` : float32 array of shape (710, 384), the distinct texts of the test pictures. Some emoji share
          theirs: "flag" is the keyword of 67.
        - ``test_idx`` : int array of shape (800, 2), (row of X_test, row of Y_test): the name, then the keywords, of
          each test picture in turn.
        - ``captions``, ``captions_test`` : str arrays, the text of each row of Y and of Y_test.
        - ``names_X``, ``names_test`` : str arrays of shape (885,) and (400,), the name of each picture in X and
          X_test, even of the unpaired: to look at results, not to learn from.
        - ``emoji_X``, ``emoji_test`` : int arrays of shape (885,) and (400,), the emoji (0 to 1869) of each picture;
          it indexes :func:`load_emoji_thumbnails`.
        - ``group_X``, ``group_Y``, ``group_test`` : str arrays, which of Unicode's 9 groups each row of X, Y and X_test
          belongs to.
        - ``DESCR`` : str, how the data were made, and the terms.

    Raises
    ------
    ValueError
        If `texts` is none of the three words.

    Examples
    --------
    >>> from skalign.datasets import load_emoji
    >>> data = load_emoji()
    >>> data.X.shape, data.Y.shape, data.paired_idx.shape
    ((885, 256), (1470, 384), (300, 2))
    >>> x, y = data.paired_idx[1]
    >>> print(data.group_X[x], "|", data.captions[y])
    Symbols | orthodox cross
    """
    if not isinstance(texts, str) or texts not in _TEXT_COLUMNS:
        raise ValueError(
            f"Expected `texts` to be 'names', 'keywords' or 'both', got {texts!r}. "
            "Choose one of the three; it says which texts the paired pictures come with."
        )
    with (_DATA / "emoji.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        raw = {key: stored[key] for key in stored}
    paired, test = raw["pairs"], raw["test"]
    columns = _TEXT_COLUMNS[texts]
    x_rows = np.concatenate([paired, raw["unpaired_image"]])
    y_rows = np.concatenate([_text_rows(paired, columns), _text_rows(raw["unpaired_text_of"])])
    _, first, text_of = np.unique(raw["caption"][_text_rows(test)], return_index=True, return_inverse=True)
    test_rows = _text_rows(test)[first]
    return Bunch(
        X=raw["image"][x_rows].astype(np.float32),
        Y=raw["text"][y_rows].astype(np.float32),
        paired_idx=_in_turn(len(paired), len(columns)),
        X_test=raw["image"][test].astype(np.float32),
        Y_test=raw["text"][test_rows].astype(np.float32),
        test_idx=np.column_stack([np.repeat(np.arange(len(test)), 2), text_of]),
        captions=raw["caption"][y_rows],
        captions_test=raw["caption"][test_rows],
        names_X=raw["caption"][2 * x_rows],
        names_test=raw["caption"][2 * test],
        emoji_X=x_rows,
        emoji_test=test,
        group_X=raw["group"][x_rows],
        group_Y=raw["group"][y_rows // 2],
        group_test=raw["group"][test],
        DESCR=(_DATA / "README.md").read_text(encoding="utf-8"),
    )


def load_emoji_thumbnails():
    """Load a small picture of each emoji, to show what was found.

    Returns
    -------
    thumbnails : uint8 array of shape (1870, 36, 36, 3)
        RGB on white; entry ``i`` is emoji ``i``, as in ``emoji_X`` and ``emoji_test`` of :func:`load_emoji`.

    Raises
    ------
    ImportError
        If Pillow is not installed; it comes with the extra ``skalign[plots]``.

    Examples
    --------
    >>> from skalign.datasets import load_emoji, load_emoji_thumbnails
    >>> thumbnails = load_emoji_thumbnails()
    >>> thumbnails[load_emoji().emoji_test].shape
    (400, 36, 36, 3)
    """
    try:
        from PIL import Image  # only whoever looks at pictures needs it
    except ImportError as error:
        raise ImportError(
            "Expected Pillow, to read the emoji thumbnails, but it is not installed. "
            'Install it with `pip install "skalign[plots]"`.'
        ) from error
    with (_DATA / "sprite.png").open("rb") as file, Image.open(file) as image:
        sprite = np.asarray(image.convert("RGB"))
    n_rows, n_columns = sprite.shape[0] // _TILE, sprite.shape[1] // _TILE
    tiles = sprite.reshape(n_rows, _TILE, n_columns, _TILE, 3).swapaxes(1, 2)  # (n_rows, n_columns, 36, 36, 3)
    return tiles.reshape(-1, _TILE, _TILE, 3)[:_N_EMOJI]


def _text_rows(emoji, columns=(0, 1)):
    """Rows of the stored texts of these emoji, the columns of one emoji in turn."""
    return (2 * emoji[:, None] + np.array(columns)).ravel()


def _in_turn(n_pictures, n_texts):
    """Pairs (picture, text) when each picture's texts follow one another, shape (n_pictures * n_texts, 2)."""
    text = np.arange(n_pictures * n_texts)
    return np.column_stack([text // n_texts, text])
