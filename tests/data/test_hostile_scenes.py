"""Hostile HDF5 files and PNGs (see tests/hostile.py)."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from hostile import damage, few, refused, tiers
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ka
from ka import data
from ka.data.cave import CAVE_TEST
from ka.data.h5 import FIELDS


@pytest.fixture(scope="module")
def h5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("h5") / "good.h5"
    rng = np.random.default_rng(0)
    shapes = {"gt": (2, 4, 16, 16), "up": (2, 4, 16, 16), "lr": (2, 4, 4, 4), "msi": (2, 3, 16, 16)}
    with h5py.File(path, "w") as file:
        for key, name in FIELDS.items():
            file[name] = rng.random(shapes[key], dtype=np.float32)
        file.attrs["source_sha256"] = "0" * 64
        file.attrs["scenes"] = '["one", "two"]'
        file.attrs["msi_names"] = '["R", "G", "B"]'
        file.attrs["wavelengths"] = np.linspace(400.0, 700, 4)
    return path


def every_value(path: Path) -> list[np.ndarray]:
    scenes = data.load("h5", "test", path)
    return [values for scene in scenes for values in (scene.load().gt, scene.load().msi)]


@tiers
def test_damaged_hdf5(examples: int, h5: Path, tmp_path: Path) -> None:
    @given(st.data())
    @few(examples)
    def check(draws: st.DataObject) -> None:
        path = tmp_path / "bad.h5"
        path.unlink(missing_ok=True)
        path.write_bytes(draws.draw(damage(h5.read_bytes())))
        if not refused(lambda path=path: every_value(path)):
            for values in every_value(path):
                assert np.isfinite(values).all()
                assert -1e-6 <= values.min() <= values.max() <= 1 + 1e-6  # as `check_values` allows

    check()


def test_hdf5_with_other_attributes_than_ours(h5: Path, tmp_path: Path) -> None:
    for name, value in [
        ("scenes", "[1, 2]"),
        ("scenes", "{"),
        ("scenes", b"\xff\xfe"),
        ("scenes", 3),
        ("scenes", '["../x", "../x"]'),
        ("msi_names", "[[], {}, 1]"),
        ("msi_names", "nonsense"),
        ("wavelengths", "blue"),
        ("wavelengths", 3.0),
        ("wavelengths", np.linspace(400, 700, 9)),
        ("wavelengths", np.full(4, np.nan)),
        ("blur_sigma", "wide"),
        ("blur_size", np.zeros(3)),
        ("srf", "none"),
        ("srf", np.zeros((2, 2))),
    ]:
        path = tmp_path / "bad.h5"
        shutil.copy(h5, path)
        with h5py.File(path, "a") as file:
            file.attrs[name] = value
        assert refused(lambda path=path: every_value(path))


def test_hdf5_with_other_fields_than_ours(h5: Path, tmp_path: Path) -> None:
    for kind in ["group", "link", "external", "text", "complex", "compound", "empty"]:
        path, field = tmp_path / "bad.h5", FIELDS["gt"]
        shutil.copy(h5, path)
        with h5py.File(path, "a") as file:
            shape = file[field].shape
            del file[field]
            if kind == "group":
                file.create_group(field)
            elif kind == "link":
                file[field] = h5py.SoftLink("/nothing")
            elif kind == "external":
                file[field] = h5py.ExternalLink("/etc/passwd", "/x")
            elif kind == "text":
                file.create_dataset(field, shape, dtype=h5py.string_dtype())
            elif kind == "complex":
                file[field] = np.full(shape, 0.5 + 0.5j)
            elif kind == "compound":
                file.create_dataset(field, shape, dtype=[("a", "f4"), ("b", "i4")])
            else:
                file[field] = h5py.Empty("f4")
        assert refused(lambda path=path: every_value(path))


def test_an_hdf5_that_claims_to_be_huge_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        side = 2**20
        for key, name in FIELDS.items():
            n = side // 4 if key == "lr" else side
            file.create_dataset(name, (1, 31 if key != "msi" else 3, n, n), "f4", chunks=(1, 1, 64, 64))
    assert path.stat().st_size < 100_000
    assert refused(lambda path=path: every_value(path))


@pytest.fixture(scope="module")
def png_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as one test scene of CAVE, 32 pixels wide."""
    root = tmp_path_factory.mktemp("cave")
    name = CAVE_TEST[0]
    folder = root / f"{name}_ms" / f"{name}_ms"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for band in range(1, 32):
        values = rng.integers(0, 65536, (32, 32), dtype=np.uint16)
        Image.fromarray(values).save(folder / f"{name}_ms_{band:02}.png")
    return root


def read_pngs(root: Path) -> np.ndarray:
    return data.load("cave", "test", root, ka.Degradation(4), scenes=[CAVE_TEST[0]])[0].load().gt[:]


@tiers
def test_damaged_pngs(examples: int, png_folder: Path, tmp_path: Path) -> None:
    @given(st.data())
    @few(examples)
    def check(draws: st.DataObject) -> None:
        root = tmp_path / "cave"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(png_folder, root)
        path = sorted(root.rglob("*.png"))[7]
        path.write_bytes(draws.draw(damage(path.read_bytes())))
        if not refused(lambda: read_pngs(root)):
            assert np.array_equal(read_pngs(root)[8:], read_pngs(png_folder)[8:])

    check()


def test_a_png_that_claims_to_be_huge_is_refused(png_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "cave"
    shutil.copytree(png_folder, root)
    for path in root.rglob("*.png"):
        header = bytearray(path.read_bytes())
        header[16:24] = (2**20).to_bytes(4, "big") * 2
        path.write_bytes(header)
    assert refused(lambda: read_pngs(root))


def test_examples_that_are_good_are_read(h5: Path, png_folder: Path) -> None:
    """Else the tests above would prove nothing."""
    assert len(every_value(h5)) == 4
    assert read_pngs(png_folder).shape == (31, 32, 32)
