"""What is counted, not timed: floating-point operations, and bytes that operations read and write."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.reference import reference
from ka.models.counts import deployed
from ka.models.psrt import build


class Counter(TorchDispatchMode):
    """Counts operations inside its block: FLOPs as PyTorch's own counter (which is slower, as it also tells modules
    apart), and bytes, each tensor of an operation once; views move nothing.

    Attributes:
        flops, bytes: so far.
    """

    def __init__(self) -> None:
        """Start from zero."""
        super().__init__()
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        if not func.is_view:
            tensors = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def count(name: str, dim: int, batch: int, size: int, n_bands: int, n_msi: int, form: str) -> tuple[int, int]:
    """FLOPs (2 per multiply-add of matrix products and convolutions) and bytes of one run; nothing is computed.

    Args:
        name: a key of `ka.VARIANTS`.
        dim, n_bands, n_msi: of the model.
        batch, size: images, and their side in pixels.
        form: `step` (forward and backward in training), `deployed` or `plain` (inference).
    """
    forms = {"step": lambda model: model, "deployed": deployed, "plain": reference}
    with torch.device("meta"), torch.set_grad_enabled(form == "step"):
        model = forms[form](build(name, n_bands, n_msi, dim))
        up, msi = (torch.empty(batch, bands, size, size) for bands in (n_bands, n_msi))
        with Counter() as counter:
            out = model(up, msi)
            if form == "step":
                out.abs().mean().backward()
    return counter.flops, counter.bytes
