"""The stages of a run, in order, as the command line calls them: pretrain, fine-tune, evaluate, report."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from trainer.acquisition.plugin import load_strategy
from trainer.config import Profile
from trainer.errors import ConfigError, DataError
from trainer.images.data import ImageSet, load_images
from trainer.images.own_features import OwnFeatures, load_own_features
from trainer.images.pixels import channels_of, to_working_size
from trainer.learning.device import arithmetic_on, keep_freed_memory, pick_device, use_all_cores
from trainer.learning.encoder import Encoder
from trainer.learning.pretrain import load_encoder, new_encoder, pretrain
from trainer.options import ExperimentOptions, RunOptions
from trainer.oracle.answers import DatasetInfo
from trainer.oracle.client import LabelClient
from trainer.oracle.exchange import RECEIPTS_FILE
from trainer.oracle.witness import Witness
from trainer.profiles import fit_to_pool, profile_of, with_own_features
from trainer.records.files import hash_file
from trainer.records.progress import MetricWriter, StageClock, overall_line
from trainer.records.run_records import RunResult
from trainer.records.tracking import open_tracker
from trainer.run import session
from trainer.run.active_loop import ActiveLoop
from trainer.run.evaluate import freeze_predictions, predictions_path, submit
from trainer.run.label_oracle import LabelOracle
from trainer.run.memory import Sizes, require_memory
from trainer.run.model_file import MODEL_FILE, save_model
from trainer.run.pool_map import write_pool_map
from trainer.run.report import REPORT_FILE, write_report

log = logging.getLogger(__name__)


class Pipeline:
    """One run's stages over one folder. Each stage leaves out the work that is already done."""

    def __init__(self, options: RunOptions) -> None:
        """Check everything that can be checked before any work or query.

        Raises:
            TrainerError: Data, device, profile or folder cannot be used.
        """
        if options.pretrained is not None and not options.pretrained.is_file():
            raise DataError(f"there are no pretrained weights at {options.pretrained}; make them with `pretrain`")
        self._witness = Witness(options.out, options.log_key)
        use_all_cores()
        keep_freed_memory()
        self._options = options
        self._device = pick_device(options.device)
        self.images: ImageSet = load_images(options.data)
        self.profile = fit_to_pool(
            choose_profile(options, self._device),
            len(self.images.pool),
            is_asked=options.budget is not None or options.rounds is not None,
        )
        self._strategy = load_strategy(self.profile.strategy)
        self._own: OwnFeatures | None = None
        if options.features is not None:
            self._own = load_own_features(options.features, len(self.images.pool), len(self.images.test))
        self.out = options.out
        weights = options.pretrained
        self.config = session.RunConfig(
            profile=self.profile,
            seed=options.seed,
            images=self.images.fingerprint,
            pretrained=None if weights is None else hash_file(weights),
            target=options.target,
            strategy_sha256=self._strategy.sha256,
            class_prior=options.class_prior,
            own_features=None if self._own is None else self._own.sha256,
        )
        session.begin_or_resume(self.out, self.config, resume=options.resume)
        self._clock = StageClock(self.out)
        self._foreseen = False

    def check_service(self, client: LabelClient) -> DatasetInfo:
        """Check images, classes and memory against the service's data set, before any work; return the data set.

        Raises:
            DataError: The service has the labels of other images.
            ConfigError: There is not enough memory.
        """
        ticket = session.read_ticket(self.out)
        dataset = client.dataset() if ticket is None else ticket.dataset
        session.check_dataset(dataset, self.images)
        if not self._foresee(dataset.num_classes):
            return dataset
        if self.profile.budget < dataset.num_classes:
            log.warning(
                "%d labels cannot show all %d classes; a class that is never seen is never predicted: give a larger "
                "--budget",
                self.profile.budget,
                dataset.num_classes,
            )
        if self.config.target is not None and not self.config.estimate_is_calibrated_for(dataset):
            log.warning(
                "--target stops by the run's own estimate of its accuracy, which is not calibrated for this data and "
                "profile: the run may stop far too late"
            )
        return dataset

    def _foresee(self, classes: int) -> bool:
        """State the memory that the run will need, the first time; return whether this was the first time."""
        if self._foreseen:
            return False
        self._foreseen = True
        pool = self.images.pool
        log.info("%d labels are to be asked for, of a pool of %d images", self.profile.budget, len(pool))
        require_memory(
            Sizes(
                pool=len(pool),
                test=len(self.images.test),
                height=pool.shape[1],
                width=pool.shape[2],
                channels=channels_of(pool),
                classes=classes,
                own_features=0 if self._own is None else self._own.pool.shape[1],
            ),
            self.profile,
            self._device,
        )
        return True

    def pretrain(self) -> Path:
        """Pretrain without labels, unless weights were given or made before; return their file."""
        if self._options.pretrained is not None:
            return self._options.pretrained
        # 2 is the fewest: the service, which knows their number, is not asked here.
        self._foresee(2)
        if arithmetic_on(self._device) == "float32":
            log.info("no bfloat16 in hardware here: computing in float32, which takes two to three times as long")
        with self._clock.stage("pretrain"), self._metrics() as metrics:
            encoder = self._new_encoder(2)
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
        load_encoder(self._new_encoder(2), weights, None)
        self.check_service(client)
        ticket = session.open_or_take_up_run(
            self.out,
            client,
            self.images,
            name=f"{self.profile.name} seed {self.config.seed}",
            profile=self.profile,
            registration_token=self._options.registration_token,
        )
        frozen = {at for at in self.profile.evaluation_budgets[:-1] if predictions_path(self.out, at).exists()}
        if predictions_path(self.out).exists():
            log.info("fine-tuning was finished before")
            self._renew_report(ticket)
            return ticket
        with self.client(ticket) as own_client, self._metrics() as metrics, overall_line() as show_overall:
            pool = self._pool()
            oracle = LabelOracle(own_client, ticket.run_id, self.out, ticket.dataset.class_names, len(pool))
            encoder = self._new_encoder(ticket.dataset.num_classes)
            load_encoder(encoder, weights, None)
            loop = ActiveLoop(
                pool,
                encoder,
                self.profile,
                oracle,
                self._strategy,
                seed=self.config.seed,
                identity=f"{self.config.identity}-{ticket.run_id}",
                out=self.out,
                clock=self._clock,
                metrics=metrics,
                target=self.config.target,
                balanced=self.config.class_prior_for(ticket.dataset) == "balanced",
                calibrated=self.config.estimate_is_calibrated_for(ticket.dataset),
                own_features=None if self._own is None else self._own.pool[: len(pool)].to(self._device),
                show_overall=show_overall,
                on_round=lambda: self._renew_report(ticket),
            )
            test = to_working_size(self.images.test, self.profile.working_px).to(self._device)
            own = None if self._own is None else self._own.test.to(self._device)
            for learned in loop.run(frozen):
                with self._clock.stage("evaluate"):
                    if learned.is_end:
                        save_model(
                            self.out / MODEL_FILE,
                            learned,
                            self.profile,
                            ticket.dataset.class_names,
                            self.images.test,
                            (ticket.run_id, self.images.fingerprint),
                        )
                    freeze_predictions(self.out, learned, test, self._clock, own)
                    asked = [record.id for record in oracle.records]
                    write_pool_map(self.out, learned, asked, self.config.seed)
                self._renew_report(ticket)
                log.info("predictions frozen at %d labels", learned.labels)
        return ticket

    def evaluate(self, ticket: session.RunTicket) -> RunResult:
        """Submit the frozen predictions, seal the run, compare the counts, and renew the report."""
        with self.client(ticket) as client:
            result = submit(self.out, client, ticket, self.config, self._clock)
        with self._metrics() as metrics:
            for point in result.points:
                metrics.write_point("accuracy", point.labels, {"test": point.evaluation.accuracy})
            self._write_report(ticket)
        return result

    @contextmanager
    def _metrics(self) -> Iterator[MetricWriter]:
        """Write metrics to the folder, and to the tracker that the options name."""
        name = self._options.track
        profile, seed = self.profile, self.config.seed
        settings = {"seed": seed} | {key: str(value) for key, value in profile.model_dump(exclude={"rounds"}).items()}
        title = f"{profile.name} seed {seed}"
        tracker = None if name is None else open_tracker(name, self.out, title, settings)
        try:
            with MetricWriter(self.out, tracker=tracker) as metrics:
                yield metrics
        finally:
            if tracker is not None:
                tracker.close(self.report_path)

    def _new_encoder(self, classes: int) -> Encoder:
        channels = channels_of(self.images.pool)
        return new_encoder(self.profile.encoder, classes, self.config.seed, self._device, channels=channels)

    def _pool(self) -> Tensor:
        """Return the pool on the device, up to the profile's limit, at the working size."""
        pool = self.images.pool[: self.profile.pool_limit]
        return to_working_size(pool, self.profile.working_px).to(self._device)

    def _renew_report(self, ticket: session.RunTicket) -> None:
        with self._clock.stage("report"):
            self._write_report(ticket)

    def _write_report(self, ticket: session.RunTicket) -> None:
        write_report(self.out, self.images.pool.numpy(), ticket.dataset.class_names)

    @property
    def report_path(self) -> Path:
        """The report, which is renewed after each round and each stage."""
        return self.out / REPORT_FILE

    def client(self, ticket: session.RunTicket | None = None) -> LabelClient:
        """Make a client of this run; without a ticket it can open one."""
        return witnessed_client(self._options, self._witness, ticket)


def witnessed_client(options: RunOptions, witness: Witness, ticket: session.RunTicket | None) -> LabelClient:
    """Make a client whose answers are witnessed and whose receipts are kept; without a ticket it can open a run."""
    return LabelClient(
        options.service,
        token=None if ticket is None else ticket.token,
        patience_s=options.patience_s,
        receipts_path=options.out / RECEIPTS_FILE,
        witness=witness,
    )


def choose_profile(options: ExperimentOptions, device: torch.device) -> Profile:
    """Find the profile and put the options that change it into it.

    Raises:
        ConfigError: there is no such profile, or rounds, budget or target do not fit.
    """
    name = _pretraining_profile(options.pretrained) if options.profile == "auto" else options.profile
    profile = profile_of(name or ("gpu" if device.type == "cuda" else "cpu"), options.budget, options.rounds)
    if options.strategy is not None:
        profile = profile.model_copy(update={"strategy": options.strategy})
    if options.working_size is not None:
        profile = profile.model_copy(update={"working_px": options.working_size})
    if options.features is not None:
        profile = with_own_features(profile, options.features_use)
    elif options.features_use != "alone":
        raise ConfigError("--features-use says how --features are used; give --features FILE.npy too")
    if options.target is not None and profile.evaluation_budgets:
        raise ConfigError(
            f"--target ends a run early, and {profile.name} has declared evaluations at "
            f"{', '.join(map(str, profile.evaluation_budgets))} labels; choose a profile with one evaluation"
        )
    return profile


def _pretraining_profile(weights: Path | None) -> str | None:
    """Find the profile that weights were made under, from the configuration beside them; None if there is none."""
    if weights is None or not (weights.parent / session.CONFIG_FILE).is_file():
        return None
    return session.read_config(weights.parent).profile.name
