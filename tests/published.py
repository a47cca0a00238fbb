"""The publication's pieces, written anew: an oracle, and what the benchmark compares with.

They loop over pixels and draw through dense covariance matrices.
"""

import numpy as np
import torch
from PIL import Image
from torch.distributions import MultivariateNormal
from torch.nn.functional import mse_loss

import diffusion
import utils


def image_to_vector(path, image_size):
    image = Image.open(path).convert("L").resize((image_size, image_size))
    vector, scale = [], utils.IMG_SIZE / image_size / 25
    for column in range(image_size):
        for row in range(image_size):
            if image.getpixel((column, row)) <= 50:
                vector += [column * scale - 3, (image_size - row) * scale - 2]
    return torch.tensor(vector)


def q_sample(x_start, t, alpha_bars):
    covariance = (1 - alpha_bars[t]) * torch.eye(len(x_start))
    return MultivariateNormal(alpha_bars[t].sqrt() * x_start, covariance).sample()


def posterior(x_start, x_t, t, alphas, alpha_bars):
    alpha, alpha_bar, previous = alphas[t], alpha_bars[t], alpha_bars[t - 1]
    mean = previous.sqrt() * (1 - alpha) / (1 - alpha_bar) * x_start
    mean = mean + alpha.sqrt() * (1 - previous) / (1 - alpha_bar) * x_t
    variance = (1 - previous) / (1 - alpha_bar) * (1 - alpha)
    return mean, variance * torch.eye(len(x_start))


@torch.no_grad()
def reverse_step(model, x_t, t, alphas):
    covariance = torch.diag((1 - alphas[t]).repeat(len(x_t)))
    return MultivariateNormal(model(x_t, t), covariance).sample()


def driver(image, device, epochs=20):
    """Call this project's functions as the published driver does, by position; return
    the cloud and the states of the reverse process, all that it draws."""
    x, y = utils.scatter_pixels(image)
    x, y = [v / 25 - 3 for v in x], [v / 25 - 2 for v in y]
    x_init = torch.tensor(utils.pack_data(x, y)).to(torch.float32).to(device)
    size, steps = len(x_init), 30
    betas = np.linspace(0.0004**0.5, 0.02**0.5, steps) ** 2
    alphas = torch.tensor(1 - betas).to(torch.float32).to(device)
    alpha_bars = torch.cumprod(alphas, axis=0).to(torch.float32).to(device)
    model = diffusion.Denoising(size, steps).to(device)
    model.emb = model.emb.to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    for t in np.random.randint(1, steps, size=40 * epochs):
        x_t = diffusion.q_sample(x_init, t, alpha_bars, device)
        posterior = diffusion.posterior_q(x_init, x_t, t, alphas, alpha_bars, device)
        optimizer.zero_grad()
        mse_loss(model(x_t, t), posterior[0]).backward()
        optimizer.step()
    start = MultivariateNormal(torch.zeros(size), torch.eye(size)).sample()
    states = [start.to(device)]
    for t in range(steps - 1, 0, -1):
        step = model, states[-1], t, alphas, size, device
        states.append(diffusion.denoise_with_mu(*step))
    return x_init, [utils.unpack_1d_data(s.detach().cpu().numpy()) for s in states]
