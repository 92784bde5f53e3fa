"""AWT's evaluation as published, one image at a time: the baseline of the batched form. Written from its description."""

import torch


def entropies(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of softmax over the last axis."""
    p = logits.softmax(-1)
    return -(p * p.log()).sum(-1)


def image_logits(views: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
    """Logits (classes) of one image: views (K, D) against text (C, M, D), marginals by entropy with temperature 0.5, epsilon 0.1.

    The text marginal builds all M x C x C logits; Sinkhorn stops when the scalings move less than 1e-2 on average, or after 100
    iterations.
    """
    n_classes = len(text)
    similarity = torch.einsum("kd,cmd->ckm", views, text)
    per_view = scale * similarity.mean(2).T
    a = (-entropies(per_view) / 0.5).softmax(0)
    replaced = per_view[0].expand(text.shape[1], n_classes, n_classes).clone()
    diagonal = torch.arange(n_classes)
    replaced[:, diagonal, diagonal] = scale * similarity[:, 0].T
    b = (-entropies(replaced) / 0.5).softmax(0).T
    kernel = torch.exp((similarity - 1) / 0.1)
    u, v = torch.ones(n_classes, len(views)), torch.ones_like(b)
    for _ in range(100):
        before = u
        u = a / (kernel * v[:, None]).sum(2)
        v = b / (kernel * u[..., None]).sum(1)
        if (u - before).abs().mean() < 1e-2:
            break
    return scale * (u[..., None] * kernel * v[:, None] * similarity).sum((1, 2))


def loop(views: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
    """Logits of all images, one by one."""
    return torch.stack([image_logits(image, text, scale) for image in views])
