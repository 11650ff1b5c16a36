"""The stages of a run, in order, as the command line calls them: pretrain, fine-tune, evaluate, report."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trainer.config import Profile
from trainer.errors import ConfigError, DataError
from trainer.images.data import ImageSet, load_images
from trainer.learning.checkpoint import save_checkpoint
from trainer.learning.device import arithmetic_on, keep_freed_memory, pick_device, use_all_cores
from trainer.learning.pretrain import load_encoder, new_encoder, pretrain
from trainer.oracle.client import LabelClient
from trainer.oracle.exchange import RECEIPTS_FILE
from trainer.oracle.witness import Witness, parse_log_key
from trainer.profiles import profile_named
from trainer.records.progress import MetricWriter, StageClock
from trainer.records.run_records import RunResult
from trainer.run import session
from trainer.run.active_loop import ActiveLoop
from trainer.run.evaluate import freeze_predictions, predictions_path, submit
from trainer.run.questions import LabelOracle
from trainer.run.report import write_report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """What the command line says.

    Attributes:
        out: the run's folder.
        data: the images-only folder, None where a command needs no images.
        service: URL of the label service, None where a command needs none.
        profile: name, or `auto`: the one that `pretrained` was made with, else `gpu` where CUDA is found, else `cpu`.
        seed: of everything random.
        budget: labels in all, None for the profile's.
        strategy: of acquisition, None for the profile's.
        target: accuracy at which to stop asking, by the run's own estimate; None for the whole budget.
        device: `auto`, or a PyTorch device.
        pretrained: weights from another folder, None to pretrain here.
        resume: go on with what `out` holds.
        registration_token: where the service wants one to open a run.
        patience_s: how long a service that does not answer is waited for.
        log_key: the log's public key, None to trust the first one that is seen.
    """

    out: Path
    data: Path | None = None
    service: str | None = None
    profile: str = "auto"
    seed: int = 1
    budget: int | None = None
    strategy: str | None = None
    target: float | None = None
    device: str = "auto"
    pretrained: Path | None = None
    resume: bool = False
    registration_token: str | None = None
    patience_s: float = 300.0
    log_key: str | None = None


class Pipeline:
    """One run's stages over one folder. Each stage leaves out the work that is already done."""

    def __init__(self, settings: Settings) -> None:
        """Check everything that can be checked before any work or query.

        Raises:
            TrainerError: Data, device, profile or folder cannot be used.
        """
        if settings.data is None:
            raise ConfigError("--data is needed: the images-only folder that `prepare` made")
        if settings.pretrained is not None and not settings.pretrained.is_file():
            raise DataError(f"there are no pretrained weights at {settings.pretrained}; make them with `pretrain`")
        if settings.log_key is not None:
            parse_log_key(settings.log_key)
        use_all_cores()
        keep_freed_memory()
        self._settings = settings
        self._device = pick_device(settings.device)
        self.profile = choose_profile(settings, self._device)
        self.images: ImageSet = load_images(settings.data)
        self.out = settings.out
        weights = settings.pretrained
        self.config = session.RunConfig(
            profile=self.profile,
            seed=settings.seed,
            images=self.images.fingerprint,
            pretrained=None if weights is None else hashlib.sha256(weights.read_bytes()).hexdigest(),
            target=settings.target,
        )
        session.begin_or_resume(self.out, self.config, resume=settings.resume)
        self._witness = Witness(self.out, settings.log_key)
        self._clock = StageClock(self.out)

    def pretrain(self) -> Path:
        """Pretrain without labels, unless weights were given or made before; return their file."""
        if self._settings.pretrained is not None:
            return self._settings.pretrained
        if arithmetic_on(self._device) == "float32":
            log.info("no bfloat16 in hardware here: computing in float32, which takes two to three times as long")
        with self._clock.stage("pretrain"), MetricWriter(self.out) as metrics:
            encoder = new_encoder(self.profile.encoder, 2, self.config.seed, self._device)
            return pretrain(
                self._pool(),
                encoder,
                self.profile.pretrain,
                seed=self.config.seed,
                identity=self.profile.pretraining_identity(self.config.seed, self.images.fingerprint),
                out=self.out,
                metrics=metrics,
            )

    def finetune(self, weights: Path, client: LabelClient) -> session.RunTicket:
        """Fine-tune actively from the pretrained weights, and freeze the test predictions at each evaluated budget."""
        # Refuse weights that do not fit before a run is opened for them.
        load_encoder(new_encoder(self.profile.encoder, 2, self.config.seed, self._device), weights, None)
        ticket = session.open_or_take_up_run(
            self.out,
            client,
            self.images,
            name=f"{self.profile.name} seed {self.config.seed}",
            profile=self.profile,
            registration_token=self._settings.registration_token,
        )
        frozen = {at for at in self.profile.evaluation_budgets[:-1] if predictions_path(self.out, at).exists()}
        if predictions_path(self.out).exists():
            log.info("fine-tuning was finished before")
            return ticket
        with self.client(ticket) as own_client, MetricWriter(self.out) as metrics:
            pool = self._pool()
            oracle = LabelOracle(own_client, ticket.run_id, self.out, ticket.dataset.class_names, len(pool))
            encoder = new_encoder(self.profile.encoder, ticket.dataset.num_classes, self.config.seed, self._device)
            load_encoder(encoder, weights, None)
            loop = ActiveLoop(
                pool,
                encoder,
                self.profile,
                oracle,
                seed=self.config.seed,
                identity=f"{self.config.identity}-{ticket.run_id}",
                out=self.out,
                clock=self._clock,
                metrics=metrics,
                target=self.config.target,
            )
            test = self.images.test.to(self._device)
            for learned in loop.run(frozen):
                with self._clock.stage("evaluate"):
                    if learned.is_end:
                        save_checkpoint(self.out / "model.pt", learned.network.state_dict())
                    freeze_predictions(self.out, learned, test, self._clock)
                log.info("predictions frozen at %d labels", learned.labels)
        return ticket

    def evaluate(self, ticket: session.RunTicket) -> RunResult:
        """Submit the frozen predictions, seal the run, compare the counts."""
        with self.client(ticket) as client:
            return submit(self.out, client, ticket, self.config, self._clock)

    def _pool(self) -> Tensor:
        """Return the pool on the device, up to the profile's limit."""
        return self.images.pool[: self.profile.pool_limit].to(self._device)

    def report(self, ticket: session.RunTicket | None) -> Path:
        """Write OUT/report.html."""
        names = ticket.dataset.class_names if ticket else ()
        return write_report(self.out, self.images.pool.numpy(), names)

    def client(self, ticket: session.RunTicket | None = None) -> LabelClient:
        """Make a client whose answers are witnessed and whose receipts are kept; without a ticket it can open a run."""
        if self._settings.service is None:
            raise ConfigError("--service is needed: the URL of the label service, such as http://127.0.0.1:8000")
        return LabelClient(
            self._settings.service,
            token=None if ticket is None else ticket.token,
            patience_s=self._settings.patience_s,
            receipts_path=self.out / RECEIPTS_FILE,
            witness=self._witness,
        )


def choose_profile(settings: Settings, device: torch.device) -> Profile:
    """Complete the profile with what the command line overrides.

    Raises:
        ConfigError: no such profile or strategy, or an impossible budget.
    """
    from trainer.acquisition import strategy_named

    profile = (
        _pretraining_profile(settings.pretrained) if settings.profile == "auto" else profile_named(settings.profile)
    )
    if profile is None:
        profile = profile_named("gpu" if device.type == "cuda" else "cpu")
    if settings.budget is not None:
        profile = profile.with_budget(settings.budget)
    if settings.strategy is not None:
        strategy_named(settings.strategy)
        profile = profile.model_copy(update={"strategy": settings.strategy})
    if settings.target is not None and profile.evaluation_budgets:
        raise ConfigError(
            f"--target ends a run early, and {profile.name} has declared evaluations at "
            f"{', '.join(map(str, profile.evaluation_budgets))} labels; choose a profile with one evaluation"
        )
    return profile


def _pretraining_profile(weights: Path | None) -> Profile | None:
    """Find the profile that weights were made under, from the configuration beside them; None if there is none."""
    if weights is None or not (weights.parent / session.CONFIG_FILE).is_file():
        return None
    return profile_named(session.read_config(weights.parent).profile.name)
