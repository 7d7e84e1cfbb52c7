"""What a sweep is to train, in a file: `plan.json` holds a protocol's fields, once, and the list of its runs.

What belongs to a machine (where the data lie, the device, how many run at a time) is not in it, so that the folder can
go on elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from ka.errors import KAError, unknown
from ka.files import write_json
from ka.models.variants import VARIANTS
from workbook.environment import environment
from workbook.training.config import PRESETS, Config

NOT_SHARED = ("variant", "model", "init", "seed", "run_dir", "data_root", "device")


def all_rows() -> tuple[str, ...]:
    """Every row of the table: the study's first, then those that answer a question of their own."""
    return tuple(sorted(VARIANTS, key=lambda name: VARIANTS[name].ours))


@dataclass(frozen=True)
class Planned:
    """One run of a plan."""

    variant: str
    seed: int

    @property
    def name(self) -> str:  # of its folder and its files
        return f"{self.variant}-seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep."""

    protocol: str  # the preset it began with
    shared: dict[str, Any]  # fields of `Config` that all runs share
    runs: tuple[Planned, ...]  # what is to be trained, in order
    made: dict[str, Any] | None = None  # when, by which version and commit
    format: Literal[1] = 1  # of the file

    @classmethod
    def new(
        cls, protocol: str, variants: Sequence[str] | None = None, seeds: Sequence[int] | None = None, **changes: Any
    ) -> Self:
        """A plan of a preset, seed by seed: of the row that the preset names, else of all; of the preset's seed; with
        fields of `Config` changed. An unknown preset, variant or field, or an impossible value, is a `KAError`.
        """
        if protocol not in PRESETS:
            raise unknown("protocol", protocol, PRESETS)
        _check_changes(changes)
        embedded = changes.get("dataset", PRESETS[protocol].get("dataset", Config.dataset)) == "indian_pines"
        base = Config.preset(protocol, data_root=None if embedded else "here", **changes)
        shared = {key: value for key, value in base.to_dict().items() if key not in NOT_SHARED}
        now = environment()
        made = {key: now[key] for key in ("time", "commit")}
        made["version"] = now["packages"]["kernel-attention-workbook"]
        usual = (base.variant,) if "variant" in PRESETS[protocol] else all_rows()
        return cls(protocol, shared, (), made).extended(variants or usual, seeds or (base.seed,))

    def extended(self, variants: Sequence[str] | None = None, seeds: Sequence[int] | None = None) -> Self:
        """The plan with further variants (None: those it has) of further seeds (None: those it has)."""
        variants = list(variants or dict.fromkeys(planned.variant for planned in self.runs))
        seeds = list(seeds or dict.fromkeys(planned.seed for planned in self.runs))
        wanted = [Planned(variant, seed) for seed in seeds for variant in variants]
        for planned in wanted:
            self.config(planned)
        return replace(self, runs=tuple(dict.fromkeys((*self.runs, *wanted))))

    def config(
        self, planned: Planned, data: str | None = None, device: str = "auto", run_dir: str | None = None
    ) -> Config:
        place = data if data is not None or self.shared["dataset"] == "indian_pines" else "not kept"
        here = {"variant": planned.variant, "seed": planned.seed, "data_root": place, "device": device}
        return Config(**self.shared | here, run_dir=run_dir)

    def check(self, protocol: str | None, **changes: Any) -> None:
        """Hold what is asked against what was planned (a protocol of None was not asked): a `KAError` lists how they
        differ.
        """
        _check_changes(changes)
        there = {"protocol": self.protocol} | self.shared
        asked = ({} if protocol is None else {"protocol": protocol}) | changes
        others = [(key, value) for key, value in asked.items() if there[key] != value]
        if others:
            differences = "; ".join(f"{key}: {there[key]!r} there, {value!r} asked" for key, value in others)
            cure = "leave these out to go on with it (only --variants and --seeds may add to it)"
            raise KAError(f"the plan is another ({differences}); {cure}, or choose another --out")

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The plan in a file, None where there is none; one that is damaged or of another version is a `KAError`."""
        try:
            plan = msgspec.json.decode(path.read_bytes(), type=cls)
            usual = {field.name: field.default for field in fields(Config) if field.name not in NOT_SHARED}
            plan = replace(plan, shared=usual | plan.shared)  # fields that were added since have their defaults
            if plan.protocol not in PRESETS:
                raise unknown("protocol", plan.protocol, PRESETS)
            for planned in plan.runs:
                plan.config(planned)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, OSError, ValueError, LookupError, TypeError) as error:
            what = f"{path} is damaged or of another version of this workbook ({error})"
            raise KAError(f"{what}; restore it, or choose another --out") from error
        return plan


def _check_changes(changes: Mapping[str, Any]) -> None:
    allowed = [field.name for field in fields(Config) if field.name not in NOT_SHARED]
    if refused := sorted(set(changes) - set(allowed)):
        raise KAError(f"{', '.join(refused)} cannot be set for all runs of a plan; allowed are {', '.join(allowed)}")
