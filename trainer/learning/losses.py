"""Losses as pure functions: the hard-negative contrastive loss (HCL), soft cross entropy, the pseudo-label loss.

HCL: J. Robinson et al., "Contrastive learning with hard negative samples", ICLR 2021, arXiv 2010.04592; the equations
follow the authors' published code, which departs from the paper's pseudocode in normalising the importance weights by
their mean (equation 4 of the paper asks for the same).
Shape suffixes: B images, 2B views, N = 2B - 2 negatives an anchor.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Smallest probability before a logarithm or a power: a zero would exclude a class whatever the other factors are.
PROBABILITY_FLOOR = 1e-6


def _similarities(
    first: Float[Tensor, "B D"], second: Float[Tensor, "B D"], temperature: float
) -> tuple[Float[Tensor, " A"], Float[Tensor, "A N"], Bool[Tensor, "A A"]]:
    """Compute s / t of each of the 2B views with its positive, [2B], and with its negatives, [2B, 2B - 2].

    The last, [2B, 2B], says which pairs of views are negatives of each other.
    """
    views = torch.cat([first, second])
    # HCL weighs negatives by how similar they are; half precision would lose the difference between close ones.
    views = views if views.dtype == torch.float64 else views.float()
    B = len(first)
    with torch.autocast(views.device.type, enabled=False):
        sim_AA = views @ views.T / temperature
    anchors = torch.arange(2 * B, device=views.device)
    positives = (anchors + B) % (2 * B)
    negative = torch.ones_like(sim_AA, dtype=torch.bool)
    negative[anchors, anchors] = False
    negative[anchors, positives] = False
    return sim_AA[anchors, positives], sim_AA[negative].view(2 * B, 2 * B - 2), negative


def hard_negative_loss(
    first: Float[Tensor, "B D"],
    second: Float[Tensor, "B D"],
    *,
    temperature: float = 0.5,
    beta: float = 1.0,
    tau_plus: float = 0.1,
    different: Float[Tensor, "B B"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the debiased contrastive loss with hard negatives (HCL).

    neg = exp(s / t); imp = exp(beta s / t); reweighted = N sum(imp neg) / sum(imp);
    Ng = max((reweighted - tau_plus N pos) / (1 - tau_plus), N exp(-1 / t)); loss = -log(pos / (pos + Ng)).
    Computed in log space: at low temperatures exp(s / t) overflows float32.
    With beta = tau_plus = 0 this is NT-Xent (T. Chen et al., ICML 2020, equation 1).

    Where it is known how probably two images are of different classes, that takes the place of the constant tau_plus:
    each negative's importance is multiplied by it, so an image believed to be of the anchor's class is no negative.
    If it is the same for all pairs, nothing changes.

    Args:
        first: unit vectors, one view of each of at least two images.
        second: unit vectors, another view of the same images in the same order.
        temperature: t > 0.
        beta: concentration on hard negatives, >= 0.
        tau_plus: assumed probability that a negative has the anchor's class, in [0, 1).
        different: probability that two images are of different classes, in [0, 1]; no gradient. Use tau_plus 0 with it.

    Returns:
        The mean over 2B anchors: each view is an anchor.

    Raises:
        ValueError: a parameter is out of its range, or there are no negatives (one image).
    """
    if not (temperature > 0 and beta >= 0 and 0 <= tau_plus < 1):
        raise ValueError(
            f"hard_negative_loss needs temperature > 0, beta >= 0 and 0 <= tau_plus < 1, "
            f"not {temperature}, {beta}, {tau_plus}"
        )
    if len(first) < 2:
        raise ValueError("hard_negative_loss needs at least two images: a single one has no negatives")
    pos_A, neg_AN, negative_AA = _similarities(first, second, temperature)
    N = neg_AN.shape[1]
    log_N = math.log(N)
    log_weight_AN: Tensor | float = 0.0
    if different is not None:
        weight_AN = different.detach().to(neg_AN).repeat(2, 2)[negative_AA].view_as(neg_AN)
        log_weight_AN = weight_AN.clamp_min(PROBABILITY_FLOOR).log()
    log_reweighted_A = (
        log_N
        + torch.logsumexp((1 + beta) * neg_AN + log_weight_AN, 1)
        - torch.logsumexp(beta * neg_AN + log_weight_AN, 1)
    )
    log_floor = log_N - 1 / temperature
    if tau_plus > 0:
        # log(reweighted - tau_plus N pos) = log_reweighted + log1p(-ratio). Where the difference is negative, the
        # floor applies; a ratio of zero stands in there, so that neither branch makes a NaN gradient.
        ratio_A = torch.exp((math.log(tau_plus) + log_N + pos_A - log_reweighted_A).clamp_max(20.0))
        positive_A = ratio_A < 1
        safe_A = torch.where(positive_A, ratio_A, torch.zeros_like(ratio_A))
        log_Ng_A = log_reweighted_A + torch.log1p(-safe_A) - math.log1p(-tau_plus)
        log_Ng_A = torch.where(positive_A, log_Ng_A, torch.full_like(log_Ng_A, log_floor))
    else:
        log_Ng_A = log_reweighted_A
    log_Ng_A = log_Ng_A.clamp_min(log_floor)
    return (torch.logaddexp(pos_A, log_Ng_A) - pos_A).mean()


def soft_cross_entropy(logits: Float[Tensor, "B C"], targets: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """Compute the mean cross entropy against soft targets, rows summing to one."""
    return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()


def pseudo_label_loss(
    logits: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], *, threshold: float
) -> Float[Tensor, ""]:
    """Compute FixMatch's consistency loss (K. Sohn et al., NeurIPS 2020, equation 4).

    Args:
        logits: the student's, on strong views.
        teacher: probabilities on weak views; they get no gradient.
        threshold: images whose top probability is lower count in the mean with a loss of zero.
    """
    return _pseudo_label_losses(logits, teacher, threshold).mean()


def mixed_pseudo_label_loss(
    logits: Float[Tensor, "B C"],
    teacher: Float[Tensor, "B C"],
    partner: Int[Tensor, " B"],
    share: Float[Tensor, " B"],
    *,
    threshold: float,
) -> Float[Tensor, ""]:
    """Compute the consistency loss of mixed pairs (mixup, H. Zhang et al., ICLR 2018, on FixMatch's pseudo-labels).

    Image i was mixed with image partner[i]; the mix is to be of either pseudo-label, each by its image's share. Either
    counts only where it is confident.

    Args:
        logits: the student's, on the mixed strong views.
        teacher: probabilities on the weak views before mixing; they get no gradient.
        partner: rows of the batch.
        share: of the first image of each pair, in [0, 1]; the second's is the rest.
        threshold: see `pseudo_label_loss`.
    """
    first = _pseudo_label_losses(logits, teacher, threshold)
    second = _pseudo_label_losses(logits, teacher[partner], threshold)
    return (share * first + (1 - share) * second).mean()


def _pseudo_label_losses(
    logits: Float[Tensor, "B C"], teacher: Float[Tensor, "B C"], threshold: float
) -> Float[Tensor, " B"]:
    confidence, pseudo_label = teacher.detach().max(1)
    mask = (confidence >= threshold).to(logits.dtype)
    return F.cross_entropy(logits, pseudo_label, reduction="none") * mask
