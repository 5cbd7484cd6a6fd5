"""Laws of the folder reader: what is stored comes back bit for bit, and nothing doubtful comes back at all."""

import hashlib
import re
import zipfile

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skalign.datasets import load_embeddings


@pytest.fixture
def arrays(rng):
    return {
        "image": rng.standard_normal((7, 5)).astype(np.float16),
        "text": rng.standard_normal((11, 3)).astype(np.float32),
        "train": np.arange(4, dtype=np.int32),
        "name": np.array(["a", "bcd"]),
        "empty": np.zeros((0, 3)),
    }


@pytest.fixture
def folder(tmp_path, arrays):
    """A folder of the usual layout: one compressed archive, and one array on its own."""
    np.savez_compressed(tmp_path / "data.npz", **{key: a for key, a in arrays.items() if key != "text"})
    np.save(tmp_path / "text.npy", arrays["text"])
    (tmp_path / "README.md").write_text("# Où et comment\n", encoding="utf-8")
    (tmp_path / "captions.txt.gz").write_bytes(b"not an array")
    return tmp_path


def write_sums(folder, *names, line="{digest}  {name}\n"):
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    text = "".join(line.format(digest=digest, name=name) for name, digest in digests.items())
    (folder / "SHA256SUMS").write_text(text, encoding="utf-8")
    return digests


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_arrays_come_back_as_stored(folder, arrays, as_type):
    data = load_embeddings(as_type(folder))
    assert set(data) == {*arrays, "DESCR"}
    for key, array in arrays.items():
        assert data[key].dtype == array.dtype
        assert_array_equal(data[key], array)


def test_readme_is_the_description(folder):
    assert load_embeddings(folder).DESCR == "# Où et comment\n"
    (folder / "README.md").unlink()
    assert load_embeddings(folder).DESCR == ""


@pytest.mark.parametrize("mode, writes_to_disk", [("r", False), ("c", False), ("r+", True)])
def test_mapped_arrays_stay_on_disk(folder, arrays, mode, writes_to_disk):
    data = load_embeddings(folder, mmap_mode=mode)
    assert isinstance(data.text, np.memmap)
    assert data.text.mode == mode
    assert_array_equal(data.text, arrays["text"])
    assert not isinstance(data.image, np.memmap)  # archives cannot be mapped
    if mode != "r":
        data.text[0, 0] = 99
        data.text.flush()
    assert (np.load(folder / "text.npy")[0, 0] == 99) == writes_to_disk


def test_nothing_is_mapped_unless_asked(folder):
    assert not isinstance(load_embeddings(folder).text, np.memmap)


@pytest.mark.parametrize("mode", ["w+", "rw", True])
def test_other_mmap_modes_are_refused_before_a_file_is_touched(folder, arrays, mode):
    message = f"Expected `mmap_mode` to be None, 'r', 'r+' or 'c', got {mode!r}. Pass 'r' to read from disk as needed."
    with pytest.raises(ValueError, match=re.escape(message)):
        load_embeddings(folder, mmap_mode=mode)
    assert_array_equal(np.load(folder / "text.npy"), arrays["text"])


def test_hidden_files_and_inner_folders_are_left_alone(folder, arrays):
    (folder / "._data.npz").write_bytes(b"what some systems leave behind")
    (folder / "inner").mkdir()
    np.save(folder / "inner" / "other.npy", np.zeros(3))
    assert set(load_embeddings(folder)) == {*arrays, "DESCR"}


@pytest.mark.parametrize("name", ["nowhere", "text.npy"])
def test_missing_folder_is_named(folder, name):
    message = f"Expected a folder of .npz or .npy files, but there is no folder {folder / name}. Check the path"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load_embeddings(folder / name)


def test_folder_without_arrays_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("nothing here")
    message = f"Expected at least one .npz or .npy file in {tmp_path}, found none. Point to the folder"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_embeddings(tmp_path)


def test_key_stored_twice_is_refused(folder, arrays):
    np.save(folder / "image.npy", arrays["image"])
    message = "Expected each key once, but `image` comes from data.npz and from image.npy. Rename one of the two"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_embeddings(folder)


def test_an_array_cannot_take_the_place_of_the_description(folder):
    np.save(folder / "DESCR.npy", np.zeros(2))
    with pytest.raises(ValueError, match=re.escape("`DESCR` comes from README.md and from DESCR.npy")):
        load_embeddings(folder)


@pytest.mark.parametrize("line", ["{digest}  {name}\n", "{digest} *{name}\n", "{digest}  ./{name}\r\n\r\n"])
def test_matching_digests_pass(folder, arrays, line):
    write_sums(folder, "data.npz", "text.npy", line=line)
    assert set(load_embeddings(folder)) == {*arrays, "DESCR"}


@pytest.mark.parametrize("line", ["{digest}  {name}\n", "{digest} *{name}\n", "{digest}  ./{name}\r\n\r\n"])
@pytest.mark.parametrize("name", ["data.npz", "text.npy"])
def test_changed_file_is_refused_with_both_digests(folder, arrays, line, name):
    """The change leaves a file that reads well: only its digest can tell."""
    expected = write_sums(folder, "data.npz", "text.npy", line=line)[name]
    other = {"data.npz": lambda path: np.savez(path, image=arrays["image"] + 1), "text.npy": lambda p: np.save(p, 1)}
    other[name](folder / name)
    actual = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    message = f"Expected {folder / name} to have sha256 {expected}, got {actual}. The file was changed or is damaged;"
    with pytest.raises(ValueError, match=re.escape(message) + " copy it again"):
        load_embeddings(folder)


def test_digest_covers_more_than_the_first_chunk(tmp_path):
    np.save(tmp_path / "long.npy", np.zeros(300_000))  # 2.4 MB, read a mebibyte at a time
    write_sums(tmp_path, "long.npy")
    assert load_embeddings(tmp_path).long.shape == (300_000,)
    np.load(tmp_path / "long.npy", mmap_mode="r+")[-1] = 1
    with pytest.raises(ValueError, match="to have sha256"):
        load_embeddings(tmp_path)


def test_digests_of_other_files_are_passed_over(folder, arrays):
    write_sums(folder, "captions.txt.gz")
    (folder / "captions.txt.gz").write_bytes(b"changed")
    assert set(load_embeddings(folder)) == {*arrays, "DESCR"}


def test_listed_file_that_is_missing_is_named(folder):
    write_sums(folder, "data.npz", "text.npy")
    (folder / "text.npy").unlink()
    message = f"Expected text.npy, since SHA256SUMS lists it, but it is not in {folder}. Copy the file there too"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load_embeddings(folder)


class Mischief:
    """Leaves a file behind if anyone unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("mmap_mode", [None, "r"])
@pytest.mark.parametrize("name", ["labels.npy", "labels.npz"])
def test_pickled_objects_are_refused_and_never_run(tmp_path, name, mmap_mode):
    save = np.save if name.endswith("npy") else np.savez
    save(tmp_path / name, np.array([Mischief(tmp_path / "harm")], dtype=object))
    message = (
        f"Expected plain arrays in {tmp_path / name}, got one of Python objects, which is pickled; reading it could"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_embeddings(tmp_path, mmap_mode=mmap_mode)
    assert not (tmp_path / "harm").exists()


def cut(content):
    return content[: len(content) // 2]


def flip(content):
    """Change one byte amid the numbers, past all headers."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("damage", [cut, flip, lambda content: b"", lambda content: b"<html>not found</html>"])
def test_damaged_archive_is_named(tmp_path, rng, save, damage):
    path = tmp_path / "data.npz"
    save(path, image=rng.standard_normal((40, 30)))
    path.write_bytes(damage(path.read_bytes()))
    message = f"Expected {path} to be a whole .npz file, but it could not be read ("
    with pytest.raises(ValueError, match=re.escape(message) + r".+\)\. Copy it again"):
        load_embeddings(tmp_path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_one_changed_byte_never_changes_an_array(tmp_path, rng, save):
    """It is of no consequence, or noticed and named. (Left out: lengths in the table of contents, unchecked by zip.)"""
    path, image = tmp_path / "data.npz", rng.standard_normal((4, 3))
    save(path, image=image, train=np.arange(5))
    content = path.read_bytes()
    for place in [*range(content.index(b"PK\x01\x02") + 12), *range(len(content) - 22, len(content))]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            data = load_embeddings(tmp_path)
        except ValueError as error:
            assert f"Expected {path} to be a whole .npz file" in str(error)
        else:
            assert_array_equal(data.image, image)


def test_bytes_after_the_array_are_refused(folder):
    with open(folder / "text.npy", "ab") as file:
        file.write(b"\0")
    with pytest.raises(
        ValueError, match=re.escape("text.npy to be a whole .npy file, but it could not be read (bytes")
    ):
        load_embeddings(folder)


@pytest.mark.parametrize("mmap_mode", [None, "r"])
@pytest.mark.parametrize("damage", [cut, lambda content: b"", lambda content: b"\x80\x04K\x01."])
def test_damaged_array_is_named(tmp_path, rng, damage, mmap_mode):
    path = tmp_path / "image.npy"
    np.save(path, rng.standard_normal((40, 30)))
    path.write_bytes(damage(path.read_bytes()))
    message = f"Expected {path} to be a whole .npy file, but it could not be read ("
    with pytest.raises(ValueError, match=re.escape(message)):
        load_embeddings(tmp_path, mmap_mode=mmap_mode)


def test_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("notes.txt", "these are no numbers")
    with pytest.raises(ValueError, match="to be a whole .npz file"):
        load_embeddings(tmp_path)
