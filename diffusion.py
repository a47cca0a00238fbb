"""The mathematics of a denoising diffusion probabilistic model (DDPM).

    alpha_t = 1 - beta_t,    abar_t = alpha_1 ... alpha_t,    abar_0 = 1,
    q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t I)

Formulas count t = 1..T, indices 0..T-1: alpha_bars[t] is abar_{t+1}. A state has shape
(D,), or (B, D) in a batch; `t` is an index, or a CPU tensor of one per row; `alphas`
and `alpha_bars` are (T,). A `denoise_model` is any callable that maps (x_t, t) to
mu_theta, the mean of x_{t-1}. Only `sample` uses its `device` and `data_size`.

Equation numbers are those of M. Scardala, "Un esempio di applicazione dei DDPM" (2024),
which follows T. Lira, "A toy diffusion model you can run on your laptop" (2022). Ho et
al. is "Denoising diffusion probabilistic models" (2020), arXiv:2006.11239.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor, nn

Index = int | Tensor
Model = Callable[[Tensor, Index], Tensor]
Variance = Literal["beta", "posterior"]
Device = torch.device | str
Value = Tensor | float


def noise_schedule(
    num_timesteps: int = 30, beta_start: float = 4e-4, beta_end: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Return (alphas, alpha_bars), float64; sqrt(beta_t) is linear in t (published)."""
    if not (num_timesteps >= 1 and 0 < beta_start <= beta_end < 1):
        raise ValueError("a schedule needs T >= 1 and 0 < beta_start <= beta_end < 1")
    ends = beta_start**0.5, beta_end**0.5
    alphas = 1 - torch.linspace(*ends, num_timesteps, dtype=torch.float64).square()
    return alphas, alphas.cumprod(dim=0)


def at(table: Tensor, t: Index, x: Tensor) -> Tensor:
    """Return table[t] as x's type, to broadcast with x: (), (B, 1), (D,) or (B, D)."""
    if (torch.as_tensor(t) < 0).any():  # would wrap to the end, as in the publication
        raise IndexError(f"t must be from 0 to {len(table) - 1}, got {t}")
    entry = table[t].to(x, non_blocking=table.is_cpu)  # from a GPU it must block
    return entry[:, None] if entry.ndim == table.ndim == 1 else entry


# The forward process and its posterior


def q_sample(
    x_start: Tensor,
    t: Index,
    alpha_bars: Tensor,
    device: Device | None = None,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Draw x_t from q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), eq. (2)."""
    mean = at(alpha_bars.sqrt(), t, x_start) * x_start
    sigma = at((1 - alpha_bars).sqrt(), t, x_start)
    return mean + sigma * torch.randn_like(mean, generator=generator)


def forward(x_start: Tensor, alphas: Tensor, *, seed: int = 4) -> Tensor:
    """Draw a forward path step by step; return its states, (T + 1, D), x_0 first."""
    generator = Generator(x_start.device).manual_seed(int(seed))
    path = [x_start]
    for t in range(len(alphas)):  # one step is q_sample with alpha_t in place of abar_t
        path.append(q_sample(path[-1], t, alphas, generator=generator))
    return torch.stack(path)


def posterior_tables(alphas: Tensor, alpha_bars: Tensor) -> tuple[Tensor, ...]:
    """Return A_t, B_t and beta~_t of q(x_{t-1} | x_t, x_0), (T,) each, for t = 1..T.

        A_t     = sqrt(abar_{t-1}) beta_t / (1 - abar_t)
        B_t     = sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t)
        beta~_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t

    At t = 1: 1, 0 and 0. Eq. (4) is misprinted; these are Ho et al.'s (6) and (7).
    """
    betas = 1 - alphas
    alpha_bars_prev = torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])
    start_weights = alpha_bars_prev.sqrt() * betas / (1 - alpha_bars)
    x_t_weights = alphas.sqrt() * (1 - alpha_bars_prev) / (1 - alpha_bars)
    variances = (1 - alpha_bars_prev) / (1 - alpha_bars) * betas
    return start_weights, x_t_weights, variances


def posterior_mean_variance(
    x_start: Tensor, x_t: Tensor, t: Index, alphas: Tensor, alpha_bars: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mu~_t = A_t x_0 + B_t x_t and beta~_t, () or (B, 1): eqs. (3) and (4)."""
    tables = posterior_tables(alphas, alpha_bars)
    start_weight, x_t_weight, variance = (at(table, t, x_t) for table in tables)
    return start_weight * x_start + x_t_weight * x_t, variance


def posterior_q(
    x_start: Tensor,
    x_t: Tensor,
    t: Index,
    alphas: Tensor,
    alpha_bars: Tensor,
    device: Device | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the mean and the dense covariance, (D, D) or (B, D, D), as published."""
    mean, variance = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
    return mean, variance[..., None] * torch.eye(x_t.shape[-1]).to(x_t)


# The network and its three possible outputs


def position_encoding_init(n_position: int, d_pos_vec: int) -> Tensor:
    """Return the published table, (n_position, d_pos_vec); row 0 is zero.

    Column i of row p is the sine (even i) or cosine of p / 10000^(2 i / d_pos_vec).
    With 2 i, not the usual 2 floor(i / 2), most columns hardly depend on p.
    """
    p, i = (torch.arange(n, dtype=torch.float64) for n in (n_position, d_pos_vec))
    angle = p[:, None] / 10000 ** (2 * i / d_pos_vec)
    table = torch.where(i % 2 == 0, angle.sin(), angle.cos())
    table[0] = 0
    return table.float()


class Denoising(nn.Module):
    """The published network: Linear - ReLU - Linear - ReLU - Linear on x_t + emb[t].

    emb, (T, D), is rows 1..T of the position table. The publication uses rows 0..T-1,
    but once index 0 is trained, its zero row leads far from x_0. hidden_dim: D if None.
    """

    def __init__(
        self, x_dim: int, num_diffusion_timesteps: int, hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        hidden_dim = hidden_dim or x_dim
        # Not a buffer: it stays on the CPU, as the schedule and the indices do.
        self.emb = position_encoding_init(num_diffusion_timesteps + 1, x_dim)[1:]
        self.linear1 = nn.Linear(x_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, hidden_dim)
        self.linear3 = nn.Linear(hidden_dim, x_dim)
        self.relu = nn.ReLU()

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        hidden = self.relu(self.linear1(x_t + at(self.emb, t, x_t)))  # (..., width)
        return self.linear3(self.relu(self.linear2(hidden)))


class _Predict(nn.Module):
    def __init__(self, network: Model, alphas: Tensor, alpha_bars: Tensor) -> None:
        super().__init__()
        self.network, self.schedule = network, (alphas, alpha_bars)


class PredictStart(_Predict):
    """Turns a network that predicts x_0 into a denoise_model: mu~_t of its output."""

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        x_start = self.network(x_t, t)
        return posterior_mean_variance(x_start, x_t, t, *self.schedule)[0]


class PredictNoise(_Predict):
    """Turns a network that predicts eps, the noise in x_t, into a denoise_model:

    mu_theta = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t)  (Ho et al., (11))
    """

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        alphas, alpha_bars = self.schedule
        noise_weight = at((1 - alphas) / (1 - alpha_bars).sqrt(), t, x_t)
        return (x_t - noise_weight * self.network(x_t, t)) / at(alphas.sqrt(), t, x_t)


# The reverse process


def reverse_variances(variance: Variance, alphas: Tensor) -> Tensor:
    """Return sigma_t^2, (T,): beta_t (published) or beta~_t, and 0 at t = 1."""
    if variance == "posterior":
        return posterior_tables(alphas, alphas.cumprod(dim=0))[2]
    if variance != "beta":
        raise ValueError(f"variance must be 'beta' or 'posterior', got {variance!r}")
    return torch.cat([alphas.new_zeros(1), 1 - alphas[1:]])


@torch.no_grad()
def denoise_with_mu(
    denoise_model: Model,
    x_t: Tensor,
    t: Index,
    alphas: Tensor,
    data_size: int | None = None,
    device: Device | None = None,
    *,
    variance: Variance | Tensor = "beta",
    generator: Generator | None = None,
) -> Tensor:
    """Draw x_{t-1} from N(mu_theta(x_t, t), sigma_t^2 I); at index 0, return mu_theta.

    variance: a name for `reverse_variances`, or a sigma_t^2 that broadcasts with x_t.
    """
    if isinstance(variance, str):
        sigma = at(reverse_variances(variance, alphas).sqrt(), t, x_t)
    else:
        sigma = variance.sqrt() * (at(torch.arange(len(alphas)), t, x_t) > 0)
    mean = denoise_model(x_t, t)
    return mean + sigma * torch.randn_like(x_t, generator=generator)


def sample(
    denoise_model: Model,
    alphas: Tensor,
    data_size: int,
    *,
    x_T: Tensor | None = None,
    variance: Variance = "beta",
    first_index: int = 0,
    seed: int = 2,
    device: Device = "cpu",
) -> Tensor:
    """Run the reverse process from x_T, or N(0, I); return all its states, x_T first.

    They are (T + 1 - first_index, D); with first_index 1, as published, x_1 is last.
    """
    generator = Generator(device if x_T is None else x_T.device).manual_seed(int(seed))
    if x_T is None:
        x_T = torch.randn(data_size, generator=generator, device=device)
    chain = [x_T]
    for t in reversed(range(first_index, len(alphas))):
        x_t = denoise_with_mu(
            denoise_model, chain[-1], t, alphas, variance=variance, generator=generator
        )
        chain.append(x_t)
    return torch.stack(chain)


# The variational bound


def gaussian_kl(m1: Value, v1: Value, m2: Value, v2: Value) -> Tensor:
    """Return KL(N(m1, v1) || N(m2, v2)) in nats, elementwise, in float64.

    1/2 [log(v2 / v1) - 1 + v1 / v2 + (m2 - m1)^2 / v2]    (eq. 5, per coordinate)
    """
    m1, v1, m2, v2 = (torch.as_tensor(x, dtype=torch.float64) for x in (m1, v1, m2, v2))
    ratio = v1 / v2
    return (ratio - 1 - ratio.log() + (m2 - m1).square() / v2) / 2


def prior_kl(x_start: Tensor, alpha_bars: Tensor) -> float:
    """Return L_T of the bound, KL(q(x_T | x_0) || N(0, I)), in nats per dimension."""
    mean = alpha_bars[-1].sqrt() * x_start.double()
    return gaussian_kl(mean, 1 - alpha_bars[-1], 0, 1).mean().item()


@torch.no_grad()
def vb_terms(
    denoise_model: Model,
    x_start: Tensor,
    alphas: Tensor,
    alpha_bars: Tensor,
    *,
    variance: Variance = "beta",
    states_per_step: int = 8,
    seed: int = 3,
) -> tuple[Tensor, Tensor]:
    """Return L_{t-1} of the bound, t = 2..T, (T - 1,), in nats per dimension, in parts:

        variance_kl = 1/2 [log(sigma_t^2 / beta~_t) - 1 + beta~_t / sigma_t^2]
        mean_kl     = E ||mu~_t - mu_theta(x_t, t)||^2 / (2 sigma_t^2 D)

    E is the mean over `states_per_step` draws of x_t given x_start, (D,). L_0 is not
    finite, since the last step adds no noise.
    """
    exact, sigma2 = (reverse_variances(v, alphas) for v in ("posterior", variance))
    variance_kl = gaussian_kl(0, exact[1:], 0, sigma2[1:])
    generator = Generator(x_start.device).manual_seed(int(seed))
    x_start = x_start.expand(states_per_step, -1)  # (B, D)
    mean_kl = torch.zeros_like(variance_kl)
    for t in range(1, len(alphas)):
        x_t = q_sample(x_start, t, alpha_bars, generator=generator)
        mean, _ = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
        kl = gaussian_kl(mean, sigma2[t], denoise_model(x_t, t), sigma2[t])
        mean_kl[t - 1] = kl.mean()
    return variance_kl, mean_kl
