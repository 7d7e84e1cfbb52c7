"""A run is a folder; this is what lies in it, and how it survives being killed.

    config.json         what was asked for
    environment.json    versions, commit, hardware of every start; digests of data and response; its first weights
    history.jsonl       a line per validation (and the loss since the last one)
    checkpoint.pt       everything needed to go on (weights, averages, optimiser, step)
    best.safetensors    the weights that validation chose; last.safetensors, average.safetensors: the final ones
    metrics.json        the test scenes, one by one, for every method; its presence means the run is finished

Every file but the history is replaced whole; the history is cut back to the checkpoint when a run goes on.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from ka.data import SceneSet
from ka.data.own.responses import names_file
from ka.errors import KAError, is_whole
from ka.files import user_path, write_bytes, write_json
from ka.models.checkpoints import load_checkpoint, save_weights, weights_file
from ka.models.own.adapter import Model, find_network
from workbook.environment import environment
from workbook.paths import runs_folder
from workbook.training.config import Config

FILES = (
    *("checkpoint.pt", "metrics.json", "best.safetensors", "last.safetensors", "average.safetensors"),
    *("history.jsonl", "environment.json", "config.json"),
)
RUNS = "RUNS= of make explore, runs in a notebook"  # what a folder of runs is called at each door


@dataclass(frozen=True)
class Run:
    """The run folder `path`."""

    path: Path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process alone; a `KAError` if another has it, or it cannot be written."""
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout:
            cure = "another process trains here; wait for it, or choose another run_dir"
            raise KAError(f"{self.path} is in use: {cure}") from None
        except OSError as error:
            reason = error.strerror or error
            raise KAError(f"{self.path} cannot be written ({reason}); choose another run_dir") from error
        try:
            yield
        finally:
            lock.release()

    @property
    def finished(self) -> bool:
        """Whether the run ended and its test scenes were measured."""
        return (self.path / "metrics.json").exists()

    def config(self) -> Config | None:
        """The configuration that the run was started with, None for a new folder."""
        path = self.path / "config.json"
        if not path.exists():
            return None
        try:
            return Config(**self._json("config.json"))
        except TypeError as error:
            cure = "choose another run_dir, or restart=True"
            raise KAError(f"{path} is of another version of this workbook ({error}); {cure}") from error

    def metrics(self) -> dict[str, Any]:
        """What was measured at the end (see `workbook.training.finish`)."""
        return self._json("metrics.json")

    def _json(self, name: str) -> dict[str, Any]:
        path, cure = self.path / name, "restore it, or train again with restart=True"
        try:
            value = json.loads(path.read_text())
        except FileNotFoundError:
            raise KAError(f"{path} does not exist; is the run finished? train it with the same command") from None
        except (OSError, ValueError) as error:
            raise KAError(f"{path} is damaged ({error}); {cure}") from error
        if not isinstance(value, dict):
            raise KAError(f"{path} does not hold a JSON object; {cure}")
        return value

    def check(self, config: Config) -> None:
        """Make sure that the folder holds no other run; a `KAError` lists what differs in its configuration."""
        if (before := self.config()) is None:
            return
        old, new = before.to_dict(), config.to_dict()
        # Where the run and its data lie and how often it is saved do not change its outcome (see `check_data`).
        free = {"run_dir", "checkpoint_every", "data_root"}
        free |= {"init"} if config.init and before.init else set()  # `begun_from` looks at the weights themselves
        if names_file(before.srf) and names_file(config.srf) and self._noted("srf"):
            free |= {"srf"}
        differing = [key for key in new if key not in free and old[key] != new[key]]
        if differing:
            changed = [f"{key}: {old[key]!r} there, {new[key]!r} asked" for key in differing]
            cure = "choose another run_dir, or restart=True to train it anew"
            if self.finished and set(differing) <= {"iterations", "epochs"}:
                longer = f"-p init {self.path} -p run_dir NEW -p {differing[0]} N"
                cure = f"to train it longer, by N, begin a new run with its weights: {longer}"
            raise KAError(f"{self.path} holds another run ({'; '.join(changed)}); {cure}")

    def check_data(self, digest: str, srf: str | None = None) -> None:
        """Make sure that these are the data and the response (None: unknown) that the run was begun with, wherever they
        lie; a `KAError` if not. Runs of former versions noted nothing of them.
        """
        if self._noted("data") not in (None, digest):
            cure = "give those, choose another run_dir, or restart=True to train it anew"
            raise KAError(f"{self.path} was begun on other data than these (number, size or values differ); {cure}")
        if srf is not None and self._noted("srf") not in (None, srf):
            cure = "give that (srf, wavelengths), choose another run_dir, or restart=True to train it anew"
            raise KAError(f"{self.path} was begun with another response than this (bands or values differ); {cure}")

    def _noted(self, key: str) -> Any:
        """What environment.json holds, None where there is nothing."""
        return self._json("environment.json").get(key) if (self.path / "environment.json").exists() else None

    def start(
        self,
        config: Config,
        digest: str | None = None,
        init: Mapping[str, str] | None = None,
        srf: str | None = None,
    ) -> None:
        """Note configuration, environment, data and `begun_from`, and sweep up what a killed process was writing."""
        for part in self.path.glob(".*.part"):
            part.unlink()
        write_json(self.path / "config.json", config.to_dict())
        noted = {"starts": [*(self._noted("starts") or []), environment()], "data": digest, "srf": srf}
        write_json(self.path / "environment.json", noted | ({"init": dict(init)} if init else {}))

    def begun_from(self, config: Config, anew: bool = False) -> dict[str, str] | None:
        """Path and digest of the weights that the run begins with, None for fresh ones; as noted at its first start.

        `anew`: whatever the folder holds. A `KAError` if they are not there (and the run has no checkpoint yet), or are
        others than those that it began with.
        """
        if config.init is None:
            return None
        noted: dict[str, str] | None = None if anew else self._noted("init")
        before = self.config()
        gone = before is not None and before.init == config.init and not Path(config.init).exists()
        if noted is not None and gone and (self.path / "checkpoint.pt").exists():
            return noted
        file = weights_file(config.init)
        if self.path.resolve() in (file.parent.resolve(), file.resolve()):
            raise KAError(f"init={config.init!r} is of this run itself; choose another run_dir for the new one")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if noted is not None and noted["sha256"] != digest:
            cure = "give those again, or choose another run_dir"
            raise KAError(f"{file} holds other weights than those that {self.path} began with; {cure}")
        return noted or {"path": str(file.resolve()), "sha256": digest}

    def clear(self) -> None:
        """Remove what a former run left, and nothing else."""
        for name in FILES:  # the configuration last: a kill leaves no checkpoint that another one could find
            (self.path / name).unlink(missing_ok=True)

    def history(self) -> list[dict[str, Any]]:
        """What was noted during training, in order; a half-written last line (a killed run's) is left out."""
        path = self.path / "history.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        notes = []
        for number, line in enumerate(lines):
            try:
                note = json.loads(line)
                if not isinstance(note, dict) or not is_whole(note.get("step")):
                    raise ValueError
                notes.append(note)
            except ValueError:
                if number < len(lines) - 1:
                    raise KAError(f"{path}, line {number + 1} is damaged; restore it, or use restart=True") from None
        return notes

    def cut_history(self, step: int) -> list[dict[str, Any]]:
        """Drop what was noted after `step` (the run goes on from there) and give the rest."""
        notes = [note for note in self.history() if note["step"] <= step]
        write_bytes(self.path / "history.jsonl", "".join(json.dumps(note) + "\n" for note in notes).encode())
        return notes

    def note(self, **values: Any) -> None:
        """Append a line to the history."""
        path = self.path / "history.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(values, allow_nan=False) + "\n")
        except OSError as error:
            cure = "free some space and run the same command again"
            raise KAError(f"{path}: {error.strerror or error}; {cure}") from error

    def save(self, state: Mapping[str, Any]) -> None:
        """Write the resumable checkpoint, whole or not at all."""
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        write_bytes(self.path / "checkpoint.pt", buffer.getvalue())

    def resume(self) -> dict[str, Any] | None:
        """The resumable checkpoint, None if there is none; a `KAError` if it is damaged."""
        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, dict) or "step" not in state:
                raise KeyError("step")
        except Exception as error:
            raise KAError(f"{path} is damaged; restore a copy, or start anew with restart=True") from error
        return state

    def save_model(self, name: str, model: Model, step: int, weights: str, scenes: SceneSet) -> None:
        """Write weights as `best`, `last` or `average`, with the iteration and the kind (last, average) they are of,
        and ratio and unit of the scenes that they are for.
        """
        noted: dict[str, Any] = {"step": step, "weights": weights, "ratio": scenes.ratio, "unit": scenes.unit}
        save_weights(self.path / f"{name}.safetensors", model, **noted)

    def model(self, which: str = "best") -> Model:
        """The model with the run's `best`, `last` or `average` weights. A user's own network is imported by the name in
        config.json (never by one in a file of weights).
        """
        config, path = self.config(), self.path / f"{which}.safetensors"
        if config is None or config.model is None:
            return load_checkpoint(path)
        return load_checkpoint(path, model=find_network(config.model))

    def best(self) -> tuple[int, str]:
        """Step of the best weights, and whether they are the last or the average ones: as their file says.

        On a GPU they may be of a validation that a kill made the checkpoint forget, and that came out otherwise later.
        """
        path = self.path / "best.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata()
            return int(header["step"]), header["weights"]
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise KAError(f"{path} is missing or damaged; restore it, or train again with restart=True") from error


def begun_runs(paths: Sequence[str | Path]) -> list[tuple[Run, Config]]:
    """Runs and what they were started with; no path at all, or one that holds no run, is a `KAError`."""
    runs = [(run, config) for run in map(Run, map(Path, paths)) if (config := run.config()) is not None]
    if not runs or len(runs) < len(paths):
        raise KAError(f"{', '.join(map(str, paths)) or 'nothing'}: finished run folders are expected; train them first")
    return runs


def finished_runs(folder: str | Path | None = None) -> dict[str, Path]:
    """Finished runs in a folder (None: the checkout's `runs/`), by name: of run folders, of sweeps and of a campaign of
    sweeps, down to three levels. A name that is there twice is that of its path. No such folder is a `KAError`.
    """
    if folder is not None and not user_path(folder).is_dir():
        raise KAError(f"{folder} is no folder; give one that holds runs ({RUNS}), or leave it out")
    top, found = user_path(folder or runs_folder()), dict[str, Path]()
    for depth in range(4):
        for run in (path.parent for path in sorted(top.glob("*/" * depth + "metrics.json"))):
            name = run.resolve().name
            found[str(run.relative_to(top)) if name in found else name] = run
    return found
