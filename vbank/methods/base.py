"""What every method shares: a site, a configuration, and the one question that a method answers.

Every method of this library is an answer to the same question: where do the two thin matrices of

    y = base(x) + s * B (A x)          A: (rank, in_features)   B: (out_features, rank)   s: scalar

come from? A method answers it in `Method.factors`; everything else is written once against that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbank.suggestions import unknown


@dataclass(frozen=True)
class Site:
    """One linear map y = W x that receives an update; W has shape (out_features, in_features).

    Args:
        name: the module's name in the model, with ``:query`` or ``:value`` for a slice of a fused projection.
        in_features: length of x.
        out_features: length of y.
    """

    name: str
    in_features: int
    out_features: int


@dataclass(frozen=True)
class Storage:
    """What one parameter group of a method trains and stores, counted from shapes.

    Args:
        trained: number of trained scalars.
        stored: number of stored scalars in float32 equivalents, as the papers count (a uint8 index is 1/4).
        nbytes: bytes of the stored tensors at the adapter's own precision.
    """

    trained: int
    stored: float
    nbytes: int


def dense(elements: int, itemsize: int) -> Storage:
    """Storage of a group that keeps what it trains: `elements` scalars of `itemsize` bytes."""
    return Storage(elements, float(elements), elements * itemsize)


def is_number(value: Any) -> bool:
    """Whether `value` is an int or a float; True and False are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Config:
    """Settings of a method. Immutable, checked on creation, and enough to rebuild the method's shapes.

    Args:
        rank: rank r of the update, at least 1.
        dropout: probability of zeroing an entry of x before A, during training only; in [0, 1).

    Raises:
        ValueError: a setting is out of its range.
    """

    rank: int
    dropout: float = field(default=0.0, kw_only=True)

    method: ClassVar[str]  # the name on the command line and in files
    title: ClassVar[str]  # the name in print

    def __post_init__(self) -> None:
        self._require_count("rank")
        if not (is_number(self.dropout) and 0.0 <= self.dropout < 1.0):
            raise ValueError(f"{self.title}: dropout is {self.dropout!r}; it must be a number in [0, 1)")

    def _require_count(self, *names: str, least: int = 1) -> None:
        for name in names:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{self.title}: {name} is {value!r}; it must be an integer of at least {least}")

    def _require_positive(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not (is_number(value) and 0 < value < math.inf):
                raise ValueError(f"{self.title}: {name} is {value!r}; it must be a finite number above 0")

    def _require_choice(self, name: str, choices: Iterable[str]) -> None:
        value = getattr(self, name)
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"{self.title}: {name} is {value!r}; choose one of {', '.join(sorted(choices))}")

    def _require_flag(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{self.title}: {name} is {value!r}; it must be True or False")

    def check(self, sites: Sequence[Site]) -> None:
        """Refuse sites that this method cannot serve, all of them in one message.

        Raises:
            ValueError: there are no sites, two bear one name, or a site's shape does not suit the method.
        """
        if not sites:
            raise ValueError(f"{self.title}: no sites given; name at least one linear layer to adapt")
        names = [site.name for site in sites]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise ValueError(
                f"{self.title}: two sites bear the name {', '.join(map(repr, twice))}; give each site one of its own"
            )

    def storage(self, sites: Sequence[Site], itemsize: int = 4) -> dict[str, Storage]:
        """What each parameter group trains and stores for these sites, by formula.

        Args:
            sites: the adapted linear maps.
            itemsize: bytes of one stored scalar (4 for float32, 2 for bfloat16).
        """
        raise TypeError(f"{type(self).__name__} is no method: use one of vbank.LoRA, VeRA, TiedLoRA, PRoLoRA, VBLoRA")

    def build(self, sites: Sequence[Site], *, dtype: torch.dtype = torch.float32, device: Any = None) -> Method:
        """Create the trainable parameters for these sites. Random draws come from torch's global generator.

        Raises:
            ValueError: a site's shape does not suit the method.
        """
        raise TypeError(f"{type(self).__name__} is no method: use one of vbank.LoRA, VeRA, TiedLoRA, PRoLoRA, VBLoRA")

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values; ``type(config)(**settings)`` is the inverse."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class ScaledConfig(Config):
    """Settings of a method whose update is scaled by s = alpha / rank; its subclasses place the field `alpha`.

    alpha None means alpha = rank, that is s = 1.
    """

    alpha: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None:
            self._require_positive("alpha")

    @property
    def scale(self) -> float:
        """s = alpha / rank (LoRA, section 4.1)."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


class Method(nn.Module):
    """The parameters of one method on a set of sites.

    Subclasses implement `factors` and `groups`. `update` may be overridden where a method can act on x more
    cheaply than through its factors; the two must agree.
    """

    def __init__(self, config: Config, sites: Sequence[Site]) -> None:
        super().__init__()
        config.check(sites)
        self.config = config
        self.sites = tuple(sites)
        self.index = {site.name: i for i, site in enumerate(self.sites)}
        self.dropout = nn.Dropout(config.dropout)

    @property
    def scale(self) -> float:
        """The scalar s of y = base(x) + s * B (A x)."""
        return getattr(self.config, "scale", 1.0)

    @property
    def frozen(self) -> bool:
        """Whether the method was read from a file that cannot be trained on."""
        return False

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """The matrices of one site: A (rank, in_features) and B (out_features, rank)."""
        raise TypeError(f"{type(self).__name__} does not say where A and B come from")

    def groups(self) -> dict[str, list[nn.Parameter]]:
        """The trainable parameters by group; each group can have its own learning rate."""
        raise TypeError(f"{type(self).__name__} does not name its parameter groups")

    def leaves(self) -> list[nn.Parameter]:
        """What autograd is to differentiate: the parameters of all groups, or what stands in for them."""
        return [parameter for parameters in self.groups().values() for parameter in parameters]

    def update(self, x: Tensor, name: str, onto: Tensor | None = None) -> Tensor:
        """s * B (A x) for one site, added to `onto` where it is given.

        x: (..., in_features); returns (..., out_features), in the dtype of `onto` or else of x.
        """
        A, B = self.factors(name)
        z = F.linear(self.dropout(x), A.to(x))  # (..., rank); the small side is cast, never x
        return product(z, B, self.scale, onto)

    def tensors(self) -> dict[str, Tensor]:
        """What a file must hold so that the method can be trained on: the parameters by name."""
        return dict(self.named_parameters())

    def compact_tensors(self) -> dict[str, Tensor]:
        """What a file must hold so that the method gives the same outputs."""
        return self.tensors()

    def read(self, tensors: Mapping[str, Tensor], form: str) -> None:
        """Take the values of `tensors` or `compact_tensors`, whose shapes have been checked."""
        with torch.no_grad():
            for key, parameter in self.named_parameters():
                parameter.copy_(tensors[key])

    def record(self) -> dict[str, Any]:
        """Further plain values that a file must hold, such as a checksum."""
        return {}

    def verify(self, record: Mapping[str, Any]) -> None:
        """Compare `record` of a file with what this machine made.

        Raises:
            ValueError: they differ, so the file's adapter would not be the one that was saved.
        """

    def begin_pass(self) -> None:
        """Called as a forward of the whole model starts; a method may prepare what its sites share."""

    def end_pass(self) -> None:
        """Called as that forward ends, also where it ends by an error."""


def product(z: Tensor, B: Tensor, scale: float, onto: Tensor | None) -> Tensor:
    """s * B z, added to `onto` where it is given. z: (..., rank), B: (out, rank), onto and result: (..., out).

    Where the types agree, the sum is part of the product, so that the outputs are read and written once.
    """
    if onto is not None and onto.dtype == z.dtype:
        flat = torch.addmm(onto.reshape(-1, B.shape[0]), z.reshape(-1, B.shape[1]), B.T.to(z), alpha=scale)
        return flat.view(onto.shape)
    y = F.linear(z, B.to(z))  # (..., out)
    y = y if scale == 1.0 else y * scale
    return y if onto is None else onto + y.to(onto.dtype)


def kaiming_bound(fan_in: int) -> float:
    """Bound of LoRA's uniform draw for A: 1 / sqrt(fan_in).

    It is Kaiming's sqrt(6 / ((1 + a^2) fan_in)) with a = sqrt(5), as the authors' code and PEFT have it.
    """
    return 1.0 / math.sqrt(fan_in)


def delta(method: Method, name: str) -> Tensor:
    """The update of one site as a matrix: s * B A, shape (out_features, in_features).

    Args:
        method: what `Config.build` or `vbank.attach(...).method` returned.
        name: the site's name.

    Raises:
        ValueError: the method has no such site.

    Example:
        >>> import vbank
        >>> method = vbank.VBLoRA(rank=2, num_vectors=6, vector_length=4).build([vbank.Site("layer", 8, 12)])
        >>> vbank.delta(method, "layer").shape
        torch.Size([12, 8])
    """
    if name not in method.index:
        raise ValueError(unknown("site", name, method.index))
    A, B = method.factors(name)
    return B @ A * method.scale
