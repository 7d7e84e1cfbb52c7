import io
import json
import logging
import pickle
import shutil
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import tensorly.datasets
from PIL import Image

from ka.data import DATASETS, Degradation, Patches, SceneSet, cave, check_h5, degrade, h5, load, observe, write_h5
from ka.data.cave import CAVE_TEST, CAVE_TRAIN, CAVE_VAL
from ka.data.datasets import BROAD_BANDS, PROTOCOL
from ka.data.h5 import FIELDS, LazyRow, source_hash
from ka.data.simulate import CAVE_WAVELENGTHS, NIKON_D700
from ka.errors import KAError


def png(values):
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()


def write_scene(folder, name, size=16, seed=0):
    """Write 31 PNGs into `folder` and return what they hold."""
    cube = np.random.default_rng([seed, *name.encode()]).integers(0, 65536, (31, size, size), dtype=np.uint16)
    folder.mkdir(parents=True)
    for i, band in enumerate(cube, 1):
        (folder / f"{name}_ms_{i:02d}.png").write_bytes(png(band))
    return cube


def write_cave(root, names=(*CAVE_TRAIN, *CAVE_TEST)):
    return {name: write_scene(root / f"{name}_ms" / f"{name}_ms", name) for name in names}


def first_png(root, name="beads"):
    return root / f"{name}_ms" / f"{name}_ms" / f"{name}_ms_01.png"


def same(a, b):
    for key in FIELDS:
        np.testing.assert_array_equal(getattr(a, key)[:], getattr(b, key)[:], err_msg=key)


class TestLoad:
    def test_unknown_dataset_and_split(self):
        with pytest.raises(KAError, match=r"dataset 'pavia' is unknown; choose one of indian_pines, cave, h5"):
            load("pavia", "train")
        with pytest.raises(KAError, match=r"split 'all' is unknown; .*choose one of train, val, test"):
            load("indian_pines", "all")

    @pytest.mark.parametrize("dataset", sorted(set(DATASETS) - {"indian_pines"}))
    def test_root_is_needed(self, dataset):
        with pytest.raises(KAError, match=rf"root: {dataset} needs the path of your copy; give its folder"):
            load(dataset, "train")

    def test_the_split(self):
        assert (len(CAVE_TRAIN), len(CAVE_TEST), len(CAVE_VAL)) == (20, 11, 2)
        assert len({*CAVE_TRAIN, *CAVE_TEST}) == 31
        assert set(CAVE_VAL) < set(CAVE_TRAIN)


class TestIndianPines:
    @pytest.mark.parametrize(("split", "h", "w"), [("train", 112, 96), ("val", 32, 96), ("test", 144, 48)])
    def test_parts(self, split, h, w):
        scenes = load("indian_pines", split)
        assert (len(scenes), scenes.ratio, scenes.split, scenes.n_bands, scenes.n_msi) == (1, 4, split, 200, 4)
        scene = scenes[0]
        assert scene.gt.shape == scene.up.shape == (200, h, w)
        assert scene.lr.shape == (200, h // 4, w // 4)
        assert scene.msi.shape == (4, h, w)
        assert {getattr(scene, key).dtype for key in FIELDS} == {np.dtype(np.float32)}

    def test_values(self):
        cube = np.asarray(tensorly.datasets.load_indian_pines().tensor).transpose(2, 0, 1) / 10000
        train, val, test = (load("indian_pines", split)[0] for split in ("train", "val", "test"))
        np.testing.assert_allclose(train.gt, cube[:, :112, :96], atol=1e-7)
        np.testing.assert_allclose(val.gt, cube[:, 112:144, :96], atol=1e-7)
        np.testing.assert_allclose(test.gt, cube[:, :144, 96:144], atol=1e-7)

    @pytest.mark.parametrize(
        ("split", "others"),
        [
            ("train", [(slice(None), slice(96, 145)), (slice(112, 145), slice(None))]),
            ("val", [(slice(0, 112), slice(None)), (slice(None), slice(96, 145)), (slice(144, 145), slice(None))]),
            ("test", [(slice(None), slice(0, 96)), (slice(144, 145), slice(None)), (slice(None), slice(144, 145))]),
        ],
    )
    def test_no_pixel_of_another_part_leaks_in(self, split, others, monkeypatch):
        before = load("indian_pines", split)[0]
        bunch = tensorly.datasets.load_indian_pines()
        changed = bunch.tensor.copy()
        for rows, cols in others:
            changed[rows, cols] = 10000 - changed[rows, cols]
        fake = SimpleNamespace(tensor=changed, ticks=bunch.ticks)
        monkeypatch.setattr(tensorly.datasets, "load_indian_pines", lambda: fake)
        same(load("indian_pines", split)[0], before)
        fake.tensor = 10000 - bunch.tensor  # the change is one that would be seen
        assert not np.array_equal(load("indian_pines", split)[0].lr, before.lr)

    def test_wavelengths_and_bands(self):
        scenes = load("indian_pines", "val")
        nm, srf = scenes.wavelengths, scenes.srf
        assert nm.shape == (200,)
        assert (nm[0], nm[-1]) == (400.02, 2498.96)
        backward = np.flatnonzero(np.diff(nm) < 0)
        assert backward.tolist() == [30, 93]  # where AVIRIS's spectrometers overlap, nowhere else
        assert scenes.msi_names == ("green", "red", "NIR", "SWIR")
        spans = [(nm[row > 0].min(), nm[row > 0].max()) for row in srf]
        assert all(a <= low < high <= b for (low, high), (_, a, b) in zip(spans, BROAD_BANDS, strict=True))
        np.testing.assert_allclose(srf.sum(1), 1, atol=1e-14)
        np.testing.assert_allclose(scenes[0].msi[2], scenes[0].gt[srf[2] > 0].mean(0), atol=1e-6)
        np.testing.assert_allclose(nm[list(scenes.display)], [620, 540, 460], atol=5)

    def test_other_data_is_refused(self, monkeypatch):
        bunch = tensorly.datasets.load_indian_pines()
        fake = SimpleNamespace(tensor=bunch.tensor * 2, ticks=bunch.ticks)
        monkeypatch.setattr(tensorly.datasets, "load_indian_pines", lambda: fake)
        with pytest.raises(KAError, match=r"indian_pines_train: data not in \[0, 1\]"):
            load("indian_pines", "train")

    def test_ratio_and_names(self):
        assert load("indian_pines", "test", degradation=Degradation(8))[0].lr.shape == (200, 18, 6)
        assert load("indian_pines", "val", scenes=["indian_pines_val"])[0].name == "indian_pines_val"
        with pytest.raises(KAError, match=r"scene of indian_pines' val split 'beads' is unknown; choose one"):
            load("indian_pines", "val", scenes=["beads"])
        with pytest.raises(KAError, match=r"does not divide by the ratio 3"):
            load("indian_pines", "train", degradation=Degradation(3))


class TestCave:
    @pytest.mark.parametrize("nesting", ["", "CAVE", "complete_ms_data", "CAVE/complete_ms_data"])
    @pytest.mark.parametrize("doubled", [True, False])
    def test_found_at_any_nesting(self, tmp_path, nesting, doubled):
        folder = tmp_path / nesting / "beads_ms"
        cube = write_scene(folder / "beads_ms" if doubled else folder, "beads")
        (folder / "beads_RGB.bmp").write_bytes(b"")
        (folder / "Thumbs.db").write_bytes(b"")
        (folder / "._beads_ms_01.png").write_bytes(b"a Mac's")
        scenes = load("cave", "train", tmp_path, scenes=["beads"])
        np.testing.assert_allclose(scenes[0].gt, cube / 65535, atol=1e-7)

    def test_what_a_set_holds(self, tmp_path):
        cube = write_cave(tmp_path, ["beads"])["beads"]
        scenes = load("cave", "train", str(tmp_path), Degradation(8, 5, 1.0, 1), scenes=["beads"])
        assert (scenes.name, scenes.split, scenes.ratio, scenes.n_bands, scenes.n_msi) == ("cave", "train", 8, 31, 3)
        assert scenes.msi_names == ("R", "G", "B")
        np.testing.assert_array_equal(CAVE_WAVELENGTHS[list(scenes.display)], [620, 540, 460])
        gt = cube.astype(np.float32) / np.float32(65535)
        same(scenes[0], observe("beads", gt, NIKON_D700, Degradation(8, 5, 1.0, 1)))
        assert {getattr(scenes[0], key).dtype for key in FIELDS} == {np.dtype(np.float32)}

    def test_splits(self, tmp_path):
        write_cave(tmp_path)

        def names(split, **options):
            return [scene.name for scene in load("cave", split, tmp_path, **options)]

        assert names("train") == list(CAVE_TRAIN)
        assert names("test") == list(CAVE_TEST)
        assert names("val") == list(CAVE_VAL)
        assert names("train", hold_out_val=True) == [name for name in CAVE_TRAIN if name not in CAVE_VAL]
        assert names("val", hold_out_val=True) == list(CAVE_VAL)
        assert names("test", scenes=["hairs", "balloons"]) == ["balloons", "hairs"]
        assert names("val", scenes=[CAVE_VAL[1]]) == [CAVE_VAL[1]]
        assert names("train", scenes="cloth") == ["cloth"]

    @pytest.mark.parametrize(
        ("split", "scenes", "hold_out_val", "says"),
        [
            (
                "train",
                ["beads", "balloons"],
                False,
                "scene of CAVE's train split 'balloons' is unknown.* beads, cloth",
            ),
            (
                "test",
                ["nonsense"],
                False,
                "scene of CAVE's test split 'nonsense' is unknown.* balloons, cd",
            ),
            (
                "val",
                ["beads"],
                False,
                f"scene of CAVE's val split 'beads' is unknown.* {', '.join(CAVE_VAL)}",
            ),
            (
                "train",
                [CAVE_VAL[0]],
                True,
                f"scene of CAVE's train split '{CAVE_VAL[0]}' is unknown.* beads",
            ),
            ("train", [], False, "none of CAVE's train split is chosen; name some of beads"),
        ],
    )
    def test_unknown_scenes(self, tmp_path, split, scenes, hold_out_val, says):
        with pytest.raises(KAError, match=says):
            load("cave", split, tmp_path, scenes=scenes, hold_out_val=hold_out_val)

    def test_reads_late_and_once_and_nothing_of_other_splits(self, tmp_path, monkeypatch):
        write_cave(tmp_path, ["beads", "cloth", "balloons"])
        first_png(tmp_path, "balloons").write_bytes(b"broken, but of the test split")
        read = []
        plain = cave.read_png
        monkeypatch.setattr(cave, "read_png", lambda path: read.append(path.stem[:-6]) or plain(path))
        scenes = load("cave", "train", tmp_path, scenes=["beads", "cloth"])
        assert read == []
        assert scenes[1] is scenes[1]
        assert read == ["cloth"] * 31
        assert [scene.name for scene in scenes] == ["beads", "cloth"]
        assert sorted(read) == ["beads"] * 31 + ["cloth"] * 31

    def test_watercolors_is_left_out_with_a_note(self, tmp_path, caplog):
        write_cave(tmp_path, CAVE_VAL)
        write_scene(tmp_path / "watercolors_ms", "watercolors")
        with caplog.at_level(logging.INFO, "ka"):
            assert len(load("cave", "val", tmp_path)) == 2
        assert "watercolors left out" in caplog.text
        with pytest.raises(KAError, match=r"scene of CAVE's train split 'watercolors' is unknown"):
            load("cave", "train", tmp_path, scenes=["watercolors"])

    def test_no_folder(self, tmp_path):
        with pytest.raises(KAError, match=r"nowhere: no such folder; give the folder that holds CAVE"):
            load("cave", "train", tmp_path / "nowhere")
        (tmp_path / "file.h5").touch()
        with pytest.raises(KAError, match=r"file.h5: no such folder"):
            load("cave", "train", tmp_path / "file.h5")

    def test_no_scenes(self, tmp_path):
        (tmp_path / "beads_ms").mkdir()
        with pytest.raises(KAError, match=rf"{tmp_path}: no CAVE scene found; give the folder that holds balloons_ms"):
            load("cave", "train", tmp_path)

    def test_missing_scenes(self, tmp_path):
        write_cave(tmp_path, [name for name in CAVE_TEST if name not in ("cd", "hairs")])
        with pytest.raises(KAError, match=r"missing cd, hairs; download them, or choose others with scenes="):
            load("cave", "test", tmp_path)

    def test_30_bands(self, tmp_path):
        write_cave(tmp_path, ["beads"])
        first_png(tmp_path).unlink()
        with pytest.raises(
            KAError, match=r"beads_ms: 30 PNGs, not bands 1 to 31 \(without 1\); unpack the scene again"
        ):
            load("cave", "train", tmp_path, scenes=["beads"])

    def test_32_bands(self, tmp_path):
        write_cave(tmp_path, ["beads"])
        shutil.copy(first_png(tmp_path), first_png(tmp_path).with_name("beads_ms_32.png"))
        with pytest.raises(KAError, match=r"beads_ms: 32 PNGs, not bands 1 to 31; unpack the scene again"):
            load("cave", "train", tmp_path, scenes=["beads"])

    def test_31_bands_but_not_the_31(self, tmp_path):
        write_cave(tmp_path, ["beads"])
        first_png(tmp_path).rename(first_png(tmp_path).with_name("beads_ms_32.png"))
        with pytest.raises(
            KAError, match=r"beads_ms: 31 PNGs, not bands 1 to 31 \(without 1\); unpack the scene again"
        ):
            load("cave", "train", tmp_path, scenes=["beads"])

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            (np.zeros((16, 16), np.uint8), r"beads_ms_01.png: not a 16-bit grey PNG .* unpack the original"),
            (np.zeros((16, 16, 4), np.uint8), r"beads_ms_01.png: not a 16-bit grey PNG \(Pillow's mode RGBA"),
        ],
    )
    def test_not_16_bit(self, tmp_path, values, says):
        write_cave(tmp_path, ["beads"])
        first_png(tmp_path).write_bytes(png(values))
        with pytest.raises(KAError, match=says):
            load("cave", "train", tmp_path, scenes=["beads"])

    def test_mixed_sizes(self, tmp_path):
        write_cave(tmp_path, ["beads"])
        path = first_png(tmp_path)
        path.with_name("beads_ms_07.png").write_bytes(png(np.zeros((12, 20), np.uint16)))
        with pytest.raises(KAError, match=r"beads_ms_07.png: 20×12 pixels, others have 16×16; unpack"):
            load("cave", "train", tmp_path, scenes=["beads"])

    def test_scenes_of_unlike_sizes(self, tmp_path):
        write_cave(tmp_path, ["beads"])
        write_scene(tmp_path / "cloth_ms", "cloth", size=20)
        with pytest.raises(KAError, match=r"cloth_ms_01.png: 20×20 pixels, others have 16×16"):
            load("cave", "train", tmp_path, scenes=["beads", "cloth"])

    def test_size_off_the_grid(self, tmp_path):
        write_scene(tmp_path / "beads_ms", "beads", size=18)
        with pytest.raises(
            KAError, match=r"beads_ms_01.png: 18×18 pixels do not divide by the ratio 4; change the ratio"
        ):
            load("cave", "train", tmp_path, scenes=["beads"])

    @pytest.mark.parametrize("keep", [0, 5, 40, 0.5, 0.9])
    def test_truncated_png(self, tmp_path, keep):
        write_cave(tmp_path, ["beads"])
        path = first_png(tmp_path)
        whole = path.read_bytes()
        path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
        with pytest.raises(
            KAError, match=r"beads_ms_01.png: cannot be read, truncated or not a PNG .* unpack the scene"
        ):
            load("cave", "train", tmp_path, scenes=["beads"])[0]

    @pytest.mark.parametrize("at", [0.3, 0.6, 0.95])
    def test_corrupted_png(self, tmp_path, at):
        write_cave(tmp_path, ["beads"])
        path = first_png(tmp_path)
        content = bytearray(path.read_bytes())
        place = int(at * len(content))
        content[place : place + 8] = bytes(8)
        path.write_bytes(content)
        with pytest.raises(KAError, match=r"beads_ms_01.png: cannot be read"):
            load("cave", "train", tmp_path, scenes=["beads"])[0]

    def test_corrupted_chunk(self, tmp_path):
        """Pillow's other error, no OSError: the next chunk is not where this one says."""
        write_cave(tmp_path, ["beads"])
        path = first_png(tmp_path)
        content = bytearray(path.read_bytes())
        place = content.index(b"IDAT")
        content[place - 4 : place] = (100).to_bytes(4, "big")
        path.write_bytes(content)
        with pytest.raises(KAError, match=r"beads_ms_01.png: cannot be read"):
            load("cave", "train", tmp_path, scenes=["beads"])[0]


@pytest.fixture
def scenes():
    """Two scenes of 32×48."""
    rng = np.random.default_rng(0)
    made = [observe(name, rng.random((31, 32, 48), np.float32), NIKON_D700, PROTOCOL) for name in ("beads", "cloth")]
    return SceneSet("cave", "train", PROTOCOL, CAVE_WAVELENGTHS, (22, 14, 6), ("R", "G", "B"), made, NIKON_D700)


def published(path, scenes, **replaced):
    """Write the published layout by hand, as its authors did: no attributes."""
    arrays = {name: np.stack([getattr(scene, key) for scene in scenes]) for key, name in FIELDS.items()}
    with h5py.File(path, "w") as file:
        for name, values in {**arrays, **replaced}.items():
            if values is not None:
                file[name] = values
    return path


class TestReadH5:
    def test_published_layout(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        held = load("h5", "train", path)
        assert (held.name, held.split, held.ratio, len(held), held.n_bands, held.n_msi) == ("h5", "train", 4, 2, 31, 3)
        assert held.msi_names == ("R", "G", "B")
        np.testing.assert_array_equal(held.wavelengths, CAVE_WAVELENGTHS)
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
                KAError, match=rf"no {'validation_' if split == 'val' else split}.*HDF5 files there: .*give"
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
        with pytest.raises(KAError, match=r"no test_cave\(with_up\)x8.h5 .*test_cave\(with_up\)x4.h5"):
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
        opened = h5._open_h5.cache_info
        before = opened().misses
        row[0], row[1]
        assert opened().misses == before + 1
        monkeypatch.setattr(h5.os, "getpid", lambda: -1)
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
        with pytest.raises(KAError, match=r"x.h5: cannot be read, truncated or not HDF5 .* download or write it again"):
            load("h5", "train", tmp_path / "x.h5")

    def test_truncated(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(KAError, match=r"x.h5: cannot be read, truncated or not HDF5"):
            load("h5", "train", path)

    def test_gone_after_load(self, tmp_path, scenes):
        path = published(tmp_path / "x.h5", scenes)
        scene = load("h5", "train", path)[0]
        path.unlink()
        with pytest.raises(KAError, match=r"x.h5: cannot be read"):
            scene.load()

    @pytest.mark.parametrize("name", list(FIELDS.values()))
    def test_lacks_a_field(self, tmp_path, scenes, name):
        path = published(tmp_path / "x.h5", scenes, **{name: None})
        with pytest.raises(KAError, match=rf"x.h5: no field {name}; give a file with GT, HSI_up, LRHSI, RGB"):
            load("h5", "train", path)

    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            ("GT", (3, 31, 32, 48)),
            ("GT", (2, 30, 32, 48)),
            ("HSI_up", (2, 31, 32, 44)),
            ("LRHSI", (2, 31, 8, 8)),
            ("LRHSI", (2, 31, 9, 12)),
            ("LRHSI", (2, 31, 64, 96)),
            ("RGB", (1, 3, 32, 48)),
            ("RGB", (2, 3, 16, 48)),
        ],
    )
    def test_shapes_that_do_not_fit(self, tmp_path, scenes, name, shape):
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
        with pytest.raises(
            KAError, match=r"x.h5: was made with blur_size 3, blur_sigma 0.5, not .*; ask for what it holds"
        ):
            load("h5", "train", path, Degradation(4, 5, 1.0))

    @pytest.mark.parametrize(
        ("name", "value", "says"),
        [
            ("GT", np.nan, "NaN in data"),
            ("LRHSI", np.nan, "NaN in data"),
            ("GT", 1.001, r"data not in \[0, 1\] .* scale it"),
            ("RGB", -0.001, r"data not in \[0, 1\] .* scale it"),
            ("RGB", 255, r"data not in \[0, 1\] .* divide by 255"),
            ("GT", 60000, r"data not in \[0, 1\] .* divide by 65535"),
            ("HSI_up", 1.6, r"data not in \[-0.5, 1.5\] .* scale it"),
            ("HSI_up", 280, r"data not in \[-0.5, 1.5\] .* divide by 255"),
            ("HSI_up", np.nan, "NaN in data"),
        ],
    )
    def test_values(self, tmp_path, scenes, name, value, says):
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

    @pytest.mark.parametrize(("key", "value"), [("ratio", 8), ("source_sha256", "0"), ("stride", 16), ("scenes", "[]")])
    def test_sees_another_attribute(self, tmp_path, scenes, key, value):
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


def test_lazy_row_takes_any_slice(tmp_path, scenes):
    path = published(tmp_path / "x.h5", scenes)
    row = LazyRow(str(path), "GT", 1, (31, 32, 48))
    gt = scenes[1].gt
    for index in (3, slice(2, 5), ..., (slice(None), 4), (slice(None), slice(0, 8, 2), slice(4))):
        np.testing.assert_array_equal(row[index], gt[index])
