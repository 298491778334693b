"""California housing from an archive in miniature: the eight features by hand, the cut, what is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from frugal.data.california_housing import ARCHIVE, MEMBER, CaliforniaHousing
from frugal.errors import DataError, SettingsError
from public_files import housing, tar_gz

# the first block of the real file
BERKELEY = "-122.230000,37.880000,41.000000,880.000000,129.000000,322.000000,126.000000,8.325200,452600.000000\n"


def written(root, members, **arguments):
    content = tar_gz(members)
    (root / "california_housing").mkdir()
    (root / "california_housing" / ARCHIVE).write_bytes(content)
    fields = {"checksums": {ARCHIVE: hashlib.sha256(content).hexdigest()}}
    return type("MiniHousing", (CaliforniaHousing,), fields)(str(root), mirrors=[], **arguments)


def test_features_are_scikit_learns(tmp_path):
    source = written(tmp_path, {MEMBER: (BERKELEY * 3).encode()}, test_fraction=0.4)
    source.prepare()
    splits = source.load()
    rows = np.concatenate([split.x for split in splits.values()])
    # scikit-learn's documentation: 8.3252 41. 6.98412698 1.02380952 322. 2.55555556 37.88 -122.23; target 4.526
    expected = [8.3252, 41, 880 / 126, 129 / 126, 322, 322 / 126, 37.88, -122.23]
    np.testing.assert_allclose(rows[0], expected, rtol=1e-6)
    assert rows.dtype == np.float32 and splits["train"].y.tolist() == [np.float32(4.526)] * 3
    assert len(splits["test"]) == 0  # copies lie on one side
    assert source.feature_names is not None and source.feature_names[2] == "AveRooms" and len(source.feature_names) == 8


def test_a_fifth_is_for_testing_by_seed(tmp_path):
    source = written(tmp_path, housing(50))
    first, again = source.load(), source.load()
    assert (len(first["train"]), len(first["test"])) == (40, 10)
    np.testing.assert_array_equal(first["test"].x, again["test"].x)
    other = CaliforniaHousing("x", split_seed=1)
    assert other.sha256() != CaliforniaHousing("elsewhere").sha256() == CaliforniaHousing("x").sha256()


@pytest.mark.parametrize(
    "content", [b"", b"1,2,3\n", b"1,2,3,4,5,6,7,8,nine\n", b"\xff\xfe\n", BERKELEY.encode() + b"1,2\n"]
)
def test_another_file_is_refused_in_one_line(tmp_path, content):
    with pytest.raises(DataError, match=r"cal_housing\.tgz: not the archive") as caught:
        written(tmp_path, {MEMBER: content}).load()
    assert "\n" not in str(caught.value)


def test_an_altered_archive_is_refused_by_its_sha256(tmp_path):
    source = written(tmp_path, housing(5))
    path = source.path(ARCHIVE)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    for step in (source.prepare, source.load):
        with pytest.raises(DataError, match="expected sha256 " + source.checksums[ARCHIVE]):
            step()


def test_a_fraction_that_leaves_nothing_is_refused():
    with pytest.raises(SettingsError, match=r"data\.source\.test_fraction"):
        CaliforniaHousing("x", test_fraction=1)
