"""The model of a finished run: one file with all that the prediction of other images needs.

    OUT/model.pt    written at the run's end; `export` copies it

A run predicts an image by its network and by a vote of its neighbours in the pool (`JointModel.predict`). So the file
has the weights of both encoders, the axes of the descriptor, and features and beliefs of the pool in float16, which
change few predictions (docs/trainer.md says how few). It has no image and no label by itself: a belief is one-hot where
a label was paid for. It is read by PyTorch's restricted unpickler, which runs no code, and checked against its
checksums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from trainer import __version__
from trainer.config import EncoderConfig, GraphConfig, Profile
from trainer.errors import DataError, ResumeError
from trainer.images.pictures import read_picture
from trainer.images.pixels import to_working_size
from trainer.learning.beliefs import FeatureSpace, JointModel
from trainer.learning.checkpoint import load_checkpoint, save_checkpoint
from trainer.learning.graph import NeighbourGraph
from trainer.learning.pretrain import new_encoder
from trainer.records.run_records import Record
from trainer.run.active_loop import LearnedState

MODEL_FILE = "model.pt"
_FORMAT = "labelmeter model 1"
# Pictures that are held in memory at once.
_CHUNK = 2000


class ModelCard(Record):
    """What a model is, and what it takes.

    Attributes:
        profile: Name of the profile.
        encoder: Settings of both encoders.
        graph: Settings of features and votes.
        class_names: By class number.
        image_shape: Of an image, [H, W] in grey or [H, W, 3] in colour.
        working_px: Longest side to which images are reduced (`images.pixels`).
        neighbours: That vote.
        labels: Paid for.
        run_id: At the label service.
        images: Fingerprint of the images it learned from.
        version: Of the trainer.
    """

    profile: str
    encoder: EncoderConfig
    graph: GraphConfig
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    working_px: int
    neighbours: int
    labels: int
    run_id: str
    images: str
    version: str


@dataclass(frozen=True)
class Prediction:
    """The probabilities of one picture, by class number."""

    file: Path
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Model:
    """A model that predicts."""

    card: ModelCard
    joint: JointModel
    beliefs: Tensor

    def predict(self, images: Tensor) -> Tensor:
        """Predict images, uint8 [M, H, W] or [M, H, W, 3] on the model's device: float32 [M, C]."""
        return self.joint.predict(to_working_size(images, self.card.working_px), self.beliefs)

    def predict_files(self, files: Iterable[Path], refused: list[DataError]) -> Iterator[Prediction]:
        """Predict picture files in their order; what is wrong with an unreadable one is put into `refused`."""
        paths: list[Path] = []
        pictures: list[Tensor] = []
        for file in files:
            try:
                picture = read_picture(file, self.card.image_shape)
            except DataError as error:
                refused.append(error)
                continue
            paths.append(file)
            pictures.append(picture)
            if len(paths) == _CHUNK:
                yield from self._predicted(paths, pictures)
                paths, pictures = [], []
        if paths:
            yield from self._predicted(paths, pictures)

    def _predicted(self, paths: list[Path], pictures: list[Tensor]) -> Iterator[Prediction]:
        probabilities = self.predict(torch.stack(pictures).to(self.beliefs.device)).cpu().tolist()
        for path, row in zip(paths, probabilities, strict=True):
            yield Prediction(path, tuple(row))


def save_model(
    path: Path,
    learned: LearnedState,
    profile: Profile,
    class_names: tuple[str, ...],
    images: Tensor,
    run: tuple[str, str],
) -> None:
    """Write the model of a run.

    Args:
        path: the file.
        learned: what the run learned, at its end.
        profile: the run's.
        class_names: by class number.
        images: some of the images that it predicts, before they are resized, for their shape: uint8 [M, H, W] or
            [M, H, W, 3].
        run: the run's id, and the fingerprint of its images.

    Raises:
        RecordsUnwritable: the disk is full or read-only.
    """
    joint = learned.model
    card = ModelCard(
        profile=profile.name,
        encoder=profile.encoder,
        graph=profile.graph,
        class_names=class_names,
        image_shape=tuple(images.shape[1:]),
        working_px=profile.working_px,
        neighbours=joint.graph.neighbours.shape[1],
        labels=learned.labels,
        run_id=run[0],
        images=run[1],
        version=__version__,
    )
    save_checkpoint(
        path,
        {
            "format": _FORMAT,
            "card": card.model_dump_json(),
            "network": None if joint.network is None else joint.network.state_dict(),
            "space": joint.space.state(),
            "features": joint.features.half(),
            "beliefs": learned.beliefs.half(),
        },
    )


def load_model(path: Path, device: torch.device) -> Model:
    """Read a model.

    Raises:
        DataError: there is none, it is damaged, or it is of another version.
    """
    if not path.is_file():
        raise DataError(
            f"there is no model at {path}; a run writes its {MODEL_FILE} at its end: run it to its end, or name another"
        )
    try:
        state = load_checkpoint(path, device)
    except ResumeError as error:
        raise DataError(f"the model {path} cannot be read; it is damaged, or something else") from error
    if state.get("format") != _FORMAT:
        raise DataError(f"{path} is no model that this version reads; `run` of this version writes one at its end")
    try:
        card = ModelCard.model_validate_json(state["card"])
        if card.graph.own_features is not None:
            raise DataError(f"{path} learned from --features, so it cannot classify pictures, which have none")
        classes, channels = len(card.class_names), 1 if len(card.image_shape) == 2 else 3
        network = None
        if state["network"] is not None:
            network = new_encoder(card.encoder, classes, 0, device, channels=channels)
            network.load_state_dict(state["network"])
        pretrained = new_encoder(card.encoder, classes, 0, device, channels=channels)
        space = FeatureSpace.restored(card.graph, pretrained, state["space"])
        features, beliefs = state["features"].float(), state["beliefs"].float()
        if len(features) != len(beliefs) or beliefs.shape[1] != classes or not bool(beliefs.isfinite().all()):
            raise ValueError("features and beliefs do not fit")
        k = card.neighbours
        nobody = torch.empty(0, k, device=device)
        graph = NeighbourGraph(nobody.long(), nobody, nobody)
        model = Model(card, JointModel(space, network, features, graph, None), beliefs)
        # What does not fit together shows now, and not in the middle of a folder of pictures.
        model.predict(torch.zeros(1, *card.image_shape, dtype=torch.uint8, device=device))
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, ValidationError) as error:
        raise DataError(f"the model {path} is damaged: its parts do not fit together") from error
    return model
