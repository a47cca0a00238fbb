"""The publication's way of the pieces, written anew: for the benchmark, and as an oracle.

It loops over pixels and coordinates, draws through dense covariance matrices, which PyTorch
checks by default, steps with AdamW as PyTorch has it by default on a CPU, and draws with
celluloid as its examples do, ticks and all.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from celluloid import Camera
from PIL import Image
from torch.distributions import MultivariateNormal
from torch.nn.functional import mse_loss

import diffusion
import utils
from utils import IMG_SIZE


def image_to_vector(path, image_size):
    image = Image.open(path).convert("L").resize((image_size, image_size))
    vector = []
    for column in range(image_size):
        for row in range(image_size):
            if image.getpixel((column, row)) <= 50:
                x, y = column, image_size - row
                vector.append(x * IMG_SIZE / image_size / 25 - 3)
                vector.append(y * IMG_SIZE / image_size / 25 - 2)
    return torch.tensor(vector)


def q_sample(x_start, t, alpha_bars):
    covariance = (1 - alpha_bars[t]) * torch.eye(len(x_start))
    return MultivariateNormal(alpha_bars[t].sqrt() * x_start, covariance).sample()


def posterior(x_start, x_t, t, alphas, alpha_bars):
    alpha, alpha_bar, previous = alphas[t], alpha_bars[t], alpha_bars[t - 1]
    mean = (
        previous.sqrt() * (1 - alpha) / (1 - alpha_bar) * x_start
        + alpha.sqrt() * (1 - previous) / (1 - alpha_bar) * x_t
    )
    variance = (1 - previous) / (1 - alpha_bar) * (1 - alpha)
    return mean, variance * torch.eye(len(x_start))


@torch.no_grad()
def reverse_step(model, x_t, t, alphas):
    covariance = torch.diag((1 - alphas[t]).repeat(len(x_t)))
    return MultivariateNormal(model(x_t, t), covariance).sample()


def training(x_start):
    """Return what takes one step of the publication's training."""
    alphas, alpha_bars = (values.float() for values in diffusion.noise_schedule())
    model = diffusion.Denoising(len(x_start), len(alphas))
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False, fused=False)

    def step():
        t = np.random.randint(1, len(alphas))
        x_t = q_sample(x_start, t, alpha_bars)
        mean, _ = posterior(x_start, x_t, t, alphas, alpha_bars)
        loss = mse_loss(model(x_t, t), mean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def film(chain, path):
    figure, ax = plt.subplots()
    camera = Camera(figure)
    for state in chain:
        xs, ys = [], []
        for i in range(0, len(state), 2):
            xs.append(state[i].item())
            ys.append(state[i + 1].item())
        sns.scatterplot(pd.DataFrame({"x": xs, "y": ys}), x="x", y="y", ax=ax)
        camera.snap()
    camera.animate().save(path, writer="pillow", fps=24, dpi=120)
    plt.close(figure)


def driver(image, device, epochs=20):
    """Call this project's functions as the published driver does; return the cloud and
    the states of the way back, all that it draws."""
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
    for _ in range(epochs):
        for t in np.random.randint(1, steps, size=40):
            x_t = diffusion.q_sample(x_init, t, alpha_bars, device)
            mean, covariance = diffusion.posterior_q(
                x_init, x_t, t, alphas, alpha_bars, device
            )
            assert covariance.shape == (size, size)
            optimizer.zero_grad()
            mse_loss(model(x_t, t), mean).backward()
            optimizer.step()
    states = [
        MultivariateNormal(torch.zeros(size), torch.eye(size)).sample().to(device)
    ]
    for d in range(1, steps):
        states.append(
            diffusion.denoise_with_mu(
                model, states[-1], steps - d, alphas, size, device
            )
        )
    return x_init, [utils.unpack_1d_data(s.detach().cpu().numpy()) for s in states]
