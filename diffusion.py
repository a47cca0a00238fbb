"""The mathematics of a denoising diffusion probabilistic model (DDPM).

The paper counts time t = 1..T; the code's index is one less, 0..T-1, so index 0 is the
state diffused for one step. With beta_t the variance that step t adds,

    alpha_t = 1 - beta_t,    abar_t = alpha_1 ... alpha_t,    abar_0 = 1,

and the forward process is q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I).

Conventions of every function here:

* a state is a floating tensor of shape (D,), or (B, D) for a batch of B states;
* the argument `t` is the index, as published, so that alpha_bars[t] is abar of the paper's
  t + 1: an int (Python's, NumPy's, a 0-dim tensor), or a 1-D integer tensor with one
  index per row of a batch, on the CPU, where checking it costs a GPU nothing;
* `alphas` and `alpha_bars` have shape (T,). Coefficients are formed in their precision;
  results have the dtype and the device of the state;
* `generator` drives the randomness; None means PyTorch's global state;
* `device` and `data_size` are there for the published calls: they follow from the state,
  may be left out, and must be right if given;
* a wrong value or shape raises ValueError, a wrong type TypeError, an index outside
  0..T-1 IndexError (negative ones too: nothing wraps).

Sources: M. Scardala, "Un esempio di applicazione dei DDPM", Laboratorio Computazionale
(2024), whose equation numbers are quoted, and J. Ho, A. Jain, P. Abbeel, "Denoising
diffusion probabilistic models" (2020), arXiv:2006.11239.
"""

from collections.abc import Callable
from numbers import Real
from operator import index as as_int
from typing import Literal, SupportsIndex

import torch
from torch import Tensor, nn

Index = SupportsIndex | Tensor
# A denoiser is anything called (x_t, t) that returns the mean of x_{t-1}.
Denoiser = Callable[[Tensor, Index], Tensor]


def noise_schedule(
    num_timesteps: int = 30, beta_start: float = 4e-4, beta_end: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Return (alphas, alpha_bars) of the "scaled linear" schedule, float64, (T,) each.

    sqrt(beta_t) grows linearly from sqrt(beta_start) to sqrt(beta_end). The defaults are
    the published ones; they end at abar_T = 0.79, long before pure noise.

    Raises ValueError unless num_timesteps >= 1 and 0 < beta_start <= beta_end < 1, with
    1e-15 to spare: any nearer, alpha would be rounded to 1 or 0.
    """
    check_sizes(num_timesteps=num_timesteps)
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if not isinstance(beta, Real):
            raise TypeError(f"{name} must be a number, got {beta!r}")
    if not 1e-15 <= beta_start <= beta_end <= 1 - 1e-15:
        raise ValueError(
            "beta_start and beta_end must satisfy 0 < beta_start <= beta_end < 1, "
            f"got {beta_start} and {beta_end}"
        )
    betas = torch.linspace(
        beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64
    ).square()
    alphas = 1 - betas
    return alphas, alphas.cumprod(dim=0)


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
    t = _check_index(t, _check_schedule(alpha_bars=alpha_bars), x_start=x_start)
    _check_device(device, x_start)
    alpha_bar = alpha_bars[t]
    noise = _noise_like(x_start, generator)
    return (
        _factor(alpha_bar.sqrt(), x_start) * x_start
        + _factor((1 - alpha_bar).sqrt(), x_start) * noise
    )


def posterior_mean_variance(
    x_start: Tensor, x_t: Tensor, t: Index, alphas: Tensor, alpha_bars: Tensor
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of q(x_{t-1} | x_t, x_0) = N(mu~_t, beta~_t I), (3, 4).

        mu~_t   = sqrt(abar_{t-1}) beta_t / (1 - abar_t) x_0
                  + sqrt(alpha_t) (1 - abar_{t-1}) / (1 - abar_t) x_t
        beta~_t = (1 - abar_{t-1}) / (1 - abar_t) beta_t

    At index 0 it is a point: mean x_0, variance 0. The publication misprints (4); these
    are the forms that follow from Bayes' rule (Ho et al., eqs. 6 and 7).

    x_start, x_t: (D,) or (B, D). The mean has that shape, the variance that of t: ()
    for one index, (B,) for one index per row.
    """
    _check_alike(x_start=x_start, x_t=x_t)
    num_timesteps = _check_schedule(alphas=alphas, alpha_bars=alpha_bars)
    t = _check_index(t, num_timesteps, x_t=x_t)
    alpha, alpha_bar = alphas[t], alpha_bars[t]
    alpha_bar_prev = _previous(alpha_bars)[t]
    beta = 1 - alpha

    start_weight = alpha_bar_prev.sqrt() * beta / (1 - alpha_bar)
    x_t_weight = alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar)
    mean = _factor(start_weight, x_t) * x_start + _factor(x_t_weight, x_t) * x_t
    variance = _posterior_variance(alphas, alpha_bars)[t]
    return mean, _factor(variance, x_t).squeeze(-1)


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
    _check_device(device, x_t)
    identity = torch.eye(x_t.shape[-1], dtype=x_t.dtype, device=x_t.device)
    return mean, variance[..., None, None] * identity


def gaussian_kl(
    mean1: Tensor, variance1: Tensor | float, mean2: Tensor, variance2: Tensor | float
) -> Tensor:
    """Return KL(N(mean1, variance1 I) || N(mean2, variance2 I)) in nats, eq. (5).

        1/2 [ d log(variance2 / variance1) - d + d variance1 / variance2
              + norm(mean2 - mean1)^2 / variance2 ]

    which is (5) with S1 and S2 multiples of the identity. Means: (d,) or (B, d);
    variances: a number, (), or (B,), all above 0. Returns one number per state, () or
    (B,), summed over the d dimensions.
    """
    _check_alike(mean1=mean1, mean2=mean2)
    variance1 = torch.as_tensor(variance1, dtype=mean1.dtype, device=mean1.device)
    variance2 = torch.as_tensor(variance2, dtype=mean1.dtype, device=mean1.device)
    for name, variance in (("variance1", variance1), ("variance2", variance2)):
        if variance.ndim and variance.shape != mean1.shape[:-1]:
            raise ValueError(
                f"{name} must be one number, or one for each of the states of shape "
                f"{tuple(mean1.shape)}, got shape {tuple(variance.shape)}"
            )
        if not ((variance > 0) & variance.isfinite()).all():
            raise ValueError(
                f"{name} must be finite and above 0, got {variance.tolist()}"
            )
    d = mean1.shape[-1]
    log_det_ratio = d * (variance2 / variance1).log()
    trace = d * variance1 / variance2
    distance = (mean2 - mean1).square().sum(dim=-1) / variance2
    return (log_det_ratio - d + trace + distance) / 2


def position_encoding_init(n_position: int, d_pos_vec: int) -> Tensor:
    """Return the sinusoidal position table, float32, (n_position, d_pos_vec).

    Row 0 is zero. In row p, column i holds the angle p / 10000^(2 i / d_pos_vec): its
    sine where i is even, its cosine where i is odd. As published: the usual table has
    2 floor(i / 2) in place of 2 i, so here the frequencies fall to 1e-8 and most columns
    hardly depend on p.

    Raises ValueError unless both sizes are at least 1.
    """
    check_sizes(n_position=n_position, d_pos_vec=d_pos_vec)
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
    publication takes row i; but row 0 is all zeros, far from every other row, and with
    index 0 trained so, the chain ends far from the face.) `emb`, (T, D), is a buffer;
    assigning another tensor of that shape replaces it.

    x_dim: D = 2N. hidden_dim: width of the hidden layers, D (published) if None.
    """

    emb: Tensor

    def __init__(
        self, x_dim: int, num_diffusion_timesteps: int, hidden_dim: int | None = None
    ) -> None:
        super().__init__()
        hidden_dim = x_dim if hidden_dim is None else hidden_dim
        check_sizes(
            x_dim=x_dim,
            num_diffusion_timesteps=num_diffusion_timesteps,
            hidden_dim=hidden_dim,
        )
        table = position_encoding_init(num_diffusion_timesteps + 1, x_dim)
        self.register_buffer("emb", table[1:].clone())
        self.linear1 = nn.Linear(x_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, hidden_dim)
        self.linear3 = nn.Linear(hidden_dim, x_dim)
        self.relu = nn.ReLU()

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        num_timesteps, x_dim = self.emb.shape
        t = _check_index(t, num_timesteps, x_t=x_t)
        if x_t.shape[-1] != x_dim:
            raise ValueError(
                f"x_t must have {x_dim} coordinates, got shape {tuple(x_t.shape)}"
            )
        if x_t.dtype != self.linear1.weight.dtype:
            raise ValueError(
                f"x_t must be {self.linear1.weight.dtype}, as the weights are, "
                f"got {x_t.dtype}"
            )
        if isinstance(t, Tensor):
            t = t.to(self.emb.device, non_blocking=True)
        hidden = self.relu(self.linear1(x_t + self.emb[t]))
        hidden = self.relu(self.linear2(hidden))
        return self.linear3(hidden)


class PredictStart(nn.Module):
    """A denoiser made of a network that predicts x_0: its mean is mu~_t(x_t, x_0), (4).

    network: called (x_t, t), returns an estimate of x_0, (D,) or x_t's shape. A function
    that returns the true x_0 makes this the exact posterior.
    """

    def __init__(self, network: Denoiser, alphas: Tensor, alpha_bars: Tensor) -> None:
        super().__init__()
        self.network = network
        # Not buffers: those would follow the network to the GPU and to its dtype.
        self.alphas, self.alpha_bars = alphas, alpha_bars

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        x_start = _predicted(self.network, x_t, t)
        mean, _ = posterior_mean_variance(x_start, x_t, t, self.alphas, self.alpha_bars)
        return mean


class PredictNoise(nn.Module):
    """A denoiser made of a network that predicts the noise in x_t.

    With x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, the posterior mean (4) reads

        mu~_t = (x_t - beta_t / sqrt(1 - abar_t) eps) / sqrt(alpha_t)

    (Ho et al., eq. 11). network: called (x_t, t), returns an estimate of eps in x_t's
    shape.
    """

    def __init__(self, network: Denoiser, alphas: Tensor, alpha_bars: Tensor) -> None:
        super().__init__()
        self.network = network
        self.alphas, self.alpha_bars = alphas, alpha_bars

    def forward(self, x_t: Tensor, t: Index) -> Tensor:
        num_timesteps = _check_schedule(alphas=self.alphas, alpha_bars=self.alpha_bars)
        t = _check_index(t, num_timesteps, x_t=x_t)
        alpha, alpha_bar = self.alphas[t], self.alpha_bars[t]
        noise_weight = (1 - alpha) / (1 - alpha_bar).sqrt()
        noise = _predicted(self.network, x_t, t)
        return (x_t - _factor(noise_weight, x_t) * noise) / _factor(alpha.sqrt(), x_t)


@torch.no_grad()
def denoise_with_mu(
    denoise_model: Denoiser,
    x_t: Tensor,
    t: Index,
    alphas: Tensor,
    data_size: int | None = None,
    device: torch.device | str | None = None,
    *,
    variance: Literal["beta", "posterior"] = "beta",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw x_{t-1} from the reverse step N(mu_theta(x_t, t), sigma_t^2 I).

    sigma_t^2 is beta_t ("beta", published) or beta~_t of (4) ("posterior": the exact one
    where, as here, there is a single datum). The last step, index 0, adds no noise and
    returns the mean.

    x_t: (D,) or (B, D); x_{t-1} has its shape. data_size: D.
    """
    t = _check_index(t, _check_schedule(alphas=alphas), x_t=x_t)
    _check_device(device, x_t)
    if data_size is not None and data_size != x_t.shape[-1]:
        raise ValueError(
            f"data_size must be {x_t.shape[-1]}, as in x_t, got {data_size}"
        )
    if variance == "beta":
        sigma_squared = 1 - alphas
    elif variance == "posterior":
        sigma_squared = _posterior_variance(alphas, alphas.cumprod(dim=0))
    else:
        raise ValueError(f"variance must be 'beta' or 'posterior', got {variance!r}")
    sigma = sigma_squared[t].sqrt() * (t > 0)
    mean = _predicted(denoise_model, x_t, t)
    return mean + _factor(sigma, x_t) * _noise_like(x_t, generator)


def _previous(alpha_bars: Tensor) -> Tensor:
    """Return abar_{t-1} for t = 1..T, abar_0 = 1 first."""
    return torch.cat([alpha_bars.new_ones(1), alpha_bars[:-1]])


def _posterior_variance(alphas: Tensor, alpha_bars: Tensor) -> Tensor:
    """Return beta~_t of (4) for t = 1..T."""
    betas = 1 - alphas
    return (1 - _previous(alpha_bars)) / (1 - alpha_bars) * betas


def _factor(coefficient: Tensor, x: Tensor) -> Tensor:
    """Return a coefficient, () or (B,), as what multiplies the rows of x."""
    # A blocking copy would make the CPU wait for the GPU at every coefficient.
    coefficient = coefficient.to(x.device, x.dtype, non_blocking=x.is_cuda)
    return coefficient.unsqueeze(-1)


def _noise_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def _predicted(network: Denoiser, x_t: Tensor, t: Index) -> Tensor:
    """Return what the network predicts; (D,) counts for each row of a batch."""
    prediction = network(x_t, t)
    _check_floating("the network's output", prediction)
    if prediction.shape not in (x_t.shape, x_t.shape[-1:]):
        raise ValueError(
            f"the network's output must have x_t's shape, {tuple(x_t.shape)}, "
            f"got {tuple(prediction.shape)}"
        )
    return prediction.expand_as(x_t)


def _check_index(t: Index, num_timesteps: int, **state: Tensor) -> int | Tensor:
    """Return t as an int, or as an int64 tensor of one index for each row of the state."""
    ((name, x),) = state.items()
    _check_state(name, x)
    if isinstance(t, Tensor):
        if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool:
            raise TypeError(f"t must hold integers, got {t.dtype}")
        if t.device.type != "cpu":
            raise ValueError(f"t must be on the CPU, got {t.device}")
        if t.ndim and t.shape != x.shape[:-1]:
            raise ValueError(
                f"t must be one index, or one per row of {name} {tuple(x.shape)}, "
                f"got shape {tuple(t.shape)}"
            )
        t = t.long() if t.ndim else t.item()
    else:
        t = _integer("t", t)
    for wrong in (t.min().item(), t.max().item()) if isinstance(t, Tensor) else (t,):
        if not 0 <= wrong < num_timesteps:
            raise IndexError(f"t must lie in 0..{num_timesteps - 1}, got {wrong}")
    return t


def _check_schedule(**schedule: Tensor) -> int:
    """Return T, the length of alphas, of alpha_bars, or of both."""
    for name, values in schedule.items():
        _check_floating(name, values)
        if values.ndim != 1 or not len(values):
            raise ValueError(f"{name} must be (T,), got shape {tuple(values.shape)}")
        # abar_T may underflow to 0: pure noise, and harmless.
        above = values >= 0 if name == "alpha_bars" else values > 0
        wrong = values[~(above & (values < 1))]
        if len(wrong):
            raise ValueError(f"{name} must lie in (0, 1), got {wrong[0].item()}")
    if len({len(values) for values in schedule.values()}) > 1:
        lengths = {name: len(values) for name, values in schedule.items()}
        raise ValueError(f"alphas and alpha_bars must have one length, got {lengths}")
    return len(values)


def _check_alike(**states: Tensor) -> None:
    (name1, x1), (name2, x2) = states.items()
    for name, x in states.items():
        _check_state(name, x)
    for what in ("shape", "dtype", "device"):
        if getattr(x1, what) != getattr(x2, what):
            raise ValueError(
                f"{name1} and {name2} must have one {what}, "
                f"got {getattr(x1, what)} and {getattr(x2, what)}"
            )


def _check_state(name: str, x: Tensor) -> None:
    _check_floating(name, x)
    if x.ndim not in (1, 2) or not x.numel():
        raise ValueError(f"{name} must be (D,) or (B, D), got shape {tuple(x.shape)}")


def _check_floating(name: str, value: Tensor) -> None:
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating tensor, got {kind}")


def _check_device(device: torch.device | str | None, x: Tensor) -> None:
    if device is None:
        return
    try:
        given = torch.device(device)
    except (RuntimeError, TypeError):
        given = None
    if given is None or given not in (x.device, torch.device(x.device.type)):
        raise ValueError(f"device must be {x.device}, where the data is, got {device}")


def check_sizes(**sizes: int) -> None:
    """Raise TypeError unless each size is an integer, ValueError unless it is at least 1."""
    for name, size in sizes.items():
        if _integer(name, size) < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _integer(name: str, value: SupportsIndex) -> int:
    try:
        return as_int(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
