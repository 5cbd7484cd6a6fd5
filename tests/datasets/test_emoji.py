"""Laws of the shipped emoji set: it says what the raw files say, and its four parts never meet."""

import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import skalign.datasets
from skalign.datasets import load_embeddings, load_emoji, load_emoji_thumbnails

FOLDER = Path(skalign.datasets.__file__).parent / "data"
TEXTS = ["names", "keywords", "both"]


@pytest.fixture(scope="module")
def raw():
    with np.load(FOLDER / "emoji.npz", allow_pickle=False) as stored:
        return dict(stored)


@pytest.mark.parametrize("texts, n_pairs", [("names", 300), ("keywords", 300), ("both", 600)])
def test_shapes_and_dtypes_are_as_documented(texts, n_pairs):
    data = load_emoji(texts=texts)
    shapes = {key: value.shape for key, value in data.items() if key != "DESCR"}
    assert shapes == {
        "X": (885, 256),
        "Y": (n_pairs + 1170, 384),
        "paired_idx": (n_pairs, 2),
        "X_test": (400, 256),
        "Y_test": (710, 384),
        "test_idx": (800, 2),
        "captions": (n_pairs + 1170,),
        "captions_test": (710,),
        "names_X": (885,),
        "names_test": (400,),
        "emoji_X": (885,),
        "emoji_test": (400,),
        "group_X": (885,),
        "group_Y": (n_pairs + 1170,),
        "group_test": (400,),
    }
    for view in (data.X, data.Y, data.X_test, data.Y_test):
        assert view.dtype == np.float32
        assert np.isfinite(view).all()
    for index in (data.paired_idx, data.test_idx, data.emoji_X, data.emoji_test):
        assert np.issubdtype(index.dtype, np.integer)


@pytest.mark.parametrize("texts", TEXTS)
def test_every_pair_is_a_picture_and_a_text_of_one_emoji(raw, texts):
    """Row by row, and by looking the stored rows up, not by the loader's own arithmetic."""
    data = load_emoji(texts=texts)
    places = [0, 1] if texts == "both" else [TEXTS.index(texts)]
    expected = [(emoji, place) for emoji in raw["pairs"] for place in places]
    for (x, y), (emoji, place) in zip(data.paired_idx, expected, strict=True):
        row = np.flatnonzero(raw["text_image"] == emoji)[place]
        assert data.emoji_X[x] == emoji
        assert data.captions[y] == raw["caption"][row]
        assert_array_equal(data.Y[y], raw["text"][row].astype(np.float32))
        assert_array_equal(data.X[x], raw["image"][emoji].astype(np.float32))


def test_every_test_pair_is_a_picture_and_a_text_of_one_emoji(raw):
    data = load_emoji()
    assert_array_equal(data.emoji_test, raw["test"])
    assert_array_equal(data.X_test, raw["image"][raw["test"]].astype(np.float32))
    for place, (x, y) in enumerate(data.test_idx):
        row = np.flatnonzero(raw["text_image"] == data.emoji_test[x])[place % 2]
        assert x == place // 2
        assert data.captions_test[y] == raw["caption"][row]
        assert_allclose(
            data.Y_test[y], raw["text"][row], atol=1e-3
        )  # texts that read the same differ by float16 rounding


def test_a_test_text_stands_once_however_many_emoji_share_it():
    data = load_emoji()
    assert len(set(data.captions_test)) == len(data.captions_test)
    flag = np.flatnonzero(data.captions_test == "flag")
    assert np.count_nonzero(data.test_idx[:, 1] == flag) == 67


def test_unpaired_rows_follow_the_pairs(raw):
    data = load_emoji()
    assert_array_equal(data.emoji_X[300:], raw["unpaired_image"])
    assert_array_equal(data.X[300:], raw["image"][raw["unpaired_image"]].astype(np.float32))
    rows = [row for emoji in raw["unpaired_text_of"] for row in np.flatnonzero(raw["text_image"] == emoji)]
    assert_array_equal(data.captions[300:], raw["caption"][rows])
    assert_array_equal(data.Y[300:], raw["text"][rows].astype(np.float32))


@pytest.mark.parametrize("texts", TEXTS)
def test_only_paired_rows_share_an_emoji(raw, texts):
    """No unpaired picture has its text in Y, and nothing of the test set is in the training views."""
    data = load_emoji(texts=texts)
    of_Y = np.concatenate([raw["pairs"], raw["unpaired_text_of"]])
    names_of_Y = set(raw["caption"][2 * of_Y])
    assert set(data.captions) <= set(raw["caption"][2 * of_Y]) | set(raw["caption"][2 * of_Y + 1])
    assert not names_of_Y & set(data.names_X[300:])
    assert not set(data.emoji_X) & set(data.emoji_test)
    assert not set(of_Y) & set(data.emoji_test)
    assert not names_of_Y & set(data.names_test)
    assert len(set(data.emoji_X) | set(of_Y) | set(data.emoji_test)) == 300 + 585 + 585 + 400


def test_names_and_groups_belong_to_the_pictures(raw):
    data = load_emoji(texts="keywords")
    assert_array_equal(data.names_X, raw["caption"][::2][data.emoji_X])
    assert_array_equal(data.names_test, raw["caption"][::2][data.emoji_test])
    assert_array_equal(data.group_X, raw["group"][data.emoji_X])
    assert_array_equal(data.group_test, raw["group"][data.emoji_test])
    assert len(set(data.group_X)) == 9


@pytest.mark.parametrize("texts", TEXTS)
def test_groups_belong_to_the_texts(raw, texts):
    data = load_emoji(texts=texts)
    assert_array_equal(data.group_Y[data.paired_idx[:, 1]], data.group_X[data.paired_idx[:, 0]])
    emoji = [raw["text_image"][np.flatnonzero(raw["caption"] == name)[0]] for name in data.captions[-1170::2]]
    assert_array_equal(data.group_Y[-1170::2], raw["group"][emoji])
    assert_array_equal(data.group_Y[-1169::2], raw["group"][emoji])


def test_texts_have_unit_length_and_pictures_unit_mean_square(raw):
    data = load_emoji()
    np.testing.assert_allclose(np.linalg.norm(data.Y, axis=1), 1, atol=1e-3)  # stored as float16
    mean_square = (raw["image"].astype(np.float64) ** 2).sum(axis=1).mean()
    np.testing.assert_allclose(mean_square, 1, atol=1e-3)


def test_each_call_returns_fresh_arrays():
    first = load_emoji()
    first.X[:] = 0
    assert load_emoji().X.any()


@pytest.mark.parametrize("texts", ["name", None, ["names"]])
def test_unknown_texts_are_refused(texts):
    message = f"Expected `texts` to be 'names', 'keywords' or 'both', got {texts!r}. Choose one of the three"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_emoji(texts=texts)


def test_description_states_origin_and_terms():
    description = load_emoji().DESCR
    for word in ("MobileNetV2", "MiniLM", "Apache-2.0", "Unicode-DFS-2016", "LICENSES.md"):
        assert word in description


def test_notices_travel_with_the_data():
    notices = (FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    assert "Copyright 2013-2017 Google Inc." in notices
    assert "Copyright © 1991-2022 Unicode, Inc. All rights reserved." in notices
    assert "Permission is hereby granted, free of charge" in notices
    assert "TERMS AND CONDITIONS FOR USE" in (FOLDER / "LICENSE-Apache-2.0.txt").read_text(encoding="utf-8")


def test_shipped_files_have_the_listed_digests():
    listed = dict(reversed(line.split()) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    actual = {name: hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() for name in ("emoji.npz", "sprite.png")}
    assert actual == listed


def test_shipped_folder_is_one_that_load_embeddings_reads(raw):
    assert set(load_embeddings(FOLDER)) == {*raw, "DESCR"}


def test_thumbnail_is_the_tile_of_the_sprite():
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    thumbnails = load_emoji_thumbnails()
    assert thumbnails.shape == (1870, 36, 36, 3)
    assert thumbnails.dtype == np.uint8
    with image.open(FOLDER / "sprite.png") as sprite:
        for i in (0, 43, 44, 1000, 1869):
            left, top = i % 44 * 36, i // 44 * 36
            tile = sprite.crop((left, top, left + 36, top + 36)).convert("RGB")
            assert_array_equal(thumbnails[i], np.asarray(tile))


def test_thumbnails_show_the_emoji_they_are_numbered_by(raw):
    """Planted truth by eye: hearts of one colour are mostly of that colour."""
    pytest.importorskip("PIL", reason="needs Pillow")
    thumbnails = load_emoji_thumbnails().astype(float)
    for colour, channel in (("red", 0), ("green", 1), ("blue", 2)):
        (row,) = np.flatnonzero(raw["caption"] == f"{colour} heart")
        inner = thumbnails[raw["text_image"][row], 12:20, 12:24].mean(axis=(0, 1))
        assert inner.argmax() == channel


def test_every_thumbnail_shows_something():
    pytest.importorskip("PIL", reason="needs Pillow")
    darkest = load_emoji_thumbnails().reshape(1870, -1).min(axis=1)
    assert (darkest < 255).all()


def test_missing_pillow_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=re.escape('Install it with `pip install "skalign[plots]"`.')):
        load_emoji_thumbnails()
