"""Active fine-tuning: choose images, ask for their labels, spread the labels, fine-tune, and again.

A checkpoint is saved after each epoch. A resumed run skips every round whose answers are in queries.jsonl, and every
training phase that the checkpoint marks as finished.
"""

import logging
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.acquisition.plugin import QueryStrategy
from trainer.acquisition.state import PoolState
from trainer.config import Profile
from trainer.errors import ResumeError, StrategyFailed
from trainer.learning.beliefs import FeatureSpace, JointModel
from trainer.learning.checkpoint import load_checkpoint, save_checkpoint
from trainer.learning.device import generator_for
from trainer.learning.encoder import Encoder
from trainer.learning.epochs import TrainingState
from trainer.learning.finetune import FineTuner
from trainer.records.progress import MetricWriter, StageClock
from trainer.records.run_records import RoundRecord, append_round, read_rounds
from trainer.run.accuracy_estimate import AccuracyEstimate, estimate_accuracy
from trainer.run.class_shares import ClassShares, class_shares
from trainer.run.label_oracle import LabelOracle
from trainer.run.overall import Overall
from trainer.run.session import note_failed_strategy
from trainer.run.steps import Ask, Estimate, Freeze, Step, Train, plan

_CHECKPOINT_FILE = "finetune.pt"
_UNTRAINED = (-1, -1)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LearnedState:
    """What was learned from some number of labels.

    Attributes:
        labels: number of labels paid for so far.
        is_end: whether this is the end of the run.
        network: the fine-tuned network (the teacher) itself, not a copy: use it before the loop continues.
        model: the neighbour graph joined with that network; predicts images outside the pool.
        beliefs: class probabilities of the pool, float32 [N, C].
        estimate: the accuracy that the run expects of its beliefs, made without test labels; None if the run has not
            guessed any label before asking for it.
        class_shares: what is known of the classes' sizes.
    """

    labels: int
    is_end: bool
    network: Encoder
    model: JointModel
    beliefs: Tensor
    estimate: AccuracyEstimate | None
    class_shares: ClassShares


class ActiveLoop:
    """One run of active fine-tuning over a pool."""

    def __init__(
        self,
        pool: Tensor,
        encoder: Encoder,
        profile: Profile,
        oracle: LabelOracle,
        strategy: QueryStrategy,
        *,
        seed: int,
        identity: str,
        out: Path,
        clock: StageClock,
        metrics: MetricWriter,
        target: float | None = None,
        balanced: bool = True,
        calibrated: bool = True,
        own_features: Tensor | None = None,
        show_overall: Callable[[str], None] = lambda _: None,
        on_round: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare, and load the checkpoint if there is one.

        The pool is uint8 [N, H, W] or [N, H, W, 3], on the device to train on; the encoder is pretrained, and
        fine-tuned in place. The identity is that of data, seed, configuration and run. Where the run's own estimate
        reaches the target, an accuracy, the run stops asking. If the classes are not balanced, their shares are
        estimated from the labels. `calibrated` tells whether the estimate of the accuracy means something on this data.
        The user's own features of the pool are float32 [N, E]. `show_overall` shows a line about the whole run;
        `on_round` is called after each round of queries.

        Raises:
            ResumeError: the folder's checkpoint is damaged or another run's.
        """
        self._pool, self._profile, self._oracle, self._strategy = pool, profile, oracle, strategy
        self._seed, self._identity, self._clock, self._metrics = seed, identity, clock, metrics
        self._out = out
        self._rounds = {record.round: record for record in read_rounds(out)}
        self._target = target
        self._balanced, self._calibrated = balanced, calibrated
        self._overall = Overall(len(profile.rounds), profile.budget, show_overall)
        self._on_round = on_round
        self._classes = len(oracle.class_names)
        with clock.stage("features"):
            self._space = FeatureSpace(pool, encoder, profile.graph, own_features)
        self._tuner = FineTuner(encoder, pool, profile.finetune, seed=seed, metrics=metrics)
        # Built when first needed; training resets it to None, because it is then out of date.
        self._model: JointModel | None = None
        # (round, phase) of the newest checkpoint, and the state of that phase unless it is finished.
        self._reached = _UNTRAINED
        self._half_done: TrainingState | None = None
        if (out / _CHECKPOINT_FILE).exists():
            self._restore()

    def run(self, frozen: Container[int] = ()) -> Iterator[LearnedState]:
        """Take the steps that are not finished yet; yield a state at each point where predictions must be frozen.

        Labels are asked for only when the caller requests the next state, so the predictions that it freezes before
        then cannot depend on them. Once the estimate reaches the target, no more labels are asked for, and the loop
        goes straight to the last round's training.

        Args:
            frozen: label counts at which predictions have already been frozen.

        Raises:
            ServiceError: the label service refuses or is lost; what was paid for is kept.
            StrategyFailed: the strategy raised, or chose what it may not; nothing was asked in that round.
            RecordsUnwritable: the disk is full; what was paid for is kept.
        """
        steps = [
            step
            for step in plan(self._profile, has_target=self._target is not None)
            if not self._is_finished(step, frozen)
        ]
        while steps:
            step = steps.pop(0)
            with self._overall.step(step, steps, len(self._oracle.records)) as epoch_ended:
                match step:
                    case Ask():
                        self._ask(step)
                    case Train():
                        self._train(step, epoch_ended)
                    case Estimate(number):
                        if self._is_target_met(number):
                            last = len(self._profile.rounds) - 1
                            steps = [step for step in steps if step.round == last and not isinstance(step, Ask)]
                    case Freeze(number, _, is_end):
                        yield self._learned(number, is_end=is_end)

    def _is_finished(self, step: Step, frozen: Container[int]) -> bool:
        """Tell whether a step is finished. An estimate is never skipped: its result decides whether to go on asking."""
        match step:
            case Ask(number):
                return self._oracle.has_answered(number) and number in self._rounds
            case Train(number, phase):
                is_half_done = (number, phase) == self._reached and self._half_done is not None
                return (number, phase) <= self._reached and not is_half_done
            case Freeze(_, labels):
                return labels in frozen
            case Estimate():
                return False

    def _ask(self, step: Ask) -> None:
        if not self._oracle.has_answered(step.round):
            # Built here, so that the times by stage name the graph before the query.
            self._joint_model()
            with self._clock.stage("query"):
                state = self._pool_state(step.round)
                wanted = min(step.labels, len(self._pool)) - int(state.labelled.sum())
                if state.beliefs is not None:
                    self._record_learned(step.round - 1, state.beliefs, state.neighbours)
                if wanted <= 0:
                    return
                self._oracle.ask(step.round, self._strategy.title, self._choose(step, state)[:wanted], state)
        self._record_round(step.round)
        self._on_round()

    def _choose(self, step: Ask, state: PoolState) -> Tensor:
        """Choose a round's images, best first; if an earlier round chose them ahead, recompute that choice."""
        chosen_from = state if step.chosen_in == step.round else self._pool_state(step.chosen_in)
        known = int(chosen_from.labelled.sum())
        generator = generator_for(torch.device("cpu"), self._seed, "query", step.chosen_in)
        batch = min(step.chosen_until, len(self._pool)) - known
        try:
            picks = self._strategy.choose(chosen_from, batch, generator)
        except StrategyFailed as error:
            note_failed_strategy(self._out, self._strategy.sha256)
            raise StrategyFailed(
                f"{error}; nothing was asked in round {step.round}: correct it, and --resume goes on with the labels "
                "paid for so far"
            ) from error
        return picks[int(state.labelled.sum()) - known :]

    def _pool_state(self, number: int) -> PoolState:
        """Build the `PoolState` that the strategy sees before a round."""
        ids, labels = self._oracle.answered(number, self._pool.device)
        model = self._joint_model()
        labelled = torch.zeros(len(self._pool), dtype=torch.bool, device=self._pool.device)
        labelled[ids] = True
        beliefs = model.beliefs(ids, labels, self._classes) if len(ids) else None
        paid = torch.full((len(self._pool),), -1, device=self._pool.device)
        paid[ids] = labels
        return PoolState(
            features=model.features,
            neighbours=model.graph.neighbours,
            similarities=model.graph.similarities,
            beliefs=beliefs,
            labelled=labelled,
            classes=self._classes,
            labels=paid,
            round=number,
            images=self._pool,
            embed=lambda: model.embeddings(self._pool),
        )

    def _joint_model(self) -> JointModel:
        """Join graph and network as they are now."""
        if self._model is None:
            network = None if self._reached == _UNTRAINED else self._tuner.teacher
            with self._clock.stage("graph"):
                self._model = JointModel.build(
                    self._space, self._pool, network, classes=self._classes, balanced=self._balanced
                )
        return self._model

    def _record_round(self, number: int) -> None:
        """Write a round's line unless it is there."""
        if number in self._rounds:
            return
        asked = [record for record in self._oracle.records if record.round == number]
        guessed = [record.is_right for record in asked if record.is_right is not None]
        hits = sum(guessed) / len(guessed) if guessed else None
        labels = sum(record.round <= number for record in self._oracle.records)
        self._keep(RoundRecord(round=number, labels=labels, prequential_accuracy=hits))
        self._metrics.write_images("queries", number + 1, self._pool[[record.id for record in asked]].cpu().numpy())
        if hits is not None:
            self._metrics.write_point("accuracy", labels, {"right_before_asking": hits})
        log.info(
            "round %d of %d: asked for %d labels, %d so far%s",
            number + 1,
            len(self._profile.rounds),
            len(asked),
            labels,
            "" if hits is None else f"; {hits:.0%} of these had been guessed right before",
        )

    def _keep(self, record: RoundRecord) -> None:
        append_round(self._out, record)
        self._rounds[record.round] = record

    def _record_learned(self, number: int, beliefs: Tensor, neighbours: Tensor) -> AccuracyEstimate | None:
        """Write what the run expects of itself after a round, unless it is written; return the estimate."""
        record = self._rounds.get(number)
        estimate = estimate_accuracy(beliefs, [query for query in self._oracle.records if query.round <= number])
        if record is None or estimate is None or record.estimated_accuracy is not None:
            return estimate
        expected = {"estimated_accuracy": estimate.accuracy, "estimate_error": estimate.standard_error}
        self._keep(record.model_copy(update=expected))
        guesses = beliefs.argmax(1)
        purity = float((guesses[neighbours] == guesses.unsqueeze(1)).float().mean())
        self._metrics.write("graph", number, number, {"neighbour_purity": purity})
        self._metrics.write_point("accuracy", record.labels, {"own_estimate": estimate.accuracy})
        log.info(
            "round %d of %d: own estimate of the accuracy %.2f%%%s",
            number + 1,
            len(self._profile.rounds),
            100 * estimate.accuracy,
            f" (standard error {100 * estimate.standard_error:.2f})"
            if self._calibrated
            else ", not calibrated for this data and profile: it can be far off",
        )
        return estimate

    def _train(self, step: Train, epoch_ended: Callable[[int], None]) -> None:
        ids, labels = self._oracle.answered(step.round + 1, self._pool.device)
        # Finished steps were removed from the plan, so the half-done phase is the first `Train` step in it.
        resumed, self._half_done = self._half_done, None
        if resumed is None:
            model = self._joint_model()
            targets = model.beliefs(ids, labels, self._classes)
            class_prior = model.class_prior(ids, labels, self._classes)
        else:
            targets, class_prior = resumed["targets"], resumed["class_prior"]

        def keep(state: TrainingState) -> None:
            self._reached = (step.round, step.phase)
            self._save(
                None
                if state["epoch"] == step.config.epochs
                else state | {"targets": targets, "class_prior": class_prior}
            )
            epoch_ended(state["epoch"])

        with self._clock.stage("fine-tune"):
            self._tuner.train_phase(
                step.config,
                ids,
                labels,
                targets,
                class_prior=class_prior,
                # The name seeds the randomness. It must not depend on which round is the last, so that a learning curve
                # trains its early rounds exactly as a run that stops there.
                name=f"round-{step.round}-{step.phase}",
                title=f"round {step.round + 1}, training {step.phase + 1} of "
                f"{len(self._profile.rounds[step.round].phases)}",
                state=resumed,
                on_epoch=keep,
            )
        self._model = None

    def _is_target_met(self, number: int) -> bool:
        """Tell whether a round's accuracy estimate reaches the target; a saved estimate is not computed again."""
        assert self._target is not None
        record = self._rounds[number]
        if record.estimated_accuracy is not None and record.estimate_error is not None:
            return AccuracyEstimate(record.estimated_accuracy, record.estimate_error).reaches(self._target)
        estimate = self._learned(number, is_end=False).estimate
        return estimate is not None and estimate.reaches(self._target)

    def _learned(self, number: int, *, is_end: bool) -> LearnedState:
        ids, labels = self._oracle.answered(number + 1, self._pool.device)
        model = self._joint_model()
        beliefs = model.beliefs(ids, labels, self._classes)
        estimate = self._record_learned(number, beliefs, model.graph.neighbours)
        shares = class_shares(labels, model.class_prior(ids, labels, self._classes), self._oracle.class_names)
        return LearnedState(len(ids), is_end, self._tuner.teacher, model, beliefs, estimate, shares)

    def _save(self, half_done: TrainingState | None) -> None:
        state = {"identity": self._identity, "reached": self._reached, "half_done": half_done}
        save_checkpoint(self._out / _CHECKPOINT_FILE, state | self._tuner.state_dict())
        self._clock.save()

    def _restore(self) -> None:
        path = self._out / _CHECKPOINT_FILE
        state = load_checkpoint(path, self._pool.device)
        if state.get("identity") != self._identity:
            raise ResumeError(f"{path} belongs to another run; choose another --out")
        self._tuner.load_state_dict(state)
        self._reached, self._half_done = state["reached"], state["half_done"]
        log.info("fine-tuning goes on in round %d, training %d", *(number + 1 for number in self._reached))
