"""Data sets that the field knows by name: how their files are read and split, and where they come from.

None of them was at hand: what is stated is what their sources say, and the split is this workbook's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ka.data.own.files import Reading
from ka.errors import KAError
from ka.files import user_path


@dataclass(frozen=True)
class Known:
    """A data set in the user's folder."""

    files: tuple[str, ...]  # patterns of its files, the first that is there counts
    reading: Reading  # of its MATLAB files; other formats know their axes
    source: str


KNOWN: Mapping[str, Known] = {
    "harvard": Known(
        ("img*.mat", "CZ_hsdb/img*.mat"),
        Reading(key="ref", axes="h w c", wavelengths="420,720"),
        "Chakrabarti, Zickler, Statistics of Real-World Hyperspectral Images, CVPR 2011: 50 scenes, 1040×1392×31",
    ),
    "chikusei": Known(
        ("HyperspecVNIR_Chikusei_20140729.mat", "*hikusei*.mat", "*hikusei*.hdr"),
        Reading(axes="h w c", wavelengths="363,1018"),
        "Yokoya, Iwasaki, Airborne hyperspectral data over Chikusei, University of Tokyo 2016: 2517×2335×128",
    ),
    "pavia_university": Known(
        ("PaviaU.mat", "paviaU*.mat"),
        Reading(key="paviaU", axes="h w c", wavelengths="430,860"),
        "ROSIS, Gamba, University of Pavia: 610×340×103",
    ),
    "pavia_centre": Known(
        ("Pavia.mat", "pavia.mat"),
        Reading(key="pavia", axes="h w c", wavelengths="430,860"),
        "ROSIS, Gamba, University of Pavia: 1096×715×102",
    ),
    "washington_dc": Known(
        ("dc.tif", "DC.tif", "*[Dd][Cc]*.tif"),
        Reading(),  # which of HYDICE's 210 bands the 191 are is in no file: the wavelengths are the user's to give
        "HYDICE, Landgrebe, Purdue University: 1280×307×191",
    ),
}


def find_known(name: str, root: str | Path) -> tuple[list[Path], Reading]:
    """The files of a known data set in a folder (or the file itself), and how to read them.

    Raises:
        KAError: none of its files is there.
    """
    known, folder = KNOWN[name], user_path(root)
    for paths in [[folder]] if folder.is_file() else [sorted(folder.glob(pattern)) for pattern in known.files]:
        if paths:
            matlab = paths[0].suffix == ".mat"
            return paths, known.reading if matlab else replace(known.reading, axes=None, key=None)
    raise KAError(f"{root}: no {known.files[0]} ({known.source}); give the folder that holds it, or dataset='files'")
