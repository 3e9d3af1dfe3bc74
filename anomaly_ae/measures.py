"""How two images differ, pixel by pixel: the error measures, and the blur that respects what is valid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from anomaly_ae.config import MEASURES, ScoringConfig
from anomaly_ae.model import DamageHead

GRADIENT_SCALES = 3  # of measure "gms"


class ErrorMeasures(nn.Module):
    """Weighted sum of error measures, each in units of its mean on normal images (buffer ``unit``).

    Parameters
    ----------
    head : module or None
        What tells damage from an image and its repair, for the measure "head".
    """

    def __init__(self, config: ScoringConfig, head: DamageHead | None = None) -> None:
        super().__init__()
        self.head = head
        self.weights = {name: getattr(config, name) for name in MEASURES if getattr(config, name) > 0}
        self.window = GaussianSmoothing(1.5)
        self.background = GaussianSmoothing(config.background_sd_px)
        # SSIM; or gradients on the coarsest of three scales; or the background of the residual
        self.reach_px = max(2 * self.window.reach_px + 8, self.background.reach_px)
        if head and config.head:
            self.reach_px = max(self.reach_px, head.reach_px)
        self.usual = sum(self.weights.values())  # the mean error of normal images
        self.register_buffer("unit", torch.ones(len(self.weights)))

    def forward(self, z: Tensor, z_hat: Tensor, valid: Tensor) -> Tensor:
        """Return ``(B, 1, *S)``."""
        unit = self.get_buffer("unit")
        terms = [
            weight / unit[i] * self.measure(name, z, z_hat, valid)
            for i, (name, weight) in enumerate(self.weights.items())
        ]
        return torch.stack(terms).sum(dim=0)

    def measure(self, name: str, z: Tensor, z_hat: Tensor, valid: Tensor) -> Tensor:
        """Return one error measure: ``(B, 1, *S)``, 0 where both images agree.

        "chroma" is how far the channels differ in their errors, as where a hue is wrong (their standard deviation); all
        others are means over the channels.
        """
        match name:
            case "l1":
                error = self.residual(z, z_hat, valid).abs()
            case "l2":
                error = self.residual(z, z_hat, valid).square()
            case "ssim":
                error = (1 - structural_similarity(z, z_hat, self.window)) / 2
            case "gms":
                error = gradient_dissimilarity(z, z_hat)
            case "chroma":
                error = self.residual(z, z_hat, valid).std(dim=1, correction=0, keepdim=True)
            case "head" if self.head is not None:
                error = torch.sigmoid(self.head(z, z_hat))
            case _:
                raise AssertionError(name)  # `config` has checked it
        return error.mean(dim=1, keepdim=True)

    def residual(self, z: Tensor, z_hat: Tensor, valid: Tensor) -> Tensor:
        """Return the signed difference without its smooth part, which lighting changes leave: ``(B, C, *S)``."""
        difference = z - z_hat
        return difference - self.background(difference, valid) if self.background.reach_px else difference


def structural_similarity(x: Tensor, y: Tensor, window: GaussianSmoothing) -> Tensor:
    """Return the SSIM map for a data range of 1 (Wang et al., IEEE TIP 13 (2004), eq. 13): ``(B, C, *S)``."""
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = window.blur(x), window.blur(y)
    var_x = (window.blur(x * x) - mean_x**2).clamp_min(0)
    var_y = (window.blur(y * y) - mean_y**2).clamp_min(0)
    covariance = window.blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (var_x + var_y + c2)


def gradient_dissimilarity(x: Tensor, y: Tensor) -> Tensor:
    """Return 1 - gradient-magnitude similarity, mean over scales (Xue et al., IEEE TIP 23 (2014)): ``(B, C, *S)``.

    The constant keeps sensor noise (a gradient of about 0.02 of the range) from counting as structure.
    """
    constant = 0.02**2
    pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
    mode = "bilinear" if x.ndim == 4 else "trilinear"
    total = torch.zeros_like(x)
    for scale in range(GRADIENT_SCALES):
        small_x, small_y = (pool(image, 2**scale) for image in (x, y))
        g_x, g_y = gradient_magnitude(small_x), gradient_magnitude(small_y)
        error = 1 - (2 * g_x * g_y + constant) / (g_x**2 + g_y**2 + constant)
        total = total + functional.interpolate(error, size=x.shape[2:], mode=mode, align_corners=False)
    return total / GRADIENT_SCALES


def gradient_magnitude(x: Tensor) -> Tensor:
    """Return the length of the central-difference gradient; the outermost pixel repeats: ``(B, C, *S)``."""
    total = torch.zeros_like(x)
    for axis in range(2, x.ndim):
        length = x.shape[axis]
        index = torch.arange(length, device=x.device)
        ahead = x.index_select(axis, (index + 1).clamp_max(length - 1))
        behind = x.index_select(axis, (index - 1).clamp_min(0))
        total = total + ((ahead - behind) / 2).square()
    return total.sqrt()


class GaussianSmoothing(nn.Module):
    """Separable Gaussian blur that never lets pixels outside the mask, or outside the image, dilute those inside."""

    def __init__(self, sd_px: float) -> None:
        super().__init__()
        self.reach_px = math.ceil(3 * sd_px)
        taps = [math.exp(-0.5 * (distance / max(sd_px, 1e-6)) ** 2) for distance in range(self.reach_px + 1)]
        total = taps[0] + 2 * sum(taps[1:])
        self.weights = [tap / total for tap in taps]  # of the pixel itself, and of each of the two at every distance

    def forward(self, error: Tensor, valid: Tensor) -> Tensor:
        """Return ``conv(error * valid) / conv(valid)``, 0 outside ``valid``: ``(B, 1, *S)``."""
        if self.reach_px == 0:
            return error * valid
        weight = valid.to(error.dtype)
        return self._convolve(error * weight) / self._convolve(weight).clamp_min(1e-6) * weight

    def blur(self, x: Tensor) -> Tensor:
        """Blur every channel, normalised at the border: ``(B, C, *S)``."""
        return self._convolve(x) / self._convolve(torch.ones_like(x[:1, :1]))

    def _convolve(self, x: Tensor) -> Tensor:
        """Sum shifted images, axis by axis: on the CPU several times as fast as a convolution of one channel."""
        for axis in range(2, x.ndim):
            side = x.shape[axis]
            blurred = self.weights[0] * x
            for distance, weight in enumerate(self.weights[1:side], start=1):
                n_pairs = side - distance
                blurred.narrow(axis, 0, n_pairs).add_(x.narrow(axis, distance, n_pairs), alpha=weight)
                blurred.narrow(axis, distance, n_pairs).add_(x.narrow(axis, 0, n_pairs), alpha=weight)
            x = blurred
        return x
