"""Frozen configuration models and the named profiles: complete sets of settings, each with its source.

A profile is chosen by name; seed and budget are the only numbers that a command line overrides. The whole of it is
written to OUT/config.json, and a run resumes only under the configuration it began with.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from trainer.errors import ConfigError

# Renewed when the same settings come to train otherwise, so that weights of an earlier way are not taken for today's.
_PRETRAINING = "halves side by side"


class Frozen(BaseModel):
    """Base of all settings: immutable, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ViewConfig(Frozen):
    """Kinds and strengths of change of a random view; the default changes nothing but the side an image faces.

    Attributes:
        flip: mirror half of the images.
        scale: lowest and highest zoom; below 1 shows a part of the image larger.
        crop: whether the part may lie anywhere (SimCLR's random crop) or stays in the middle.
        aspect: largest change of log(width / height).
        rotation_deg: largest rotation, degrees, either way.
        translate_px: largest shift, pixels, either way.
        tone: strength of random gamma and gain.
        texture: strength of multiplied low-frequency noise.
        erase: share of images that lose a random rectangle.
    """

    flip: bool = True
    scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    crop: bool = False
    aspect: float = Field(default=0.0, ge=0)
    rotation_deg: float = Field(default=0.0, ge=0)
    translate_px: float = Field(default=0.0, ge=0)
    tone: float = Field(default=0.0, ge=0)
    texture: float = Field(default=0.0, ge=0)
    erase: float = Field(default=0.0, ge=0, le=1)

    @property
    def moves(self) -> bool:
        """Whether pixels change place other than by mirroring."""
        return self.scale != (1.0, 1.0) or max(self.aspect, self.rotation_deg, self.translate_px) > 0


class EncoderConfig(Frozen):
    """Which backbone, and how wide.

    Attributes:
        backbone: `oriented` (fixed front end, residual stages) or `resnet18`.
        front_end: of `oriented`: `gradients` (oriented gradients and pixels) or `pixels` alone, for comparison.
        widths: channels of the stages of `oriented`, at least 8: with fewer, the gradient of a shortcut's weights is
            wrong, or writes past its memory, on CPUs without AVX-512 (uxlfoundation/oneDNN issue 6035).
        blocks: residual blocks a stage of `oriented`.
        projection: dimensions of the contrastive space.
    """

    backbone: Literal["oriented", "resnet18"] = "oriented"
    front_end: Literal["gradients", "pixels"] = "gradients"
    widths: tuple[Annotated[int, Field(ge=8)], ...] = (32, 64, 128)
    blocks: PositiveInt = 1
    projection: PositiveInt = 64


class PretrainConfig(Frozen):
    """Contrastive pretraining: HCL's parameters, schedule and views.

    Attributes:
        epochs: passes over the pool; 0 keeps the random weights.
        batch: images a step (two views each).
        steps: steps an epoch, where an epoch is to be shorter than the pool.
        learning_rate: peak of AdamW's cosine.
        weight_decay: of AdamW.
        temperature: t of HCL.
        beta: concentration on hard negatives of HCL.
        tau_plus: class prior of HCL.
        view: both views are drawn from it.
    """

    epochs: int = Field(ge=0)
    batch: PositiveInt = 256
    steps: PositiveInt | None = None
    learning_rate: PositiveFloat = 2e-3
    weight_decay: float = 1e-4
    temperature: PositiveFloat
    beta: float = Field(ge=0)
    tau_plus: float = Field(ge=0, lt=1)
    view: ViewConfig


class GraphConfig(Frozen):
    """The neighbour graph's features and the propagation on it.

    Attributes:
        neighbours: of each image.
        alpha: share of a belief that comes from the neighbours.
        propagate: whether labels spread over the graph; without it beliefs and test predictions are the network's own.
        descriptor_dimensions: principal axes of the oriented-gradient descriptor.
        descriptor_weight: of the descriptor; 0 leaves it out.
        pretrained_weight: of the pretrained features beside it.
        finetuned_weight: of the fine-tuned network's features beside both, which are of unit length together.
        graph_share: exponent of the graph's beliefs in their product with the network's, which has the rest.
        smoothing: share of a joint belief that comes from the neighbours' joint beliefs.
        vote_share: exponent of the neighbours' vote in a test prediction, of which the network has the rest.
        vote_temperature: how fast a neighbour's vote falls with its cosine distance.
    """

    neighbours: PositiveInt = 15
    alpha: float = Field(default=0.95, gt=0, lt=1)
    propagate: bool = True
    descriptor_dimensions: PositiveInt = 128
    descriptor_weight: float = Field(default=1.0, ge=0)
    pretrained_weight: float = Field(default=0.5, ge=0)
    finetuned_weight: float = Field(default=1.0, ge=0)
    graph_share: float = Field(default=0.7, ge=0, le=1)
    smoothing: float = Field(default=0.8, ge=0, lt=1)
    vote_share: float = Field(default=0.9, ge=0, le=1)
    vote_temperature: PositiveFloat = 0.05


class PhaseConfig(Frozen):
    """One stretch of fine-tuning under one mix of losses; the labels paid for are always learned.

    Attributes:
        epochs: passes over the pool.
        soft: weight of the loss against the beliefs of graph and network.
        consistency: weight of the consistency loss.
        trust_beliefs: exponent of the beliefs in the product with the teacher's guess.
        threshold: confidence from which a guess is learned.
        learning_rate: peak of AdamW's cosine.
    """

    epochs: PositiveInt
    soft: float = Field(default=0.0, ge=0)
    consistency: float = Field(default=0.0, ge=0)
    trust_beliefs: float = Field(default=0.5, ge=0)
    threshold: float = Field(default=0.9, ge=0, le=1)
    learning_rate: PositiveFloat = 2e-3


class FinetuneConfig(Frozen):
    """Semi-supervised fine-tuning.

    Attributes:
        batch: unlabelled images a step.
        labelled_batch: queried images a step, drawn with repetition.
        steps: steps an epoch, where an epoch is to be shorter than the pool.
        weight_decay: of AdamW.
        teacher_decay: of the moving average.
        weak: views that labels are learned on and guesses are made on.
        strong: views that must agree with the guesses.
    """

    batch: PositiveInt = 256
    labelled_batch: PositiveInt = 64
    steps: PositiveInt | None = None
    weight_decay: float = 1e-2
    teacher_decay: float = Field(default=0.995, ge=0, lt=1)
    weak: ViewConfig
    strong: ViewConfig


class RoundConfig(Frozen):
    """One round of queries and what is learned from it.

    Attributes:
        labels: paid for when the round has asked, in all.
        phases: of fine-tuning after it; before each, graph and beliefs are renewed. None leaves it to the graph.
        chosen_ahead: labels up to which images are chosen in this round; the next rounds ask for the rest of them in
            order. None chooses this round's alone.
        evaluated: whether test predictions are frozen after it, a point of the learning curve.
    """

    labels: PositiveInt
    phases: tuple[PhaseConfig, ...] = ()
    chosen_ahead: PositiveInt | None = None
    evaluated: bool = False


class Profile(Frozen):
    """A complete configuration.

    Attributes:
        name: as given on the command line.
        about: source, expected cost and result, in a sentence.
        rounds: ascending in labels; the last round's are the budget, and its training ends the run. Test predictions
            are always frozen after the last one.
        strategy: of acquisition.
        pool_limit: use only so many images of the pool, None for all; for quick tests.
    """

    name: str
    about: str
    rounds: tuple[RoundConfig, ...]
    strategy: str = "uncertain-clusters"
    pool_limit: PositiveInt | None = None
    encoder: EncoderConfig
    pretrain: PretrainConfig
    graph: GraphConfig = GraphConfig()
    finetune: FinetuneConfig

    @model_validator(mode="after")
    def _rounds_ascend(self) -> "Profile":
        if list(self.budgets) != sorted(set(self.budgets)) or not self.budgets:
            raise ValueError("rounds must ascend in labels, and there must be one")
        ahead = 0
        for one in self.rounds:
            ahead = max(ahead, one.chosen_ahead or 0)
            if one.phases and one.labels < ahead:
                raise ValueError("what is chosen ahead cannot follow from training in between")
        return self

    @property
    def budgets(self) -> tuple[int, ...]:
        """Labels paid for after each round."""
        return tuple(one.labels for one in self.rounds)

    @property
    def budget(self) -> int:
        """Labels paid for in all."""
        return self.budgets[-1]

    @property
    def evaluation_budgets(self) -> tuple[int, ...]:
        """The points of the learning curve, ascending; empty where only the end is evaluated."""
        points = {one.labels for one in self.rounds if one.evaluated} | {self.budget}
        return () if points == {self.budget} else tuple(sorted(points))

    def with_budget(self, budget: int) -> "Profile":
        """Scale the rounds to another total; of rounds that fall together, the last one's training stays.

        Raises:
            ConfigError: the budget is not positive.
        """
        if budget < 1:
            raise ConfigError(f"a budget must be at least one label, not {budget}")

        def scaled(labels: int) -> int:
            return max(1, round(labels * budget / self.budget))

        rounds = {
            scaled(one.labels): one.model_copy(
                update={
                    "labels": scaled(one.labels),
                    "chosen_ahead": None if one.chosen_ahead is None else scaled(one.chosen_ahead),
                }
            )
            for one in self.rounds
        }
        return self.model_copy(update={"rounds": tuple(rounds.values())})

    def pretraining_identity(self, seed: int, images_fingerprint: str) -> str:
        """Digest of all that pretrained weights depend on."""
        pool = f"{images_fingerprint}[:{self.pool_limit}]"
        parts = (_PRETRAINING, self.encoder.model_dump_json(), self.pretrain.model_dump_json(), str(seed), pool)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
