"""figures/ is what `make figures` draws: a committed file that is stale is named here."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from benchmarks import __main__ as benchmarks
from ka.errors import KAError
from workbook import documents, figures
from workbook.figures import FOLDER, STABLE, Encode
from workbook.style import png


def files() -> dict[str, Encode]:
    return figures.files() | benchmarks.figure_files()


@pytest.fixture(scope="module")
def drawn() -> dict[str, bytes]:
    """All but PDF files, which hold fonts and are not compared: their SVG twins are."""
    return {name: encode() for name, encode in files().items() if not name.endswith(".pdf")}


def test_nothing_is_missing_or_left_over() -> None:
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file()}
    assert there == set(files()), "run `make figures` and commit"


@pytest.mark.slow
def test_text_and_vector_files_are_up_to_date(drawn: dict[str, bytes]) -> None:
    stable = [name for name in drawn if name.endswith(STABLE)]
    assert any(name.endswith(".svg") for name in stable)
    assert any(name.endswith(".csv") for name in stable)
    stale = [name for name in stable if drawn[name] != (FOLDER / name).read_bytes()]
    assert not stale, "run `make figures` and commit"


@pytest.mark.slow
def test_pictures_are_up_to_date(drawn: dict[str, bytes]) -> None:
    """Sums round differently on other machines: a colour may differ by a little, here and there."""
    stale = [name for name in drawn if name.endswith(".png") and _differ(drawn[name], (FOLDER / name).read_bytes())]
    assert not stale, "run `make figures` and commit"


def _differ(first: bytes, second: bytes, block: int = 8) -> bool:
    """Whether any block of 8×8 pixels differs by more than 10 of 255 on average: less than a changed digit."""
    a, b = (np.asarray(PIL.Image.open(io.BytesIO(data)).convert("L"), dtype=float) for data in (first, second))
    if a.shape != b.shape:
        return True
    h, w = (side // block * block for side in a.shape)
    blocks = np.abs(a - b)[:h, :w].reshape(h // block, block, w // block, block).mean((1, 3))
    return bool(blocks.max() > 10)


@pytest.mark.slow
def test_every_pdf_has_an_svg_of_the_same_figure() -> None:
    all_files = files()
    pdf = [name for name in all_files if name.endswith(".pdf")]
    assert pdf
    assert all(name.replace(".pdf", ".svg") in all_files for name in pdf)
    assert all_files[pdf[0]]().startswith(b"%PDF")


@pytest.mark.slow
def test_drawing_again_gives_the_same_bytes(drawn: dict[str, bytes]) -> None:
    again = files()
    some = [*[name for name in drawn if name.endswith(STABLE)][::10], "demo_errors.png", "audit/seam.png"]
    assert all(again[name]() == drawn[name] for name in some)


def test_a_document_that_asks_for_what_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("<!-- desktop: made by make figures -->\n<!-- end -->\n")
    with pytest.raises(KAError, match="table 'desktop' is unknown"):
        documents.document("README.md")
    (tmp_path / "README.md").write_text("<!--answer: 7. Windows or image | no such-->?<!--/-->")
    with pytest.raises(KAError, match="'no such' is unknown"):
        documents.document("README.md")
    for lost in (
        "<!--verdicts: laptop-->?",
        "<!--scores: best: kav26_wide -->?<!--/-->",
        "<!--verdict: laptop-->?<!--/-->",
    ):
        (tmp_path / "README.md").write_text(f"{lost} words <!--verdicts: laptop-->?<!--/-->")
        with pytest.raises(KAError, match=r"README\.md: 1 marks are misspelt, or lack their end"):
            documents.document("README.md")


@pytest.mark.slow
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
    monkeypatch.setattr(figures, "DOCUMENTS", {})
    monkeypatch.setattr(figures, "files", lambda: {"audit/b.csv": lambda: b"1"})
    (tmp_path / "old.svg").write_text("")  # type: ignore[operator]
    assert figures.main() == 0
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["b.csv"]  # type: ignore[attr-defined]

    def broken() -> bytes:
        raise KAError("no results")

    monkeypatch.setattr(figures, "files", lambda: {"audit/b.csv": broken})
    assert figures.main() == 2
    assert "error: no results" in capsys.readouterr().err
