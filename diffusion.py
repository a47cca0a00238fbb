"""The mathematics of a denoising diffusion probabilistic model (DDPM).

The paper counts time t = 1..T; the code's index is one less, 0..T-1, so index 0 is the
state diffused for one step. With beta_t the variance that step t adds,

    alpha_t = 1 - beta_t,    abar_t = alpha_1 ... alpha_t,    abar_0 = 1,

and the forward process is q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I).

Conventions of every function here:

* a state is a floating tensor of shape (D,), or (B, D) for a batch of B states; states
  given together have one shape, dtype and device, as results have but where it is said;
* the argument `t` is the index, as published, so that alpha_bars[t] is abar of the paper's
  t + 1: an int, or a tensor on the CPU with one index for each row of a batch;
* `alphas` and `alpha_bars` have shape (T,), on the CPU or where the states are. Coefficients
  are formed in their precision;
* `generator` drives the randomness; None means PyTorch's global state;
* `device` and `data_size`, of the published calls, follow from the state: they may be left
  out, and must be right if given;
* an index outside 0..T-1 raises IndexError (negative ones too: nothing wraps); states that
  differ, and alpha_bars that are not the products of alphas, raise ValueError.

Sources: M. Scardala, "Un esempio di applicazione dei DDPM", Laboratorio Computazionale
(2024), whose equation numbers are quoted, after T. Lira's "A toy diffusion model you can run
on your laptop" (2022), from which most names come; and J. Ho, A. Jain, P. Abbeel, "Denoising
diffusion probabilistic models" (2020), arXiv:2006.11239.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Index = int | Tensor
# Called (x_t, t), a network returns x_0, or the noise in x_t, or the mean of x_{t-1}: in
# x_t's shape, or (D,) for every row alike. One that returns the mean is a denoiser.
Network = Callable[[Tensor, Index], Tensor]


# The schedule


def noise_schedule(
    num_timesteps: int = 30, beta_start: float = 4e-4, beta_end: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Return (alphas, alpha_bars) of the "scaled linear" schedule, float64, (T,) each.

    sqrt(beta_t) grows linearly from sqrt(beta_start) to sqrt(beta_end). The defaults are
    published; they end at abar_T = 0.79, long before pure noise. Raises ValueError.
    """
    if not (num_timesteps >= 1 and 0 < beta_start <= beta_end < 1):
        needs = "num_timesteps >= 1 and 0 < beta_start <= beta_end < 1"
        got = f"{num_timesteps}, {beta_start} and {beta_end}"
        raise ValueError(f"a schedule needs {needs}, got {got}")
    like = {"dtype": torch.float64, "device": "cpu"}
    roots = torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, **like)
    alphas = 1 - roots.square()
    return alphas, alphas.cumprod(dim=0)


def _betas(alphas: Tensor, alpha_bars: Tensor) -> Tensor:
    """Return beta_t for t = 1..T, if alpha_bars are alphas' products to 1 in 1,000."""
    off = (alphas.cumprod(dim=0) - alpha_bars).abs()
    if not (off <= 1e-3 * alpha_bars).all():
        raise ValueError("alpha_bars must be the cumulative products of alphas")
    return 1 - alphas


def _at(table: Tensor, t: Index, x: Tensor, *others: Tensor) -> Tensor:
    """Return table[t], (T,), as what multiplies the states: () for one index, else (B, 1).

    The one door of indices and states. Of a network's table, (T, D), it returns rows.
    """
    index = t if isinstance(t, Tensor) else torch.as_tensor(t, device="cpu")
    kinds = {(state.shape, state.dtype, state.device) for state in (x, *others)}
    if len(kinds) > 1:
        raise ValueError(f"states must have one shape, dtype and device, got {kinds}")
    # What is copied from a GPU without waiting would be read before it is there.
    if not (index.is_cpu and (table.is_cpu or table.device == x.device)):
        got = f"got t on {index.device}, a table on {table.device}"
        raise ValueError(f"t must be on the CPU, tables there or by the states, {got}")
    if index.ndim and index.shape != x.shape[:-1]:
        raise ValueError(f"t must be one index, or one per row of {x.shape}, got {t}")
    inside = index.clamp(0, len(table) - 1)
    if index.is_floating_point() or not torch.equal(index, inside):
        raise IndexError(f"t must be an integer of 0..{len(table) - 1}, got {t}")
    # Blocking copies would make the CPU wait for the GPU at every coefficient.
    rows = index.long().to(table.device, non_blocking=True) if index.ndim else int(t)
    row = table[rows].to(x.device, x.dtype, non_blocking=True)
    return row[:, None] if index.ndim and table.ndim == 1 else row


# The forward process and its posterior


def q_sample(
    x_start: Tensor,
    t: Index,
    alpha_bars: Tensor,
    device: torch.device | str | None = None,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_t from q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I), eq. (2)."""
    signal = _at(alpha_bars.sqrt(), t, x_start)
    sigma = _at((1 - alpha_bars).sqrt(), t, x_start)
    noise = torch.randn_like(x_start, device=device, generator=generator)
    return signal * x_start + sigma * noise


def forward(x_start: Tensor, alphas: Tensor, *, seed: int = 4) -> Tensor:
    """Run the forward process; return all its states, x_0 first: (T + 1, D).

    It is one path: each x_t is drawn from q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1},
    beta_t I), which is `q_sample` with alpha_t in the place of abar_t. x_start: (D,).
    """
    generator = torch.Generator(x_start.device).manual_seed(seed)
    path = [x_start]
    for t in range(len(alphas)):
        path.append(q_sample(path[-1], t, alphas, generator=generator))
    return torch.stack(path)


def posterior_tables(
    alphas: Tensor, alpha_bars: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return A_t, B_t and beta~_t of the posterior for t = 1..T, (T,) each.

        A_t     = sqrt(abar_{t-1}) beta_t / (1 - abar_t)
        B_t     = sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t)
        beta~_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t

    At t = 1 they are 1, 0 and 0. The publication misprints (4); these forms follow from
    Bayes' rule (Ho et al., eqs. 6 and 7).
    """
    betas = _betas(alphas, alpha_bars)
    alpha_bars_prev = torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])
    start_weights = alpha_bars_prev.sqrt() * betas / (1 - alpha_bars)
    x_t_weights = alphas.sqrt() * (1 - alpha_bars_prev) / (1 - alpha_bars)
    variances = (1 - alpha_bars_prev) / (1 - alpha_bars) * betas
    return start_weights, x_t_weights, variances


def posterior_mean_variance(
    x_start: Tensor, x_t: Tensor, t: Index, alphas: Tensor, alpha_bars: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(x_{t-1} | x_t, x_0) = N(mu~_t, beta~_t I), (3, 4).

    mu~_t = A_t x_0 + B_t x_t, of `posterior_tables`. At index 0 it is a point: mean x_0,
    variance 0. The variance is (), or (B, 1) for one index per row.
    """
    start_weights, x_t_weights, variances = posterior_tables(alphas, alpha_bars)
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

    As published, for looking at: the covariance is dense, (D, D), or (B, D, D).
    """
    mean, variance = posterior_mean_variance(x_start, x_t, t, alphas, alpha_bars)
    identity = torch.eye(x_t.shape[-1], dtype=x_t.dtype, device=device or x_t.device)
    return mean, variance[..., None] * identity


# The network and what it is asked for


def position_encoding_init(n_position: int, d_pos_vec: int) -> Tensor:
    """Return the sinusoidal position table, float32, (n_position, d_pos_vec).

    Row 0 is zero. In row p, column i holds the angle p / 10000^(2 i / d_pos_vec): its
    sine where i is even, its cosine where i is odd. (As published; the usual table has
    2 floor(i / 2) for 2 i. Here most columns hardly depend on p.)
    """
    like = {"dtype": torch.float64, "device": "cpu"}
    position, column = (torch.arange(n, **like) for n in (n_position, d_pos_vec))
    table = position[:, None] / 10000 ** (2 * column / d_pos_vec)
    table[:, 0::2] = table[:, 0::2].sin()
    table[:, 1::2] = table[:, 1::2].cos()
    table[0] = 0
    return table.float()


class Denoising(nn.Module):
    """The published network: Linear - ReLU - Linear - ReLU - Linear on x_t + emb[t].

    Trained directly, its output is the mean of x_{t-1}; inside `PredictStart` or
    `PredictNoise` it is x_0 or the noise. emb[i] is row i + 1 of the position table, the
    paper's t. (The publication takes row i; but row 0 is all zeros, and where index 0 is
    trained with it, the chain ends far from the face.) Another emb, (T, D), may be assigned.

    x_dim: D. hidden_dim: width of the hidden layers, D (published) if None. Made in float32
    on the CPU.
    """

    emb: Tensor

    def __init__(
        self, x_dim: int, num_diffusion_timesteps: int, hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        hidden_dim = x_dim if hidden_dim is None else hidden_dim
        table = position_encoding_init(num_diffusion_timesteps + 1, x_dim)
        self.register_buffer("emb", table[1:].clone())
        like = {"dtype": torch.float32, "device": "cpu"}
        self.linear1 = nn.Linear(x_dim, hidden_dim, **like)
        self.linear2 = nn.Linear(hidden_dim, hidden_dim, **like)
        self.linear3 = nn.Linear(hidden_dim, x_dim, **like)
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
    """A denoiser made of a network that predicts eps, the noise in x_t. Its mean is

        mu~_t = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t),

    which is (4) for x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al., eq. 11).
    """

    def __init__(self, network: Network, alphas: Tensor, alpha_bars: Tensor) -> None:
        super().__init__()
        self.network = network
        self.alphas, self.alpha_bars = alphas, alpha_bars

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        betas = _betas(self.alphas, self.alpha_bars)
        noise_weight = _at(betas / (1 - self.alpha_bars).sqrt(), t, x_t)
        noise = prediction(self.network, x_t, t)
        return (x_t - noise_weight * noise) / _at(self.alphas.sqrt(), t, x_t)


# The way back


@torch.no_grad()
def denoise_with_mu(
    denoise_model: Network,
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
    """
    if data_size not in (None, x_t.shape[-1]):
        raise ValueError(f"data_size must be {x_t.shape[-1]}, got {data_size}")
    if isinstance(variance, str):
        variances = _reverse_variances(variance, alphas, alphas.cumprod(dim=0))
        sigma = _at(variances.sqrt(), t, x_t)
    else:
        sigma = variance.sqrt().expand_as(x_t)
    not_last = _at(torch.arange(len(alphas), device="cpu") > 0, t, x_t)
    mean = prediction(denoise_model, x_t, t)
    noise = torch.randn_like(x_t, device=device, generator=generator)
    return mean + not_last * sigma * noise


def _reverse_variances(variance: str, alphas: Tensor, alpha_bars: Tensor) -> Tensor:
    """Return sigma_t^2 for t = 1..T: beta_t ("beta") or beta~_t of (4) ("posterior")."""
    if variance not in ("beta", "posterior"):
        raise ValueError(f"variance must be 'beta' or 'posterior', got {variance!r}")
    return 1 - alphas if variance == "beta" else posterior_tables(alphas, alpha_bars)[2]


def sample(
    denoiser: Network,
    alphas: Tensor,
    data_size: int,
    *,
    x_T: Tensor | None = None,
    variance: Literal["beta", "posterior"] = "beta",
    first_index: int = 0,
    seed: int = 2,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Run the reverse chain from pure noise; return all its states, x_T first.

    One `denoise_with_mu` step for each index T-1..first_index. With first_index 0 the
    last row is x_0, and the shape (T + 1, data_size); with 1 (published) it is x_1.

    x_T: the starting state, (data_size,); None draws it from N(0, I), float32, on `device`.
    """
    device = device if x_T is None else x_T.device
    generator = torch.Generator(device).manual_seed(seed)
    if x_T is None:
        like = {"dtype": torch.float32, "device": device}
        x_T = torch.randn(data_size, generator=generator, **like)
    chain = [x_T]
    for t in reversed(range(first_index, len(alphas))):
        x_t = chain[-1]
        x_t_before = denoise_with_mu(
            denoiser, x_t, t, alphas, data_size, variance=variance, generator=generator
        )
        chain.append(x_t_before)
    return torch.stack(chain)


# The bound: -log p(x_0) <= D (prior_kl + sum of variance_kl + sum of mean_kl)
# - E log p(x_0 | x_1), whose last term has no finite value, since sigma_1 = 0


def gaussian_kl(
    mean1: Tensor, variance1: Tensor | float, mean2: Tensor, variance2: Tensor | float
) -> Tensor:
    """Return KL(N(mean1, S1) || N(mean2, S2)) in nats, eq. (5), for diagonal S1 and S2.

        1/2 [ log(det S2 / det S1) - d + tr(S2^-1 S1)
              + (mean2 - mean1)^T S2^-1 (mean2 - mean1) ]

    Means: (d,) or (B, d). variance1, variance2: the diagonals, above 0, as a number, (),
    (B, 1) or of the means' shape. Returns () or (B,), in float64, since it is made of
    small differences of large numbers.
    """
    like = {"dtype": torch.float64, "device": mean1.device}
    v1, v2 = (torch.as_tensor(v, **like) for v in (variance1, variance2))
    ratio, distance = v1 / v2, (mean2.double() - mean1.double()).square() / v2
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
    denoiser: Network,
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
    over `states_per_step` draws of x_t from q(x_t | x_0). x_start: (D,).
    """
    exact = _reverse_variances("posterior", alphas, alpha_bars)
    model = _reverse_variances(variance, alphas, alpha_bars)
    zeros = exact.new_zeros(len(alphas) - 1, 1)
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
