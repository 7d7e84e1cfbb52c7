"""Own cubes as a data set: found, read, scaled, split; the field's HDF5 files under all their names and orders."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from einops import rearrange
from scipy.io import savemat

from ka.data import DATASETS, SPLITS, Degradation, bicubic, degrade, load, respond
from ka.data.own.files import Reading
from ka.data.own.known import find_known
from ka.data.own.responses import response
from ka.data.simulate import CAVE_WAVELENGTHS, NIKON_D700
from ka.errors import KAError
from ka.images import Image, write_image
from workbook.training.config import Config
from workbook.training.scenes import load_data

NM = np.linspace(450, 950, 7)


def cube(seed: int, height: int = 40, width: int = 32, bands: int = 7) -> np.ndarray:
    y, x = np.mgrid[:height, :width] / 40
    waves = np.random.default_rng(seed).uniform(1, 9, (bands, 2, 1, 1))
    return (0.5 + 0.4 * np.sin(waves[:, 0] * x + waves[:, 1] * y)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five scenes of different sizes and formats, in 0 … 10000; the last one is the brightest."""
    write_image(tmp_path / "a.hdr", Image((cube(0) * 10000).astype(np.uint16), NM))
    write_image(tmp_path / "b.tif", Image((cube(1, 48, 64) * 10000).astype(np.uint16), NM))
    savemat(tmp_path / "c.mat", {"cube": (cube(2, 33, 46) * 10000).transpose(1, 2, 0), "wl": NM})
    np.savez(tmp_path / "d.npz", cube=cube(3) * 10000, label=np.zeros((40, 32)))
    np.save(tmp_path / "e.npy", cube(4) * 10000)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def names(root: Path | str, split: str, **reading: object) -> list[str]:
    return [scene.name for scene in load("files", split, root, reading=Reading(**reading), hold_out_val=True)]  # type: ignore[arg-type]


def test_a_folder_of_any_formats_and_sizes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    parts = {split: load("files", split, folder, hold_out_val=True) for split in SPLITS}
    seen = {scene.name: scene for part in parts.values() for scene in part}
    assert sorted(seen) == ["a", "b", "c", "d", "e"]
    assert [len(part) for part in parts.values()] == [3, 1, 1]
    assert caplog.text.count("a.hdr: 7 bands of 40×32 pixels, values are divided by 10000; give max=…") == 1
    np.testing.assert_allclose(seen["e"].gt, cube(4), atol=1e-6)
    assert seen["c"].gt.shape == (7, 32, 44)  # cut to multiples of the ratio
    np.testing.assert_allclose(parts["train"].wavelengths, NM, rtol=1e-5)
    assert parts["train"].msi_names == ("green", "red", "NIR")
    np.testing.assert_array_equal(seen["b"].msi, respond(seen["b"].gt, parts["train"].srf))


def test_a_training_set_of_scenes_of_different_sizes(folder: Path) -> None:
    scenes = load_data(Config.preset("smoke", dataset="files", data_root=str(folder), srf="ikonos"))
    assert scenes.train.n_msi == 4
    assert len(scenes.patches) == sum(int(n) for n in scenes.patches.grids.prod(axis=1))
    assert scenes.patches.batch([0, len(scenes.patches) - 1])["msi"].shape == (2, 4, 16, 16)
    with pytest.raises(KAError, match="does not fit the 40×32 pixels of a; use at most 32"):
        load_data(Config.preset("smoke", dataset="files", data_root=str(folder), patch=40))


def test_splits(folder: Path) -> None:
    assert names(folder, "test", test_scenes="b, d") == ["b", "d"]
    assert names(folder, "train", test_scenes="b,d", val_scenes="a") == ["c", "e"]
    assert len(names(folder, "test", test_share=0.4)) == 2
    for share in (0.2, 0.4, 0.6):  # a named scene validates, and never tests too
        for name in "abcde":
            assert name not in names(folder, "test", val_scenes=name, test_share=share)
    together = [scene.name for scene in load("files", "train", folder, hold_out_val=False)]
    assert len(together) == 4
    with pytest.raises(KAError, match="scene of the folder 'z' is unknown"):
        names(folder, "test", test_scenes="z")
    with pytest.raises(KAError, match="b is to validate and to test"):
        names(folder, "test", test_scenes="b", val_scenes="b")


def test_folders_say_the_split(folder: Path) -> None:
    for part, scene in (("train", "a"), ("validation", "d"), ("test", "e")):
        (folder / part).mkdir()
        for path in folder.glob(f"{scene}.*"):
            shutil.move(path, folder / part / path.name)
    for name in ("b.tif", "c.mat"):
        (folder / name).unlink()
    assert [names(folder, split) for split in SPLITS] == [["a"], ["d"], ["e"]]


def move(folder: Path, **scenes: str) -> None:
    """Scenes into folders, each name a letter: `move(folder, train="ab")`."""
    for part, letters in scenes.items():
        (folder / part).mkdir(exist_ok=True)
        for path in [path for path in folder.iterdir() if path.is_file() and path.stem in letters]:
            shutil.move(path, folder / part / path.name)


def test_names_count_more_than_folders(folder: Path) -> None:
    """What lies in the folder of another part does not train for that."""
    move(folder, Train="abd", test="ce")
    assert [names(folder, split, test_scenes="a", val_scenes="c") for split in SPLITS] == [["b", "d"], ["c"], ["a"]]
    assert [names(folder, split, val_scenes="c") for split in SPLITS] == [["a", "b", "d"], ["c"], ["e"]]
    with pytest.raises(KAError, match="no scene is left for val"):
        names(folder, "val")


def test_folders_that_say_a_part_of_the_split(folder: Path) -> None:
    move(folder, train="abc", val="d")
    with pytest.raises(KAError, match=r"e\.npy lies beside folders that say the split \(train, val\); move it into"):
        names(folder, "train", test_scenes="b")
    named = {"test_scenes": "e", "wavelengths": "450,950"}
    assert [names(folder, split, **named) for split in SPLITS] == [["a", "b", "c"], ["d"], ["e"]]
    (folder / "e.npy").unlink()
    with pytest.raises(KAError, match=r"split \(train, val\), and none holds what is to test; add a folder test"):
        names(folder, "train")
    assert names(folder, "train", test_scenes="b") == ["a", "c"]
    train = folder / "train"
    for root in (train, f"{train / 'a.hdr'}, {train / 'b.tif'}, {train / 'c.mat'}"):
        assert [len(names(root, split)) for split in SPLITS] == [1, 1, 1]  # alone, its name says nothing
    shutil.move(train, folder / "test")
    with pytest.raises(KAError, match=r"say the split \(val, test\), and none holds what is to train"):
        names(folder, "train")


def test_a_name_that_would_not_be_used(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        np.savez(tmp_path / name, cube=cube(seed, 40, 160), wl=NM)
    assert names(tmp_path, "val") == ["a_val", "b_val"]
    with pytest.raises(KAError, match="val_scenes='b' of 2 leaves no scene to train or to test; leave it out"):
        names(tmp_path, "train", val_scenes="b")


def test_one_scene_is_cut_into_parts_that_share_no_pixel(tmp_path: Path) -> None:
    whole = cube(0, 40, 160)
    np.save(tmp_path / "x.npy", whole)
    reading = Reading(wavelengths="450,950")
    parts = [load("files", split, tmp_path / "x.npy", reading=reading, hold_out_val=True)[0] for split in SPLITS]
    np.testing.assert_array_equal(np.concatenate([part.gt for part in parts], axis=2), whole)
    assert [part.gt.shape[2] for part in parts] == [112, 16, 32]
    np.testing.assert_array_equal(parts[1].lr, degrade(whole[:, :, 112:128], Degradation()))
    np.save(tmp_path / "x.npy", whole[:, :, :44])
    with pytest.raises(KAError, match="too few to be cut into three parts"):
        load("files", "train", f"{tmp_path / 'x.npy'}", reading=replace(reading, test_share=0.3))


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    """In ENVI's format also where its header stays."""
    (tmp_path / "envi").mkdir()
    for path in (tmp_path / "x.npy", tmp_path / "envi" / "x.hdr"):
        for most, kind in ((255, np.float32), (10000, np.uint16)):
            header = path.read_bytes() if path.suffix == ".hdr" and path.exists() else None
            values = (cube(0, 40, 160) * most).astype(kind if path.suffix == ".npy" else np.uint16)
            write_image(path, Image(values, NM))
            if header is not None:
                status = path.stat()
                path.write_bytes(header)
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            gt = load("files", "train", path, reading=Reading(wavelengths="450,950"))[0].gt
            assert gt.max() == pytest.approx(0.9, abs=0.01), (path, most)


def test_wavelengths_of_every_file_are_those_of_the_first(tmp_path: Path) -> None:
    for name, nm in (("a", NM), ("b", np.round(NM / 1000, 3)), ("c", NM)):
        np.savez(tmp_path / name, cube=cube(0), wl=nm)
    parts = {split: list(load("files", split, tmp_path, hold_out_val=True)) for split in SPLITS}
    assert {scene.name for part in parts.values() for scene in part} == {"a", "b", "c"}
    other = NM + np.eye(7)[2] * 9
    for nm, says in ((NM[::-1], "band 0 lies at 950 nm, that of a.npz at 450 nm"), (other, "band 2 lies at")):
        np.savez(tmp_path / "c", cube=cube(0)[::-1], wl=nm)
        with pytest.raises(KAError, match=rf"c\.npz: its {says}.*; reorder or resample its bands"):
            list(load("files", "test", tmp_path, reading=Reading(test_scenes="c")))
    given = Reading(test_scenes="c", wavelengths="450,950")  # who says so knows better than the files
    assert len(list(load("files", "test", tmp_path, reading=given))) == 1


def _dimmer_first(folder: Path) -> None:
    write_image(folder / "0.tif", Image(cube(9) * 200, NM))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "other bands": (lambda f: np.save(f / "z.npy", cube(9, bands=6) * 1e4), "z.npy: 6 bands, a.hdr has 7"),
    "other units": (_dimmer_first, "0.tif lets suppose that 255 is full reflectance; say what is (max="),
    "one name twice": (lambda f: np.save(f / "b.npy", cube(1)), "are two scenes of one name"),
    "NaN": (lambda f: np.save(f / "z.npy", np.full((7, 32, 36), np.nan)), "z.npy: 8064 values are NaN"),
}


@pytest.mark.parametrize("name", WRONG)
def test_scenes_that_are_not_alike(folder: Path, name: str) -> None:
    make, words = WRONG[name]
    make(folder)

    def read() -> None:
        for split in SPLITS:
            list(load("files", split, folder, hold_out_val=True))

    with pytest.raises(KAError) as error:
        read()
    assert words in str(error.value)


def test_what_does_not_show_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(KAError, match="no image there"):
        load("files", "train", tmp_path)
    np.save(tmp_path / "x.npy", cube(0, 40, 160))
    with pytest.raises(KAError, match=r"wavelengths of the cube's bands are not known.*wavelengths='430,860'"):
        load("files", "train", tmp_path)
    with pytest.raises(KAError, match="are not those of 7 bands"):
        load("files", "train", tmp_path, reading=Reading(wavelengths="430,500,860"))
    np.savetxt(tmp_path / "srf.csv", np.column_stack([np.arange(200, 205), np.ones((5, 2))]), delimiter=",")
    with pytest.raises(KAError, match=r"no channel of .* lies within"):
        load(
            "files", "train", tmp_path / "x.npy", reading=Reading(wavelengths="450,950", srf=str(tmp_path / "srf.csv"))
        )


class TestResponses:
    def test_the_nikon_is_the_verified_one(self) -> None:
        np.testing.assert_allclose(response(None, CAVE_WAVELENGTHS, 31).srf, NIKON_D700, rtol=1e-12)

    @pytest.mark.parametrize("name", ["landsat8", "landsat9", "sentinel2", "worldview2", "worldview3", "ikonos"])
    def test_built_in_sensors_see_their_colours(self, name: str) -> None:
        nm = np.linspace(400, 2500, 400)
        seen = response(name, nm, 400)
        np.testing.assert_allclose(seen.srf.sum(1), 1)
        centre = dict(zip(seen.names, seen.srf @ nm, strict=True))
        assert 470 < centre["blue"] < 500
        assert 535 < centre["green"] < 570
        assert 645 < centre["red"] < 675

    def test_a_file_in_any_form_gives_the_same(self, tmp_path: Path) -> None:
        nm = np.arange(400.0, 900, 5)
        curves = np.stack([np.exp(-(((nm - c) / 60) ** 2)) for c in (500, 700)])
        np.savetxt(
            tmp_path / "a.csv", np.column_stack([nm, curves.T]), delimiter=",", header="nm,first,second", comments=""
        )
        np.savetxt(tmp_path / "b.csv", np.column_stack([nm / 1000, curves.T]), delimiter=";")
        savemat(tmp_path / "c.mat", {"wavelength": nm, "srf": curves.T})
        np.savez(tmp_path / "d.npz", wl=nm, srf=curves)
        seen = [response(tmp_path / name, NM, 7) for name in ("a.csv", "b.csv", "c.mat", "d.npz")]
        assert seen[0].names == ("first", "second")
        for other in seen:
            np.testing.assert_allclose(other.srf, seen[0].srf)
        assert np.argmax(seen[0].srf, axis=1).tolist() == [1, 3]  # 533 and 700 nm

    @pytest.mark.parametrize("text", ["400\n500\n600\n", "Wellenl\xe4nge,gr\xfcn\n400,1\n500,2\n", "", "400,a\n"])
    def test_a_file_that_holds_no_table(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.csv").write_bytes(text.encode("latin-1"))
        with pytest.raises(KAError, match=r"a\.csv: no table of numbers in UTF-8, a wavelength and a value"):
            response(tmp_path / "a.csv", NM, 7)

    def test_a_matrix_without_wavelengths_is_taken_as_it_is(self, tmp_path: Path) -> None:
        savemat(tmp_path / "r.mat", {"R": np.arange(1, 15).reshape(2, 7)})
        np.testing.assert_allclose(response(tmp_path / "r.mat", None, 7).srf[0], np.arange(1, 8) / 28)
        with pytest.raises(KAError, match="the cube has 8 bands"):
            response(tmp_path / "r.mat", None, 8)

    def test_channels_beyond_the_cube_are_left_out_and_said(self, caplog: pytest.LogCaptureFixture) -> None:
        assert response("landsat8", NM, 7).names == ("blue", "green", "red", "NIR")
        assert "SWIR 1, SWIR 2 beyond the cube's wavelengths" in caplog.text
        with pytest.raises(KAError, match="no channel of ikonos lies within"):
            response("ikonos", np.linspace(1000, 2000, 7), 7)
        with pytest.raises(KAError, match="did you mean 'sentinel2'"):
            response("sentinel-2", NM, 7)


def published(path: Path, order: str = "n c h w", unit: float = 1, lost: str = "", pan: bool = False) -> None:
    """A file of three rows, 7 bands, 2 channels."""
    gt = np.stack([cube(i) for i in range(3)])
    lr = np.stack([degrade(x, Degradation()) for x in gt])
    up, msi = np.stack([bicubic(x, 4) for x in lr]), gt[:, :2]
    called = ("gt", "lms", "ms", "pan") if pan else ("GT", "HSI_up", "LRHSI", "RGB")
    with h5py.File(path, "w") as file:
        for name, values in zip(called, (gt, up, lr, msi), strict=True):
            if name != lost:
                file[name] = rearrange(values * unit, f"n c h w -> {order}")


@pytest.mark.parametrize("stem", ["_harvard(with_up)x4_rgb", "_cave(with_up)x4_rgb_16", "_Chikusei", "_pavia_x4"])
def test_the_field_s_files_are_found_under_their_names(tmp_path: Path, stem: str) -> None:
    for part in ("train", "validation", "test"):
        published(tmp_path / f"{part}{stem}.h5")
    for split in SPLITS:
        assert len(load("h5", split, tmp_path)) == 3
    published(tmp_path / "train_other(with_up)x4.h5")
    if "x4" in stem:
        with pytest.raises(KAError, match="could each be the train file; give each data set a folder of its own"):
            load("h5", "train", tmp_path)


@pytest.mark.parametrize("order", ["n c h w", "n h w c", "w h c n", "c w h n"])
def test_orders_units_and_names_of_hdf5_files(tmp_path: Path, order: str) -> None:
    published(tmp_path / "test_x.h5")
    published(tmp_path / "other.h5", order, 2047, lost="lms", pan=True)
    plain = load("h5", "test", tmp_path / "test_x.h5")
    other = load("h5", "test", tmp_path / "other.h5", reading=Reading(max=2047, wavelengths="450,950"))
    for one, same in zip(plain, other, strict=True):
        for key in ("gt", "lr", "up", "msi"):
            np.testing.assert_allclose(getattr(same.load(), key), getattr(one.load(), key), atol=1e-5)
        np.testing.assert_allclose(same.crop(8, 4, 16, 12).up, one.crop(8, 4, 16, 12).up, atol=1e-5)
    np.testing.assert_allclose(other.wavelengths, NM)
    with pytest.raises(KAError, match="say so with max=2047"):
        load("h5", "test", tmp_path / "other.h5")[0].load()


def test_the_blur_of_prepared_files_is_theirs(tmp_path: Path) -> None:
    published(tmp_path / "train_x.h5")
    with h5py.File(tmp_path / "train_x.h5", "r+") as file:
        file.attrs.update(source_sha256="x", blur_size=7, blur_sigma=2.0, offset=2)
    for part in ("validation", "test"):
        (tmp_path / f"{part}_x.h5").write_bytes((tmp_path / "train_x.h5").read_bytes())
    asked = Config.preset("smoke", dataset="h5", data_root=str(tmp_path))
    assert load_data(asked).train.degradation == Degradation(4, 7, 2.0, 2)
    with pytest.raises(KAError, match=r"was made with blur_sigma 2\.0, not .*leave these out"):
        load_data(replace(asked, blur_sigma=1.0))


def test_another_blur_and_response_of_the_embedded_scene() -> None:
    scenes = load_data(Config.preset("smoke", blur_size=7, blur_sigma=2.0, srf="sentinel2"))
    np.testing.assert_array_equal(scenes.test[0].lr, degrade(scenes.test[0].gt, Degradation(4, 7, 2.0)))
    assert scenes.train.msi_names == ("blue", "green", "red", "NIR")


def test_known_sets_are_read_from_their_files(tmp_path: Path) -> None:
    savemat(tmp_path / "PaviaU.mat", {"paviaU": (cube(0, 170, 40, 103) * 8000).astype(np.uint16).transpose(1, 2, 0)})
    train = load("pavia_university", "train", tmp_path, hold_out_val=True)
    assert (train.name, train.n_bands, train.wavelengths[0], train.wavelengths[-1]) == (
        "pavia_university",
        103,
        430,
        860,
    )
    assert train.msi_names == ("green", "red", "NIR")
    with pytest.raises(KAError, match=r"no Pavia\.mat .*or dataset='files'"):
        load("pavia_centre", "train", tmp_path)
    assert "washington_dc" in DATASETS


def test_known_sets_of_many_files_lie_anywhere(tmp_path: Path) -> None:
    """Also where a path is long, or holds a comma."""
    root = tmp_path / ("a" * 60 + ", b") / ("c" * 60)
    root.mkdir(parents=True)
    for number in range(50):
        (root / f"img{number:02}.mat").touch()
    for number in (0, 1, 2):
        cubes = {"ref": cube(number, bands=31).transpose(1, 2, 0)}
        savemat(root / f"img{number:02}.mat", cubes)
    assert len(find_known("harvard", root)[0]) == 50
    parts = {split: load("harvard", split, root, hold_out_val=True) for split in SPLITS}
    assert [len(part) for part in parts.values()] == [36, 4, 10]
    with pytest.raises(KAError, match="no such file or folder"):
        load("files", "train", ",".join(str(root / f"img{number}.npy") for number in range(50)))


def test_cave_scenes_can_be_chosen_for_every_part(cave_root: Path) -> None:
    reading = Reading(val_scenes="beads", test_scenes="balloons,cd")
    chosen = {split: load("cave", split, cave_root, scenes=wanted, hold_out_val=True, reading=reading)
              for split, wanted in (("train", ["pompoms", "clay"]), ("val", None), ("test", None))}  # fmt: skip
    assert {split: [scene.name for scene in part] for split, part in chosen.items()} == {
        "train": ["pompoms", "clay"], "val": ["beads"], "test": ["balloons", "cd"],
    }  # fmt: skip
