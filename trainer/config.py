"""The settings of a run, frozen; `profiles.py` has complete sets of them by name.

The whole profile is written to OUT/config.json, and a run resumes only under the configuration it began with.
"""

import hashlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from trainer.errors import ConfigError

# A key of `acquisition.STRATEGIES`.
DEFAULT_STRATEGY = "uncertain-clusters"

# Images of CIFAR's size and the MNIST family's are learned from as they are.
WORKING_PX = 32

# To be changed when the code trains differently under the same settings: old weights are then not taken for new ones.
_PRETRAINING_METHOD = "halves side by side"


class Frozen(BaseModel):
    """Base of all settings: immutable, and an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ViewConfig(Frozen):
    """How a random view changes an image; the default only mirrors.

    Attributes:
        flip: mirror half of the images.
        scale: lowest and highest zoom; below 1 shows a part of the image larger.
        crop: whether that part may be anywhere (SimCLR's random crop) or stays in the middle.
        aspect: largest change of log(width / height).
        rotation_deg: largest rotation, degrees, either way.
        translate_px: largest shift, pixels, either way.
        tone: strength of random gamma and gain.
        texture: strength of multiplied low-frequency noise.
        erase: share of images in which a random rectangle is filled.
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
        """Whether the view resamples the image: zooms, rotates or shifts it."""
        return self.scale != (1.0, 1.0) or max(self.aspect, self.rotation_deg, self.translate_px) > 0


class EncoderConfig(Frozen):
    """The encoder's backbone and its size.

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
        steps: steps an epoch at most; None for the whole pool.
        learning_rate: peak of AdamW's cosine.
        weight_decay: of AdamW.
        temperature: t of HCL.
        beta: concentration on hard negatives of HCL.
        tau_plus: class prior of HCL.
        view: of both views.
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
        propagate: whether labels spread over the graph; if not, beliefs and test predictions are the network's.
        descriptor_dimensions: principal axes of the oriented-gradient descriptor.
        descriptor_weight: of the descriptor; 0 leaves it out.
        pretrained_weight: of the pretrained features, relative to the descriptor.
        finetuned_weight: of the fine-tuned features, relative to descriptor and pretrained features together.
        graph_share: exponent s of the graph's beliefs in their product with the network's, whose exponent is 1 - s.
        smoothing: share of a joint belief that comes from the neighbours' joint beliefs.
        vote_share: exponent s of the neighbours' vote in a test prediction; the network's exponent is 1 - s.
        own_features: whether the user's features take the place of ours or stand beside them; None without any.
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
    own_features: Literal["alone", "beside"] | None = None
    vote_share: float = Field(default=0.9, ge=0, le=1)
    vote_temperature: PositiveFloat = 0.05


class PhaseConfig(Frozen):
    """A number of fine-tuning epochs under one mix of losses; the loss on the labels paid for is always in it.

    Attributes:
        epochs: passes over the pool.
        soft: weight of the loss against the beliefs of graph and network.
        consistency: weight of the consistency loss.
        trust_beliefs: exponent of the beliefs in their product with the teacher's prediction.
        threshold: lowest confidence at which a pseudo-label is used.
        mixup: a of the Beta(a, a) by which the consistency loss mixes pairs of strong views; 0 mixes none.
        contrast: weight of HCL, its negatives weighted by the beliefs.
        learning_rate: peak of AdamW's cosine.
    """

    epochs: PositiveInt
    soft: float = Field(default=0.0, ge=0)
    consistency: float = Field(default=0.0, ge=0)
    trust_beliefs: float = Field(default=0.5, ge=0)
    threshold: float = Field(default=0.9, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0)
    contrast: float = Field(default=0.0, ge=0)
    learning_rate: PositiveFloat = 2e-3


class FinetuneConfig(Frozen):
    """Semi-supervised fine-tuning.

    Attributes:
        batch: unlabelled images a step.
        labelled_batch: queried images a step, drawn with repetition.
        steps: steps an epoch at most; None for the whole pool.
        weight_decay: of AdamW.
        teacher_decay: of the moving average.
        contrast_temperature: t of HCL beside the other losses.
        contrast_beta: concentration on hard negatives of HCL there.
        weak: views for the labels and for the teacher's pseudo-labels.
        strong: views that must agree with the pseudo-labels.
    """

    batch: PositiveInt = 256
    labelled_batch: PositiveInt = 64
    steps: PositiveInt | None = None
    weight_decay: float = 1e-2
    teacher_decay: float = Field(default=0.995, ge=0, lt=1)
    contrast_temperature: PositiveFloat = 0.2
    contrast_beta: float = Field(default=1.0, ge=0)
    weak: ViewConfig
    strong: ViewConfig


class RoundConfig(Frozen):
    """One round of queries and the training after it.

    Attributes:
        labels: paid for in all when the round has asked.
        phases: of fine-tuning; graph and beliefs are computed anew before each. With none, only the graph learns.
        chosen_ahead: labels in all up to which this round chooses images; the next rounds ask for them in order. None
            to choose for this round only.
        evaluated: whether test predictions are frozen after the round, as a point of the learning curve.
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
        rounds: ascending in labels; the last round's labels are the budget. Test predictions are always frozen after
            the last round.
        strategy: of acquisition.
        pool_limit: number of images of the pool to use, None for all; for quick tests.
        working_px: longest side of the images that are learned from; larger ones are reduced to it.
    """

    name: str
    about: str
    rounds: tuple[RoundConfig, ...]
    strategy: str = DEFAULT_STRATEGY
    pool_limit: PositiveInt | None = None
    working_px: Annotated[int, Field(ge=16, le=224)] = WORKING_PX
    encoder: EncoderConfig
    pretrain: PretrainConfig
    graph: GraphConfig = GraphConfig()
    finetune: FinetuneConfig

    @model_validator(mode="after")
    def _rounds_ascend(self) -> "Profile":
        if list(self.budgets) != sorted(set(self.budgets)) or not self.budgets:
            raise ValueError("there must be a round, and rounds must ascend in labels")
        ahead = 0
        for settings in self.rounds:
            ahead = max(ahead, settings.chosen_ahead or 0)
            if settings.phases and settings.labels < ahead:
                raise ValueError("a round may not train before all images that were chosen ahead are asked for")
        return self

    @property
    def budgets(self) -> tuple[int, ...]:
        """Labels paid for after each round."""
        return tuple(settings.labels for settings in self.rounds)

    @property
    def budget(self) -> int:
        """Labels paid for in all."""
        return self.budgets[-1]

    @property
    def evaluation_budgets(self) -> tuple[int, ...]:
        """The points of the learning curve, ascending; empty if only the end is evaluated."""
        points = {settings.labels for settings in self.rounds if settings.evaluated} | {self.budget}
        return () if points == {self.budget} else tuple(sorted(points))

    def with_budget(self, budget: int) -> "Profile":
        """Scale the rounds to another budget; of rounds that become equal, the last one's settings are kept.

        Raises:
            ConfigError: the budget is not positive.
        """
        if budget < 1:
            raise ConfigError(f"a budget must be at least one label, not {budget}")

        def scaled(labels: int) -> int:
            return max(1, round(labels * budget / self.budget))

        rounds = {
            scaled(settings.labels): settings.model_copy(
                update={
                    "labels": scaled(settings.labels),
                    "chosen_ahead": None if settings.chosen_ahead is None else scaled(settings.chosen_ahead),
                }
            )
            for settings in self.rounds
        }
        return self.model_copy(update={"rounds": tuple(rounds.values())})

    def with_rounds(self, budgets: tuple[int, ...]) -> "Profile":
        """Ask at other numbers of labels; each round chooses for itself.

        The last round trains as the profile's last. Any other one trains as the profile's round of as many labels, or
        else of the next larger number; it is a point of the learning curve if that round, of just as many labels, is.

        Raises:
            ConfigError: the numbers do not ascend from one on.
        """
        if not budgets or budgets[0] < 1 or list(budgets) != sorted(set(budgets)):
            raise ConfigError(f"rounds must be ascending numbers of labels such as 20,40,100, not {budgets}")
        *earlier, last = self.rounds
        rounds = []
        for labels in budgets[:-1]:
            model = next((settings for settings in earlier if settings.labels >= labels), (earlier or [last])[-1])
            same = {settings.labels for settings in self.rounds if settings.evaluated}
            rounds.append(RoundConfig(labels=labels, phases=model.phases, evaluated=labels in same))
        rounds.append(RoundConfig(labels=budgets[-1], phases=last.phases, evaluated=last.evaluated))
        return self.model_copy(update={"rounds": tuple(rounds)})

    def pretraining_identity(self, seed: int, images_fingerprint: str) -> str:
        """Compute a digest of all that pretrained weights depend on."""
        pool = f"{images_fingerprint}[:{self.pool_limit}]"
        pool += "" if self.working_px == WORKING_PX else f" at {self.working_px} pixels"
        parts = (_PRETRAINING_METHOD, self.encoder.model_dump_json(), self.pretrain.model_dump_json(), str(seed), pool)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()
