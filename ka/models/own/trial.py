"""A first try of a user's own network: what cannot work is said in a line, before anything is trained."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ka.errors import KAError, one_line
from ka.models.own.adapter import OwnModel


def try_out(model: OwnModel, sizes: Iterable[tuple[int, int]]) -> None:
    """Run a model on random images of some sizes (h, w), and a copy of it once as in training.

    Afterwards lazy layers have their sizes, and it is in eval mode; nothing else of it, and not the global random
    state, is changed.

    Raises:
        KAError: it fails, gives another shape, or values that are not finite; nothing of it can be trained; its state
            dict holds more than tensors.
    """
    name, device = model.row.name, next((weight.device for weight in model.parameters()), None)
    if device is None or not any(weight.requires_grad for weight in model.parameters()):
        raise KAError(f"{name} has no weights to train; give it a torch.nn.Parameter that requires a gradient")
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for h, w in sizes:
            low = (h // model.ratio, w // model.ratio)
            shapes = ((2, model.n_bands, h, w), (2, model.n_msi, h, w), (2, model.n_bands, *low))
            images = [torch.rand(shape, generator=generator).to(device) for shape in shapes]
            with torch.no_grad():
                image = _tried(f"{name} fails on images of {h}×{w}", model.eval(), images)
            if not image.isfinite().all():
                raise KAError(f"{name} gives values that are not finite for images in [0, 1] of {h}×{w}; mend it")
        _tried(
            f"{name} fails in training", lambda *given: copy.deepcopy(model).train()(*given).mean().backward(), images
        )
    if strange := [key for key, value in model.state_dict().items() if not isinstance(value, Tensor)]:
        raise KAError(
            f"{name}: {strange[0]} of its state dict is no tensor, which files of weights cannot hold; leave it out"
        )


def _tried(what: str, call: Callable[..., Tensor], images: list[Tensor]) -> Tensor:
    try:
        return call(*images)
    except KAError:
        raise
    except Exception as error:
        raise KAError(f"{what} ({type(error).__name__}: {one_line(error)}); mend it") from error
