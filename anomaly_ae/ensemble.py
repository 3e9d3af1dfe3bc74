"""Several mappers as one: the mean of their standardised maps, over scales, seeds, and mirror images if asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import combinations
from typing import cast

import torch
from torch import Tensor, nn

from anomaly_ae.config import Config, ScoringConfig
from anomaly_ae.modelfile import tensors_below
from anomaly_ae.scoring import AnomalyMapper, map_in_windows


class Ensemble(nn.Module):
    """The mean of the maps of its members; with one member and without mirror images exactly that member's map.

    A member looks at the image at one scale: a fine look finds the scratch, a coarse one the part that is missing.

    Every map is in standard deviations of what normal images show to its member. Their mean deviates less, the more so
    the more members differ, so that a value of 3 is rarer in it than in one map. That is harmless: thresholds,
    p-values and display units are calibrated on the mean itself. Only scores of two models never compare.

    Parameters
    ----------
    members : sequence of AnomalyMapper
        Of one configuration, with the same intensity limits; the first looks at the image as it is.
    scoring : ScoringConfig
        Whether to average over the mirror images, too, and what a coarse look weighs.
    """

    def __init__(self, members: Sequence[AnomalyMapper], scoring: ScoringConfig) -> None:
        super().__init__()
        self._members = nn.ModuleList(members)
        self.flips = scoring.test_time_flips
        self.coarse_weight = scoring.coarse_weight

    @property
    def members(self) -> list[AnomalyMapper]:
        """The mappers, in the order in which they were trained."""
        return cast("list[AnomalyMapper]", list(self._members))

    def tensors(self) -> dict[str, Tensor]:
        """Return all that was learned, on the CPU; the first member's names are those of a model with one."""
        named = zip(_names(len(self.members)), self.members, strict=True)
        return {f"{name}.{key}": t.cpu() for name, member in named for key, t in member.state_dict().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], config: Config) -> Ensemble:
        """Build what `tensors` was taken from."""
        members = []
        for number, name in enumerate(_names(n_networks(config)), start=1):
            own = tensors_below(tensors, f"{name}.")
            member = AnomalyMapper(config, tensors_below(own, "embed."), shrink_of(config, number))
            member.load_state_dict(own)
            members.append(member)
        return cls(members, config.scoring)

    @property
    def resolutions(self) -> list[str]:
        """At what part of the working resolution each member looks, "1" or "1/2"."""
        return [f"1/{member.shrink}" if member.shrink > 1 else "1" for member in self.members]

    def describe(self) -> list[str]:
        """Say in words what the maps are averaged over, where there is more than one."""
        lines = []
        if len(self.members) > 1:
            looks = ", ".join(dict.fromkeys(self.resolutions))
            lines.append(f"members: {len(self.members)} such networks, whose maps are averaged; resolution: {looks}")
        if "1" in self.resolutions and len(set(self.resolutions)) > 1 and self.coarse_weight != 1:
            lines.append(f"a look at a shrunk image has {self.coarse_weight:g} of the weight of full resolution")
        if self.flips:
            lines.append("maps are averaged over the image and its mirror images")
        return lines

    def forward(self, raw: Tensor, valid: Tensor, limits: Tensor) -> Tensor:
        """Map a batch as `AnomalyMapper` does, of any size: what is larger than a window goes window by window.

        One map after the other, so that the memory does not grow with their number.
        """
        mirrorings = _mirrorings(raw.ndim - 2) if self.flips else [()]
        weights = [1.0 if member.shrink == 1 else self.coarse_weight for member in self.members]
        maps = (
            weight * _map(member, raw, valid, limits, axes)
            for member, weight in zip(self.members, weights, strict=True)
            if weight
            for axes in mirrorings
        )
        return reduce(torch.add, maps) / (sum(weights) * len(mirrorings))

    def reconstruct(self, raw: Tensor, valid: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled input and the mean of what its finest members take for normal, for people to see.

        Of any size, as the map: what is larger than a window goes window by window.
        """
        finest = [member for member in self.members if member.shrink == 1]
        scaled, reconstructions = zip(*(_reconstructed(m, raw, valid, limits) for m in finest), strict=True)
        return scaled[0], reduce(torch.add, reconstructions) / len(reconstructions)


def n_networks(config: Config) -> int:
    """Return the number of members: all scales for every seed."""
    return config.training.members * config.model.n_scales


def shrink_of(config: Config, number: int) -> int:
    """Return by what a member (1, 2, ...) shrinks the image: the scales of one seed come before the next seed."""
    shrink: int = 2 ** ((number - 1) % config.model.n_scales)
    return shrink


def _map(mapper: AnomalyMapper, raw: Tensor, valid: Tensor, limits: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Map a mirror image; its errors are mirrored back first, because statistics by position are of the image itself.

    Only errors are mapped in windows: the position is one in the whole image.
    """
    window, margin = mapper.window_px, mapper.margin_px
    if axes:
        errors = map_in_windows(mapper.errors, raw.flip(axes), valid.flip(axes), limits, window, margin).flip(axes)
    else:  # flipping along no axis would still copy
        errors = map_in_windows(mapper.errors, raw, valid, limits, window, margin)
    anomaly_map: Tensor = mapper.standardise(errors.to(raw.device), valid)
    return anomaly_map


def _reconstructed(mapper: AnomalyMapper, raw: Tensor, valid: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scaled input and its reconstruction by a mapper that does not shrink, in windows: twice (B, C, *S)."""

    def both(*window: Tensor) -> Tensor:
        return torch.cat(mapper.reconstruct(*window), dim=1)  # (B, 2 C, *window)

    x, x_hat = map_in_windows(both, raw, valid, limits, mapper.window_px, mapper.margin_px).chunk(2, dim=1)
    return x, x_hat


def _names(n_members: int) -> list[str]:
    return ["mapper", *(f"mapper{number}" for number in range(2, n_members + 1))]


def _mirrorings(n_dims: int) -> list[tuple[int, ...]]:
    """Return the axes of (B, C, *S) to mirror for the image itself and for each of its mirror images."""
    axes = range(2, 2 + n_dims)
    return [chosen for n in range(n_dims + 1) for chosen in combinations(axes, n)]
