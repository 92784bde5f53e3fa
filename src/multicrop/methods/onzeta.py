"""OnZeta (ECCV 2024): text probabilities balanced online over the classes, mixed with those of class prototypes learned on the stream."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from multicrop.config.ranges import Count, Fraction, KeyViews, Positive, Weight
from multicrop.methods.base import OneKeyMethod
from multicrop.text import TextBank

SMALLEST = 1e-12  # probability


class OnZeta(OneKeyMethod):
    """Compute log(b p + (1 - b) q), with q = softmax(logits + rho) and p = softmax(w f / temperature).

    rho (C) starts from 0 and w (C, D) from the label prompts. After image i of N: rho = max(0, rho - (dual_rate C / sqrt(i))
    (q - balance / C)), the dual variables of "every class gets at least balance / C of the stream"; w moves by a cross-entropy step towards
    q of rate proxy_rate / sqrt(i), and every class of it is normalised. b = weight sqrt(i / N).

    Source: OnZeta, ECCV 2024, after the authors' code. The defaults are theirs for ImageNet (1,000 classes, 50,000 images); their dual rate
    of 20 is written per class here, so that the first image raises every other class by 0.02 nats whatever C is. The steps of w are too
    large for short streams: choose `proxy_rate` on validation streams (method=onzeta_short has a smaller one).

    Args:
        text: Text bank of the run.
        logit_scale: Multiplier of cosine similarities.
        view_set: The views whose mean is f, ``"global"``, ``"all"`` or ``"crops"``.
        proxy_rate: Rate of the prototypes at the first image (c_w of the authors).
        dual_rate: Rate of the dual variables at the first image, nats per class (c_r / C of the authors).
        balance: Least share of the stream that a class gets, in units of 1 / C.
        weight: Weight of the prototypes' probabilities at the end of the stream.
        temperature: Temperature of the softmax over cosine similarities to the prototypes, above 0.
        stream_length: Images of the stream; None: unknown, and b = weight from the first image.
    """

    dual: Tensor
    prototypes: Tensor
    seen: Tensor

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        view_set: KeyViews = "all",
        proxy_rate: Weight = 0.5,
        dual_rate: Weight = 0.02,
        balance: Fraction = 1.0,
        weight: Fraction = 0.8,
        temperature: Positive = 0.04,
        stream_length: Count | None = None,
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        self.view_set, self.proxy_rate, self.dual_rate, self.balance = view_set, proxy_rate, dual_rate, balance
        self.weight, self.temperature, self.stream_length = weight, temperature, stream_length
        self.register_buffer("dual", torch.zeros_like(text.label[:, 0]))
        self.register_buffer("prototypes", text.label.clone())
        self.register_buffer("seen", torch.tensor(0))

    def reset(self) -> None:
        """Return to the label prompts and dual variables of 0."""
        self.dual.zero_()
        self.prototypes.copy_(self.text.label)
        self.seen.zero_()

    def one(self, key: Float[Tensor, " dim"], logits: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
        """Score an image, then update with it."""
        self.seen += 1
        seen = int(self.seen)
        text = (logits + self.dual).softmax(0)
        proxy = (self.prototypes @ key / self.temperature).softmax(0)
        share = self.weight * math.sqrt(min(1.0, seen / self.stream_length) if self.stream_length else 1.0)
        self.dual.sub_(self.dual_rate * len(text) / math.sqrt(seen) * (text - self.balance / len(text))).clamp_min_(0)
        step = self.proxy_rate / (math.sqrt(seen) * self.temperature)
        self.prototypes.copy_(normalize(self.prototypes - step * torch.outer(proxy - text, key), dim=1))
        return (share * proxy + (1 - share) * text).clamp_min(SMALLEST).log()
