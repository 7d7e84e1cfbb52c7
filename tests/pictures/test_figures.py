"""figures/ is what `make figures` draws: a committed file that is stale is named here."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ka.errors import KAError
from workbook import figures
from workbook.figures import FOLDER, STABLE, files
from workbook.style import png


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    """All but PDF files, which hold fonts and are not compared: their SVG twins are."""
    return {name: encode() for name, encode in files().items() if not name.endswith(".pdf")}


def test_nothing_is_missing_or_left_over() -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert there == set(files()), "run `make figures` and commit"


def test_text_and_vector_files_are_up_to_date(drawn: dict[str, bytes]) -> None:
    stable = [name for name in drawn if name.endswith(STABLE)]
    assert any(name.endswith(".svg") for name in stable)
    assert any(name.endswith(".csv") for name in stable)
    stale = [name for name in stable if drawn[name] != (FOLDER / name).read_bytes()]
    assert not stale, "run `make figures` and commit"


def test_pictures_are_up_to_date(drawn: dict[str, bytes]) -> None:
    """Sums round differently on other machines: a colour may differ by a little, here and there."""
    stale = [name for name in drawn if name.endswith(".png") and _differ(drawn[name], (FOLDER / name).read_bytes())]
    assert not stale, "run `make figures` and commit"


def _differ(one: bytes, other: bytes, block: int = 8) -> bool:
    """Whether any block of 8×8 pixels differs by more than 10 of 255 on average: less than a changed digit."""
    a, b = (np.asarray(PIL.Image.open(io.BytesIO(data)).convert("L"), dtype=float) for data in (one, other))
    if a.shape != b.shape:
        return True
    h, w = (side // block * block for side in a.shape)
    blocks = np.abs(a - b)[:h, :w].reshape(h // block, block, w // block, block).mean((1, 3))
    return bool(blocks.max() > 10)


def test_every_pdf_has_an_svg_of_the_same_figure() -> None:
    all_files = files()
    pdf = [name for name in all_files if name.endswith(".pdf")]
    assert pdf
    assert all(name.replace(".pdf", ".svg") in all_files for name in pdf)
    assert all_files[pdf[0]]().startswith(b"%PDF")


def test_drawing_again_gives_the_same_bytes(drawn: dict[str, bytes]) -> None:
    again = files()
    some = [*[name for name in drawn if name.endswith(STABLE)][::10], "demo_errors.png", "audit/seam.png"]
    assert all(again[name]() == drawn[name] for name in some)


@pytest.mark.parametrize("name", figures.README)
def test_the_readmes_show_the_results_there_are(name: str) -> None:
    text = (figures.ROOT / name).read_text(encoding="utf-8")
    assert figures.readme(name) == text, "run `make figures` and commit"
    assert text.count("| `kav11` |") == 1 + (name == "README.md")  # in English there is a table of models too


def test_a_readme_without_a_place_for_the_table_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("no comments here")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    with pytest.raises(KAError, match="one pair of comments"):
        figures.readme("README.md")
    place = "<!-- laptop: made by make figures -->\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(place + "<!--answer: 7. Windows or image | no such-->?<!--/-->")
    with pytest.raises(KAError, match="has no comparison 'no such'"):
        figures.readme("README.md")


def test_a_picture_with_another_digit_is_stale() -> None:
    """The comparison above can fail: a number in a title of error maps changes by one."""
    figure = figures.demo_errors()
    before = png(figure)
    title = figure.axes[0].get_title()
    figure.axes[0].set_title(title[:-1] + str((int(title[-1]) + 1) % 10))
    assert not _differ(before, before)
    assert _differ(before, png(figure))


def test_make_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    """Files are written, left-overs removed, errors told in a line."""
    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    monkeypatch.setattr(figures, "README", {})
    monkeypatch.setattr(figures, "files", lambda: {"a/b.csv": lambda: b"1"})
    (tmp_path / "old.svg").write_text("")  # type: ignore[operator]
    assert figures.main() == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.csv"]  # type: ignore[attr-defined]

    def broken() -> bytes:
        raise KAError("no results")

    monkeypatch.setattr(figures, "files", lambda: {"a/b.csv": broken})
    assert figures.main() == 2
    assert "error: no results" in capsys.readouterr().err
