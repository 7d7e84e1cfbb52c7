"""How methods stand what they were not made for: noise, another blur, another response than they assume.

`python -m workbook.robustness CAVE_FOLDER RUN…` measures the test scenes' middles with the methods without training and
the runs' weights, and keeps the means in results/robustness.json.
"""

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib import colormaps
from matplotlib.figure import Figure
from tabulate import tabulate
from tqdm import tqdm

from ka.data import Degradation, Scene, SceneSet, bicubic, observe
from ka.errors import KAError
from ka.evaluation import evaluate
from ka.inference import Network
from ka.methods import Method
from ka.methods.consistency import Consistent
from workbook.results.stored import SHOWN, Means, means, measure_runs
from workbook.style import styled
from workbook.training.run import begun_runs
from workbook.training.scenes import centre, data_at

COLOURS = colormaps["tab10"]  # a method each, and a line for what its image is made to agree with
STYLES = {"spectral": "--", "both": "-", "consistent": "-", "none": "-."}
SIDE = 256  # of the middle of a scene


@dataclass(frozen=True)
class Condition:
    """How the observations are really made, while methods assume those of the benchmark."""

    noise: float | None = None  # white noise in both images: signal-to-noise ratio of each band, in dB
    sigma: float | None = None  # of the true blur, in pixels, in a 7×7 kernel; methods assume 0.5 in 3×3
    shift: float = 0.0  # nm by which the true response lies above the assumed one

    def scene(self, gt: Scene, scenes: SceneSet) -> Scene:
        """A truth as it is observed under this condition.

        Raises:
            KAError: a shift, but the set's response or wavelengths are not known.
        """
        if scenes.srf is None or scenes.wavelengths is None:
            raise KAError(f"{scenes.name}: response and wavelengths must be known; use dataset cave")
        degradation = scenes.degradation if self.sigma is None else Degradation(scenes.ratio, 7, self.sigma)
        seen = observe(gt.name, gt.gt, shifted(scenes.srf, scenes.wavelengths, self.shift), degradation)
        if self.noise is None:
            return seen
        rng = np.random.default_rng(list(gt.name.encode()))
        lr, msi = (with_noise(image, self.noise, rng) for image in (seen.lr, seen.msi))
        return Scene(seen.name, seen.gt, lr, bicubic(lr, scenes.ratio), msi)


CONDITIONS: Mapping[str, Condition] = {
    "as assumed": Condition(),
    **{f"noise {decibel} dB": Condition(noise=decibel) for decibel in (50, 40, 30)},
    **{f"blur σ {sigma}": Condition(sigma=sigma) for sigma in (0.4, 0.7, 1.0)},
    **{f"response +{shift} nm": Condition(shift=shift) for shift in (5, 10)},
}


def with_noise(image: Float[np.ndarray, "c h w"], decibel: float, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise, in each band at a signal-to-noise ratio (mean square over variance) of `decibel`."""
    sigma = np.sqrt((image.astype(np.float64) ** 2).mean((1, 2), keepdims=True) / 10 ** (decibel / 10))
    return (image + sigma * rng.standard_normal(image.shape)).astype(np.float32)


def shifted(srf: np.ndarray, wavelengths: np.ndarray, shift: float) -> Float[np.ndarray, "channels bands"]:
    """A response moved to longer wavelengths by `shift` nm, each channel's sum as before."""
    if not shift:
        return srf
    order = np.argsort(wavelengths, kind="stable")  # AVIRIS's spectrometers overlap: its table steps back
    moved = np.stack([np.interp(wavelengths - shift, wavelengths[order], channel[order]) for channel in srf])
    return moved * srf.sum(1, keepdims=True) / moved.sum(1, keepdims=True)


def measure(root: str | Path, runs: Sequence[str | Path]) -> Means:
    """Condition → method → mean of each metric over the scenes; the configuration is the first run's.

    Raises:
        KAError: no run; one that is not finished or not of this data; no data.
    """
    begun = begun_runs(runs)
    data = data_at(begun[0][1], root)
    methods: dict[str, Method] = dict(data.untrained)
    if data.consistency is not None:
        methods["local injection, consistent"] = Consistent(methods["local injection"], data.consistency)
    for run, config in begun:
        model = run.model()
        methods[f"{config.variant}, {config.consistency}"] = Network(model)
        if model.consistency is not None and model.consistency.kind == "both":
            spectral = copy.copy(model)  # the HR-MSI alone: it was trained through that
            spectral.consistency = replace(model.consistency, kind="spectral")
            methods[f"{config.variant}, spectral"] = Network(spectral)
    middles = [centre(scene, SIDE) for scene in data.test]
    measured: dict[str, dict[str, dict[str, float]]] = {}
    for name, condition in tqdm(CONDITIONS.items(), desc="conditions"):
        scenes = replace(data.test, scenes=[condition.scene(scene, data.test) for scene in middles])
        evaluations = {title: evaluate(method, scenes, list(SHOWN)) for title, method in methods.items()}
        measured[name] = {title: {m: one.mean(m) for m in SHOWN} for title, one in evaluations.items()}
    return measured


def to_markdown(measured: Means) -> str:
    """PSNR in dB, a row per method and a column per condition."""
    methods = list(next(iter(measured.values())))
    rows = [[method, *(f"{values[method]['psnr']:.2f}" for values in measured.values())] for method in methods]
    return tabulate(rows, ["PSNR (dB)", *measured], tablefmt="github", disable_numparse=True) + "\n"


@styled
def chart(measured: Means) -> Figure:
    """PSNR of every method under every condition, a panel each for noise, blur and response."""
    groups = {
        word: ["as assumed", *(c for c in measured if c.startswith(word))] for word in ("noise", "blur", "response")
    }
    methods = list(measured["as assumed"])
    names = list(dict.fromkeys(method.partition(", ")[0] for method in methods))
    widths = np.linspace(3, 0.8, len(methods))  # or lines that nearly agree would hide each other
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, len(groups), sharey=True)
    for axis, (word, conditions) in zip(axes, groups.items(), strict=True):
        for method, width in zip(methods, widths, strict=True):
            values = [measured[condition][method]["psnr"] for condition in conditions]
            name, _, how = method.partition(", ")
            line = {"color": COLOURS(names.index(name)), "linewidth": width}
            axis.plot(range(len(values)), values, STYLES.get(how, ":"), marker=".", label=method, **line)
        axis.set_xticks(range(len(conditions)), [c.removeprefix(word).strip() for c in conditions], fontsize=7)
        axis.set_title(word)
    axes[0].set_ylabel("PSNR (dB)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
    return figure


read = partial(means, "robustness")
main = partial(measure_runs, "workbook.robustness", measure)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
