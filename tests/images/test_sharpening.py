"""The command that sharpens files: every format, tiles, folders, and going on after a stop."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import ka
from ka.data import Degradation
from ka.errors import KAError
from ka.images import FORMATS, Image, Place, Stored, read_image, write_image
from ka.inference import Network
from ka.methods.consistency import Consistency
from ka.pairs import UNTRAINED, pair_of
from workbook.sharpening import files, tiles, view
from workbook.sharpening.__main__ import main
from workbook.style import png

SRF = np.repeat(np.eye(3), 2, axis=1) / 2
NM = np.linspace(450, 700, 6)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A folder with lr.tif, msi.png and the truth, 6 bands, 96×112 pixels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :112] / 20
    gt = np.stack([0.5 + 0.2 * np.sin(x * (1 + i) + y) + 0.2 * np.cos(3 * y - i * x) for i in range(6)])
    scene = ka.data.observe("x", (gt + 0.05 * rng.random(gt.shape)).astype(np.float32), SRF, Degradation())
    place = Place("EPSG:32633", (40, 0, 0, 0, -40, 0))
    write_image(tmp_path / "lr.tif", Image((scene.lr * 10000).astype(np.uint16), NM, place))
    Picture.fromarray((scene.msi * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / "msi.png")
    np.save(tmp_path / "gt.npy", scene.gt * 10000)
    return tmp_path


def network(tile: int | None = None) -> Network:
    model = ka.build("kav11", n_bands=6, n_msi=3, dim=8).eval()
    model.start = UNTRAINED["local injection"](Degradation())  # type: ignore[assignment]
    model.consistency = Consistency(Degradation(), SRF)
    return Network(model, tile)


@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_holds_the_same_result(pair: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = pair / f"sharp{ending}"
    assert main([str(pair / "lr.tif"), str(pair / "msi.png"), "--out", str(out), "--truth", str(pair / "gt.npy")]) == 0
    image = read_image(out)
    lr, msi = read_image(pair / "lr.tif").values, read_image(pair / "msi.png").values
    np.testing.assert_allclose(image.values, ka.sharpen(lr, msi), rtol=1e-5)
    if ending not in (".npy",):
        np.testing.assert_allclose(image.wavelengths, NM)
    if ending in (".tif", ".hdr"):
        assert image.place is not None
        assert image.place.transform[0] == 10  # a quarter of the cube's pixel
    told = capsys.readouterr().out
    assert "attentive injection: PSNR" in told
    assert f"{out}: 6×96×112 (bands, height, width)" in told
    assert not list(pair.glob(".*"))


@pytest.mark.parametrize("method", ["attentive injection", "local injection", "bicubic", "kav11"])
def test_tiles_equal_one_pass(pair: Path, tmp_path: Path, method: str) -> None:
    images = files.Request(pair / "lr.tif", pair / "msi.png").pair()
    used = network() if method == "kav11" else UNTRAINED[method](Degradation())
    canvas = tiles.Canvas(tmp_path / "parts", (6, 96, 112), "c h w")
    seen: list[int] = []
    tiles.paint(images, used, canvas, "x", tile=16, tell=lambda done, of, left: seen.append(of))
    assert set(seen) == {42}
    whole = used if method == "kav11" else tiles.with_matrix(used, images)
    np.testing.assert_allclose(canvas.values(), images.image(whole(images.scene).numpy()).values, atol=0.02)


def test_a_stop_loses_no_tile(pair: Path, tmp_path: Path) -> None:
    request = files.Request(pair / "lr.tif", pair / "msi.png", out=tmp_path / "sharp.npy", tile=32)

    def stop(done: int, of: int, left: float) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.sharpen_file(request, stop)
    assert not (tmp_path / "sharp.npy").exists()
    seen: list[int] = []
    files.sharpen_file(request, lambda done, of, left: seen.append(done))
    assert seen == list(range(6, 13))
    np.testing.assert_allclose(
        np.load(tmp_path / "sharp.npy"),
        ka.sharpen(read_image(pair / "lr.tif").values, read_image(pair / "msi.png").values), rtol=1e-5,
    )  # fmt: skip


def test_other_work_does_not_go_on_with_half_tiles(pair: Path, tmp_path: Path) -> None:
    canvas = tiles.Canvas(tmp_path / "parts", (6, 96, 112), "c h w")
    assert canvas.begin({"method": "a"}) == set()
    canvas.put(3, (slice(0, 1), slice(0, 1)), np.ones((6, 1, 1)))
    assert canvas.begin({"method": "a"}) == {3}
    assert canvas.begin({"method": "b"}) == set()
    (tmp_path / "parts" / "sharp.npy").unlink()  # a kill while the folder was being removed
    assert canvas.begin({"method": "b"}) == set()
    assert canvas.values().shape == (6, 96, 112)


def test_folders_are_paired_by_name(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name, kind in (("a", "lr", "tif"), ("b", "msi", "png")):
        (pair / folder).mkdir()
        for scene in ("one", "two"):
            (pair / folder / f"{scene}_{name}.{kind}").write_bytes((pair / f"{name}.{kind}").read_bytes())
    (pair / "b" / "two_msi.png").write_bytes(b"broken")
    assert main([str(pair / "a"), str(pair / "b"), "--out", str(pair / "c")]) == 1
    told = capsys.readouterr()
    assert "1 of 2 pairs are sharpened" in told.out
    assert "two_msi.png: cannot be read" in told.err
    assert [path.name for path in (pair / "c").iterdir()] == ["one.tif"]
    (pair / "b" / "two_msi.png").unlink()
    assert main([str(pair / "a"), str(pair / "b")]) == 1
    assert "two is not in both" in capsys.readouterr().err


def test_a_result_that_cannot_be_written_is_refused_before_the_work(pair: Path) -> None:
    with pytest.raises(KAError, match="no format ends in"):
        files.sharpen_file(files.Request(pair / "lr.tif", pair / "msi.png", out=pair / "x.jpg"))


def test_the_truth_has_to_be_of_the_images(pair: Path) -> None:
    np.save(pair / "wrong.npy", np.zeros((6, 96, 100)))
    with pytest.raises(KAError, match="is not the truth of"):
        files.sharpen_file(files.Request(pair / "lr.tif", pair / "msi.png", truth=pair / "wrong.npy"))


def test_the_truth_is_measured_as_it_is(pair: Path) -> None:
    """Neither clipped by what the darker cube was divided by, nor taken in another unit."""
    truth = np.load(pair / "gt.npy")
    write_image(pair / "dim.tif", Image((read_image(pair / "lr.tif").values // 3).astype(np.uint16)))
    request = files.Request(pair / "dim.tif", pair / "msi.png", truth=pair / "truth.npy", out=pair / "x.npy")
    np.save(pair / "truth.npy", truth / 3 + 2000 * (np.arange(112) == 0))
    result = files.sharpen_file(request)
    assert result.pair.divisors[0] < np.load(pair / "truth.npy").max()
    assert result.truth is not None
    assert result.truth.max() > 1
    np.save(pair / "truth.npy", truth / 10000)
    with pytest.raises(KAError, match="give the truth in the unit of lr"):
        files.sharpen_file(request)


def test_a_result_does_not_replace_what_it_is_made_of(pair: Path) -> None:
    write_image(pair / "cube.hdr", read_image(pair / "lr.tif"))
    with pytest.raises(KAError, match="one of the images given"):
        files.sharpen_file(files.Request(pair / "cube.hdr", pair / "msi.png", out=pair / "cube.img"))


def test_a_wide_blurs_projection_sees_the_whole_image(pair: Path) -> None:
    """Its inverse does not die away within a tile's margin: tiles would show."""
    images = files.Request(pair / "lr.tif", pair / "msi.png").pair()
    for (size, sigma), count in {(3, 0.5): 42, (15, 4.0): 1}.items():
        used, seen = network(), list[int]()
        used.model.consistency = Consistency(Degradation(4, size, sigma), SRF)
        canvas = tiles.Canvas(pair / f"parts{size}", (6, 96, 112), "c h w")
        tiles.paint(images, used, canvas, "x", tile=16, tell=lambda done, of, left, seen=seen: seen.append(of))  # type: ignore[misc]
        assert set(seen) == {count}


def test_axes_of_a_pair_of_files_are_found_by_its_partner(tmp_path: Path) -> None:
    cube, sharp = np.random.default_rng(0).random((10, 12, 14)), np.random.default_rng(0).random((20, 24, 3))
    pair = pair_of(Stored(cube, "lr", likely="h w c"), Stored(sharp, "msi"))
    assert (pair.lr.order, pair.msi.order, pair.ratio) == ("h w c", "h w c", 2)


def test_a_result_is_wiped_and_clicked(pair: Path) -> None:
    request = files.Request(pair / "lr.tif", pair / "msi.png", out=pair / "x.npy", truth=pair / "gt.npy")
    seen = view.View(files.sharpen_file(request))
    wipe = view.Wipe(seen)
    before, spectrum = wipe.picture.value, wipe.spectrum.value
    wipe.line.value = 3
    assert wipe.picture.value != before
    wipe.click({"dataX": 5 * wipe.zoom, "dataY": 90 * wipe.zoom})
    assert wipe.spectrum.value == png(seen.spectra((90, 5))) != spectrum
    assert [axis.get_title() for axis in seen.colours().axes] == ["truth", "LR-HSI", "bicubic", "sharpened"]
    assert list(seen.sharpened.metrics["methods"]) == ["bicubic", "attentive injection"]
    assert seen.residuals().axes[0].get_title().startswith("bicubic\nspatial")
    unknown = view.View(files.sharpen_file(replace(request, truth=None)))
    assert [axis.get_title() for axis in unknown.colours().axes] == ["LR-HSI", "bicubic", "sharpened"]
    assert unknown.sharpened.metrics == {"methods": {}}
