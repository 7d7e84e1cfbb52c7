"""`load`: the embedded scene, and CAVE as downloaded."""

import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tensorly.datasets
from scenes_made import first_png, png, same, write_cave, write_scene

from ka.data import DATASETS, Degradation, cave, load, observe
from ka.data.cave import CAVE_TEST, CAVE_TRAIN, CAVE_VAL
from ka.data.datasets import INDIAN_PINES_QUARTERS
from ka.data.h5 import FIELDS
from ka.data.own.files import Reading
from ka.data.own.responses import BROAD
from ka.data.simulate import CAVE_WAVELENGTHS, NIKON_D700
from ka.errors import KAError


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

    def test_quarters_of_the_test_part(self):
        names = ",".join(INDIAN_PINES_QUARTERS)
        quarters, whole = (
            load("indian_pines", "test", reading=Reading(test_scenes=names)),
            load("indian_pines", "test")[0],
        )
        assert [scene.name for scene in quarters] == list(INDIAN_PINES_QUARTERS)
        np.testing.assert_array_equal(np.concatenate([scene.gt for scene in quarters], 1), whole.gt)
        edge = slice(8, 10)  # last low-resolution rows of the first quarter: blurred without what lies below it
        assert not np.array_equal(quarters[0].lr[:, edge], whole.lr[:, edge])
        last = load("indian_pines", "test", reading=Reading(test_scenes="indian_pines_test_4"))
        same(last[0], quarters[3])
        with pytest.raises(KAError, match="holds its quarters"):
            load("indian_pines", "test", reading=Reading(test_scenes="indian_pines_test,indian_pines_test_2"))
        for split in ("val", "test"):
            with pytest.raises(KAError, match=f"scene of indian_pines' {split} split 'beads' is unknown"):
                load("indian_pines", split, reading=Reading(val_scenes="beads", test_scenes="beads"))

    def test_wavelengths_and_bands(self):
        scenes = load("indian_pines", "val")
        nm, srf = scenes.wavelengths, scenes.srf
        assert nm.shape == (200,)
        assert (nm[0], nm[-1]) == (400.02, 2498.96)
        backward = np.flatnonzero(np.diff(nm) < 0)
        assert backward.tolist() == [30, 93]  # where AVIRIS's spectrometers overlap, nowhere else
        assert scenes.msi_names == ("green", "red", "NIR", "SWIR")
        spans = [(nm[row > 0].min(), nm[row > 0].max()) for row in srf]
        assert all(a <= low < high <= b for (low, high), (a, b) in zip(spans, BROAD.values(), strict=True))
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

    def test_unknown_scenes(self, tmp_path):
        for split, scenes, hold_out_val, says in [
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
        ]:
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
        with pytest.raises(KAError, match=r"missing cd, hairs \(here are .*\); .* -p val_scenes c -p test_scenes d"):
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

    def test_not_16_bit(self, tmp_path):
        for values, says in [
            (np.zeros((16, 16), np.uint8), r"beads_ms_01.png: not a 16-bit grey PNG .* unpack the original"),
            (np.zeros((16, 16, 4), np.uint8), r"beads_ms_01.png: not a 16-bit grey PNG \(Pillow's mode RGBA"),
        ]:
            write_cave(tmp_path, ["beads"])
            first_png(tmp_path).write_bytes(png(values))
            with pytest.raises(KAError, match=says):
                load("cave", "train", tmp_path, scenes=["beads"])

    def test_mixed_sizes(self, tmp_path):
        write_cave(tmp_path, ["beads"])
        path = first_png(tmp_path)
        path.with_name("beads_ms_07.png").write_bytes(png(np.zeros((12, 20), np.uint16)))
        with pytest.raises(KAError, match=r"beads_ms_07.png: 20×12 pixels, other bands .* 16×16; unpack"):
            load("cave", "train", tmp_path, scenes=["beads"])

    def test_scenes_of_unlike_sizes(self, tmp_path):
        write_cave(tmp_path, ["beads"])
        write_scene(tmp_path / "cloth_ms", "cloth", size=20)
        with pytest.raises(KAError, match=r"beads has 16×16 pixels, cloth has 20×20 pixels; choose .* scenes=\[…\]"):
            load("cave", "train", tmp_path, scenes=["beads", "cloth"])

    def test_size_off_the_grid(self, tmp_path):
        write_scene(tmp_path / "beads_ms", "beads", size=18)
        with pytest.raises(
            KAError, match=r"beads_ms_01.png: 18×18 pixels do not divide by the ratio 4; change the ratio"
        ):
            load("cave", "train", tmp_path, scenes=["beads"])

    def test_truncated_png(self, tmp_path):
        for keep in [0, 5, 40, 0.5, 0.9]:
            write_cave(tmp_path, ["beads"])
            path = first_png(tmp_path)
            whole = path.read_bytes()
            path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
            with pytest.raises(
                KAError, match=r"beads_ms_01.png: cannot be read, truncated or not a PNG .* unpack the scene"
            ):
                load("cave", "train", tmp_path, scenes=["beads"])[0]

    def test_corrupted_png(self, tmp_path):
        for at in [0.3, 0.6, 0.95]:
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
