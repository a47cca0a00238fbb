"""The mathematics of a denoising diffusion probabilistic model (DDPM).

The paper counts time t = 1..T; the code's index is one less, 0..T-1, so index 0 is the
state diffused for one step. With beta_t the variance that step t adds,

    alpha_t = 1 - beta_t,    abar_t = alpha_1 ... alpha_t,    abar_0 = 1,

and the forward process is q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I).

Conventions of every function here:

* a state is a floating tensor of shape (D,), or (B, D) for a batch of B states; states
  given together have one shape, dtype and device;
* the argument `t` is the index, as published, so that alpha_bars[t] is abar of the paper's
  t + 1: an int, or a tensor on the CPU with one index for each row of a batch;
* `alphas` and `alpha_bars` have shape (T,) and stay on the CPU. Coefficients are formed in
  their precision; results have the dtype and the device of the state;
* `generator` drives the randomness; None means PyTorch's global state;
* `device` and `data_size` are there for the published calls: they follow from the state,
  may be left out, and must be right if given;
* an index outside 0..T-1 raises IndexError (negative ones too: nothing wraps); states that
  differ, and tables that are no schedule's, raise ValueError.

Sources: M. Scardala, "Un esempio di applicazione dei DDPM", Laboratorio Computazionale
(2024), whose equation numbers are quoted, and J. Ho, A. Jain, P. Abbeel, "Denoising
diffusion probabilistic models" (2020), arXiv:2006.11239.
"""

from collections.abc import Callable
from typing import Literal, SupportsIndex

import torch
from torch import Tensor, nn

Index = SupportsIndex | Tensor
# Called (x_t, t), a network returns x_0, or the noise in x_t, or the mean of x_{t-1}: in
# x_t's shape, or (D,) for every row alike.
Network = Callable[[Tensor, Index], Tensor]
# A denoiser is a network that returns the mean of x_{t-1}.
Denoiser = Network


# The schedule


def noise_schedule(
    num_timesteps: int = 30, beta_start: float = 4e-4, beta_end: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Return (alphas, alpha_bars) of the "scaled linear" schedule, float64, (T,) each.

    sqrt(beta_t) grows linearly from sqrt(beta_start) to sqrt(beta_end). The defaults are
    the published ones; they end at abar_T = 0.79, long before pure noise.

    Raises ValueError unless num_timesteps >= 1 and 0 < beta_start <= beta_end < 1.
    """
    if not (num_timesteps >= 1 and 0 < beta_start <= beta_end < 1):
        raise ValueError(
            "a schedule needs num_timesteps >= 1 and 0 < beta_start <= beta_end < 1, "
            f"got {num_timesteps}, {beta_start} and {beta_end}"
        )
    betas = torch.linspace(
        beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64
    ).square()
    alphas = 1 - betas
    return alphas, alphas.cumprod(dim=0)


def _betas_and_previous(alphas: Tensor, alpha_bars: Tensor) -> tuple[Tensor, Tensor]:
    """Return beta_t and abar_{t-1} for t = 1..T, (T,) each.

    Raises ValueError unless alpha_bars are the products of alphas, to 1 in 1,000.
    """
    off = (alphas.cumprod(dim=0) - alpha_bars).abs()
    if not (off <= 1e-3 * alpha_bars).all():
        raise ValueError("alpha_bars must be the cumulative products of alphas")
    return 1 - alphas, torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])


def _at(table: Tensor, t: Index, *states: Tensor) -> Tensor:
    """Return table[t] as what multiplies the states: () for one index, else (B, 1).

    The one door of indices, schedules and states. table: (T,) on the CPU; or a network's
    (T, D), of which rows are returned. The result has the states' dtype and device.
    """
    index, x = torch.as_tensor(t), states[0]
    kinds = {(x.shape, x.dtype, x.device) for x in states}
    if len(kinds) > 1:
        raise ValueError(f"states must have one shape, dtype and device, got {kinds}")
    if index.ndim and index.shape != x.shape[:-1]:
        raise ValueError(f"t must be one index, or one per row of {x.shape}, got {t}")
    inside = index.clamp(0, len(table) - 1)
    if index.is_floating_point() or not torch.equal(index, inside):
        raise IndexError(f"t must be an integer of 0..{len(table) - 1}, got {t}")
    if table.ndim == 1 and not table.is_cpu:
        raise ValueError(f"a schedule must be on the CPU, got one on {table.device}")
    # Blocking copies would make the CPU wait for the GPU at every coefficient.
    rows = index.long().to(table.device, non_blocking=True) if index.ndim else int(t)
    row = table[rows].to(x.device, x.dtype, non_blocking=True)
    return row[:, None] if index.ndim and table.ndim == 1 else row


# The forward process and its posterior


def _noise_like(
    x: Tensor,
    generator: torch.Generator | None,
    device: torch.device | str | None = None,
    data_size: int | None = None,
) -> Tensor:
    """Return standard normal noise for x. On another device, it cannot be added to x."""
    if data_size not in (None, x.shape[-1]):
        raise ValueError(f"data_size must be {x.shape[-1]}, as in x, got {data_size}")
    like = {"dtype": x.dtype, "device": device or x.device}
    return torch.randn(x.shape, generator=generator, **like)


def q_sample(
    x_start: Tensor,
    t: Index,
    alpha_bars: Tensor,
    device: torch.device | str | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_t from q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), eq. (2).

    x_start: (D,) or (B, D); x_t has its shape.
    """
    signal = _at(alpha_bars.sqrt(), t, x_start)
    sigma = _at((1 - alpha_bars).sqrt(), t, x_start)
    return signal * x_start + sigma * _noise_like(x_start, generator, device)


def posterior_mean_variance(
    x_start: Tensor, x_t: Tensor, t: Index, alphas: Tensor, alpha_bars: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(x_{t-1} | x_t, x_0) = N(mu~_t, beta~_t I), (3, 4).

        mu~_t   = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0
                  + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t
        beta~_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t

    At index 0 it is a point: mean x_0, variance 0. The publication misprints (4); these
    are the forms that follow from Bayes' rule (Ho et al., eqs. 6 and 7).

    x_start, x_t: (D,) or (B, D). The mean has that shape; the variance is (), or (B, 1)
    for one index per row.
    """
    betas, alpha_bars_prev = _betas_and_previous(alphas, alpha_bars)
    start_weights = alpha_bars_prev.sqrt() * betas / (1 - alpha_bars)
    x_t_weights = alphas.sqrt() * (1 - alpha_bars_prev) / (1 - alpha_bars)
    variances = (1 - alpha_bars_prev) / (1 - alpha_bars) * betas

    start_weight = _at(start_weights, t, x_start, x_t)
    x_t_weight = _at(x_t_weights, t, x_t)
    return start_weight * x_start + x_t_weight * x_t, _at(variances, t, x_t)


def posterior_q(
    x_start: Tensor,
    x_t: Tensor,
    t: Index,
    alphas: Tensor,
    alpha_bars: Tensor,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return mean and covariance matrix beta~_t I of q(x_{t-1} | x_t, x_0), (3, 4).

    The published form of `posterior_mean_variance`, which see: the covariance is dense,
    (D, D), or (B, D, D) for one index per row, so it is for looking at, not for
    sampling.
    """
    mean, variance = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
    identity = torch.eye(x_t.shape[-1], dtype=x_t.dtype, device=device or x_t.device)
    return mean, variance[..., None] * identity


# The network and what it is asked for


def position_encoding_init(n_position: int, d_pos_vec: int) -> Tensor:
    """Return the sinusoidal position table, float32, (n_position, d_pos_vec).

    Row 0 is zero. In row p, column i holds the angle p / 10000^(2 i / d_pos_vec): its
    sine where i is even, its cosine where i is odd. As published: the usual table has
    2 floor(i / 2) in place of 2 i, so here the frequencies fall to 1e-8 and most columns
    hardly depend on p.
    """
    position = torch.arange(n_position)[:, None]
    column = torch.arange(d_pos_vec, dtype=torch.float64)
    table = position / 10000 ** (2 * column / d_pos_vec)
    table[:, 0::2] = table[:, 0::2].sin()
    table[:, 1::2] = table[:, 1::2].cos()
    table[0] = 0
    return table.float()


class Denoising(nn.Module):
    """The published network: Linear - ReLU - Linear - ReLU - Linear on x_t + emb[t].

    Called (x_t, t), with x_t of shape (D,) or (B, D), it returns that shape. Trained
    directly, its output is the mean of x_{t-1}; inside `PredictStart` or `PredictNoise`
    it is x_0 or the noise.

    The embedding of index i is row i + 1 of the position table, the paper's t. (The
    publication takes row i; but row 0 is all zeros, unlike any other, and once index 0 is
    trained with it, the chain ends far from the face.) `emb`, (T, D), is a buffer;
    assigning another tensor of that shape replaces it.

    x_dim: D = 2N. hidden_dim: width of the hidden layers, D (published) if None.
    """

    emb: Tensor

    def __init__(
        self, x_dim: int, num_diffusion_timesteps: int, hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        hidden_dim = x_dim if hidden_dim is None else hidden_dim
        table = position_encoding_init(num_diffusion_timesteps + 1, x_dim)
        self.register_buffer("emb", table[1:].clone())
        self.linear1 = nn.Linear(x_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, hidden_dim)
        self.linear3 = nn.Linear(hidden_dim, x_dim)
        self.relu = nn.ReLU()

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        hidden = self.relu(self.linear1(x_t + _at(self.emb, t, x_t)))
        hidden = self.relu(self.linear2(hidden))
        return self.linear3(hidden)


def prediction(network: Network, x_t: Tensor, t: Index) -> Tensor:
    """Return what a network gives for x_t and t, in x_t's shape.

    Raises ValueError unless that is x_t's shape or (D,), of x_t's dtype and device.
    """
    output = network(x_t, t)
    kinds = [(shape, x_t.dtype, x_t.device) for shape in (x_t.shape, x_t.shape[-1:])]
    kind = output.shape, output.dtype, output.device
    if kind not in kinds:
        raise ValueError(f"a network must return one of {kinds}, got {kind}")
    return output.expand_as(x_t)


class PredictStart(nn.Module):
    """A denoiser made of a network that predicts x_0: its mean is mu~_t(x_t, x_0), (4).

    A network that is a function returning the true x_0 makes this the exact posterior.
    """

    def __init__(self, network: Network, alphas: Tensor, alpha_bars: Tensor) -> None:
        super().__init__()
        self.network = network
        # Not buffers: those would follow the network to the GPU and to its dtype.
        self.alphas, self.alpha_bars = alphas, alpha_bars

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        x_start = prediction(self.network, x_t, t)
        mean, _ = posterior_mean_variance(x_start, x_t, t, self.alphas, self.alpha_bars)
        return mean


class PredictNoise(nn.Module):
    """A denoiser made of a network that predicts the noise in x_t.

    With x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, the posterior mean (4) reads

        mu~_t = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t)

    (Ho et al., eq. 11).
    """

    def __init__(self, network: Network, alphas: Tensor, alpha_bars: Tensor) -> None:
        super().__init__()
        self.network = network
        self.alphas, self.alpha_bars = alphas, alpha_bars

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        betas, _ = _betas_and_previous(self.alphas, self.alpha_bars)
        noise_weight = _at(betas / (1 - self.alpha_bars).sqrt(), t, x_t)
        noise = prediction(self.network, x_t, t)
        return (x_t - noise_weight * noise) / _at(self.alphas.sqrt(), t, x_t)


# The way back


@torch.no_grad()
def denoise_with_mu(
    denoise_model: Denoiser,
    x_t: Tensor,
    t: Index,
    alphas: Tensor,
    data_size: int | None = None,
    device: torch.device | str | None = None,
    *,
    variance: Literal["beta", "posterior"] | Tensor = "beta",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_{t-1} from the reverse step N(mu_theta(x_t, t), sigma_t^2 I).

    sigma_t^2 is beta_t ("beta", published), beta~_t of (4) ("posterior": the exact one
    where, as here, there is a single datum), or a tensor of x_t's dtype and device that
    broadcasts to x_t. The last step, index 0, adds no noise and returns the mean.

    x_t: (D,) or (B, D); x_{t-1} has its shape. data_size: D.
    """
    if isinstance(variance, str):
        variances = _reverse_variances(variance, alphas, alphas.cumprod(dim=0))
        sigma = _at(variances.sqrt(), t, x_t)
    else:
        sigma = variance.sqrt()
    not_last = _at(torch.arange(len(alphas)) > 0, t, x_t)
    mean = prediction(denoise_model, x_t, t)
    return mean + not_last * sigma * _noise_like(x_t, generator, device, data_size)


def _reverse_variances(variance: str, alphas: Tensor, alpha_bars: Tensor) -> Tensor:
    """Return sigma_t^2 for t = 1..T: beta_t ("beta") or beta~_t of (4) ("posterior")."""
    if variance == "beta":
        return 1 - alphas
    if variance == "posterior":
        x, every_t = alphas.new_zeros(len(alphas), 1), torch.arange(len(alphas))
        return posterior_mean_variance(x, x, every_t, alphas, alpha_bars)[1].squeeze(1)
    raise ValueError(f"variance must be 'beta' or 'posterior', got {variance!r}")


# The bound: -log p(x_0) <= D (prior_kl + sum of variance_kl + sum of mean_kl)
# - E log p(x_0 | x_1), whose last term has no finite value, since sigma_1 = 0


def gaussian_kl(
    mean1: Tensor, variance1: Tensor | float, mean2: Tensor, variance2: Tensor | float
) -> Tensor:
    """Return KL(N(mean1, S1) || N(mean2, S2)) in nats, eq. (5), for diagonal S1 and S2.

        1/2 [ log(det S2 / det S1) - d + tr(S2^-1 S1)
              + (mean2 - mean1)^T S2^-1 (mean2 - mean1) ]

    Means: (d,) or (B, d). variance1, variance2: the diagonals, above 0, as a number, (),
    (B, 1) or of the means' shape, else ValueError. Returns one number per state, () or
    (B,), float64: small differences of large numbers are what it is made of.
    """
    like = {"dtype": torch.float64, "device": mean1.device}
    variance1 = torch.as_tensor(variance1, **like)
    variance2 = torch.as_tensor(variance2, **like)
    ndims = {variance1.ndim, variance2.ndim}
    if mean1.shape != mean2.shape or not ndims <= {0, mean1.ndim}:
        shapes = [x.shape for x in (mean1, variance1, mean2, variance2)]
        raise ValueError(f"means and variances must fit, got shapes {shapes}")
    ratio = variance1 / variance2
    distance = (mean2.double() - mean1.double()).square() / variance2
    return (ratio - 1 - ratio.log() + distance).sum(dim=-1) / 2


def prior_kl(x_start: Tensor, alpha_bars: Tensor) -> float:
    """Return KL(q(x_T | x_0) || N(0, I)) in nats per dimension.

    The first term of the bound: what the chain loses by starting from pure noise.
    x_start: (D,), or (B, D) for the mean over B data.
    """
    mean = alpha_bars[-1].sqrt() * x_start.double()
    kl = gaussian_kl(mean, 1 - alpha_bars[-1], torch.zeros_like(mean), 1.0)
    return kl.mean().item() / x_start.shape[-1]


@torch.no_grad()
def vb_terms(
    denoiser: Denoiser,
    x_start: Tensor,
    alphas: Tensor,
    alpha_bars: Tensor,
    *,
    variance: Literal["beta", "posterior"] = "beta",
    states_per_step: int = 8,
    seed: int = 3,
) -> tuple[Tensor, Tensor]:
    """Return (variance_kl, mean_kl) for t = 2..T: float64, (T - 1,), nats per dimension.

    They add up to the terms of the variational bound between its ends,

        KL(N(mu~_t, beta~_t I) || N(mu_theta, sigma_t^2 I)) = variance_kl + mean_kl,
        variance_kl = 1/2 [log(sigma_t^2 / beta~_t) - 1 + beta~_t / sigma_t^2],
        mean_kl     = E norm(mu~_t - mu_theta(x_t, t))^2 / (2 sigma_t^2 D),

    the exact step back (4) against the model's, along the forward process: E is the mean
    over `states_per_step` draws of x_t from q(x_t | x_0).

    x_start: (D,). variance: what sigma_t^2 is, beta_t or beta~_t.
    """
    exact = _reverse_variances("posterior", alphas, alpha_bars)
    model = _reverse_variances(variance, alphas, alpha_bars)
    zeros = torch.zeros(len(alphas) - 1, 1)
    variance_kl = gaussian_kl(zeros, exact[1:, None], zeros, model[1:, None])

    generator = torch.Generator(x_start.device).manual_seed(seed)
    x_start = x_start.expand(states_per_step, -1)
    mean_kl = torch.zeros_like(variance_kl)
    for t in range(1, len(alphas)):
        x_t = q_sample(x_start, t, alpha_bars, generator=generator)
        mean, _ = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
        kl = gaussian_kl(mean, model[t], prediction(denoiser, x_t, t), model[t])
        mean_kl[t - 1] = kl.mean() / x_start.shape[-1]
    return variance_kl, mean_kl
