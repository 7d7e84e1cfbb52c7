"""Weights in and out: runs of ours, the published PSRT files, the study's own KA checkpoints.

Ours are safetensors whose header names variant, dim and bands. The others are `.pth.tar` files, read with
`weights_only=True` (nothing in them can run), whose keys are translated to ours part by part (`study_keys`).
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ka.errors import KAError
from ka.files import write_bytes
from ka.models.kernel_attention import FoldedKernelAttention
from ka.models.psrt import N_BLOCKS, PSRT, WINDOWS
from ka.models.variants import N_WINDOWS, VARIANTS, Variant, variant

FORMAT = "kernel-attention-workbook 1"
StateDict = Mapping[str, Tensor]


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
    header: dict[str, str] = {}
    if isinstance(source, Mapping):
        where, state = "the state dict", dict(source)
    else:
        path = Path(source)
        where = str(path)
        header, state = _read(path)
    state = _strip(state, where)
    named = header.get("variant")
    if named and variant and named != variant:
        raise KAError(f"{where} holds weights of {named}, not {variant}; ask for variant={named!r}, or leave it out")
    name = variant or named
    if "head.weight" not in state:
        state, name = _translate(state, name, where)
    elif name is None:
        name = _guess(state, where)
    return _build(state, name, where)


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
        _put(stripped, re.sub(r"^(model\.|module\.)+", "", key), value, key, where)
    return stripped


def _build(state: StateDict, name: str, where: str) -> PSRT:
    """A model of variant `name`, sized by `state` and loaded strictly with it."""
    row = variant(name)
    head, tail = state.get("head.weight"), state.get("tail.weight")
    if head is None or tail is None or head.ndim != 4 or tail.ndim != 4:
        raise KAError(f"{where} lacks the head or the tail convolution, so it is no checkpoint of PSRT or KA")
    dim, n_in, n_bands = head.shape[0], head.shape[1], tail.shape[0]
    try:
        with torch.device("meta"):
            model = PSRT(row, n_bands, n_in - n_bands, dim)
    except KAError as error:
        raise KAError(f"{where}: its head and tail fit no model ({error})") from error
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        raise KAError(
            f"{where} is no checkpoint of {name}: "
            + "; ".join(
                f"{what} {_some(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys
            )
            + "; ask for the variant it was trained as"
        )
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


def _put(state: dict[str, Tensor], name: str, value: Tensor, key: str, where: str) -> None:
    """Enter a weight under its name in our models; two of one name are an error, not a matter of order."""
    if name in state:
        raise KAError(
            f"{where}: unexpected {key}, as another weight is {name} already; remove the one that is not used"
        )
    state[name] = value


def _some(keys: list[str], most: int = 4) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _guess(state: StateDict, where: str) -> str:
    """The variant of one of our state dicts without a header: the only one with these names and shapes."""
    return _only([name for name in VARIANTS if _fits(state, name, where)], where)


def _fits(state: StateDict, name: str, where: str) -> bool:
    try:
        _build(state, name, where)
    except KAError:
        return False
    return True


def _only(fitting: list[str], where: str) -> str:
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise KAError(f"{where} fits no variant of this workbook; name the variant to see what is missing")
    raise KAError(f"{where} fits {', '.join(fitting)} alike; say which it was trained as (variant=…)")


def _translate(state: StateDict, name: str | None, where: str) -> tuple[dict[str, Tensor], str]:
    """The study's or the published names → ours, and the variant."""
    if name is not None:
        if variant(name).ours:
            raise KAError(
                f"{where} lacks head.weight, so it is not this workbook's, and others never had {name}; "
                "name their variant"
            )
        return study_keys(state, variant(name), where), name
    is_ka = any(".KernelAttention." in key for key in state)
    if not is_ka and not any(re.search(r"layers\.\d\.layers\.\d\.norm[23]\.", key) for key in state):
        return study_keys(state, variant("psrt"), where), "psrt"  # only the study's SaR blocks hold spare norms
    translated = {}
    for row in VARIANTS.values():
        if not row.ours and row.has_ka == is_ka and row.shuffle != "aligned" and _holds_dead(state, row):
            try:
                ours = study_keys(state, row, where)
            except KAError:
                continue
            if _fits(ours, row.name, where):
                translated[row.name] = ours
    found = _only(list(translated), where)
    return translated[found], found


def _holds_dead(state: StateDict, row: Variant) -> bool:
    """Whether every part that the study's module of this variant held in vain is there."""
    return all(any(re.search(rf"KernelAttention\.{_DEAD[part]}$", key) for key in state) for part in row.dead)


def study_keys(state: StateDict, row: Variant, where: str = "the state dict") -> dict[str, Tensor]:
    """The study's (and the published) parameter names, as ours.

    Raises:
        KAError: a name that is neither a part of this variant nor one of the study's dead weights.
    """
    ours: dict[str, Tensor] = {}
    layers: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, value in state.items():
        if key in _ENDS:
            ours[_ENDS[key]] = value
        elif found := re.fullmatch(r"w\.layers\.(\d+)\.layers\.(\d+)\.(.+)", key):
            block, sar, rest = found.groups()
            if int(block) >= N_BLOCKS or int(sar) >= len(WINDOWS):
                unknown.append(key)
            elif re.fullmatch(r"norm[23]\.(weight|bias)", rest):
                continue  # the SaR block's spare norms
            elif not (layer := re.fullmatch(r"WA([123])\.(.+)", rest)):
                unknown.append(key)
            else:
                prefix = f"blocks.{block}.{sar}.layers.{int(layer[1]) - 1}"
                part = layer[2]
                if part.startswith("KernelAttention.") and row.has_ka:
                    layers.setdefault(f"{prefix}.ka", {})[part.removeprefix("KernelAttention.")] = value
                else:
                    ours[f"{prefix}.{part}"] = value
        else:
            unknown.append(key)
    if unknown:
        raise KAError(f"{where} is no checkpoint of {row.name}: unexpected {_some(sorted(unknown))}")
    for prefix, weights in layers.items():
        ours |= {f"{prefix}.{key}": value for key, value in study_layer_keys(weights, row, where).items()}
    return ours


_ENDS = {
    "w.conv.weight": "head.weight",
    "w.conv.bias": "head.bias",
    "conv.0.weight": "tail.weight",
    "conv.0.bias": "tail.bias",
}

#: The study's names of the parts of a layer → ours. `{i}`: the window.
_PARTS = {
    r"proj_qkv": "sa.qkv",
    r"proj_out": "sa.proj",
    r"se\.se\.1": "se.squeeze.0",
    r"se\.se\.3": "se.excite.0",
    r"selayers\.(\d)\.se\.1": "se.squeeze.{i}",
    r"selayers\.(\d)\.se\.3": "se.excite.{i}",
    r"global_kernel_selayer\.se\.1": "global_se.squeeze.0",
    r"global_kernel_selayer\.se\.3": "global_se.excite.0",
    r"kernels_linear": "widen",
    r"gk_generation(?:\.\d)?": "global_kernel.mix",
    r"(?:concat_linear|fusion)": "fusion",
}
#: The study's names of parts that nothing used, by the names of `ka.models.variants.DEAD_PARTS`.
_DEAD = {
    "conv_bias": r"convlayers?\.(\d\.)?conv\.bias",
    "norm": r"norm\..+",
    "layernorm": r"layernorm\..+",
    "kernels": r"convlayers?\.(\d\.)?conv\.weight",
    "sa": r"proj_(qkv|out)\..+",
    "shared_se": r"se\.se\.[13]\..+",
    "window_se": r"selayers\.\d\.se\.[13]\..+",
    "global_se": r"global_kernel_selayer\.se\.[13]\..+",
    "global": r"kernel_linear\..+",
    "fusion2": r"fusion\..+",
    "reweight": r"wink_reweight\..+",
}


def study_layer_keys(weights: StateDict, row: Variant, where: str = "the layer") -> dict[str, Tensor]:
    """Parameter names of one KA layer of the study, as ours; its dead weights are left out.

    Raises:
        KAError: a name that is neither a part of this variant nor one of the study's dead weights.
    """
    ours: dict[str, Tensor] = {}
    windows: dict[int, Tensor] = {}
    reweight: dict[str, Tensor] = {}
    unknown = []
    dead = [_DEAD[part] for part in {"conv_bias", "norm", "layernorm", *row.dead}]
    for key, value in weights.items():
        if any(re.fullmatch(pattern, key) for pattern in dead):
            continue
        if key in ("convlayer.conv.weight", "convlayer1.params"):
            windows = dict(enumerate(rearrange(value, "(m o) i u v -> m o i u v", m=N_WINDOWS)))
        elif found := re.fullmatch(r"convlayers\.(\d)\.conv\.weight", key):
            windows[int(found[1])] = value
        elif key.startswith("wink_reweight."):
            reweight[key.removeprefix("wink_reweight.")] = value
        elif (name := _part(key, row)) is not None:
            _put(ours, name, _as_linear(name, value), key, where)
        else:
            unknown.append(key)
    if unknown:
        raise KAError(f"{where} is no checkpoint of {row.name}: unexpected {_some(sorted(unknown))}")
    if windows:
        ours["window_kernels.weight"] = torch.stack([windows[m] for m in sorted(windows)])
    return ours | _reweight_keys(reweight, where)


def _part(key: str, row: Variant) -> str | None:
    """Our name of one weight or bias, None if no part of any layer is called so."""
    part, _, kind = key.rpartition(".")
    if part == "kernel_linear":  # KAv1's c → c² and every global kernel share this name
        return f"{'widen.linear' if row.kernels == 'pooled' else 'global_kernel.mix'}.{kind}"
    for pattern, name in _PARTS.items():
        if found := re.fullmatch(pattern, part):
            return f"{name.format(i=found[1]) if found.groups() else name}.{kind}"
    return None


def _as_linear(name: str, value: Tensor) -> Tensor:
    """1×1 convolutions as matrices, and KAv9's per-channel weight and bias as vectors."""
    if name in ("widen.weight", "widen.bias"):
        return value.flatten()
    return value.flatten(1) if value.ndim > 2 else value


def _reweight_keys(weights: StateDict, where: str) -> dict[str, Tensor]:
    """The gate of kav17 and kav18: its parts are told apart by their shapes (c→1 per window, n→4n, 4n→n)."""
    ours: dict[str, Tensor] = {}
    squeeze: list[tuple[Tensor, Tensor]] = []
    stems = sorted({key.rpartition(".")[0] for key in weights})
    for stem in stems:
        weight, bias = weights.get(f"{stem}.weight"), weights.get(f"{stem}.bias")
        if weight is None or bias is None:
            raise KAError(f"{where}: unexpected wink_reweight.{stem} without both weight and bias; the file is damaged")
        matrix = weight.flatten(1)
        if matrix.shape not in (_EXPAND, _EXPAND[::-1]):
            squeeze += zip(matrix.split(1), bias.split(1), strict=True)
        else:
            name = "reweight.expand" if matrix.shape == _EXPAND else "reweight.contract"
            _put(ours, f"{name}.weight", matrix, f"wink_reweight.{stem}.weight", where)
            ours[f"{name}.bias"] = bias
    for m, (weight, bias) in enumerate(squeeze):
        ours |= {f"reweight.squeeze.{m}.weight": weight, f"reweight.squeeze.{m}.bias": bias}
    return ours


_EXPAND = (4 * N_WINDOWS, N_WINDOWS)
