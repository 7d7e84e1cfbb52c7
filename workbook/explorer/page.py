"""The page of `make explore`: a tab for each explorer, drawn when first opened; a reload keeps what was chosen."""

import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ipywidgets

from ka.errors import KAError
from ka.files import write_json
from workbook.explorer.catalog import Catalog
from workbook.explorer.controls import Explorer, shown
from workbook.explorer.widgets import AttentionExplorer, FieldExplorer, KernelExplorer

TABS: Mapping[str, Callable[[Catalog, Mapping[str, Any]], Explorer]] = {
    "Kernels": KernelExplorer,
    "Attention": AttentionExplorer,
    "Kernel field": FieldExplorer,
}


class Page:
    """`box` is to be shown. `kept` is a JSON file of what was chosen last, None to keep nothing."""

    def __init__(self, catalog: Catalog, kept: str | Path | None = None) -> None:
        self.catalog, self.kept = catalog, kept
        self.explorers: dict[str, Explorer] = {}
        self.chosen = self._read()
        self.tabs = ipywidgets.Tab([ipywidgets.VBox() for _ in TABS], titles=list(TABS))
        notices = [f"<b>{html.escape(line)}</b>" for line in catalog.notices]
        self.box = ipywidgets.VBox([ipywidgets.HTML("<br>".join(notices)).add_class("ka-notices"), self.tabs])
        self.open(self.chosen.get("tab"))
        self.tabs.observe(lambda change: self.open(list(TABS)[change["new"]]), names="selected_index")

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return shown(self.box, self.explorers[list(TABS)[self.tabs.selected_index or 0]])

    def open(self, title: object) -> None:
        """Show a tab, the first for a name that is none; its explorer is made now if it was not before."""
        at = list(TABS).index(title) if isinstance(title, str) and title in TABS else 0
        title = list(TABS)[at]
        if title not in self.explorers:
            before = self.chosen.get(title)
            explorer = TABS[title](self.catalog, before if isinstance(before, dict) else {})
            for control in explorer.controls.values():
                control.observe(self.keep, names="value")
            self.explorers[title] = explorer
            children = list(self.tabs.children)
            children[at] = explorer.box
            self.tabs.children = children
        self.tabs.selected_index = at
        self.keep()

    def keep(self, change: object = None) -> None:
        """Note what is chosen; where that cannot be written, a reload begins anew."""
        self.chosen["tab"] = list(TABS)[self.tabs.selected_index or 0]
        for title, explorer in self.explorers.items():
            self.chosen[title] = {name: control.value for name, control in explorer.controls.items()}
        if self.kept is not None:
            try:
                write_json(self.kept, self.chosen)
            except KAError:
                self.kept = None

    def _read(self) -> dict[str, Any]:
        try:
            chosen = json.loads(Path(self.kept).read_text(encoding="utf-8")) if self.kept is not None else {}
        except (OSError, ValueError):
            return {}
        return chosen if isinstance(chosen, dict) else {}
