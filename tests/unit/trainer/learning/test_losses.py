"""The losses are the published ones, stay finite at extreme values, and refuse wrong shapes."""

from __future__ import annotations

import itertools
import math

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.learning.losses import (
    hard_negative_loss,
    mixed_pseudo_label_loss,
    pseudo_label_loss,
    soft_cross_entropy,
)

GRID = list(itertools.product((0.1, 0.5, 1.0), (0.0, 0.5, 1.0, 2.5), (0.0, 0.1, 0.4)))


def unit_views(images: int = 5, dimensions: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Draw two views of each image, unit vectors."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, images, dimensions, generator=generator, dtype=torch.float64)
    return list(F.normalize(rows, dim=2).to(dtype))


def published(
    first: Tensor, second: Tensor, t: float, beta: float, tau_plus: float, different: Tensor | None = None
) -> tuple[float, int]:
    """Transcribe HCL number by number; return the loss and the number of anchors at the floor.

    Where it is known how probably images differ in class, that multiplies a negative's importance.
    """
    a, b = first.double().tolist(), second.double().tolist()
    views, images = a + b, len(a)
    losses, floored = [], 0
    for anchor in range(2 * images):
        partner = (anchor + images) % (2 * images)
        others = [view for view in range(2 * images) if view not in (anchor, partner)]
        similarity = [sum(x * y for x, y in zip(views[anchor], view, strict=True)) for view in views]
        pos = math.exp(similarity[partner] / t)
        neg = [math.exp(similarity[other] / t) for other in others]
        differ = [1.0 if different is None else float(different[anchor % images, other % images]) for other in others]
        imp = [math.exp(beta * similarity[other] / t) * d for other, d in zip(others, differ, strict=True)]
        N = len(others)
        reweighted = N * sum(i * n for i, n in zip(imp, neg, strict=True)) / sum(imp)
        debiased, floor = (reweighted - tau_plus * N * pos) / (1 - tau_plus), N * math.exp(-1 / t)
        floored += debiased < floor
        losses.append(-math.log(pos / (pos + max(debiased, floor))))
    return sum(losses) / len(losses), floored


def nt_xent(first: Tensor, second: Tensor, t: float) -> Tensor:
    """Compute SimCLR's equation 1: the cross entropy of each view's partner among all other views."""
    views = torch.cat([first, second])
    logits = (views @ views.T / t).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(views)).roll(len(first)))


@pytest.mark.parametrize(("t", "beta", "tau_plus"), GRID)
def test_hcl_equals_the_published_equations_written_as_loops(t: float, beta: float, tau_plus: float) -> None:
    """The vectorised, log-space loss is the paper's, anchor by anchor and number by number."""
    first, second = unit_views()
    loss = hard_negative_loss(first, second, temperature=t, beta=beta, tau_plus=tau_plus)
    assert loss.item() == pytest.approx(published(first, second, t, beta, tau_plus)[0], rel=1e-10)


def test_the_grid_reaches_both_branches_of_the_maximum() -> None:
    """Some settings of the comparison above need the floor and some do not: both branches are checked."""
    floored = [published(*unit_views(), *setting)[1] for setting in GRID]
    assert 0 in floored and max(floored) > 0


@pytest.mark.parametrize("t", [0.05, 0.3, 1.0])
def test_without_weights_and_debiasing_hcl_is_nt_xent(t: float) -> None:
    """With beta = tau_plus = 0 nothing is left of HCL but NT-Xent, in value and in gradient."""
    first, second = (view.requires_grad_() for view in unit_views(images=6, seed=1))
    ours = hard_negative_loss(first, second, temperature=t, beta=0.0, tau_plus=0.0)
    theirs = nt_xent(first, second, t)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours_grad, theirs_grad = torch.autograd.grad(ours, [first, second]), torch.autograd.grad(theirs, [first, second])
    torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("images", [2, 7])
def test_equal_similarities_cost_the_logarithm_of_the_choices(images: int, beta: float) -> None:
    """Where every view is the same, no weight can matter: the loss is log(2B - 1) for any beta."""
    same = F.normalize(torch.ones(images, 3, dtype=torch.float64), dim=1)
    loss = hard_negative_loss(same, same, temperature=0.2, beta=beta, tau_plus=0.0)
    assert loss.item() == pytest.approx(math.log(2 * images - 1), rel=1e-12)


@pytest.mark.parametrize(("t", "beta", "tau_plus"), [(0.5, 1.0, 0.1), (1.0, 2.0, 0.05), (0.5, 0.0, 0.0)])
def test_hcl_gradient_agrees_with_finite_differences(t: float, beta: float, tau_plus: float) -> None:
    """The analytic gradient is the derivative, checked in float64 where the floor holds up no anchor."""
    rows = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (8, 9)]
    near = [rows[0], rows[0] * -0.2 + rows[1]]
    assert published(*(F.normalize(row, dim=1) for row in near), t, beta, tau_plus)[1] == 0

    def loss(first: Tensor, second: Tensor) -> Tensor:
        unit = (F.normalize(first, dim=1), F.normalize(second, dim=1))
        return hard_negative_loss(*unit, temperature=t, beta=beta, tau_plus=tau_plus)

    assert torch.autograd.gradcheck(loss, [row.clone().requires_grad_() for row in near])


def differing(images: int, classes: int = 3, seed: int = 4) -> Tensor:
    """Make believed probabilities that two images are of different classes, float64 [B, B]."""
    logits = 3 * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    beliefs = logits.softmax(1)
    return 1 - beliefs @ beliefs.T


@pytest.mark.parametrize(("t", "beta"), list(itertools.product((0.1, 0.5, 1.0), (0.0, 0.5, 1.0, 2.5))))
def test_hcl_weighted_by_beliefs_equals_its_equations_written_as_loops(t: float, beta: float) -> None:
    """Each negative's importance is multiplied by the probability that the two images differ in class."""
    first, second = unit_views()
    different = differing(5)
    loss = hard_negative_loss(first, second, temperature=t, beta=beta, tau_plus=0.0, different=different)
    assert loss.item() == pytest.approx(published(first, second, t, beta, 0.0, different)[0], rel=1e-10)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("classes", [2, 10])
def test_hcl_is_unchanged_when_nothing_is_believed(classes: int, beta: float) -> None:
    """Uniform beliefs say the same of all pairs: value and gradient are those of HCL without debiasing."""
    views = [view.requires_grad_() for view in unit_views(images=6)]
    beliefs = torch.full((6, classes), 1 / classes, dtype=torch.float64)
    weighted = hard_negative_loss(*views, beta=beta, tau_plus=0.0, different=1 - beliefs @ beliefs.T)
    plain = hard_negative_loss(*views, beta=beta, tau_plus=0.0)
    torch.testing.assert_close(weighted, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(weighted, views), torch.autograd.grad(plain, views))


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_an_image_surely_of_the_same_class_is_no_negative(beta: float) -> None:
    """Two classes, surely known: an anchor's negatives are the other class alone, wherever its own class lies.

    All of the other class have similarity 0 to it, so the loss is log(1 + N exp(-1 / t)) in closed form.
    """
    classes = torch.tensor([0, 0, 1, 1, 1])
    beliefs = F.one_hot(classes, 2).double()
    views = F.one_hot(classes, 3).double()
    loss = hard_negative_loss(views, views, temperature=0.5, beta=beta, tau_plus=0.0, different=1 - beliefs @ beliefs.T)
    assert loss.item() == pytest.approx(math.log1p(8 * math.exp(-2)), rel=1e-4)


@pytest.mark.parametrize(("t", "beta"), [(0.5, 1.0), (0.2, 2.0), (1.0, 0.0)])
def test_the_gradient_of_hcl_weighted_by_beliefs_agrees_with_finite_differences(t: float, beta: float) -> None:
    """The analytic gradient is the derivative, in float64; the beliefs get none."""
    rows = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (8, 9)]
    different = differing(4).requires_grad_()

    def loss(first: Tensor, second: Tensor) -> Tensor:
        unit = (F.normalize(first, dim=1), F.normalize(second, dim=1))
        return hard_negative_loss(*unit, temperature=t, beta=beta, tau_plus=0.0, different=different)

    assert torch.autograd.gradcheck(loss, [row.clone().requires_grad_() for row in rows])
    loss(rows[0].requires_grad_(), rows[1]).backward()
    assert different.grad is None


def test_one_class_alone_leaves_hcl_as_it_is() -> None:
    """Where all images are surely of one class nothing tells negatives apart: the loss is finite, and plain HCL's."""
    first, second = unit_views()
    loss = hard_negative_loss(first, second, tau_plus=0.0, different=torch.zeros(5, 5, dtype=torch.float64))
    torch.testing.assert_close(loss, hard_negative_loss(first, second, tau_plus=0.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("t", [0.05, 0.2])
def test_a_negative_difference_is_held_up_by_the_floor(t: float, dtype: torch.dtype) -> None:
    """Perfect positives among orthogonal negatives: the debiased difference is negative, Ng is N exp(-1/t)."""
    first = torch.eye(4, dtype=dtype, requires_grad=True)
    second = torch.eye(4, dtype=dtype)
    assert published(first, second, t, 1.0, 0.1)[1] == 8
    loss = hard_negative_loss(first, second, temperature=t, beta=1.0, tau_plus=0.1)
    assert loss.item() == pytest.approx(math.log1p(6 * math.exp(-2 / t)), rel=1e-5, abs=1e-7)
    (gradient,) = torch.autograd.grad(loss, first)
    assert gradient.isfinite().all()


def test_a_low_temperature_does_not_overflow_float32() -> None:
    """At t = 0.005 exp(s / t) is far outside float32; loss and gradient stay finite and right."""
    first, second = unit_views(images=16, dimensions=8, dtype=torch.float32)
    first.requires_grad_()
    loss = hard_negative_loss(first, second, temperature=0.005, beta=1.0, tau_plus=0.1)
    (gradient,) = torch.autograd.grad(loss, first)
    assert gradient.isfinite().all()
    # exp(2 * 200) is inside float64's range, so the loops can still say what is right.
    assert loss.item() == pytest.approx(published(first, second, 0.005, 1.0, 0.1)[0], rel=1e-4)


def test_bfloat16_embeddings_are_compared_in_float32() -> None:
    """Under bfloat16 autocast, on bfloat16 inputs, the result is that of float32 on the same numbers."""
    halves = [view.requires_grad_() for view in unit_views(images=8, dtype=torch.bfloat16)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = hard_negative_loss(*halves, temperature=0.05)
    assert mixed.dtype == torch.float32
    whole = hard_negative_loss(*(half.float() for half in halves), temperature=0.05)
    torch.testing.assert_close(mixed, whole, rtol=0, atol=0)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(mixed, halves))


@given(
    seed=st.integers(0, 2**32),
    images=st.integers(2, 6),
    spread=st.sampled_from([0.0, 1e-4, 0.3, 3.0]),
    t=st.floats(0.02, 2.0),
    beta=st.floats(0.0, 4.0),
    tau_plus=st.floats(0.0, 0.95),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_hcl_is_finite_and_right_in_float32_whatever_the_views(
    seed: int, images: int, spread: float, t: float, beta: float, tau_plus: float
) -> None:
    """Whether views coincide or are unrelated, loss and gradient are finite and the loss is the paper's."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.randn(images, 5, generator=generator)
    first, second = (F.normalize(centre + spread * torch.randn(images, 5, generator=generator), dim=1) for _ in "ab")
    first.requires_grad_()
    loss = hard_negative_loss(first, second, temperature=t, beta=beta, tau_plus=tau_plus)
    (gradient,) = torch.autograd.grad(loss, first)
    assert gradient.isfinite().all()
    assert loss.item() == pytest.approx(published(first, second, t, beta, tau_plus)[0], rel=2e-3, abs=2e-4)


def test_the_order_of_images_and_of_views_does_not_matter() -> None:
    """Swapping the two views, or shuffling the images (and with them every anchor's negatives), changes nothing."""
    loss = hard_negative_loss
    first, second = unit_views(images=7, seed=5)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(loss(second, first), loss(first, second), rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(first[order], second[order]), loss(first, second), rtol=1e-12, atol=0)
    assert not torch.isclose(loss(first, second[order]), loss(first, second)), "partners do matter"


def test_a_larger_beta_weighs_hard_negatives_more() -> None:
    """The reweighted mean of the negatives, and with it the loss, grows with beta."""
    first, second = unit_views(images=8, seed=2)
    losses = [hard_negative_loss(first, second, beta=beta, tau_plus=0.0).item() for beta in (0.0, 0.5, 1.0, 2.0, 5.0)]
    assert losses == sorted(losses) and losses[0] < losses[-1] - 0.1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"beta": -0.1},
        {"tau_plus": -0.1},
        {"tau_plus": 1.0},
    ],
    ids=str,
)
def test_hcl_refuses_parameters_out_of_range(wrong: dict[str, float]) -> None:
    """A parameter that has no meaning is a ValueError that says the ranges."""
    with pytest.raises(ValueError, match="needs temperature > 0, beta >= 0 and 0 <= tau_plus < 1"):
        hard_negative_loss(*unit_views(), **wrong)


def test_hcl_refuses_a_single_image() -> None:
    """One image has no negatives, and no loss."""
    with pytest.raises(ValueError, match="at least two images"):
        hard_negative_loss(*unit_views(images=1))


def test_wrong_shapes_are_refused_while_tests_run() -> None:
    """The shapes in the signatures are checked: two views of unlike batches, and beliefs over unlike classes."""
    first, second = unit_views()
    with pytest.raises(jaxtyping.TypeCheckError):
        hard_negative_loss(first, second[:-1])
    with pytest.raises(jaxtyping.TypeCheckError):
        hard_negative_loss(first.long(), second.long())
    with pytest.raises(jaxtyping.TypeCheckError):
        pseudo_label_loss(torch.zeros(3, 4), torch.zeros(3, 5), threshold=0.5)
    with pytest.raises(jaxtyping.TypeCheckError):
        soft_cross_entropy(torch.zeros(3, 4), torch.zeros(3, 5))


def test_unsure_guesses_add_nothing_but_count_in_the_mean() -> None:
    """Of four images one is above the threshold: the loss is a quarter of its cross entropy."""
    logits = torch.tensor([[2.0, -1.0, 0.5]] * 4)
    teacher = torch.tensor([[0.89, 0.06, 0.05], [0.34, 0.33, 0.33], [0.05, 0.05, 0.9], [0.5, 0.5, 0.0]])
    loss = pseudo_label_loss(logits, teacher, threshold=0.9)
    assert loss.item() == pytest.approx(-logits.log_softmax(1)[2, 2].item() / 4)
    assert pseudo_label_loss(logits, teacher, threshold=0.95).item() == 0.0


def test_guesses_teach_the_student_only() -> None:
    """No gradient flows into the teacher, and none into logits of images below the threshold."""
    logits = torch.zeros(2, 3, requires_grad=True)
    teacher = torch.tensor([[0.95, 0.03, 0.02], [0.6, 0.2, 0.2]], requires_grad=True)
    pseudo_label_loss(logits, teacher, threshold=0.9).backward()
    assert teacher.grad is None
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[-1 / 3, 1 / 6, 1 / 6], [0.0, 0.0, 0.0]]))


def test_a_mixed_pair_is_to_be_of_either_class_by_its_share() -> None:
    """Each confident pseudo-label costs its cross entropy times its image's share; an unsure one costs nothing."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.2, 0.1], [1.0, 1.0, 0.0]])
    teacher = torch.tensor([[0.95, 0.03, 0.02], [0.02, 0.03, 0.95], [0.5, 0.3, 0.2]])
    partner, share = torch.tensor([1, 2, 0]), torch.tensor([0.7, 0.6, 0.9])
    costs = -logits.log_softmax(1)
    expected = (0.7 * costs[0, 0] + 0.3 * costs[0, 2] + 0.6 * costs[1, 2] + 0.1 * costs[2, 0]) / 3
    loss = mixed_pseudo_label_loss(logits, teacher, partner, share, threshold=0.9)
    torch.testing.assert_close(loss, expected)


def test_a_mix_of_one_image_alone_is_the_plain_loss() -> None:
    """With a share of one nothing is mixed, whoever the partner is."""
    generator = torch.Generator().manual_seed(3)
    logits, teacher = torch.randn(6, 4, generator=generator), (4 * torch.randn(6, 4, generator=generator)).softmax(1)
    mixed = mixed_pseudo_label_loss(logits, teacher, torch.arange(6).flip(0), torch.ones(6), threshold=0.6)
    torch.testing.assert_close(mixed, pseudo_label_loss(logits, teacher, threshold=0.6))


def test_soft_cross_entropy_has_its_closed_form() -> None:
    """Equal logits cost log C under any target; a target that equals the prediction costs its entropy."""
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    assert soft_cross_entropy(torch.zeros(2, 3), targets).item() == pytest.approx(math.log(3))
    entropy = -(targets[0] * targets[0].log()).sum().item()
    assert soft_cross_entropy(targets[:1].log(), targets[:1]).item() == pytest.approx(entropy)


def test_soft_cross_entropy_on_one_hot_targets_is_cross_entropy() -> None:
    """A certain belief is a label."""
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 1, 1])
    ours = soft_cross_entropy(logits, F.one_hot(labels, 4).float())
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels))
