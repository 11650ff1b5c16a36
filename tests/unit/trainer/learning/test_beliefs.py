"""Three kinds of features make one space; graph and network make joint beliefs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tiny_learning import CPU, TINY_ENCODER, bars
from trainer.config import GraphConfig
from trainer.learning.beliefs import FeatureSpace, JointModel
from trainer.learning.finetune import embed_and_predict, predict
from trainer.learning.graph import balance_classes, propagate_labels
from trainer.learning.losses import PROBABILITY_FLOOR
from trainer.learning.pretrain import new_encoder

IDS = torch.tensor([0, 7, 20, 33, 41, 50])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """Sixty bars, upright and level, and their classes."""
    return bars(tmp_path_factory.mktemp("bars"))


def space_of(pool: Tensor, **changes: object) -> FeatureSpace:
    """Make the space of a pool with a fresh encoder."""
    config = GraphConfig.model_validate({"neighbours": 5, "descriptor_dimensions": 16} | changes)
    return FeatureSpace(pool, new_encoder(TINY_ENCODER, 3, 0, CPU), config)


def test_the_space_joins_its_sources_by_their_weights(data: tuple[Tensor, Tensor]) -> None:
    """Rows are unit vectors; the descriptor's share of a similarity is 1 to the square of the embedding's weight."""
    space, network = (
        space_of(data[0], pretrained_weight=0.5, finetuned_weight=2.0),
        new_encoder(TINY_ENCODER, 3, 1, CPU),
    )
    fixed, joined = space.embed_pool(None), space.embed_pool(embed_and_predict(network, data[0])[0])
    assert fixed.shape == (60, 16 + 8) and joined.shape == (60, 16 + 8 + 8)
    for features in (fixed, joined):
        torch.testing.assert_close(features.norm(dim=1), torch.ones(60))
    torch.testing.assert_close(fixed[:, :16].square().sum(1), torch.full((60,), 1 / 1.25))
    torch.testing.assert_close(joined[:, :24].square().sum(1), torch.full((60,), 1 / 5))


def test_other_images_are_described_as_the_pool_is(data: tuple[Tensor, Tensor]) -> None:
    """An image of the pool has the same features when it is embedded as another image."""
    space, network = space_of(data[0]), new_encoder(TINY_ENCODER, 3, 1, CPU)
    for learned in (None, network):
        pool = space.embed_pool(None if learned is None else embed_and_predict(learned, data[0])[0])
        torch.testing.assert_close(space.embed(data[0][:9], learned), pool[:9], rtol=0, atol=0.01)


def test_fine_tuning_does_not_move_the_pretrained_features(data: tuple[Tensor, Tensor]) -> None:
    """The space keeps a copy of the encoder: what is trained later does not change it."""
    encoder = new_encoder(TINY_ENCODER, 3, 0, CPU)
    space = FeatureSpace(data[0], encoder, GraphConfig(descriptor_dimensions=16))
    before = space.embed(data[0][:9], None)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1)
    assert torch.equal(space.embed(data[0][:9], None), before)


def test_without_a_network_beliefs_are_the_graph_s(data: tuple[Tensor, Tensor]) -> None:
    """Before anything is learned, beliefs are the propagation of the labels, and right more often than chance."""
    images, labels = data
    model = JointModel.build(space_of(images), images, None)
    assert model.predictions is None
    beliefs = model.beliefs(IDS, labels[IDS], 3)
    assert torch.equal(beliefs, propagate_labels(model.graph, IDS, labels[IDS], 3, alpha=0.95))
    assert (beliefs.argmax(1) == labels).float().mean() > 0.6


def test_joint_beliefs_are_probabilities_and_known_labels_certain(data: tuple[Tensor, Tensor]) -> None:
    """Rows sum to one, a label paid for is certain, and the network's predictions change the beliefs."""
    images, labels = data
    network = new_encoder(TINY_ENCODER, 3, 1, CPU)
    model = JointModel.build(space_of(images, graph_share=0.2), images, network)
    beliefs = model.beliefs(IDS, labels[IDS], 3)
    torch.testing.assert_close(beliefs.sum(1), torch.ones(60))
    assert torch.equal(beliefs[IDS], F.one_hot(labels[IDS], 3).float())
    certain = F.one_hot((labels + 1) % 3, 3).float()
    swayed = JointModel(model.space, network, model.features, model.graph, certain)
    assert (swayed.beliefs(IDS, labels[IDS], 3) - beliefs).abs().max() > 0.1


def test_without_propagation_the_network_alone_is_believed(data: tuple[Tensor, Tensor]) -> None:
    """A label changes no belief but its own; other images are predicted by the network, not by a vote."""
    images, labels = data
    network = new_encoder(TINY_ENCODER, 3, 1, CPU)
    model = JointModel.build(space_of(images, propagate=False), images, network)
    assert model.predictions is not None
    others = torch.tensor([index for index in range(60) if index not in IDS.tolist()])
    beliefs = model.beliefs(IDS, labels[IDS], 3)
    torch.testing.assert_close(beliefs.sum(1), torch.ones(60))
    assert torch.equal(beliefs[IDS], F.one_hot(labels[IDS], 3).float())
    assert torch.equal(beliefs[others], model.beliefs(IDS, (labels[IDS] + 1) % 3, 3)[others])
    assert torch.equal(beliefs[others], balance_classes(model.predictions.clamp_min(PROBABILITY_FLOOR))[others])
    assert torch.equal(model.predict(images, beliefs), predict(network, images))


def test_without_propagation_and_network_nothing_is_known_but_the_labels(data: tuple[Tensor, Tensor]) -> None:
    """Beliefs are uniform; other images are predicted by their labelled neighbours."""
    images, labels = data
    model = JointModel.build(space_of(images, propagate=False), images, None)
    beliefs = model.beliefs(IDS, labels[IDS], 3)
    assert torch.equal(beliefs[IDS], F.one_hot(labels[IDS], 3).float())
    assert (beliefs[1:7] == 1 / 3).all()
    assert model.predict(images[:11], beliefs).shape == (11, 3)


@pytest.mark.parametrize("learned", [True, False], ids=["network", "no network"])
def test_predictions_of_other_images_are_probabilities(data: tuple[Tensor, Tensor], learned: bool) -> None:
    """With a network or without, rows sum to one."""
    images, labels = data
    model = JointModel.build(space_of(images), images, new_encoder(TINY_ENCODER, 3, 1, CPU) if learned else None)
    answers = model.predict(images[:11], model.beliefs(IDS, labels[IDS], 3))
    assert answers.shape == (11, 3)
    torch.testing.assert_close(answers.sum(1), torch.ones(11))


def test_the_nearest_neighbour_votes_with_its_belief(data: tuple[Tensor, Tensor]) -> None:
    """With one neighbour and no network, an image of the pool is predicted as it is believed."""
    images, labels = data
    model = JointModel.build(space_of(images, neighbours=1), images, None)
    beliefs = F.one_hot(labels, 3).float()
    assert torch.equal(model.predict(images, beliefs).argmax(1), labels)


def test_a_vote_without_a_share_leaves_the_network_s_answer(data: tuple[Tensor, Tensor]) -> None:
    """With vote_share 0 the prediction is the network's own, averaged over shifts and mirror images."""
    images, _ = data
    network = new_encoder(TINY_ENCODER, 3, 1, CPU)
    model = JointModel.build(space_of(images, vote_share=0.0), images, network)
    answers = model.predict(images, torch.full((60, 3), 1 / 3))
    torch.testing.assert_close(answers, predict(network, images))
