"""Forward processes, each as two tables: x_t = signal_t x_0 + noise_t eps, eps ~ N(0, I).

Row 0 has the smallest noise and row T - 1 the largest, as in `diffusion.py`, whose
index t is the paper's t + 1. Divided by sqrt(signal_t^2 + noise_t^2), every process is
variance preserving with the ratio noise_t / signal_t that it had: processes differ by
that factor and by the levels they visit.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Process(NamedTuple):
    """A forward process of T levels: tables of shape (T,), float64, on the CPU.

    An SDE's process holds on the same rows its time s, and drift f(s) and diffusion
    g(s) of dx = f(s) x ds + g(s) dw, (34).
    """

    signal: Tensor
    noise: Tensor
    time: Tensor | None = None
    drift: Tensor | None = None
    diffusion: Tensor | None = None

    @property
    def steps(self) -> int:
        """The number of levels, T."""
        return len(self.noise)

    def at(self, t: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (signal_t, noise_t) as a predictor takes them, of x's dtype and device.

        They are () for one row t, where t = -1 is the datum itself, (1, 0); and (B, 1)
        for one row, on the CPU, of each state.
        """
        if isinstance(t, int) and t == -1:
            return x.new_ones(()), x.new_zeros(())
        signal, noise = self.signal[t].to(x), self.noise[t].to(x)
        return (signal[:, None], noise[:, None]) if signal.ndim else (signal, noise)

    def rows(self, t: Tensor) -> "Process":
        """Return the process that visits these rows only."""
        return Process(*(table if table is None else table[t] for table in self))

    def schedule(self) -> tuple[Tensor, Tensor]:
        """Return (alphas, alpha_bars), the tables of `diffusion.py`.

        abar_t = signal_t^2 and alpha_t = abar_t / abar_{t-1}. Raises ValueError unless
        signal_t^2 + noise_t^2 = 1, which DDPM's posterior takes for granted.
        """
        alpha_bars = self.signal.square()
        if not torch.allclose(
            alpha_bars + self.noise.square(), alpha_bars.new_ones(())
        ):
            raise ValueError("DDPM needs a variance-preserving process, not this one")
        previous = torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])
        return alpha_bars / previous, alpha_bars


def _from_betas(betas: Tensor) -> Process:
    alpha_bars = (1 - betas).cumprod(dim=0)
    return Process(alpha_bars.sqrt(), (1 - alpha_bars).sqrt())


def linear(steps: int = 1000) -> Process:
    """Return DDPM's process: beta_t grows linearly from 1e-4 to 0.02."""
    return _from_betas(torch.linspace(1e-4, 0.02, steps, dtype=torch.float64))


def cosine(steps: int = 1000) -> Process:
    """Return the process of the cosine schedule, (18), of Nichol and Dhariwal (2021).

        f(t) = cos^2(pi/2 (t/T + s) / (1 + s)), s = 0.008,    beta_t = 1 - f(t) / f(t-1)

    with beta_t at most 0.999. abar is the product of the capped 1 - beta_t, so that
    abar_T is 2.4e-9 (T = 1000), not 0.
    """
    time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    f = (math.pi / 2 * (time + 0.008) / 1.008).cos().square()
    return _from_betas((1 - f[1:] / f[:-1]).clamp(max=0.999))


def geometric(
    levels: int = 10, largest: float = 5.0, smallest: float = 0.01
) -> Process:
    """Return the levels of a noise conditional score network: signal 1, noise geometric."""
    ends = torch.tensor([smallest, largest], dtype=torch.float64).log()
    noise = torch.linspace(*ends.tolist(), levels, dtype=torch.float64).exp()
    return Process(torch.ones_like(noise), noise)


def vp_sde(time: int | Tensor = 1000) -> Process:
    """Return the variance-preserving SDE of Song et al. (2021) at times s.

        f = -beta(s)/2,    g^2 = beta(s) = 0.1 + 19.9 s,
        signal = exp(-0.05 s - 4.975 s^2),    noise^2 = 1 - signal^2

    time: how many, evenly from 1e-3 to 1, or the times themselves, (n,).
    """
    s = _times(1e-3, time)
    beta = 0.1 + 19.9 * s
    log_signal = -0.05 * s - 4.975 * s.square()
    noise = (-(2 * log_signal).expm1()).sqrt()
    return Process(log_signal.exp(), noise, s, -beta / 2, beta.sqrt())


def ve_sde(
    time: int | Tensor = 200, smallest: float = 0.01, largest: float = 50.0
) -> Process:
    """Return the variance-exploding SDE of Song et al. (2021) at times s.

        f = 0,    g^2 = d sigma^2 / ds,    sigma(s) = smallest (largest / smallest)^s,
        signal = 1,    noise = sigma(s)

    time: how many, evenly from 0 to 1, or the times themselves, (n,). The noise would
    be sqrt(sigma(s)^2 - smallest^2); Song et al. drop that term likewise.
    """
    s = _times(0.0, time)
    growth = math.log(largest / smallest)
    sigma = smallest * (growth * s).exp()
    return Process(
        torch.ones_like(s), sigma, s, torch.zeros_like(s), math.sqrt(2 * growth) * sigma
    )


def straight(time: int | Tensor = 100) -> Process:
    """Return the straight process of rectified flow (Liu et al., 2022) at times s.

        signal = 1 - s,    noise = s

    time: how many, K, s = 0.999 k / K for k = 1..K, or the times themselves, (n,).
    """
    if isinstance(time, int):
        time = 0.999 * torch.arange(1, time + 1, dtype=torch.float64) / time
    return Process(1 - time, time)


def _times(first: float, time: int | Tensor) -> Tensor:
    if isinstance(time, Tensor):
        return time
    return torch.linspace(first, 1, time, dtype=torch.float64)


def kept_rows(steps: int, kept: int) -> Tensor:
    """Return `kept` of the rows 0..steps-1, evenly spaced, both ends among them.

    Raises ValueError unless 2 <= kept <= steps.
    """
    if not 2 <= kept <= steps:
        raise ValueError(f"of {steps} levels 2 to {steps} can be kept, got {kept}")
    return torch.linspace(0, steps - 1, kept, dtype=torch.float64).round().long()


def respaced(process: Process, kept: int) -> Process:
    """Return the process that visits `kept` of the levels, both ends among them.

    abar is taken at those levels, so that the alphas of its `schedule` are those of the
    longer steps. Raises ValueError unless 2 <= kept <= T.
    """
    return process.rows(kept_rows(process.steps, kept))
