"""The end of a run: its final weights, and every method measured on the whole test scenes."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ka import evaluation, metrics
from ka.data import Scene, simulate
from ka.errors import KAError
from ka.evaluation import evaluate
from ka.files import write_json
from ka.inference import Network
from ka.methods import Method, attention, consistency, injection, local
from ka.models.counts import parameters_of
from workbook.training.devices import forget_peak, peak_bytes
from workbook.training.run import Run
from workbook.training.scenes import Data
from workbook.training.step import State


def finish(run: Run, scenes: Data, state: State, bar: bool = True) -> None:
    """Write the final weights and metrics.json: every method on the test scenes.

    Those without training are measured once for all runs of a folder (see `_untrained`). Of the run's weights the best
    ones are, and where nothing was held out to choose by, their average too: each costs a minute on CAVE, and the final
    ones lie in the folder.
    Peak memory is the GPU's, or that of this whole process (which holds the scenes too), since its start.
    """
    model, device = state.model, state.device
    memory = {"training_mib": round(peak_bytes(device) / 2**20)}
    forget_peak(device)
    for which, weights in (("last", model), ("average", state.average)):
        run.save_model(which, weights.eval(), state.step, which, scenes.test)
    if not state.best_of:  # nothing was held out: the last weights count
        run.save_model("best", model, state.step, "last", scenes.test)
    best_step, best_of = run.best()
    methods: dict[str, Method] = {"best": Network(run.model("best").to(device))}
    if not state.best_of:
        methods["average"] = Network(state.average)
    evaluations = _untrained(run, scenes)
    for name, method in tqdm(methods.items(), desc="test scenes", disable=not bar):
        evaluations[name] = evaluate(method, scenes.test).to_dict()
    if best_step == state.step:
        evaluations[best_of] = evaluations["best"]
    memory["test_mib"] = round(peak_bytes(device) / 2**20)
    count = parameters_of(model)
    values = {
        "variant": model.row.name,
        "dataset": scenes.test.name,
        "split": "test",
        "test_digest": scenes.test_digest,
        "ratio": scenes.test.ratio,
        "best": {"step": best_step, "weights": best_of},
        "iterations": state.step,
        "seconds": round(state.seconds, 1),
        "memory": memory,
        "parameters": {"live": count.live, "reported": count.reported, "deployed": count.deployed},
        "methods": evaluations,
    }
    write_json(run.path / "metrics.json", values)


def _untrained(run: Run, scenes: Data) -> dict[str, Any]:
    """Metrics of the methods without training, which all runs of a folder on the same scenes have in common.

    In a folder called `runs`, the checkout's or a sweep's, they are kept beside the runs, under a digest of all that
    they follow from: test scenes, the methods' values, and the code that makes and measures their images.
    """
    if run.path.parent.name != "runs":
        return {name: evaluate(method, scenes.test).to_dict() for name, method in scenes.untrained.items()}
    modules = (attention, consistency, injection, local, simulate, evaluation, metrics)
    code = [inspect.getsource(module) for module in modules]
    digest, evaluations = hashlib.sha256("".join(code).encode()), {}
    for name, method in scenes.untrained.items():
        values = json.dumps([scenes.test_digest, method.to_dict()], sort_keys=True)  # type: ignore[attr-defined]
        key = hashlib.sha256(digest.digest() + values.encode()).hexdigest()[:24]
        path = run.path.parent / ".untrained" / f"{key}.json"
        try:
            evaluations[name] = json.loads(path.read_text())
        except (OSError, ValueError):
            evaluations[name] = evaluate(method, scenes.test).to_dict()
            with suppress(KAError):  # a folder that may not be written costs half a minute a run
                write_json(path, evaluations[name])
    return evaluations


def images(run: Run, scenes: Data, scene: Scene) -> Mapping[str, np.ndarray]:
    """What each method makes of a loaded scene, `bands h w`: the methods without training, the run's best weights."""
    model = run.model()
    methods = scenes.untrained | {model.row.name: Network(model)}
    return {name: method(scene).numpy() for name, method in methods.items()}
