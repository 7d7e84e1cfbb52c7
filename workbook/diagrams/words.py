"""Labels in two languages. The English text is its own key; the Chinese (terms of the study) lies in `zh.json`."""

import importlib.metadata
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.font_manager import fontManager

from ka.errors import KAError

#: Families with Chinese glyphs, as Debian and others install them, where zhplot of PyPI is not.
CHINESE_FONTS = (
    *("Noto Sans SC", "Noto Sans CJK SC", "Source Han Sans SC", "Source Han Sans CN"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei"),
    "Noto Sans CJK JP",  # the face of Debian's Noto collection that matplotlib finds; it has these characters too
)


CHINESE: dict[str, str] = json.loads(Path(__file__).with_name("zh.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Words:
    """Text in one language, `en` or `zh` (terms of the study); another one is a `KAError`."""

    language: str

    def __post_init__(self) -> None:
        if self.language not in ("en", "zh"):
            raise KAError(f"language {self.language!r} is unknown; choose 'en' or 'zh'")

    def __call__(self, english: str, **values: object) -> str:
        return (CHINESE[english] if self.language == "zh" else english).format(**values)

    def font(self) -> dict[str, Any]:
        """Arguments of `FontProperties` that give this language its glyphs (in Chinese of one weight). Without a font
        that has them, a `KAError`.
        """
        if self.language == "en":
            return {}
        # The package's font first, so that files are the same everywhere; to import it would change matplotlib's style.
        with suppress(importlib.metadata.PackageNotFoundError):
            package = importlib.metadata.distribution("zhplot")
            file = Path(str(package.locate_file("zhplot/fonts/NotoSansSC-Regular.ttf")))
            if file.exists():
                return {"fname": str(file), "weight": "normal"}
        installed = {entry.name for entry in fontManager.ttflist}
        for family in CHINESE_FONTS:
            if family in installed:
                return {"family": [family, "DejaVu Sans"], "weight": "normal"}
        cure = "pip install zhplot (or, on Debian, apt install fonts-wqy-microhei), or choose language='en'"
        raise KAError(f"no font with Chinese glyphs is installed, and language='zh' needs one; {cure}")
