"""Profiles are complete, valid and immutable, and a budget scales their rounds."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from trainer.config import EncoderConfig, PhaseConfig, PretrainConfig, Profile, ViewConfig
from trainer.errors import ConfigError
from trainer.profiles import ABLATIONS, BRIEF, CPU, CURVE, GPU, GRAPH, PAPER, PROFILES, SMOKE, profile_named

every_profile = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())


def trained(labels: int) -> dict[str, object]:
    """Make a round that trains, as written."""
    return {"labels": labels, "phases": [{"epochs": 1}]}


@every_profile
def test_every_profile_is_valid_in_all_its_parts(profile: Profile) -> None:
    """Written out and read back it validates, also where it was made by copying another, which checks nothing."""
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    assert profile_named(profile.name) is profile
    assert profile.about.endswith(".")


@pytest.mark.parametrize("profile", [CURVE, BRIEF], ids=["curve", "brief"])
def test_a_profile_for_measuring_has_other_rounds_than_the_default_and_nothing_else(profile: Profile) -> None:
    """So what is measured under it says something of the default."""
    assert profile.model_copy(update={"name": CPU.name, "about": CPU.about, "rounds": CPU.rounds}) == CPU


def test_a_curve_continues_the_default() -> None:
    """Up to the default's budget its rounds are the default's, so that its point there is the default's result."""
    assert [settings.model_copy(update={"evaluated": False}) for settings in CURVE.rounds[: len(CPU.rounds)]] == list(
        CPU.rounds
    )
    assert CURVE.evaluation_budgets == (10, 20, 40, 100, 200, 300, 400, 1000)


def test_the_brief_profile_has_the_default_s_parts_and_budget_in_less_training() -> None:
    """It ends with the default's budget, trained on by the same losses in the same order, four to six times shorter."""
    assert BRIEF.evaluation_budgets == (100, CPU.budget)

    def epochs(profile: Profile) -> int:
        return sum(phase.epochs for settings in profile.rounds for phase in settings.phases)

    def losses(profile: Profile) -> list[PhaseConfig]:
        return [phase.model_copy(update={"epochs": 1}) for phase in profile.rounds[-1].phases]

    assert 4 * epochs(BRIEF) < epochs(CPU) <= 6 * epochs(BRIEF)
    assert losses(BRIEF) == losses(CPU)


def test_a_round_may_not_train_before_what_was_chosen_ahead_is_asked() -> None:
    """Its training could not change the choice any more, so such rounds are refused."""
    rounds = [{"labels": 10, "chosen_ahead": 40}, trained(20), {"labels": 40}]
    with pytest.raises(ValidationError, match="may not train before all images that were chosen ahead"):
        Profile.model_validate(SMOKE.model_dump() | {"rounds": rounds})


def test_evaluation_budgets_name_the_end_only_beside_another_point() -> None:
    """A run that is evaluated once declares nothing; a curve declares all its points, scaled with its rounds."""
    assert CPU.evaluation_budgets == ()
    assert GRAPH.evaluation_budgets == (100, 400)
    assert CURVE.with_budget(500).evaluation_budgets == (5, 10, 20, 50, 100, 150, 200, 500)


@pytest.mark.parametrize("part", ABLATIONS)
def test_a_part_left_out_changes_the_profile_and_nothing_else_of_it(part: str) -> None:
    """The name says what is missing; budgets stay; the result validates; the profile itself is untouched."""
    before = CPU.model_dump_json()
    changed = profile_named(f"cpu-without-{part}")
    assert changed.name == f"cpu-without-{part}"
    assert changed.budgets == CPU.budgets
    assert changed.model_copy(update={"name": "cpu"}) != CPU
    assert Profile.model_validate_json(changed.model_dump_json()) == changed
    assert CPU.model_dump_json() == before


def test_what_is_left_out_is_really_gone() -> None:
    """Each part's own settings say so."""
    gone = {part: profile_named(f"cpu-without-{part}") for part in ABLATIONS}
    assert (gone["hcl"].pretrain.epochs, gone["hcl"].graph.pretrained_weight) == (0, 0)
    assert (gone["gradients"].encoder.front_end, gone["gradients"].graph.descriptor_weight) == ("pixels", 0)
    assert gone["own-views"].pretrain.view == PAPER.pretrain.view
    assert gone["choice"].strategy == "random"
    assert all(
        not phase.soft and not phase.consistency for settings in gone["unlabelled"].rounds for phase in settings.phases
    )
    assert not gone["propagation"].graph.propagate
    alone = [phase for settings in gone["propagation"].rounds for phase in settings.phases]
    assert all(not phase.soft and not phase.trust_beliefs and phase.consistency for phase in alone)


@pytest.mark.parametrize("whole", ["cpu", "brief"])
def test_without_a_graph_every_choice_after_the_cold_start_has_a_trained_network(whole: str) -> None:
    """Without propagation, beliefs come only from a trained network."""
    rounds = profile_named(f"{whole}-without-propagation").rounds
    cold = max(rounds[0].labels, *(settings.chosen_ahead or 0 for settings in rounds))
    for number, settings in enumerate(rounds):
        assert settings.labels <= cold or any(former.phases for former in rounds[:number])


def test_an_unknown_part_is_refused_with_the_parts_there_are() -> None:
    """The sentence lists what to choose from."""
    with pytest.raises(ConfigError, match="no part 'luck' to leave out; choose one of hcl, gradients, propagation"):
        profile_named("cpu-without-luck")


def test_the_paper_s_profile_has_the_published_setting() -> None:
    """ResNet-18, batch 512, 100 epochs, t 0.5, beta 1, tau_plus 0.1."""
    assert PAPER.encoder.backbone == "resnet18"
    pretrain = PAPER.pretrain
    assert (pretrain.batch, pretrain.epochs) == (512, 100)
    assert (pretrain.temperature, pretrain.beta, pretrain.tau_plus) == (0.5, 1.0, 0.1)


@every_profile
def test_settings_cannot_be_changed(profile: Profile) -> None:
    """A profile is frozen through and through."""
    for part, name in [(profile, "rounds"), (profile.pretrain, "epochs"), (profile.finetune.weak, "flip")]:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, name, getattr(part, name))


def test_an_unknown_setting_is_refused() -> None:
    """A misspelt name is an error, not ignored."""
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        EncoderConfig.model_validate({"width": 3})


@pytest.mark.parametrize(
    "change",
    [{"temperature": 0.0}, {"beta": -1.0}, {"tau_plus": 1.0}, {"epochs": -1}, {"batch": 0}, {"steps": 0}],
    ids=str,
)
def test_parameters_out_of_range_are_refused(change: dict[str, float]) -> None:
    """The ranges of the loss and the schedule are checked where they are set."""
    with pytest.raises(ValidationError):
        PretrainConfig.model_validate(CPU.pretrain.model_dump() | change)


@pytest.mark.parametrize("budgets", [(), (10, 10), (20, 10), (0, 10)], ids=str)
def test_rounds_must_ascend(budgets: tuple[int, ...]) -> None:
    """Rounds that ask nothing, or none at all, are refused."""
    with pytest.raises(ValidationError):
        Profile.model_validate(SMOKE.model_dump() | {"rounds": [trained(labels) for labels in budgets]})


@every_profile
@pytest.mark.parametrize("budget", [1, 2, 7, 60, 500, 999, 60000])
def test_a_budget_scales_the_rounds(profile: Profile, budget: int) -> None:
    """Rounds ascend from at least one label and end at the budget exactly; nothing else changes."""
    scaled = profile.with_budget(budget)
    assert scaled.budget == scaled.budgets[-1] == budget
    assert scaled.budgets[0] >= 1
    assert list(scaled.budgets) == sorted(set(scaled.budgets))
    assert scaled.rounds[-1].phases == profile.rounds[-1].phases
    assert scaled.model_copy(update={"rounds": profile.rounds}) == profile
    assert Profile.model_validate(scaled.model_dump()) == scaled


@every_profile
def test_a_profile_s_own_budget_changes_nothing(profile: Profile) -> None:
    """Scaling to the same budget keeps every round; a budget of one label leaves one round."""
    assert profile.with_budget(profile.budget) == profile
    assert profile.with_budget(1).budgets == (1,)


@pytest.mark.parametrize("budget", [0, -5])
def test_no_budget_is_refused(budget: int) -> None:
    """The sentence says what was given."""
    with pytest.raises(ConfigError, match=f"at least one label, not {budget}"):
        CPU.with_budget(budget)


def test_the_pretraining_identity_covers_all_that_weights_depend_on() -> None:
    """Seed, images, encoder, schedule and pool limit change it; name, budgets and fine-tuning do not."""
    identity = CPU.pretraining_identity(0, "data")
    same = CPU.model_copy(update={"name": "other", "finetune": SMOKE.finetune}).with_budget(5)
    assert same.pretraining_identity(0, "data") == identity
    others = [
        CPU.pretraining_identity(1, "data"),
        CPU.pretraining_identity(0, "other data"),
        CPU.model_copy(update={"encoder": GPU.encoder}).pretraining_identity(0, "data"),
        CPU.model_copy(update={"pretrain": GPU.pretrain}).pretraining_identity(0, "data"),
        CPU.model_copy(update={"pool_limit": 100}).pretraining_identity(0, "data"),
    ]
    assert len({identity, *others}) == 6


def test_a_view_knows_whether_it_moves_pixels() -> None:
    """Mirroring, tone and erasing leave pixels in place; zoom, aspect, rotation and shift do not."""
    still = [ViewConfig(), ViewConfig(tone=0.5, texture=0.1, erase=0.5)]
    moving = [
        ViewConfig(scale=(0.9, 1.0)),
        ViewConfig(aspect=0.1),
        ViewConfig(rotation_deg=1),
        ViewConfig(translate_px=1),
    ]
    assert [view.moves for view in still + moving] == [False] * 2 + [True] * 4
