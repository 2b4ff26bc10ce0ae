"""What PEFT's settings and tensors of LoRA, VeRA and VB-LoRA mean in this library's terms, and the way back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vbank.adapters import Adapter
from vbank.checkpoint import drawn_here
from vbank.methods import Config, LoRA, Method, Site, VBLoRA, VeRA
from vbank.methods.vb_lora import VBLoRAMethod
from vbank.methods.vera import VeRAMethod, largest
from vbank.peft_files import BANK, CONFIG_FILE, PAIR, PREFIX, TENSOR_FILE, Folder, some
from vbank.stored import CheckpointError, Stored, check_choice, check_drawn

VERA_SETTINGS = {"d_init": "d_initial", "seed": "projection_prng_key", "dropout": "vera_dropout"}
LONGEST = 500  # letters of a name in rank_pattern or alpha_pattern
_Pattern = tuple[bool, list[tuple[str, str]]]  # whether it begins with ^; a letter or a class, and how often
_PIECE = re.compile(r"(\\d|\\[^0-9A-Za-z]|\[0-9\]|[\w.-])([*+?]?)")
_ALTERNATIVE = re.compile(rf"(\^?)((?:{_PIECE.pattern})*)\$?")


def understand(found: Folder, size: Callable[[str], tuple[int, int] | None], order: Sequence[str] = ()) -> Stored:
    """The adapter of a folder in this library's terms, its targets and trained modules apart.

    Args:
        found: the folder.
        size: (in_features, out_features) of a layer of the model, None where it has none. Asked for VeRA, whose files
            do not say them.
        order: names of the model's modules; the sites come in this order.

    Raises:
        CheckpointError: settings out of range, or tensors that do not fit them.
        ValueError: VeRA, and the model lacks layers.
    """
    place = {name: i for i, name in enumerate(order)}
    names = sorted(found.layers, key=lambda name: (place.get(name, len(place)), name))
    if found.kind == "LORA":
        return _lora(found, names)
    if found.kind == "VERA":
        return _vera(found, names, size)
    return _vb_lora(found, names)


def _checked(found: Folder, kind: type[Config], **settings: Any) -> Any:
    """The method's configuration; what it refuses is the file's fault."""
    try:
        return kind(**settings)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{found.path / CONFIG_FILE}: {error}") from error


def _stored(
    found: Folder,
    config: Config,
    sites: Sequence[Site],
    form: str,
    tensors: dict[str, Tensor],
    dtype: torch.dtype | None = None,
) -> Stored:
    dtype = dtype or found.dtype
    return Stored(
        folder=found.path,
        config=config,
        sites=tuple(sites),
        form=form,
        dtype=dtype,
        targets=[site.name for site in sites],
        train=[],
        record={},
        tensors={key: v.to(dtype) if v.is_floating_point() else v for key, v in tensors.items()},
        frozen={},
        head=found.head,
    )


def _patterns(found: Folder, key: str) -> list[tuple[list[_Pattern], Any]]:
    """rank_pattern or alpha_pattern: each name's alternatives and its number.

    PEFT takes the names as regular expressions. A stranger's file may hold one that runs for hours, so only those are
    read that one pass over a layer's name decides: letters, digits, dots, `\\.`, `\\d` and `[0-9]`, each with `*`, `+`,
    `?` or none, `^` at the start, `$` at the end, `|` between whole names.

    Raises:
        CheckpointError: a name holds anything else, or is longer than a name can be.
    """
    patterns = []
    for text, value in (found.settings.get(key) or {}).items():
        alternatives = [_ALTERNATIVE.fullmatch(part) for part in text.split("|")] if len(text) <= LONGEST else [None]
        if None in alternatives:
            shown = repr(text if len(text) <= 80 else text[:80] + "...")
            raise CheckpointError(
                f"{found.path / CONFIG_FILE}: {key} has {shown}; vbank reads names of at most {LONGEST} letters, with"
                r" ^, $, |, \., \d, *, + and ?, but no groups or other regular expressions: name the layers instead"
            )
        patterns.append(([(bool(m[1]), _PIECE.findall(m[2])) for m in alternatives if m], value))
    return patterns


def _patterned(patterns: Sequence[tuple[list[_Pattern], Any]], layer: str, default: Any) -> Any:
    """A layer's own rank or alpha: that of the first name which matches the layer's name or its end after a dot."""
    return next((value for names, value in patterns if any(_matches(name, layer) for name in names)), default)


def _matches(pattern: _Pattern, layer: str) -> bool:
    """Whether the pattern takes in the name to its end, by the set of places that each piece can lead to."""
    whole, pieces = pattern
    places = {0} if whole else {0, *(i + 1 for i, letter in enumerate(layer) if letter == ".")}
    for piece, times in pieces:
        fits = [_fits(piece, letter) for letter in layer] if times in ("*", "+") else []
        further = set() if times == "+" else set(places) if times else set()
        further |= {i + 1 for i in places if i < len(layer) and _fits(piece, layer[i])}
        for i, fit in enumerate(fits):
            if fit and i in further:
                further.add(i + 1)
        places = further
        if not places:
            return False
    return len(layer) in places


def _fits(piece: str, letter: str) -> bool:
    if piece == r"\d":
        return letter.isdecimal()
    return "0" <= letter <= "9" if piece == "[0-9]" else piece == "." or piece[-1] == letter


def _lora(found: Folder, names: Sequence[str]) -> Stored:
    """One rank and one scale for all layers. A layer of lower rank is filled up with zeros in A and in B, where no
    gradient reaches them; where scales differ, each is multiplied into its B and the common one is 1.
    """
    r, alpha, dropout = found.number("r", 8), found.number("lora_alpha", 8), found.number("lora_dropout", 0.0)
    rooted = bool(found.number("use_rslora", False))  # rsLoRA: alpha / sqrt(rank) (Kalajdzievski 2023)
    own_ranks, own_alphas = _patterns(found, "rank_pattern"), _patterns(found, "alpha_pattern")
    sites, ranks, scales = [], {}, {}
    for name in names:
        rank, top = _patterned(own_ranks, name, r), _patterned(own_alphas, name, alpha)
        if top is None:
            raise CheckpointError(f"{found.path / CONFIG_FILE}: alpha of {name} is null; it must be a number")
        own = _checked(found, LoRA, rank=rank, alpha=top)
        ranks[name], scales[name] = rank, own.scale * math.sqrt(rank) if rooted else own.scale
        A, B = (found.layers[name][f"lora_{letter}.weight"] for letter in "AB")
        in_features, out_features = A.shape[-1] if A.dim() else 0, B.shape[0] if B.dim() else 0
        found.expect(name, "lora_A.weight", rank, in_features)
        found.expect(name, "lora_B.weight", out_features, rank)
        sites.append(Site(name, in_features, out_features))
    rank, differ = max(ranks.values()), len(set(scales.values())) > 1
    dtype = torch.promote_types(found.dtype, torch.float32) if differ else found.dtype
    common = 1.0 if differ else next(iter(scales.values()))
    same = rank == r and common == alpha / r
    config = _checked(found, LoRA, rank=rank, alpha=alpha if same else common * rank, dropout=dropout)
    tensors: dict[str, Tensor] = {}
    for i, name in enumerate(names):
        A, B = (found.layers[name][f"lora_{letter}.weight"].to(dtype) for letter in "AB")
        tensors[f"A.{i}"] = torch.zeros(rank, A.shape[1], dtype=dtype)
        tensors[f"B.{i}"] = torch.zeros(B.shape[0], rank, dtype=dtype)
        tensors[f"A.{i}"][: ranks[name]] = A
        tensors[f"B.{i}"][:, : ranks[name]] = B * (scales[name] / common)
    return _stored(found, config, sites, "resumable", tensors, dtype)


def _vera(found: Folder, names: Sequence[str], size: Callable[[str], tuple[int, int] | None]) -> Stored:
    rank = found.number("r", 256)
    settings = {key: found.settings[theirs] for key, theirs in VERA_SETTINGS.items() if theirs in found.settings}
    config, sites, tensors = _checked(found, VeRA, rank=rank, **settings), [], {}
    sizes = {name: size(name) for name in names}
    absent = [name for name, shape in sizes.items() if shape is None]
    if absent:
        raise ValueError(f"{found.path} was trained on another model: {some(absent)} is absent from this one")
    for i, (name, shape) in enumerate(sizes.items()):
        assert shape is not None
        sites.append(Site(name, *shape))
        tensors[f"d.{i}"] = found.expect(name, "vera_lambda_d", rank)
        tensors[f"b.{i}"] = found.expect(name, "vera_lambda_b", shape[1])
    pair: dict[str, Tensor] = {}
    if found.shared:
        if set(found.shared) != set(PAIR):
            raise CheckpointError(
                f"{found.path / TENSOR_FILE} holds one of {' and '.join(PAIR)}; it needs both or none"
            )
        (in_features, out_features), (A, B) = largest(sites), (found.shared[key].to(found.dtype) for key in PAIR)
        A, B = A[..., :in_features], B[:out_features]  # PEFT's pair is larger where it serves further adapters
        found.check(PAIR[0], A, (rank, in_features))
        found.check(PAIR[1], B, (out_features, rank))
        pair = {"A0": A.contiguous(), "B0": B.contiguous()}
    else:
        check_drawn(config, sites, found.path / CONFIG_FILE, "save_projection=True")
    stored = _stored(found, config, sites, "resumable", tensors)
    with torch.random.fork_rng(devices=[]):
        method = config.build(sites, dtype=stored.dtype)
    if pair:
        method.read_frozen(pair)
    return replace(stored, frozen=pair, record=method.record())


def _vb_lora(found: Folder, names: Sequence[str]) -> Stored:
    r, b, h, k = (found.number(*v) for v in (("r", 4), ("vector_length", 256), ("num_vectors", 256), ("topk", 2)))
    config = _checked(
        found,
        VBLoRA,
        rank=r,
        num_vectors=h,
        vector_length=b,
        top_k=k,
        bank_bound=found.number("init_vector_bank_bound", 0.02),
        logits_std=found.number("init_logits_std", 0.1),
        dropout=found.number("vblora_dropout", 0.0),
    )
    if BANK not in found.shared:
        raise CheckpointError(f"{found.path / TENSOR_FILE} lacks {BANK}; save the adapter again")
    found.check(BANK, found.shared[BANK], (h, b))
    compact = len(next(iter(found.layers.values()))) == 4
    sites, logits, indices, weights = [], [], [], []
    for name in names:
        tiles = {}
        for letter, where in (("A", 1), ("B", 0)):
            end = f"vblora_logits_{letter}"
            first = found.layers[name][f"{end}_topk_indices" if compact else end]
            tiles[letter] = first.shape[where] if first.dim() == 3 else 0
            shape = (r, tiles["A"]) if letter == "A" else (tiles["B"], r)
            if compact:
                indices.append(found.expect(name, f"{end}_topk_indices", *shape, k).flatten(0, 1))
                weights.append(found.expect(name, f"{end}_topk_weights", *shape, k - 1).flatten(0, 1))
            else:
                logits.append(found.expect(name, end, *shape, h).flatten(0, 1))
        sites.append(Site(name, tiles["A"] * b, tiles["B"] * b))
    bank = {"bank": found.shared[BANK]}
    if not compact:
        return _stored(found, config, sites, "resumable", bank | {"logits": torch.cat(logits)})
    return _stored(
        found, config, sites, "compact", bank | _shares(found, config, torch.cat(indices), torch.cat(weights))
    )


def _shares(found: Folder, config: VBLoRA, indices: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """PEFT's k indices and first k - 1 weights of each sub-vector, as this library keeps them.

    PEFT leaves out the last weight and takes it as 1 minus the others. Their rounded sum can exceed 1 for k >= 3, which
    PEFT turns into NaN; here the last weight is then 0. indices: (N, k); weights: (N, k - 1).
    """
    eps = torch.finfo(weights.dtype).eps
    indices, weights = indices.long(), weights.double()
    if indices.min() < 0:
        raise CheckpointError(f"{found.path}: index {int(indices.min())} names no bank vector; the file is damaged")
    total = weights.sum(dim=-1, keepdim=True)
    if (weights < 0).any() or (total > 1.0 + config.top_k * eps).any():
        raise CheckpointError(f"{found.path}: the weights of a sub-vector are no shares of one; the file is damaged")
    weights, order = torch.cat([weights, (1.0 - total).clamp(min=0.0)], dim=-1).sort(dim=-1, descending=True)
    indices, rest = indices.gather(-1, order), weights[:, 1:].to(found.dtype)
    check_choice(config, indices, rest, found.path)
    return {"indices": indices.to(config.index_dtype), "weights": rest.contiguous()}


def own_format(adapter: Adapter, compact: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of LoRA, VeRA or VB-LoRA in PEFT's format of the same method."""
    method: Method = adapter.method
    config, way_out = adapter.config, "write it with as_lora=True, as a plain LoRA of the same outputs"
    sliced = [part.site.name for parts in adapter.layers.values() for part in parts if ":" in part.site.name]
    if sliced and isinstance(config, (LoRA, VeRA, VBLoRA)):
        raise ValueError(
            f"PEFT adapts whole layers, and {', '.join(sliced[:4])}{' and more' * (len(sliced) > 4)} are slices of a"
            f" fused projection; {way_out}"
        )
    sites = {layer: parts[0].site for layer, parts in adapter.layers.items()}
    tensors: dict[str, Tensor] = {}
    if isinstance(config, LoRA):
        for layer, site in sites.items():
            tensors[f"{PREFIX}{layer}.lora_A.weight"], tensors[f"{PREFIX}{layer}.lora_B.weight"] = method.factors(
                site.name
            )
        alpha = config.rank if config.alpha is None else config.alpha
        return {"peft_type": "LORA", "r": config.rank, "lora_alpha": alpha, "lora_dropout": config.dropout}, tensors
    if isinstance(method, VeRAMethod):
        if not method.config.shared:
            raise ValueError(f"PEFT's VeRA has one pair for all layers, and this one has a pair a layer; {way_out}")
        for layer, site in sites.items():
            (A, B), (d, b) = method.pair(site.name), method.scales(site.name)
            tensors[f"{PREFIX}{layer}.vera_lambda_d"] = torch.ones_like(A[:, 0]) if d is None else d
            tensors[f"{PREFIX}{layer}.vera_lambda_b"] = torch.ones_like(B[:, 0]) if b is None else b
        seeded = compact and method.config.init == "kaiming_uniform" and drawn_here(method, torch.float32)
        if not seeded:
            tensors |= dict(zip(PAIR, method.frozen_tensors().values(), strict=True))  # A0, B0
        own = {theirs: getattr(config, ours) for ours, theirs in VERA_SETTINGS.items()}
        return {"peft_type": "VERA", "r": config.rank, "save_projection": not seeded, **own}, tensors
    if isinstance(method, VBLoRAMethod):
        return _write_vb_lora(method, {layer: site.name for layer, site in sites.items()}, compact)
    raise ValueError(f"PEFT has no {config.title}; {way_out}")


def _write_vb_lora(
    method: VBLoRAMethod, sites: Mapping[str, str], compact: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = method.config
    r, k = config.rank, config.stored_k
    if not compact and method.logits is None:
        raise ValueError(
            "VB-LoRA: this adapter was loaded from a compact file, which holds no logits; write it with compact=True"
        )
    if not compact and config.selection not in ("top_k", "select_all"):
        raise ValueError(
            f"VB-LoRA: selection is {config.selection!r}, and PEFT trains by top-k alone; write what inference uses,"
            " with compact=True or as_lora=True"
        )
    # PEFT reads all but one weight, in any order, and takes 1 minus their sum as the last. The largest loses no digits.
    indices, weights = method.selected if compact else (torch.empty(0), torch.empty(0))  # (N, k) both
    indices, weights = indices.roll(-1, dims=-1), weights.roll(-1, dims=-1).float()
    small = torch.uint8 if config.num_vectors <= 2**8 else torch.int16 if config.num_vectors <= 2**15 else torch.int32
    tensors: dict[str, Tensor] = {BANK: method.bank}
    for layer, site in sites.items():
        start, middle, end = method.spans[method.index[site]]
        for letter, rows, shape in (("A", slice(start, middle), (r, -1)), ("B", slice(middle, end), (-1, r))):
            key = f"{PREFIX}{layer}.vblora_logits_{letter}"
            if compact:
                tensors[f"{key}_topk_indices"] = indices[rows].reshape(*shape, k).to(small)
                tensors[f"{key}_topk_weights"] = weights[rows].reshape(*shape, k)[..., :-1]
            else:
                assert method.logits is not None
                tensors[key] = method.logits[rows].view(*shape, config.num_vectors)
    settings = {
        "peft_type": "VBLORA",
        "r": r,
        "num_vectors": config.num_vectors,
        "vector_length": config.vector_length,
        "topk": k,
        "save_only_topk_weights": compact,
        "vblora_dropout": config.dropout,
        "init_vector_bank_bound": config.bank_bound,
        "init_logits_std": config.logits_std,
    }
    return settings, tensors
