"""The page of `make explore`, without a browser: wrong folders, broken runs, tabs, and what a reload keeps."""

import base64
import html
import json
import shutil
from pathlib import Path

import nbformat
import pytest

from workbook.explorer import serve
from workbook.explorer.catalog import Catalog, open_catalog, shipped
from workbook.explorer.controls import TOOLTIPS
from workbook.explorer.page import TABS, Page


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return open_catalog()


def run_at(folder: Path) -> Path:
    """A finished run, as far as the explorer looks at it."""
    folder.mkdir(parents=True)
    shutil.copy(shipped()["kav1"], folder / "best.safetensors")
    (folder / "metrics.json").write_text("{}")
    return folder


def test_wrong_folders_are_notices_and_the_rest_is_offered(tmp_path: Path) -> None:
    there = open_catalog(runs=tmp_path / "no <b>runs", data_root=tmp_path / "no data", strict=False)
    assert [f"{tmp_path}/no <b>runs is no folder; give one that holds runs (RUNS= of make explore" in there.notices[0]]
    assert f"{tmp_path}/no data: no such folder" in there.notices[1]
    page = Page(there)
    assert "no &lt;b&gt;runs is no folder" in page.box.children[0].value
    assert page.explorers["Kernels"].picture.value
    assert serve.wrong(str(tmp_path / "nothing"), None)[0].startswith(f"{tmp_path}/nothing is no folder")
    empty = open_catalog(runs=tmp_path, strict=False)
    assert empty.notices == [
        f"{tmp_path} holds no finished run, nor do the folders in it (RUNS= of make explore, runs in a notebook)"
    ]


def test_runs_of_sweeps_and_campaigns_are_found_and_broken_ones_left_out(tmp_path: Path) -> None:
    run_at(tmp_path / "mine")
    for name in ("mine", "other"):
        run_at(tmp_path / "a sweep" / "runs" / name)
    half = run_at(tmp_path / "half") / "best.safetensors"
    half.write_bytes(half.read_bytes()[:5000])
    catalog = open_catalog(runs=tmp_path)
    assert [name for name in catalog.models if name not in shipped()] == ["mine", "a sweep/runs/mine", "other"]
    (notice,) = catalog.notices
    assert notice.startswith(f"{tmp_path}/half is left out: its best.safetensors is missing or damaged (")
    (line,) = serve.wrong(str(tmp_path), None)
    assert line.startswith(f"{tmp_path}/half is left out: ")
    assert list(open_catalog(runs=tmp_path / "mine").models)[-1] == "mine"  # a run folder itself


def test_folders_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks, `~`, and names that are relative to where the command was given."""
    (tmp_path / "my runs").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given in ("~/my runs", "my runs", str(tmp_path / "my runs")):
        assert serve.absolute(given) == str(tmp_path / "my runs")
    serve.prepare(tmp_path / "out" / "page.ipynb", serve.absolute("my runs"), None)
    (injected,) = [
        cell.source
        for cell in nbformat.read(tmp_path / "out" / "page.ipynb", 4).cells
        if cell.source.startswith("# Parameters\n")
    ]
    assert f'runs = "{tmp_path}/my runs"' in injected
    assert f'kept = "{tmp_path}/out/page.json"' in injected


def test_a_tab_is_drawn_when_it_is_opened(catalog: Catalog) -> None:
    page = Page(catalog)
    assert list(page.explorers) == ["Kernels"]
    page.tabs.selected_index = 1
    assert list(page.explorers) == ["Kernels", "Attention"]
    assert page.tabs.children[1] is page.explorers["Attention"].box
    before = page.explorers["Attention"]
    page.tabs.selected_index = 0
    page.tabs.selected_index = 1
    assert page.explorers["Attention"] is before


def test_a_reload_keeps_what_was_chosen(catalog: Catalog, tmp_path: Path) -> None:
    page = Page(catalog, tmp_path / "kept.json")
    controls = page.explorers["Kernels"].controls
    controls["model"].value, controls["layer"].value, controls["colours"].value = "kav6", 7, True
    page.tabs.selected_index = 1
    page.explorers["Attention"].controls["row"].value = 3
    again = Page(catalog, tmp_path / "kept.json")
    assert again.tabs.selected_index == 1
    assert again.explorers["Attention"].controls["row"].value == 3
    assert again.explorers["Attention"].picture.value == page.explorers["Attention"].picture.value
    again.tabs.selected_index = 0
    assert again.explorers["Kernels"].picture.value == page.explorers["Kernels"].picture.value


@pytest.mark.parametrize(
    "text", ["", "[]", '{"tab": "Mars"}', '{"tab": 3, "Kernels": {"model": "gone", "layer": 99, "show": [1]}}']
)
def test_what_is_kept_of_another_time_is_no_hindrance(catalog: Catalog, tmp_path: Path, text: str) -> None:
    (tmp_path / "kept.json").write_text(text)
    page = Page(catalog, tmp_path / "kept.json")
    assert page.explorers["Kernels"].picture.value
    assert json.loads((tmp_path / "kept.json").read_text())["tab"] == "Kernels"


@pytest.mark.parametrize("tab", TABS)
def test_views_say_what_they_are_and_disable_what_they_do_not_use(catalog: Catalog, tab: str) -> None:
    """Held against the pictures: other values of the disabled controls draw the same."""
    explorer = TABS[tab](catalog, {"model": "kav1"})
    controls = explorer.controls
    assert {name: control.tooltip for name, control in controls.items()} == {name: TOOLTIPS[name] for name in controls}
    for show, view in explorer.pictures.items():
        controls["show"].value = show
        before = explorer.picture.value
        assert view.how.endswith(".")
        assert explorer.message.value == f"<i>{html.escape(view.how)}</i>"
        disabled = {name: control for name, control in controls.items() if control.disabled}
        assert controls.keys() - disabled.keys() == {"show", "model", "image", *view.uses}
        with explorer.paused():
            for control in disabled.values():
                values = control.options if hasattr(control, "options") else [(0, control.min), (0, control.max)]
                control.value = values[-1][1] if control.value != values[-1][1] else values[0][1]
        explorer.redraw()
        assert explorer.picture.value == before, show


def test_messages_name_what_the_menu_offers(catalog: Catalog) -> None:
    explorer = TABS["Attention"](catalog, {"model": "kav11", "show": "kernel SA"})
    assert explorer.message.value == "<b>kav11 has no kernel SA among taps; choose kav1, kav3, kav6</b>"
    assert not explorer.picture.value
    few = Catalog({"psrt": catalog.models["psrt"]}, catalog.images)
    alone = TABS["Kernels"](few, {})
    assert alone.message.value == "<b>psrt has no kernels of KA layers; none of the models here has</b>"


def test_nothing_of_another_model_stays_where_a_model_has_no_image(catalog: Catalog, tmp_path: Path) -> None:
    cave = shipped()["kav26_wide"]
    explorer = TABS["Attention"](Catalog({**catalog.models, "cave": cave}, catalog.images), {})
    assert explorer.scene.value  # type: ignore[attr-defined]
    explorer.controls["model"].value = "cave"
    assert "give CAVE" in explorer.message.value
    assert explorer.scene.value == explorer.picture.value == b""  # type: ignore[attr-defined]
    assert explorer.controls["image"].options == (("", None),)
    assert {name for name, control in explorer.controls.items() if not control.disabled} == {"show", "model"}
    explorer.controls["model"].value = "kav1"
    assert explorer.scene.value  # type: ignore[attr-defined]
    assert explorer.picture.value


def test_a_reader_without_a_kernel_sees_a_picture(catalog: Catalog) -> None:
    for shown in (page := Page(catalog), page.explorers["Kernels"]):
        bundle = shown._repr_mimebundle_()
        assert base64.b64decode(bundle["image/png"]) == page.explorers["Kernels"].picture.value
        assert "application/vnd.jupyter.widget-view+json" in bundle
        assert bundle["text/plain"].startswith("An explorer: run this notebook")
