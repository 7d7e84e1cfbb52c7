"""Weights in and out: runs of ours, the published PSRT files, the study's own KA checkpoints.

Ours are safetensors whose header names variant, dim and bands, what the network starts from and what makes its output
consistent: such a file alone sharpens an image. The others are `.pth.tar` files, read with
`weights_only=True` (nothing in them can run), whose keys are translated to ours (`ka.models.study_names`).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ka.data.simulate import Degradation
from ka.errors import KAError
from ka.files import user_path, write_bytes
from ka.methods.consistency import Consistency
from ka.methods.injection import start_from_dict
from ka.models.kernel_attention import FoldedKernelAttention
from ka.models.psrt import PSRT
from ka.models.study_names import StateDict, put, readings, some, study_keys
from ka.models.variants import VARIANTS, Variant
from ka.models.variants import variant as variant_row

DIM = 8  # of a row without a body, where nothing depends on it
FORMAT = "kernel-attention-workbook 1"


def save_weights(path: str | Path, model: PSRT, half: bool = False, **notes: str | int | float) -> None:
    """Write the weights of a model as safetensors, whole or not at all; `notes` go into the header.

    Args:
        path: file to write.
        model: an unfolded model.
        half: store float16 (half the size, for models that ship with the project).
        notes: what a reader should know of them (step, dataset, ratio …).

    Raises:
        KAError: the model is folded, a weight is not finite, or the file cannot be written; an older file is untouched.
    """
    if any(isinstance(layer.ka, FoldedKernelAttention) for layer in model.layers()):
        raise KAError(f"{path}: not written, as a folded model cannot be loaded again; save the model it was made from")
    header = {"format": FORMAT, "variant": model.row.name, "dim": model.dim}
    header |= {"n_bands": model.n_bands, "n_msi": model.n_msi, **notes}
    header["start"] = json.dumps(model.start.to_dict())
    if model.front is not None:
        header["degradation"] = json.dumps(asdict(model.front.degradation))
    if model.consistency is not None:
        header["consistency"] = json.dumps(model.consistency.to_dict())
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    for key, value in state.items():
        if not value.isfinite().all():
            raise KAError(f"{path}: not written, as {key} is not finite; lower the learning rate and train again")
    if half:
        state = {key: value.half() for key, value in state.items()}
    write_bytes(path, save(state, {key: str(value) for key, value in header.items()}))


def load_checkpoint(source: str | Path | StateDict, variant: str | None = None) -> PSRT:
    """A model with the weights of a checkpoint, in eval mode on the CPU.

    Args:
        source: a run folder of ours (its best weights), a `.safetensors` file of ours, a `.pth.tar` file of the
            published PSRT or of the study (keys with or without a `model.` prefix), or a state dict of any of these.
        variant: the variant; None to read it off the file. The study's files do not always tell (KAv7 and KAv10 hold
            the same weights): then the message lists those that fit. Rows of our own (`Variant.ours`) are never among
            the study's.

    Dim and bands are read off the weights. Float64 weights give a float64 model, any other dtype a float32 one. The
    study's dead weights are left out by name.

    Raises:
        KAError: missing, truncated or foreign file; a checkpoint of another variant; missing, unexpected or
            misshapen weights, which are named.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    header, state = ({}, source) if isinstance(source, Mapping) else _read(user_path(source))
    state = _strip(state, where)
    named = header.get("variant")
    if named and variant and named != variant:
        raise KAError(f"{where} holds weights of {named}, not {variant}; ask for variant={named!r}, or leave it out")
    name, ours = variant or named, any(key in state for key in ("head.weight", "body.head.weight", "front.fallback"))
    if name is not None:
        model = _build(state if ours else study_keys(state, variant_row(name), where), name, where)
        return _with_ends(model, header, where)
    possible = dict.fromkeys(VARIANTS, state) if ours else readings(state, where)
    fitting = [name for name in possible if len(possible) == 1 or _fits(possible[name], name, where)]
    if not fitting:
        raise KAError(f"{where} fits no variant of this workbook; name the variant to see what is missing")
    if len(fitting) > 1:
        raise KAError(f"{where} fits {', '.join(fitting)} alike; say which it was trained as (variant=…)")
    return _build(possible[fitting[0]], fitting[0], where)


def _with_ends(model: PSRT, header: Mapping[str, str], where: str) -> PSRT:
    """The start and the consistency that the header describes; files before these had a bicubic start."""
    try:
        if "start" in header:
            model.start = start_from_dict(json.loads(header["start"]))
        if model.front is not None and "degradation" in header:
            model.front.begin(Degradation(**json.loads(header["degradation"])))
        if "consistency" in header:
            model.consistency = Consistency.from_dict(json.loads(header["consistency"]))
    except (KAError, ValueError, TypeError) as error:
        raise KAError(f"{where}: its header is damaged ({_line(error)}); copy or train it again") from error
    return model


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if path.is_dir():
        run, path = path, path / "best.safetensors"
        if not path.exists():
            raise KAError(f"{run} holds no best.safetensors; it is not a run folder, or its run has not validated yet")
    if not path.exists():
        raise KAError(f"{path} does not exist; give a run folder, a .safetensors or a .pth.tar file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise KAError(f"{path} is truncated or not a checkpoint; copy or download it again ({_line(error)})") from error
    except Exception as error:  # weights_only's UnpicklingError, and what a damaged pickle raises besides
        raise KAError(
            f"{path} is damaged, or holds more than weights and was not opened (its code did not run); "
            f"save its state_dict alone ({_line(error)})"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict):
        raise KAError(f"{path} holds a {type(loaded).__name__}, not a state dict; save model.state_dict()")
    return {}, loaded


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


def _strip(state: Mapping[str, object], where: str) -> dict[str, Tensor]:
    """Tensors alone, without a `model.` or `module.` prefix."""
    if not state:
        raise KAError(f"{where} holds no weights; save model.state_dict()")
    stripped: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise KAError(f"{where}: entry {key!r} is no tensor, so this is no state dict; save model.state_dict()")
        put(stripped, re.sub(r"^(model\.|module\.)+", "", key), value, key, where)
    return stripped


def _build(state: StateDict, name: str, where: str) -> PSRT:
    """A model of variant `name`, sized by `state` and loaded strictly with it."""
    row = variant_row(name)
    n_bands, n_msi, dim = _sizes(state, row, where)
    try:
        with torch.device("meta"):
            model = PSRT(row, n_bands, n_msi, dim)
    except KAError as error:
        raise KAError(f"{where}: its head and tail fit no model ({error})") from error
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        wrong = [f"{what} {some(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise KAError(f"{where} is no checkpoint of {name}: {'; '.join(wrong)}; ask for the variant it was trained as")
    for key, tensor in expected.items():
        if state[key].shape != tensor.shape:
            raise KAError(
                f"{where}: {key} has shape {tuple(state[key].shape)}, but {name} at dim {dim} has {tuple(tensor.shape)}"
            )
        if not state[key].isfinite().all():
            raise KAError(f"{where}: {key} holds NaN or infinity; use an earlier checkpoint")
    dtype = torch.float64 if all(t.dtype == torch.float64 for t in state.values()) else torch.float32
    model.load_state_dict({key: state[key].to(dtype, copy=True) for key in expected}, assign=True)
    return model.eval()


def _sizes(state: StateDict, row: Variant, where: str) -> tuple[int, int, int]:
    """Bands, channels of the HR-MSI and dim, read off the first and the last weights."""
    names = {"PSRT": ("head.weight", "tail.weight"), "residual": ("body.head.weight", "body.tail.weight")}
    first, last = names.get(row.body, ("front.learned.0.weight", "front.fallback"))
    head, tail = state.get(first), state.get(last)
    if head is None or tail is None or head.ndim != 4 or tail.ndim != (4 if row.body else 2):
        raise KAError(f"{where} lacks the head or the tail convolution, so it is no checkpoint of PSRT or KA")
    if not row.body:
        return tail.shape[1], head.shape[1] - tail.shape[1], DIM
    n_bands = tail.shape[0]
    if row.body == "residual":  # its head sees the image and its detail, and is twice as wide
        return n_bands, head.shape[1] - 2 * n_bands, head.shape[0] // 2
    return n_bands, head.shape[1] - n_bands, head.shape[0]


def _fits(state: StateDict, name: str, where: str) -> bool:
    try:
        _build(state, name, where)
    except KAError:
        return False
    return True
