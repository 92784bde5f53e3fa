"""BCA, Bayesian class adaptation (Zhou et al., CVPR 2025, arXiv 2503.09248): running class embeddings and running class priors."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from multicrop import pools
from multicrop.aggregators import Logits, Views
from multicrop.methods.base import Method, chosen_views
from multicrop.prompts import TextBank


class Bca(Method):
    """log P(Y|x) = log sum_m P(mu_m|x) P(Y|mu_m), embeddings mu (C, D) from the label prompts, P(Y|mu_m) (C, C) from the identity.

    P(mu_m|x) = softmax_m(logits_m + s <f, mu_m - t0_m>): the text logits, moved as far as the embeddings have moved. That is how D&D plugs
    in (ours); with the logits of the key, s <f, t0>, it is the paper's softmax of s <f, mu>. f is the normalised mean of the chosen views.
    After the prediction, for the most probable embedding m: if P(mu_m|x) is above `embedding.threshold`, mu_m becomes the normalised
    running mean of itself (`embedding.count` images at the start) and f; if above `prior.threshold`, P(Y|mu_m) becomes the running mean
    of itself (`prior.count` images at the start) and P(Y|x).

    The rule is put together from the abstract and from others' accounts and re-implementations; neither the paper's tables nor the
    authors' code were at hand. All thresholds and counts are ours. A re-implementation that cites the authors' code picks m, and
    compares with the thresholds, by P(Y|x) instead of P(mu|x).
    """

    def __init__(
        self,
        *,
        text: TextBank,
        logit_scale: float,
        view_set: str,
        embedding: Mapping[str, float | int],
        prior: Mapping[str, float | int],
    ) -> None:
        super().__init__(text=text, logit_scale=logit_scale)
        self.view_set, self.embedding, self.prior = view_set, dict(embedding), dict(prior)
        n_classes = len(text.label)
        self.register_buffer("embeddings", text.label.clone())
        self.register_buffer("priors", torch.eye(n_classes))
        self.register_buffer("embedding_counts", torch.full((n_classes,), float(self.embedding["count"])))
        self.register_buffer("prior_counts", torch.full((n_classes,), float(self.prior["count"])))

    def reset(self) -> None:
        """Label prompts, identity and counts as at the start."""
        self.embeddings.copy_(self.text.label)
        self.priors.copy_(torch.eye(len(self.priors)))
        self.embedding_counts.fill_(self.embedding["count"])
        self.prior_counts.fill_(self.prior["count"])

    def forward(self, views: Views, logits: Logits) -> Logits:
        """The images one after the other: predict, then update."""
        keys = pools.mean(chosen_views(views, self.view_set))
        return torch.stack([self._one(key, text) for key, text in zip(keys, logits, strict=True)])

    def _one(self, key: Float[Tensor, " dim"], logits: Float[Tensor, " classes"]) -> Float[Tensor, " classes"]:
        moved = self.logit_scale * (self.embeddings - self.text.label) @ key
        likelihood = (logits + moved).log_softmax(0)
        posterior = torch.logsumexp(likelihood[:, None] + self.priors.log(), 0)
        m = int(likelihood.argmax())
        confidence = float(likelihood[m].exp())
        if confidence > self.embedding["threshold"]:
            self.embeddings[m] = F.normalize(self.embedding_counts[m] * self.embeddings[m] + key, dim=0)
            self.embedding_counts[m] += 1
        if confidence > self.prior["threshold"]:
            self.priors[m] = (self.prior_counts[m] * self.priors[m] + posterior.exp()) / (self.prior_counts[m] + 1)
            self.prior_counts[m] += 1
        return posterior
