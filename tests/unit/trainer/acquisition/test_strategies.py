"""One acceptance suite that every query strategy passes, and what each one is for."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.acquisition import DEFAULT_STRATEGY, STRATEGIES, Strategy, explain, strategy_named
from trainer.acquisition.clustering import by_coverage, most_typical, spherical_kmeans
from trainer.acquisition.margin import uncertainty
from trainer.acquisition.plugin import load_strategy
from trainer.acquisition.probcover import pure_similarity
from trainer.acquisition.state import PoolState
from trainer.learning.graph import build_graph
from trainer.profiles import PROFILES

# LABELMETER_STRATEGY=./mine.py adds a strategy of your own to the suite.
OWN = os.environ.get("LABELMETER_STRATEGY")
SELECTORS = {name: strategy_named(name) for name in STRATEGIES} | ({"own": load_strategy(OWN).choose} if OWN else {})
every_strategy = pytest.mark.parametrize("select", SELECTORS.values(), ids=SELECTORS.keys())


def generator(seed: int = 0) -> torch.Generator:
    """Make a generator."""
    return torch.Generator().manual_seed(seed)


def state_of(features: Tensor, beliefs: Tensor | None = None, labelled: list[int] | None = None) -> PoolState:
    """Make the state of a pool from its features."""
    graph = build_graph(features, 5)
    mask = torch.zeros(len(features), dtype=torch.bool)
    mask[labelled or []] = True
    classes = 4 if beliefs is None else beliefs.shape[1]
    return PoolState(
        features,
        graph.neighbours,
        graph.similarities,
        beliefs,
        mask,
        classes,
        labels=torch.where(mask, torch.arange(len(features)) % classes, -1),
        round=0,
        images=torch.zeros(len(features), 8, 8, dtype=torch.uint8),
        embed=lambda: features,
    )


def warm_state(count: int = 60, labelled: int = 20, classes: int = 4) -> PoolState:
    """Make a pool in the middle of a run: random features and beliefs, one-hot where labelled."""
    features = F.normalize(torch.randn(count, 6, generator=generator(1)), dim=1)
    beliefs = torch.randn(count, classes, generator=generator(2)).mul(2).softmax(1)
    ids = torch.randperm(count, generator=generator(3))[:labelled]
    beliefs[ids] = F.one_hot(ids % classes, classes).float()
    return state_of(features, beliefs, ids.tolist())


def cold_state(count: int = 60) -> PoolState:
    """Make a pool before the first label."""
    return dataclasses.replace(warm_state(count, labelled=0), beliefs=None)


def _sizes(assigned: Tensor) -> list[int]:
    return assigned.bincount().sort().values.tolist()


def groups(sizes: list[int]) -> Tensor:
    """Make tight groups of unit vectors in unlike directions, in order."""
    centres = torch.eye(len(sizes)).repeat_interleave(torch.tensor(sizes), 0)
    return F.normalize(centres + 0.05 * torch.randn(centres.shape, generator=generator(7)), dim=1)


@every_strategy
@pytest.mark.parametrize("batch", [1, 7, 40])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_a_batch_is_distinct_unlabelled_images_of_the_asked_number(select: Strategy, warm: bool, batch: int) -> None:
    """No labelled index, none twice, exactly the number asked, as int64, warm or cold."""
    state = warm_state() if warm else cold_state()
    picks = select(state, batch, generator())
    assert picks.dtype == torch.int64 and picks.shape == (batch,)
    assert picks.unique().numel() == batch
    assert not state.labelled[picks].any()


@every_strategy
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_the_same_generator_picks_the_same_images(select: Strategy, warm: bool) -> None:
    """Nothing but state and generator decides: a resumed run asks what the killed one asked."""
    state = warm_state() if warm else cold_state()
    torch.manual_seed(1)
    first = select(state, 9, generator(4))
    torch.manual_seed(2)
    assert torch.equal(select(state, 9, generator(4)), first)


@every_strategy
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_the_state_is_not_changed(select: Strategy, warm: bool) -> None:
    """A strategy looks and does not touch, and leaves torch's own generator alone."""
    state = warm_state() if warm else cold_state()
    kept = {name: value.clone() if isinstance(value, Tensor) else value for name, value in vars(state).items()}
    global_state = torch.get_rng_state()
    select(state, 12, generator())
    for name, value in vars(state).items():
        assert torch.equal(value, kept[name]) if isinstance(value, Tensor) else value == kept[name], name
    assert torch.equal(torch.get_rng_state(), global_state)


@every_strategy
@pytest.mark.parametrize("free", [0, 1, 5])
def test_a_batch_larger_than_the_pool_is_all_that_is_left(select: Strategy, free: int) -> None:
    """With fewer free images than asked, all of them are picked, once each."""
    state = warm_state(labelled=60 - free)
    assert select(state, 10, generator()).sort().values.tolist() == state.free.tolist()


@every_strategy
def test_a_pool_smaller_than_the_first_batch_is_all_asked(select: Strategy) -> None:
    """Before any label, too."""
    assert select(cold_state(8), 10, generator()).sort().values.tolist() == list(range(8))


@every_strategy
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_duplicates_do_not_shorten_a_batch(select: Strategy, warm: bool) -> None:
    """A pool of three images, each many times over, still yields a full batch of distinct indices."""
    features = torch.eye(3).repeat(15, 1)
    beliefs = torch.full((45, 3), 1 / 3) if warm else None
    picks = select(state_of(features, beliefs, [0, 4] if warm else []), 10, generator())
    assert picks.unique().numel() == 10
    assert not warm or not {0, 4} & set(picks.tolist())


@every_strategy
def test_a_pool_of_certain_beliefs_still_yields_a_batch(select: Strategy) -> None:
    """With every belief at one there is no margin left, and labelled images are still not asked again."""
    state = warm_state()
    certain = dataclasses.replace(state, beliefs=F.one_hot(torch.arange(60) % 4, 4).float())
    picks = select(certain, 40, generator())
    assert sorted(picks.tolist()) == state.free.tolist()


def test_random_draws_every_image_equally_often() -> None:
    """Over 600 draws of 6 out of 30 free images, each is drawn about 120 times."""
    state, draws = warm_state(40, labelled=10), generator()
    picks = torch.cat([SELECTORS["random"](state, 6, draws) for _ in range(600)])
    counts = torch.bincount(picks, minlength=40)[state.free]
    assert counts.min() > 80 and counts.max() < 160


def test_margin_asks_the_smallest_margins_first() -> None:
    """The picks are the free images whose two likeliest classes are nearest, in that order."""
    state = warm_state()
    assert state.beliefs is not None
    top = state.beliefs.topk(2, 1).values
    gap = (top[:, 0] - top[:, 1]).tolist()
    expected = sorted(state.free.tolist(), key=lambda index: gap[index])[:8]
    assert SELECTORS["margin"](state, 8, generator()).tolist() == expected


def test_least_confidence_and_entropy_ask_what_their_names_say() -> None:
    """Two torn beliefs: the flatter over all classes has more entropy, the one without a favourite less confidence."""
    features = groups([10])
    beliefs = torch.tensor([[0.9, 0.05, 0.05]]).repeat(10, 1)
    beliefs[3] = torch.tensor([0.5, 0.5, 0.0])
    beliefs[6] = torch.tensor([0.52, 0.24, 0.24])
    state = state_of(features, beliefs)
    assert SELECTORS["least-confidence"](state, 1, generator()).tolist() == [3]
    assert SELECTORS["entropy"](state, 1, generator()).tolist() == [6]


def test_k_center_takes_the_image_farthest_from_all_that_is_labelled_or_taken() -> None:
    """Four directions, one of them labelled: the next three picks are the other three, and then no direction is new."""
    features = groups([6, 6, 6, 6])
    picks = SELECTORS["k-center"](state_of(features, None, [1]), 3, generator())
    assert sorted(int(pick) // 6 for pick in picks) == [1, 2, 3]
    similarity = features @ features[1]
    assert int(picks[0]) == int(similarity.argmin())


def test_probcover_takes_the_largest_ball_that_is_not_covered() -> None:
    """Of three tight groups one is labelled: the picks are in the larger, then in the smaller of the others."""
    features = groups([12, 20, 9])
    state = dataclasses.replace(state_of(features, None, [2]), classes=3)
    first, second = SELECTORS["probcover"](state, 2, generator(3)).tolist()
    assert 12 <= first < 32
    assert second >= 32


def test_the_balls_of_probcover_are_pure_and_as_large_as_they_may_be() -> None:
    """Within the radius 95% of the balls hold one cluster only, and a little farther out they do not."""
    features = F.normalize(torch.randn(300, 3, generator=generator(5)), dim=1)
    reach = pure_similarity(features, 4, generator(1))
    assigned, _ = spherical_kmeans(features, 4, generator(1))

    def purity(limit: float) -> float:
        mixed = (features @ features.T >= limit) & (assigned.unsqueeze(1) != assigned)
        return float((~mixed.any(1)).float().mean())

    assert purity(reach) >= 0.95 - 1 / 300
    assert purity(reach - 0.02) < 0.95


def test_badge_never_writes_the_gradients_out_and_still_has_their_distances() -> None:
    """The picks are those of k-means++ on the gradients written out, drawn with the same numbers."""
    state = warm_state()
    assert state.beliefs is not None
    residual = state.beliefs - F.one_hot(state.beliefs.argmax(1), 4)
    gradients = (residual.unsqueeze(2) * state.features.unsqueeze(1)).flatten(1)
    picks = SELECTORS["badge"](state, 6, generator(9)).tolist()
    weights = gradients.square().sum(1)
    weights[state.labelled] = 0
    expected, draws = [int(weights.argmax())], generator(9)
    while len(expected) < 6:
        distance = torch.cdist(gradients.double(), gradients[expected].double()).min(1).values.square()
        distance[state.labelled] = 0
        total = distance.cumsum(0)
        point = torch.rand((), generator=draws, dtype=torch.double)
        expected.append(int(torch.searchsorted(total, point * total[-1], right=True)))
    assert picks == expected


def test_badge_asks_different_questions_among_equally_uncertain_images() -> None:
    """Two far groups, all torn alike: both are asked, where margin sampling takes the first ones."""
    features = groups([10, 10])
    state = state_of(features, torch.tensor([[0.5, 0.5]]).repeat(20, 1))
    assert SELECTORS["margin"](state, 4, generator()).max() < 10
    for seed in range(5):
        assert {int(pick) // 10 for pick in SELECTORS["badge"](state, 4, generator(seed))} == {0, 1}


def test_uncertainty_runs_from_zero_to_one() -> None:
    """A certain belief has none, an even one has all, whatever the other classes have."""
    beliefs = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.6, 0.3, 0.1]])
    torch.testing.assert_close(uncertainty(beliefs), torch.tensor([0.0, 1.0, 0.7]))


@pytest.mark.parametrize("name", ["typiclust", "coverage-margin"])
def test_a_cold_start_sees_every_kind_of_image(name: str) -> None:
    """With as many picks as groups, far more groups are seen than chance would see."""
    features = groups([4, 30, 8, 16, 6])
    kinds = torch.repeat_interleave(torch.arange(5), torch.tensor([4, 30, 8, 16, 6]))
    seen = [kinds[SELECTORS[name](state_of(features), 5, generator(seed))].unique().numel() for seed in range(10)]
    drawn = [kinds[SELECTORS["random"](state_of(features), 5, generator(seed))].unique().numel() for seed in range(10)]
    assert sum(seen) > sum(drawn) + 5


def test_typiclust_asks_the_most_typical_image_of_the_largest_uncovered_group() -> None:
    """Of three groups one is labelled: the first pick is the densest image of the larger of the other two."""
    features = groups([12, 20, 9])
    state = state_of(features, None, [2])
    # One labelled and two asked make three clusters; k-means finds the three groups from some starts only.
    seed = next(seed for seed in range(50) if _sizes(spherical_kmeans(features, 3, generator(seed))[0]) == [9, 12, 20])
    first, second = SELECTORS["typiclust"](state, 2, generator(seed)).tolist()
    typicality = state.similarities.mean(1)
    assert first == 12 + int(typicality[12:32].argmax())
    assert second == 32 + int(typicality[32:].argmax())


def test_coverage_margin_prefers_a_torn_neighbourhood_to_an_odd_image() -> None:
    """A lone uncertain image among certain ones is worth less than an uncertain one among its like."""
    features = groups([10, 10])
    beliefs = torch.tensor([[0.99, 0.01]]).repeat(20, 1)
    beliefs[3] = torch.tensor([0.5, 0.5])
    beliefs[10:] = torch.tensor([0.6, 0.4])
    state = state_of(features, beliefs)
    assert SELECTORS["margin"](state, 1, generator()).tolist() == [3]
    assert SELECTORS["coverage-margin"](state, 1, generator()).item() >= 10


def test_coverage_margin_does_not_ask_one_question_twice() -> None:
    """Two nearly equally torn groups share a batch, where margin sampling takes all of it from one."""
    features = groups([10, 10])
    beliefs = torch.tensor([[0.5, 0.5]]).repeat(20, 1)
    beliefs[10:] = torch.tensor([0.52, 0.48])
    state = state_of(features, beliefs)
    torn = {name: (SELECTORS[name](state, 6, generator()) >= 10).sum().item() for name in ("margin", "coverage-margin")}
    assert torn["margin"] == 0
    assert 2 <= torn["coverage-margin"] <= 4


def test_uncertain_clusters_ask_each_torn_group_once_before_any_twice() -> None:
    """Of four groups two are torn: two picks are one in each, and none is in a certain group."""
    features = groups([10, 10, 10, 10])
    beliefs = torch.tensor([[0.99, 0.01]]).repeat(40, 1)
    beliefs[10:20] = torch.tensor([0.55, 0.45])
    beliefs[30:] = torch.tensor([0.6, 0.4])
    state = state_of(features, beliefs, list(range(8)))
    seen = [{int(p) // 10 for p in SELECTORS["uncertain-clusters"](state, 2, generator(s))} for s in range(10)]
    assert all(kinds <= {1, 3} for kinds in seen)
    assert sum(kinds == {1, 3} for kinds in seen) >= 5


def test_uncertain_clusters_ask_where_a_cluster_is_most_torn() -> None:
    """Within one group, all alike to the centre, the pick is the image whose neighbourhood is most torn."""
    features = F.normalize(torch.ones(12, 3) + 0.01 * torch.randn(12, 3, generator=generator(2)), dim=1)
    beliefs = torch.tensor([[0.8, 0.2]]).repeat(12, 1)
    beliefs[7] = torch.tensor([0.5, 0.5])
    state = state_of(features, beliefs, [*range(5), 8, 9, 10])
    assert SELECTORS["uncertain-clusters"](state, 1, generator()).tolist() == [7]


def test_weights_pull_the_centres() -> None:
    """A vector without weight moves no centre and is never a first one; equal weights change nothing but the start."""
    features = groups([6, 6])
    weights = torch.ones(12)
    weights[6:] = 0
    assigned, similarity = spherical_kmeans(features, 1, generator(), weights=weights)
    centre = F.normalize(features[:6].sum(0), dim=0)
    torch.testing.assert_close(similarity, features @ centre)
    assert assigned.tolist() == [0] * 12


def test_kmeans_parts_what_is_apart() -> None:
    """No cluster mixes two far groups when there are clusters enough, and the medoid is a member of its cluster."""
    features = groups([10, 10])
    kinds = torch.arange(20) // 10
    assigned, _ = spherical_kmeans(features, 6, generator())
    for cluster in assigned.unique().tolist():
        assert kinds[assigned == cluster].unique().numel() == 1
        assert int(assigned[most_typical(features, assigned, cluster)]) == cluster


def test_the_medoid_is_the_member_nearest_the_mean() -> None:
    """Of a fan of directions the middle one is the most typical."""
    angles = torch.tensor([-0.4, -0.2, 0.02, 0.2, 0.4])
    features = torch.stack([angles.cos(), angles.sin()], 1)
    assert most_typical(features, torch.zeros(5, dtype=torch.long), 0) == 2


def test_the_order_of_coverage_begins_with_what_covers_most() -> None:
    """Of one image of each group the larger group's comes first, and a group that is known already comes last."""
    features = groups([5, 30, 12, 20])
    first_of_each = torch.tensor([0, 5, 35, 47])
    assert by_coverage(features, first_of_each, torch.tensor([], dtype=torch.long)).tolist() == [5, 47, 35, 0]
    assert by_coverage(features, first_of_each, torch.tensor([6])).tolist() == [47, 35, 0, 5]


def test_the_order_of_coverage_sees_every_group_before_any_twice() -> None:
    """Six images of a large group and one of each small one: the small ones are covered before the large one again."""
    features = groups([40, 6, 6])
    order = by_coverage(features, torch.tensor([0, 1, 2, 3, 4, 5, 40, 46]), torch.tensor([], dtype=torch.long))
    assert set(order[1:3].tolist()) == {40, 46}
    assert sorted(order.tolist()) == [0, 1, 2, 3, 4, 5, 40, 46]


def test_a_cold_start_asked_in_parts_sees_every_kind_in_its_first_part() -> None:
    """Twenty images are chosen from groups of very unlike size; the first five are of the five groups."""
    sizes = [60, 12, 12, 12, 12]
    kinds = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))
    for seed in range(5):
        picks = SELECTORS["uncertain-clusters"](state_of(groups(sizes)), 20, generator(seed))
        assert kinds[picks[:5]].unique().numel() == 5


def test_the_profiles_strategies_are_there() -> None:
    """The default is a strategy, and so is every profile's."""
    assert {DEFAULT_STRATEGY, *(profile.strategy for profile in PROFILES.values())} <= STRATEGIES.keys()


def test_the_reason_for_asking_is_told_in_a_phrase() -> None:
    """Cold, nothing was known; warm, the two likeliest classes and their probabilities are named."""
    names = ("coat", "shirt", "bag")
    state = state_of(groups([4, 4]), torch.tensor([[0.125, 0.5, 0.375]]).repeat(8, 1))
    assert explain(state, 0, names) == "torn between shirt (0.50) and bag (0.38)"
    assert explain(dataclasses.replace(state, beliefs=None), 0, names) == "cold start: nothing was known yet"
