"""A network of the user's own, as training, evaluation and files want a model.

`OwnModel` wraps it and bears what the pipeline asks of a `PSRT`; its `row` is a `Variant` without parts, so that
whoever asks for kernels, layers or a front is told that there are none. Its weights keep the network's own names.
"""

import importlib
import inspect
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from ka.errors import KAError, is_whole, one_line
from ka.methods.consistency import Consistency
from ka.methods.injection import Bicubic, Start
from ka.models.psrt import PSRT, Layer
from ka.models.variants import Variant

GIVEN = ("n_bands", "n_msi", "ratio", "dim")  # to a constructor, where it has arguments of these names


@dataclass(frozen=True)
class OwnRow(Variant):
    """The row of a model that is in no table; `name` is `package.module:Class`."""

    reach: int | None = None  # how many pixels away an input can change the output, as its class states

    def __post_init__(self) -> None:
        """There are no parts to check."""

    @property
    def adaptive(self) -> bool:
        """It does not fold."""
        return True

    def position_bound(self, h: int, w: int) -> str:
        """It is cut into tiles where its class states its reach."""
        return "" if self.reach is not None else "how far it looks is not known: state it as `reach`, in pixels"


class OwnModel(nn.Module):
    """A network called as network(up, msi), or with lr=… where its forward has a parameter of that name.

    It gives the sharpened image, of the shape of `up`; whether it adds to `up` is its own matter.
    """

    front = None
    body = None

    def __init__(self, network: nn.Module, name: str, n_bands: int, n_msi: int, ratio: int, dim: int) -> None:
        super().__init__()
        reach = getattr(network, "reach", None)
        if reach is not None and (not is_whole(reach) or reach < 0):
            raise KAError(f"{name}: reach={reach!r} is not a number of pixels; state a whole number, or none")
        self.row = OwnRow(name, body="", reach=reach)
        self.n_bands, self.n_msi, self.ratio, self.dim = n_bands, n_msi, ratio, dim
        self.unit: float | None = None
        self.start: Start = Bicubic()
        self.consistency: Consistency | None = None
        self.looks_at_lr = "lr" in inspect.signature(network.forward).parameters
        self.network = network

    def forward(
        self,
        up: Float[Tensor, "b n_bands h w"],
        msi: Float[Tensor, "b n_msi h w"],
        lr: Float[Tensor, "b n_bands h/ratio w/ratio"] | None = None,
    ) -> Float[Tensor, "b n_bands h w"]:
        """The sharpened image; a KAError if the network gives anything else."""
        if self.looks_at_lr and lr is None:
            raise KAError(f"{self.row.name} looks at the LR-HSI itself; give it too (lr=…)")
        image = self.network(up, msi, lr=lr) if self.looks_at_lr else self.network(up, msi)
        if not isinstance(image, Tensor) or image.shape != up.shape:
            given = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else f"type {type(image).__name__}"
            raise KAError(
                f"{self.row.name} gives {given} for up {tuple(up.shape)}; make it give an image of that shape"
            )
        return image

    def layers(self) -> list[Layer]:
        """None of PSRT's."""
        return []


Model = PSRT | OwnModel


def own_model(
    network: type[nn.Module], n_bands: int, n_msi: int, ratio: int = 4, dim: int = 24, name: str | None = None
) -> OwnModel:
    """A freshly initialised model of a class; seed with `torch.manual_seed` before.

    Args:
        network: its constructor is given those of n_bands, n_msi, ratio and dim that it has arguments for, by keyword.
        n_bands: of the LR-HSI.
        n_msi: channels of the HR-MSI.
        ratio: between the two images.
        dim: a width, for constructors that ask for one.
        name: in tables and files; None for `package.module:Class`.

    Raises:
        KAError: it is no class of torch.nn.Module, or cannot be constructed so.
    """
    name = name or f"{getattr(network, '__module__', '')}:{getattr(network, '__name__', network)}"
    if not isinstance(network, type) or not issubclass(network, nn.Module):
        raise KAError(f"{name} is no class of torch.nn.Module; give one")
    sizes = dict(zip(GIVEN, (n_bands, n_msi, ratio, dim), strict=True))
    try:
        wanted = inspect.signature(network).parameters
        made = network(**{key: sizes[key] for key in GIVEN if key in wanted})
    except Exception as error:
        cure = f"it is given {', '.join(GIVEN)} where it has arguments of these names; all others need defaults"
        raise KAError(f"{name} could not be constructed ({one_line(error)}); {cure}") from error
    return OwnModel(made, name, n_bands, n_msi, ratio, dim)


def find_network(path: str) -> type[nn.Module]:
    """The class that `package.module:Class` names; importing it runs that module's code.

    KAError where there is none: another form, a module that cannot be imported, no class of torch.nn.Module.
    """
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise KAError(f"model={path!r} is not of the form package.module:Class; write it so")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (Exception, SystemExit) as error:
        cure = "start where its file or folder lies, or put that folder on PYTHONPATH"
        what = f"{module} cannot be imported ({type(error).__name__}: {one_line(error)})"
        raise KAError(f"model={path!r}: {what}; {cure if isinstance(error, ImportError) else 'mend it'}") from error
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        raise KAError(f"model={path!r}: {module} has no class {name} of torch.nn.Module; check its name")
    return found
