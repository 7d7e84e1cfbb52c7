"""Figures of training and of sharpened images show what they were given."""

import io

import numpy as np
import PIL.Image

from ka.data import datasets
from workbook.style import png
from workbook.views import plots


def test_curves_show_the_history() -> None:
    history = [{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25, "psnr": 30.0, "psnr_average": 31.0}]
    loss, quality = plots.curves(history).axes
    assert loss.lines[0].get_xydata().tolist() == [[10, 0.5], [20, 0.25]]
    assert [line.get_xydata().tolist() for line in quality.lines] == [[[20, 30]], [[20, 31]]]
    assert plots.curves([]).axes[1].texts[0].get_text() == "no validation yet"


def test_pictures_of_a_scene() -> None:
    scenes = datasets.load("indian_pines", "test")
    scene = scenes[0].load()
    off = {"up": scene.up, "off by a tenth": scene.gt + 0.1}
    colours = plots.natural_colours(scenes, scene, off)
    assert [axis.get_title() for axis in colours.axes] == ["truth", "LR-HSI", *off]
    maps = plots.error_maps(scene, off)
    assert maps.axes[1].get_title() == "off by a tenth\nmean 0.10000"
    np.testing.assert_allclose(maps.axes[1].images[0].get_array(), 0.1, atol=1e-6)
    assert maps.axes[0].images[0].get_clim() == maps.axes[1].images[0].get_clim()
    spectra = plots.spectra(scenes, scene, off, [(3, 5), (7, 2)])
    order = np.argsort(scenes.wavelengths, kind="stable")
    np.testing.assert_array_equal(spectra.axes[0].lines[0].get_ydata(), scene.gt[order, 3, 5])
    np.testing.assert_allclose(spectra.axes[2].lines[1].get_ydata(), 0.1, atol=1e-6)
    for figure in (colours, maps, spectra):
        assert png(figure).startswith(b"\x89PNG")


def test_pixels_are_squares() -> None:
    picture = np.array([[[0, 0.5, 1], [1, 0, 0]]])
    pixels = np.asarray(PIL.Image.open(io.BytesIO(plots.pixels_png(picture, zoom=3))))
    assert pixels.shape == (3, 6, 3)
    assert (pixels[:, :3] == [0, 128, 255]).all()
    assert (pixels[:, 3:] == [255, 0, 0]).all()
