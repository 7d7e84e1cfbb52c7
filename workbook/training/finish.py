"""The end of a run: its final weights, and every method measured on the whole test scenes."""

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ka.data import Scene
from ka.evaluation import Method, evaluate, upsampled
from ka.files import write_json
from ka.inference import Network
from ka.models.counts import parameter_count
from workbook.training.devices import forget_peak, peak_bytes
from workbook.training.run import Run
from workbook.training.scenes import Data
from workbook.training.step import State


def finish(run: Run, scenes: Data, state: State, bar: bool = True) -> None:
    """Write the final weights and metrics.json: every method on the test scenes.

    Methods without training are measured in every run: on CAVE that takes a quarter of a minute.
    Peak memory is the GPU's, or that of this whole process (which holds the scenes too), since its start.
    """
    model, device = state.model, state.device
    memory = {"training_mib": round(peak_bytes(device) / 2**20)}
    forget_peak(device)
    for which, weights in (("last", model), ("average", state.average)):
        run.save_model(which, weights.eval(), state.step, which, scenes.test.ratio)
    if not state.best_of:  # nothing was held out: the last weights count
        run.save_model("best", model, state.step, "last", scenes.test.ratio)
    best_step, best_of = run.best()
    methods = _untrained(scenes) | {"last": Network(model), "average": Network(state.average)}
    if best_step != state.step:
        methods["best"] = Network(run.model("best").to(device))
    evaluations = {}
    with tqdm(total=len(methods) * len(scenes.test), desc="test scenes", disable=not bar) as progress:
        for name, method in methods.items():

            def counted(scene: Scene, method: Method = method) -> Tensor:
                progress.update()
                return method(scene)

            evaluations[name] = evaluate(counted, scenes.test).to_dict()
    if "best" not in evaluations:
        evaluations["best"] = evaluations[best_of]
    memory["test_mib"] = round(peak_bytes(device) / 2**20)
    count = parameter_count(model.row.name, model.n_bands, model.n_msi, model.dim)
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


def _untrained(scenes: Data) -> dict[str, Method]:
    return {"bicubic": upsampled, "linear injection": scenes.injection}


def images(run: Run, scenes: Data, scene: Scene) -> Mapping[str, np.ndarray]:
    """What each method makes of a loaded scene, `bands h w`: bicubic, linear injection, the run's best weights."""
    model = run.model()
    methods = _untrained(scenes) | {model.row.name: Network(model)}
    return {name: method(scene).numpy() for name, method in methods.items()}
