"""Active fine-tuning: rounds of look, choose, ask, propagate, learn.

A round: look at the pool with graph and network (`knowledge`), choose (`acquisition`), ask over HTTP (`oracle`),
propagate the new labels, and fine-tune on what is believed now (`finetune`). The last round has the longest training.

Every epoch ends with a checkpoint. What a resumed run does is decided by two files alone: queries.jsonl (answered
rounds are never chosen anew) and the checkpoint (finished phases are never trained anew).
"""

import logging
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.acquisition import strategy_named
from trainer.acquisition.state import PoolState
from trainer.config import PhaseConfig, Profile
from trainer.errors import ResumeError
from trainer.learning.beliefs import FeatureSpace, Knowledge
from trainer.learning.checkpoint import load_checkpoint, save_checkpoint
from trainer.learning.device import generator_for
from trainer.learning.encoder import Encoder
from trainer.learning.finetune import FineTuner, PhaseState
from trainer.records.progress import MetricWriter, StageClock
from trainer.records.run_records import RoundRecord, append_round, read_rounds
from trainer.run.accuracy_estimate import Estimate, estimate_accuracy
from trainer.run.questions import Oracle

_CHECKPOINT_FILE = "finetune.pt"

log = logging.getLogger(__name__)


@dataclass
class LearnedState:
    """What was learned from some number of labels.

    Attributes:
        labels: paid for.
        is_end: whether the run ends here, or goes on asking.
        network: the teacher; trained on when the loop goes on.
        knowledge: graph and network at that moment; predicts other images.
        beliefs: float32 [N, C] of the pool.
        estimate: of the accuracy of the beliefs, from no test label; None before anything was guessed.
    """

    labels: int
    is_end: bool
    network: Encoder
    knowledge: Knowledge
    beliefs: Tensor
    estimate: Estimate | None


class ActiveLoop:
    """One run of active fine-tuning over a pool."""

    def __init__(
        self,
        pool: Tensor,
        encoder: Encoder,
        profile: Profile,
        oracle: Oracle,
        *,
        seed: int,
        identity: str,
        out: Path,
        clock: StageClock,
        metrics: MetricWriter,
        target: float | None = None,
    ) -> None:
        """Prepare, and take up a checkpoint if there is one.

        Args:
            pool: uint8 [N, H, W], on the device to train on.
            encoder: pretrained; fine-tuned in place.
            profile: budgets, strategy, training.
            oracle: asks for labels, and keeps them.
            seed: of the run.
            identity: of data, seed, configuration and run; a checkpoint of another identity is refused.
            out: the run's folder.
            clock: wall time by stage.
            metrics: training metrics.
            target: accuracy at which to stop asking, by the run's own estimate; None asks for the whole budget.

        Raises:
            ResumeError: the folder's checkpoint is damaged or another run's.
        """
        self._pool, self._profile, self._oracle = pool, profile, oracle
        self._seed, self._identity, self._clock = seed, identity, clock
        self._out = out
        self._target = target
        self._classes = len(oracle.class_names)
        with clock.stage("features"):
            self._space = FeatureSpace(pool, encoder, profile.graph)
        self._tuner = FineTuner(encoder, pool, profile.finetune, seed=seed, metrics=metrics)
        # (round, phase) that the checkpoint is in or has finished; -1 before any.
        self._round, self._phase = -1, -1
        self._half_done: PhaseState | None = None
        self._targets: Tensor | None = None
        if (out / _CHECKPOINT_FILE).exists():
            self._restore(load_checkpoint(out / _CHECKPOINT_FILE, pool.device))

    def run(self, done: Container[int] = ()) -> Iterator[LearnedState]:
        """Run all rounds; yield what was learned after each evaluated one and at the end.

        The next label is asked when the caller comes back for the next state, so what it freezes before that cannot
        know of it. When the target is met the last round's training follows at once, without its labels.

        Args:
            done: numbers of labels whose predictions are frozen already, by a run that was interrupted later.

        Raises:
            ServiceError: the label service refuses or is lost; what was paid for is kept.
            RecordsUnwritable: the disk is full; what was paid for is kept.
        """
        knowledge: Knowledge | None = None
        last = len(self._profile.rounds) - 1
        is_met = False
        for number, one in enumerate(self._profile.rounds):
            if is_met and number < last:
                continue
            if not is_met and not self._oracle.has_answered(number):
                knowledge = knowledge or self._look()
                self._ask(number, one.labels, knowledge)
            self._record_round(number)
            if one.phases and not self._is_past(number, len(one.phases) - 1):
                self._learn(number, one.phases, knowledge)
                knowledge = None
            if self._target is not None and one.phases and number < last:
                is_met = self._is_target_met(number, knowledge := knowledge or self._look())
            if (one.evaluated or number == last) and one.labels not in done:
                knowledge = knowledge or self._look()
                yield self._learned(number, knowledge, is_end=number == last)

    def _learned(self, number: int, knowledge: Knowledge, *, is_end: bool) -> LearnedState:
        ids, labels = self._oracle.answered(number + 1, self._pool.device)
        beliefs = knowledge.beliefs(ids, labels, self._classes)
        estimate = estimate_accuracy(beliefs, [one for one in self._oracle.records if one.round <= number])
        return LearnedState(len(ids), is_end, self._tuner.teacher.network, knowledge, beliefs, estimate)

    def _is_target_met(self, number: int, knowledge: Knowledge) -> bool:
        """Compare the estimate after a round with the target; what was found once stands, also after a resume."""
        assert self._target is not None
        record = next(one for one in read_rounds(self._out) if one.round == number)
        if record.estimated_accuracy is None or record.estimate_error is None:
            estimate = self._learned(number, knowledge, is_end=False).estimate
            if estimate is None:
                return False
            record = record.model_copy(
                update={"estimated_accuracy": estimate.accuracy, "estimate_error": estimate.error}
            )
            append_round(self._out, record)
            log.info(
                "round %d: own estimate of the accuracy %.2f%% (standard error %.2f)",
                number,
                100 * estimate.accuracy,
                100 * estimate.error,
            )
        assert record.estimated_accuracy is not None and record.estimate_error is not None
        return Estimate(record.estimated_accuracy, record.estimate_error).reaches(self._target)

    def _learn(self, number: int, phases: tuple[PhaseConfig, ...], knowledge: Knowledge | None) -> None:
        """Train a round's phases, those that a checkpoint has not finished; look again before each."""
        ids, labels = self._oracle.answered(number + 1, self._pool.device)
        for index, phase in enumerate(phases):
            if self._is_past(number, index):
                continue
            if (number, index) == (self._round, self._phase):
                assert self._targets is not None
                targets = self._targets
            else:
                targets = (knowledge or self._look()).beliefs(ids, labels, self._classes)
            self._train(number, index, phase, ids, labels, targets)
            knowledge = None

    def _look(self) -> Knowledge:
        with self._clock.stage("graph"):
            trained = self._round >= 0
            return Knowledge.of(self._space, self._pool, self._tuner.teacher.network if trained else None)

    def _is_past(self, number: int, phase: int) -> bool:
        """Tell whether the checkpoint has finished a phase."""
        reached = (self._round, self._phase)
        return (number, phase) < reached or ((number, phase) == reached and self._half_done is None)

    def _ask(self, number: int, budget: int, knowledge: Knowledge) -> None:
        ids, _ = self._oracle.answered(number, self._pool.device)
        wanted = min(budget, len(self._pool)) - len(ids)
        if wanted <= 0:
            return
        with self._clock.stage("query"):
            chosen = self._choose(number, knowledge)[:wanted]
            self._oracle.ask(number, self._profile.strategy, chosen, self._state(number, knowledge))

    def _choose(self, number: int, knowledge: Knowledge) -> Tensor:
        """Choose a round's images, most wanted first; those left over from an earlier round's choice if it reached."""
        rounds = self._profile.rounds
        reaching = [i for i in range(number) if (rounds[i].chosen_ahead or 0) >= rounds[number].labels]
        first = reaching[0] if reaching else number
        state = self._state(first, knowledge)
        known = int(state.labelled.sum())
        until = min(rounds[first].chosen_ahead or rounds[first].labels, len(self._pool))
        generator = generator_for(torch.device("cpu"), self._seed, "query", first)
        picks = strategy_named(self._profile.strategy)(state, until - known, generator)
        return picks[len(self._oracle.answered(number, self._pool.device)[0]) - known :]

    def _state(self, number: int, knowledge: Knowledge) -> PoolState:
        """Make what a strategy may look at before a round."""
        return knowledge.pool_state(*self._oracle.answered(number, self._pool.device), self._classes)

    def _record_round(self, number: int) -> None:
        """Write a round's line unless it is there; a kill may have fallen between the answer and the line."""
        asked = [record for record in self._oracle.records if record.round == number]
        if not asked or any(former.round == number for former in read_rounds(self._out)):
            return
        guessed = [record.predicted == record.label for record in asked if record.predicted is not None]
        hits = sum(guessed) / len(guessed) if guessed else None
        labels = sum(record.round <= number for record in self._oracle.records)
        append_round(self._out, RoundRecord(round=number, labels=labels, prequential_accuracy=hits))
        log.info(
            "round %d: asked %d labels, %d in all%s",
            number,
            len(asked),
            labels,
            "" if hits is None else f"; {hits:.0%} of these (the hardest) were guessed right",
        )

    def _train(self, number: int, index: int, phase: PhaseConfig, ids: Tensor, labels: Tensor, targets: Tensor) -> None:
        def keep(state: PhaseState) -> None:
            self._round, self._phase = number, index
            self._half_done = state if state.epoch < phase.epochs else None
            self._save(targets)

        with self._clock.stage("fine-tune"):
            self._tuner.train_phase(
                phase,
                ids,
                labels,
                targets,
                # Not told whether it is the last: a learning curve trains as a run that ends at one of its points.
                name=f"round-{number}-{index}",
                state=self._half_done if (number, index) == (self._round, self._phase) else None,
                on_epoch=keep,
            )
        self._targets = None

    def _save(self, targets: Tensor) -> None:
        half_done = self._half_done
        state: dict[str, Any] = {
            "identity": self._identity,
            "round": self._round,
            "phase": self._phase,
            "student": self._tuner.student.state_dict(),
            "teacher": self._tuner.teacher.network.state_dict(),
            "teacher_steps": self._tuner.teacher.steps,
            "half_done": None,
        }
        if half_done is not None:
            state["half_done"] = {
                "epoch": half_done.epoch,
                "optimizer": half_done.optimizer,
                "class_average": half_done.class_average,
                "targets": targets,
            }
        save_checkpoint(self._out / _CHECKPOINT_FILE, state)
        self._clock.save()

    def _restore(self, state: dict[str, Any]) -> None:
        if state.get("identity") != self._identity:
            raise ResumeError(f"{self._out / _CHECKPOINT_FILE} belongs to another run; choose another --out")
        self._tuner.student.load_state_dict(state["student"])
        self._tuner.teacher.network.load_state_dict(state["teacher"])
        self._tuner.teacher.steps = state["teacher_steps"]
        self._round, self._phase = state["round"], state["phase"]
        half_done = state["half_done"]
        if half_done is not None:
            self._targets = half_done["targets"]
            self._half_done = PhaseState(half_done["epoch"], half_done["optimizer"], half_done["class_average"])
        log.info("fine-tuning goes on in round %d, phase %d", self._round, self._phase)
