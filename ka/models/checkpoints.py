"""Weights in and out: runs of ours, the published PSRT files, the study's own KA checkpoints.

Ours are safetensors whose header names variant, dim and bands, what the network starts from and what makes its output
consistent: such a file alone sharpens an image. The others are `.pth.tar` files, read with
`weights_only=True` (nothing in them can run), whose keys are translated to ours (`ka.models.study_names`). Files of a
user's own network name it, and want its class to be given.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ka.data.simulate import Degradation
from ka.errors import KAError, one_line
from ka.files import user_path, write_bytes
from ka.methods.consistency import Consistency
from ka.methods.injection import start_from_dict
from ka.models.kernel_attention import FoldedKernelAttention
from ka.models.own.adapter import GIVEN, Model, OwnModel, own_model
from ka.models.psrt import PSRT
from ka.models.study_names import StateDict, put, readings, some, study_keys
from ka.models.variants import VARIANTS, Variant
from ka.models.variants import variant as variant_row

DIM = 8  # of a row without a body, where nothing depends on it
FORMAT = "kernel-attention-workbook 1"
HOLDERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "params",
    "params_ema",
)  # of a state dict, in others' files


def save_weights(path: str | Path, model: Model, half: bool = False, **notes: str | int | float) -> None:
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
    own = isinstance(model, OwnModel)
    header = {"format": FORMAT, "model" if own else "variant": model.row.name, "dim": model.dim}
    header |= {"n_bands": model.n_bands, "n_msi": model.n_msi, **({"ratio": model.ratio} if own else {}), **notes}
    header["start"] = json.dumps(model.start.to_dict())
    if model.front is not None:
        header["degradation"] = json.dumps(asdict(model.front.degradation))
    if model.consistency is not None:
        header["consistency"] = json.dumps(model.consistency.to_dict())
    network = _named(model)
    state = {key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()}
    for key, value in network.named_parameters():
        if not value.isfinite().all():
            raise KAError(f"{path}: not written, as {key} is not finite; lower the learning rate and train again")
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    write_bytes(path, save(state, {key: str(value) for key, value in header.items()}))


@overload
def load_checkpoint(source: str | Path | StateDict, variant: str | None = None) -> PSRT: ...
@overload
def load_checkpoint(source: str | Path | StateDict, variant: None = None, *, model: type[nn.Module]) -> OwnModel: ...
def load_checkpoint(
    source: str | Path | StateDict, variant: str | None = None, *, model: type[nn.Module] | None = None
) -> Model:
    """A model with the weights of a checkpoint, in eval mode on the CPU.

    Args:
        source: a run folder of ours (its best weights), a `.safetensors` file of ours, a `.pth.tar` file of the
            published PSRT or of the study, or a state dict of any of these. A file's state dict may lie under any of
            `HOLDERS`, and its keys begin with `model.`, `module.` or `_orig_mod.`, in any nesting.
        variant: the variant; None to read it off the file. The study's files do not always tell (KAv7 and KAv10 hold
            the same weights): then the message lists those that fit. Rows of our own (`Variant.ours`) are never among
            the study's.
        model: the class of a user's own network, for files of ours that hold its weights; only this class's code runs.

    Dim and bands are read off the weights. Float64 weights give a float64 model, any other dtype a float32 one. The
    study's dead weights are left out by name.

    Raises:
        KAError: missing, truncated or foreign file, or one with two state dicts; a checkpoint of another variant;
            missing, unexpected or misshapen weights, which are named.
    """
    where, header, state = _opened(source)
    if model is not None:
        own = _own(model, header, state, where)
        _begin_and_end(own, header, where)
        return own
    if "model" in header:
        what = f"{where} holds weights of {header['model']}, a network from outside this workbook, not of a row"
        raise KAError(f"{what}; whoever has its class opens it, with load_checkpoint(…, model=Class)")
    state, named = _strip(state, where), header.get("variant")
    if named and variant and named != variant:
        raise KAError(f"{where} holds weights of {named}, not {variant}; ask for variant={named!r}, or leave it out")
    name, ours = variant or named, any(key in state for key in ("head.weight", "body.head.weight", "front.fallback"))
    if name is not None:
        row = _build(state if ours else study_keys(state, variant_row(name), where), name, where)
        _begin_and_end(row, header, where)
        return row
    possible = dict.fromkeys(VARIANTS, state) if ours else readings(state, where)
    fitting = [name for name in possible if len(possible) == 1 or _fits(possible[name], name, where)]
    if not fitting:
        raise KAError(f"{where} fits no variant of this workbook; name the variant to see what is missing")
    if len(fitting) > 1:
        raise KAError(f"{where} fits {', '.join(fitting)} alike; say which it was trained as (variant=…)")
    return _build(possible[fitting[0]], fitting[0], where)


def load_weights(model: Model, source: str | Path) -> None:
    """Give a model the weights of a checkpoint (`load_checkpoint` says of which kinds); what else it has, it keeps.

    KAError if they are of another variant, network or size.
    """
    if isinstance(model, OwnModel):
        where, _, state = _opened(source)
        _fill(model, state, where)
        return
    loaded = load_checkpoint(source, model.row.name)
    there, here = (f"{one.n_bands} + {one.n_msi} bands at dim {one.dim}" for one in (loaded, model))
    if any(loaded.state_dict()[key].shape != value.shape for key, value in model.state_dict().items()):
        raise KAError(
            f"{source} holds {model.row.name} for {there}, and it is wanted for {here}; give one of that size"
        )
    model.load_state_dict(loaded.state_dict())


def weights_file(source: str | Path) -> Path:
    """The file of weights that a path names: itself, or the best of a run folder; a KAError if it is not there."""
    path = user_path(source)
    if path.is_dir():
        run, path = path, path / "best.safetensors"
        if not path.exists():
            raise KAError(f"{run} holds no best.safetensors; it is not a run folder, or its run has not validated yet")
    if not path.exists():
        raise KAError(f"{path} does not exist; give a run folder, a .safetensors or a .pth.tar file")
    return path


def _own(network: type[nn.Module], header: Mapping[str, str], state: Mapping[str, object], where: str) -> OwnModel:
    """A user's own network with weights; the header says what it was constructed with."""
    if "model" not in header:
        cure = "leave `model` out, or load your own file into your own network"
        raise KAError(f"{where} is not of a network from outside this workbook, trained in it; {cure}")
    try:
        sizes = {key: int(header[key]) for key in GIVEN}
    except (KeyError, ValueError) as error:
        raise KAError(f"{where}: its header is damaged ({one_line(error)}); copy or train it again") from error
    model = own_model(network, **sizes, name=header["model"])
    _fill(model, state, where)
    return model.eval()


def _fill(model: OwnModel, state: Mapping[str, object], where: str) -> None:
    """Load weights strictly, under the network's own names, with or without the prefixes of others."""
    if state.keys() != model.network.state_dict().keys():
        state = _strip(state, where)
    try:
        model.network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise KAError(f"{where} does not fit {model.row.name} ({reason}); give weights of this network") from error


def _named(model: Model) -> nn.Module:
    """What names a model's weights: a user's own network does so itself."""
    return model.network if isinstance(model, OwnModel) else model


def _begin_and_end(model: Model, header: Mapping[str, str], where: str) -> None:
    """Give it the start and the consistency that the header describes; files before these had a bicubic start."""
    try:
        model.ratio = int(header["ratio"]) if "ratio" in header else model.ratio
        model.unit = float(header["unit"]) if "unit" in header else None
        if "start" in header:
            model.start = start_from_dict(json.loads(header["start"]))
        if model.front is not None and "degradation" in header:
            model.front.begin(Degradation(**json.loads(header["degradation"])))
        if "consistency" in header:
            model.consistency = Consistency.from_dict(json.loads(header["consistency"]))
    except (KAError, ValueError, TypeError) as error:
        raise KAError(f"{where}: its header is damaged ({one_line(error)}); copy or train it again") from error


def _opened(source: str | Path | StateDict) -> tuple[str, dict[str, str], Mapping[str, object]]:
    """What to call a source in messages, its header, its state dict."""
    if isinstance(source, Mapping):
        return "the state dict", {}, _state_dict(source, "the state dict")
    return str(source), *_read(weights_file(source))


def _read(path: Path) -> tuple[dict[str, str], Mapping[str, object]]:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise KAError(
            f"{path} is truncated or not a checkpoint; copy or download it again ({one_line(error)})"
        ) from error
    except Exception as error:  # weights_only's UnpicklingError, and what a damaged pickle raises besides
        raise KAError(
            f"{path} is damaged, or holds more than weights and was not opened (its code did not run); "
            f"save its state_dict alone ({one_line(error)})"
        ) from error
    return {}, _state_dict(loaded, str(path))


def _state_dict(loaded: object, where: str) -> Mapping[str, object]:
    """The state dict in what a file holds: all of it, or what lies under one of `HOLDERS`, in any nesting."""
    if not isinstance(loaded, Mapping):
        raise KAError(f"{where} holds a {type(loaded).__name__}, not a state dict; save model.state_dict()")
    held = {key: loaded[key] for key in HOLDERS if _holds_tensors(loaded.get(key))}
    if len(held) > 1:
        cure = f"load it with torch.load(…, weights_only=True) and give one of them, as […][{next(iter(held))!r}]"
        raise KAError(f"{where} holds {len(held)} state dicts ({', '.join(held)}); {cure}")
    return _state_dict(next(iter(held.values())), where) if held else loaded


def _holds_tensors(value: object) -> bool:
    inside = value.values() if isinstance(value, Mapping) else ()
    return any(isinstance(one, Tensor) or _holds_tensors(one) for one in inside)


def _strip(state: Mapping[str, object], where: str) -> dict[str, Tensor]:
    """Tensors alone, without what wrappers of a network put before (torch.compile also between) its names."""
    if not state:
        raise KAError(f"{where} holds no weights; save model.state_dict()")
    stripped: dict[str, Tensor] = {}
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise KAError(f"{where}: entry {key!r} is no tensor, so this is no state dict; save model.state_dict()")
        name = re.sub(r"^(model\.|module\.)+", "", key.replace("_orig_mod.", ""))
        put(stripped, name, value, key, where)
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
