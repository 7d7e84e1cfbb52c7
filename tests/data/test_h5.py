"""The published HDF5 files: read, written, checked."""

import fcntl
import json
import os
import pickle
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from scenes_made import published, same, two_scenes

from ka.data import Degradation, Patches, SceneSet, degrade, load, observe
from ka.data import h5 as files
from ka.data.datasets import PROTOCOL
from ka.data.h5 import FIELDS, LazyRow
from ka.data.simulate import NIKON_D700
from ka.errors import KAError
from workbook.prepare_cave import check_h5, source_hash, write_h5


@pytest.fixture
def scenes() -> SceneSet:
    return two_scenes()


class TestReadH5:
    def test_published_layout(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        held = load("h5", "train", path)
        assert (held.name, held.split, held.ratio, len(held), held.n_bands, held.n_msi) == ("h5", "train", 4, 2, 31, 3)
        assert held.msi_names == ("R", "G", "B")
        assert held.wavelengths is None  # 31 bands may be Harvard's, too
        assert [scene.name for scene in held] == ["row 0", "row 1"]
        for got, expected in zip(held, scenes, strict=True):
            same(got, expected)
            same(got.load(), expected)
            same(got.crop(8, 4, 16, 24), expected.crop(8, 4, 16, 24))
            assert got.gt.shape == expected.gt.shape
            assert got.lr.dtype == np.float32

    def test_other_sensors(self, tmp_path, scenes):
        gt, lr, msi = (np.full((1, n, h, w), 0.5) for n, h, w in ((7, 8, 8), (7, 2, 2), (4, 8, 8)))
        held = load("h5", "test", published(tmp_path / "x.h5", scenes, GT=gt, HSI_up=gt, LRHSI=lr, RGB=msi))
        assert held.wavelengths is None
        assert (held.n_bands, held.n_msi, len(held.msi_names)) == (7, 4, 4)
        assert max(held.display) < 7
        assert held[0].load().gt.dtype == np.float32

    def test_folder(self, tmp_path, scenes):
        for split, name in (
            ("train", "train_cave(with_up)x4.h5"),
            ("val", "validation_cave(with_up)x4.h5"),
            ("test", "test_cave(with_up)x4.h5"),
        ):
            with pytest.raises(
                KAError,
                match=rf"no {'validation' if split == 'val' else split}_… file of ratio 4 .HDF5 files there: .*add",
            ):
                load("h5", split, tmp_path)
            published(tmp_path / name, scenes)
            assert name in load("h5", split, tmp_path)[0].gt.path
        published(tmp_path / "validation_a.h5", scenes)
        assert "validation_cave(with_up)x4.h5" in load("h5", "val", tmp_path)[0].gt.path
        (tmp_path / "validation_a.h5").unlink()
        (tmp_path / "validation_cave(with_up)x4.h5").rename(tmp_path / "validation_mine.h5")
        assert "validation_mine.h5" in load("h5", "val", tmp_path)[0].gt.path
        published(tmp_path / "test_cavepatches256-2.h5", scenes)
        assert "test_cave(with_up)x4.h5" in load("h5", "test", tmp_path)[0].gt.path
        assert "patches256" in load("h5", "test", tmp_path / "test_cavepatches256-2.h5")[0].gt.path
        with pytest.raises(KAError, match=r"no test_… file of ratio 8 .*test_cave\(with_up\)x4.h5"):
            load("h5", "test", tmp_path, Degradation(8))

    def test_attributes_of_others_are_let_be(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        with h5py.File(path, "r+") as file:
            file.attrs.update({"scenes": "many", "blur_size": 99, "wavelengths": "visible"})
        assert [scene.name for scene in load("h5", "train", path)] == ["row 0", "row 1"]

    def test_one_file_serves_every_split(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        assert [len(load("h5", split, path)) for split in ("train", "val", "test")] == [2, 2, 2]

    def test_choice_of_rows(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        (row,) = load("h5", "test", path, scenes=["row 1"])
        same(row, scenes[1])
        with pytest.raises(KAError, match=r"scene of x.h5 'row 2' is unknown; did you mean 'row .'\? .* row 0, row 1"):
            load("h5", "test", path, scenes=["row 2"])

    def test_only_the_crop_is_read(self, tmp_path, scenes, monkeypatch):
        path = published(tmp_path / "x.h5", scenes)
        read, plain = [], h5py.Dataset.__getitem__

        def spy(self, args, *more, **options):
            values = plain(self, args, *more, **options)
            read.append((self.name, values.shape))
            return values

        monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
        held = load("h5", "train", path)
        patch = Patches(held, 16, 4)[3]
        assert patch.gt.shape == (31, 16, 16)
        assert sorted(read) == [
            ("/GT", (31, 16, 16)),
            ("/HSI_up", (31, 16, 16)),
            ("/LRHSI", (31, 4, 4)),
            ("/RGB", (3, 16, 16)),
        ]

    def test_pickled(self, tmp_path, scenes):
        held = load("h5", "train", published(tmp_path / "x.h5", scenes))
        same(held[1], scenes[1])  # opens the file
        packed = pickle.dumps(held[1])
        assert len(packed) < 2000
        same(pickle.loads(packed), scenes[1])

    def test_each_process_opens_its_own(self, tmp_path, scenes, monkeypatch):
        row = load("h5", "train", published(tmp_path / "x.h5", scenes))[1].gt
        opened = files._open_h5.cache_info
        before = opened().misses
        row[0], row[1]
        assert opened().misses == before + 1
        monkeypatch.setattr(files.os, "getpid", lambda: -1)
        np.testing.assert_array_equal(row[:], scenes[1].gt)
        assert opened().misses == before + 2

    def test_a_replaced_file_is_opened_anew(self, tmp_path, scenes):
        path = tmp_path / "x.h5"
        write_h5(path, scenes, {})
        row = load("h5", "train", path)[0].gt
        np.testing.assert_array_equal(row[:], scenes[0].gt)
        turned = SceneSet("cave", "train", PROTOCOL, None, (0, 0, 0), ("R", "G", "B"), scenes.scenes[::-1])
        write_h5(path, turned, {})
        np.testing.assert_array_equal(row[:], scenes[1].gt)


class TestH5Errors:
    def test_no_file(self, tmp_path):
        with pytest.raises(KAError, match=r"none.h5: no such file or folder; give an HDF5 file"):
            load("h5", "train", tmp_path / "none.h5")

    def test_not_hdf5(self, tmp_path):
        (tmp_path / "x.h5").write_bytes(b"no HDF5" * 99)
        with pytest.raises(KAError, match=r"x.h5: cannot be read, .* not HDF5 .* download or write it again"):
            load("h5", "train", tmp_path / "x.h5")

    def test_truncated(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(KAError, match=r"x.h5: cannot be read, as it is cut short; download or write it again"):
            load("h5", "train", path)

    def test_gone_after_load(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        scene = load("h5", "train", path)[0]
        path.unlink()
        with pytest.raises(KAError, match=r"x.h5: cannot be read, as it is not there"):
            scene.load()

    def test_locked(self, tmp_path, scenes):
        """By another program that writes; the file itself is good."""
        path = published(tmp_path / "x.h5", scenes)
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(KAError, match=r"x.h5: cannot be read, as it is locked .*HDF5_USE_FILE_LOCKING=FALSE"):
                load("h5", "train", path)
        assert len(load("h5", "train", path)) == 2

    def test_not_permitted(self, scenes):
        root = os.geteuid() == 0
        with tempfile.TemporaryDirectory() as folder:
            Path(folder).chmod(0o755)
            path = published(Path(folder) / "x.h5", scenes)
            path.chmod(0o000)
            if root:
                os.seteuid(65534)  # nobody, whom permissions bind
            try:
                with pytest.raises(KAError, match=r"x.h5: cannot be read, as its permissions forbid it; .*chmod \+r"):
                    load("h5", "train", path)
            finally:
                if root:
                    os.seteuid(0)

    def test_lacks_a_field(self, tmp_path, scenes):
        for name in ("GT", "LRHSI", "RGB"):
            path = published(tmp_path / "x.h5", scenes, **{name: None})
            with pytest.raises(KAError, match=rf"x.h5: no field {name}; give a file with GT, HSI_up, LRHSI, RGB"):
                load("h5", "train", path)

    def test_shapes_that_do_not_fit(self, tmp_path, scenes):
        for name, shape in [
            ("GT", (3, 31, 32, 48)),
            ("GT", (2, 30, 32, 48)),
            ("HSI_up", (2, 31, 32, 44)),
            ("LRHSI", (2, 31, 8, 8)),
            ("LRHSI", (2, 31, 9, 12)),
            ("LRHSI", (2, 31, 64, 96)),
            ("RGB", (1, 3, 32, 48)),
            ("RGB", (2, 3, 16, 48)),
        ]:
            path = published(tmp_path / "x.h5", scenes, **{name: np.zeros(shape, np.float32)})
            with pytest.raises(KAError, match=rf"x.h5: the fields do not fit together .*{name}.*; write it again"):
                load("h5", "train", path)

    def test_not_four_axes(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes, GT=np.zeros((31, 32, 48), np.float32))
        with pytest.raises(KAError, match=r"x.h5: fields are rows × bands × h × w.*GT \(31, 32, 48\)"):
            load("h5", "train", path)

    def test_no_rows(self, tmp_path, scenes):
        empty = {name: np.zeros((0, *getattr(scenes[0], key).shape)) for key, name in FIELDS.items()}
        with pytest.raises(KAError, match=r"x.h5: fields are rows × bands × h × w, none of them 0.*GT \(0, 31"):
            load("h5", "train", published(tmp_path / "x.h5", scenes, **empty))

    def test_field_gone_after_load(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        scene = load("h5", "train", path)[0]
        path.unlink()
        published(path, scenes, RGB=None)
        with pytest.raises(KAError, match=r"x.h5: cannot be read"):
            scene.load()

    def test_other_ratio(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        with pytest.raises(KAError, match=r"x.h5: holds ratio 4, asked for 8; set ratio=4 or give another file"):
            load("h5", "train", path, Degradation(8))

    def test_other_blur(self, tmp_path, scenes):
        path = tmp_path / "x.h5"
        write_h5(path, scenes, {})
        with pytest.raises(KAError, match=r"x.h5: was made with blur_size 3, blur_sigma 0.5, not .*; leave these out"):
            load("h5", "train", path, Degradation(4, 5, 1.0))

    def test_values(self, tmp_path, scenes):
        for name, value, says in [
            ("GT", np.nan, "NaN in data"),
            ("LRHSI", np.nan, "NaN in data"),
            ("GT", 1.001, r"data not in \[0, 1\] .* scale it"),
            ("RGB", -0.001, r"data not in \[0, 1\] .* scale it"),
            ("RGB", 255, r"data not in \[0, 1\] .* say so with max=255"),
            ("GT", 60000, r"data not in \[0, 1\] .* say so with max=65535"),
            ("HSI_up", 1.6, r"data not in \[-0.5, 1.5\] .* scale it"),
            ("HSI_up", 280, r"data not in \[-0.5, 1.5\] .* say so with max=255"),
            ("HSI_up", np.nan, "NaN in data"),
        ]:
            path = published(tmp_path / "x.h5", scenes)
            with h5py.File(path, "r+") as file:
                file[name][1, 2, 3, 4] = value
            held = load("h5", "train", path)
            same(held[0], scenes[0])
            with pytest.raises(KAError, match=rf"x.h5: {name}, row 1: {says}"):
                held[1].load()
            with pytest.raises(KAError, match=rf"x.h5: {name}, row 1: {says}"):
                held[1].crop(0, 0, 32, 32)

    def test_overshoot_of_bicubic_is_no_error(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        with h5py.File(path, "r+") as file:
            file["HSI_up"][0, 0, 0, :2] = -0.4, 1.4
        assert load("h5", "train", path)[0].load().up.min() < -0.3


def test_lazy_row_takes_any_slice(tmp_path, scenes):
    path = published(tmp_path / "x.h5", scenes)
    row = LazyRow(str(path), "GT", 1, (31, 32, 48))
    gt = scenes[1].gt
    for index in (3, slice(2, 5), ..., (slice(None), 4), (slice(None), slice(0, 8, 2), slice(4))):
        np.testing.assert_array_equal(row[index], gt[index])


class TestWriteH5:
    def test_round_trip_of_patches(self, tmp_path, scenes):
        path, patches = tmp_path / "sub" / "x.h5", Patches(scenes, 16, 8)
        write_h5(path, patches, {"ka": "1.2", "note": 3})
        check_h5(path, patches)
        held = load("h5", "train", path)
        assert len(held) == len(patches) == 2 * 2 * 4
        for got, expected in zip(held, patches, strict=True):
            same(got, expected)
        with h5py.File(path) as file:
            assert {name: file[name].dtype for name in FIELDS.values()} == dict.fromkeys(FIELDS.values(), np.float32)
            assert file["GT"].chunks == (1, 31, 16, 16)
            assert file["LRHSI"].chunks == (1, 31, 4, 4)
            told = dict(file.attrs)
        assert (told["ratio"], told["blur_size"], told["blur_sigma"], told["offset"]) == (4, 3, 0.5, 2)
        assert (told["patch_size"], told["stride"], told["ka"], told["note"]) == (16, 8, "1.2", 3)
        assert (told["dataset"], told["split"], json.loads(told["scenes"])) == ("cave", "train", ["beads", "cloth"])
        assert told["source_sha256"] == source_hash(scenes)
        np.testing.assert_array_equal(told["srf"], NIKON_D700)

    def test_round_trip_of_scenes(self, tmp_path, scenes):
        write_h5(tmp_path / "x.h5", scenes, {})
        check_h5(tmp_path / "x.h5", scenes)
        held = load("h5", "test", tmp_path / "x.h5")
        assert [scene.name for scene in held] == ["beads", "cloth"]
        np.testing.assert_array_equal(held.srf, NIKON_D700)

    def test_round_trip_of_another_sensor(self, tmp_path):
        pines = load("indian_pines", "val")
        write_h5(tmp_path / "x.h5", Patches(pines, 16, 8), {})
        held = load("h5", "val", tmp_path / "x.h5")
        assert (held.msi_names, held.display) == (pines.msi_names, pines.display)
        np.testing.assert_array_equal(held.wavelengths, pines.wavelengths)

    def test_one_row_at_a_time(self, tmp_path, scenes, monkeypatch):
        shapes, plain = [], h5py.Dataset.__setitem__

        def spy(self, args, values):
            shapes.append(values.shape)
            plain(self, args, values)

        monkeypatch.setattr(h5py.Dataset, "__setitem__", spy)
        write_h5(tmp_path / "x.h5", Patches(scenes, 16, 8), {})
        assert shapes == [(31, 16, 16), (31, 16, 16), (31, 4, 4), (3, 16, 16)] * 16

    def test_hash_tells_sources_apart(self, scenes):
        assert source_hash(scenes) == source_hash(scenes)
        scenes[1].gt[0, 0, 0] += np.float32(0.001)
        other = source_hash(scenes)
        scenes[1].gt[0, 0, 0] -= np.float32(0.5)
        assert source_hash(scenes) != other

    def test_refuses(self, tmp_path, scenes):
        with pytest.raises(KAError, match=r"x.h5: provenance names offset, srf, which the file holds anyway"):
            write_h5(tmp_path / "x.h5", scenes, {"offset": 2, "srf": "mine"})
        assert not list(tmp_path.iterdir())

    def test_a_failure_leaves_the_old_file(self, tmp_path, scenes):
        path = tmp_path / "x.h5"
        write_h5(path, scenes, {})
        before = path.read_bytes()
        broken = published(tmp_path / "broken.h5", scenes)
        with h5py.File(broken, "r+") as file:
            file["RGB"][1] = np.nan
        with pytest.raises(KAError, match=r"broken.h5: RGB, row 1: NaN in data"):
            write_h5(path, load("h5", "train", broken), {})
        assert path.read_bytes() == before
        assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.h5", "x.h5"]


class TestCheckH5:
    def test_sees_a_changed_value(self, tmp_path, scenes):
        for key, name in FIELDS.items():
            path = tmp_path / f"{key}.h5"
            write_h5(path, scenes, {})
            with h5py.File(path, "r+") as file:
                file[name][1, 0, 0, 0] = 0.5
            with pytest.raises(KAError, match=rf"{key}.h5: {name}, row 1 differs from the source; write it again"):
                check_h5(path, scenes)

    def test_sees_another_count(self, tmp_path, scenes):
        write_h5(tmp_path / "x.h5", Patches(scenes, 16, 8), {})
        with pytest.raises(KAError, match=r"x.h5: GT has 16 rows, the source 2; write it again"):
            check_h5(tmp_path / "x.h5", scenes)

    def test_sees_another_attribute(self, tmp_path, scenes):
        for key, value in [("ratio", 8), ("source_sha256", "0"), ("stride", 16), ("scenes", "[]")]:
            path, patches = tmp_path / "x.h5", Patches(scenes, 16, 8)
            write_h5(path, patches, {})
            with h5py.File(path, "r+") as file:
                file.attrs[key] = value
            with pytest.raises(KAError, match=rf"x.h5: attribute {key} is .*; write it again"):
                check_h5(path, patches)
            with h5py.File(path, "r+") as file:
                del file.attrs[key]
            with pytest.raises(KAError, match=rf"x.h5: attribute {key} is None"):
                check_h5(path, patches)

    def test_unreadable(self, tmp_path, scenes):
        with pytest.raises(KAError, match=r"x.h5: cannot be read"):
            check_h5(tmp_path / "x.h5", scenes)


def test_lr_is_simulated_before_patches_are_cut(scenes):
    """A patch's `lr` comes from the whole scene's blur, where one simulated on the patch alone sees its border."""
    wide = Degradation(4, 9, 2.0)
    scene = observe("x", scenes[0].gt, NIKON_D700, wide)
    patch = scene.crop(8, 8, 16, 16)
    assert np.abs(patch.lr - degrade(np.asarray(patch.gt), wide)).max() > 0.01
