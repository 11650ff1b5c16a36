"""Compare settings of HCL on a re-drawn split: `python -m benchmarks.hcl_settings --data DIR --out DIR`.

Pretrains the default profile's encoder under settings that differ from the profile in one thing each, and measures the
features with the split's labels, alone and beside the descriptor. Labels are read only for measuring, after
pretraining; the official data are refused. Results are kept in --out, and the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.redrawn import load_split, redraw_seed_of
from trainer.acquisition.clustering import most_typical, spherical_kmeans
from trainer.config import Profile
from trainer.images.data import ImageSet
from trainer.learning.beliefs import FeatureSpace, JointModel
from trainer.learning.device import generator_for, keep_freed_memory, use_all_cores
from trainer.learning.pretrain import new_encoder, pretrain
from trainer.profiles import CPU, PAPER_VIEW
from trainer.records.progress import MetricWriter

CLUSTERS = 200
CLUSTERINGS = 5
CLASSES = 10
DEVICE = torch.device("cpu")


@dataclass(frozen=True)
class Measured:
    """How good features are, in percent of images.

    Attributes:
        alone: held-out images that their 15 nearest neighbours in the pool classify rightly, by pretrained features.
        joint: the same beside the descriptor, weighted as in the profile.
        purity: neighbours in the joint graph that are of the image's class.
        spread: pool images right when the medoids of 200 k-means clusters are asked and their labels spread over the
            joint graph; mean of five clusterings.
        seconds: of pretraining.
    """

    alone: float
    joint: float
    purity: float
    spread: float
    seconds: float


def settings(epochs: int) -> dict[str, Profile]:
    """Return the profile with one thing changed, by name; all but those about length are pretrained for `epochs`."""
    base = CPU.model_copy(update={"pretrain": CPU.pretrain.model_copy(update={"epochs": epochs})})

    def other(**values: object) -> Profile:
        return base.model_copy(update={"pretrain": base.pretrain.model_copy(update=values)})

    def viewed(**values: object) -> Profile:
        return other(view=base.pretrain.view.model_copy(update=values))

    return {
        "none (random weights)": other(epochs=0),
        "as in the profile": base,
        **{f"temperature {t}": other(temperature=t) for t in (0.1, 0.2, 0.5)},
        **{f"beta {beta}": other(beta=beta) for beta in (0.0, 0.5, 2.0)},
        **{f"tau_plus {prior}": other(tau_plus=prior) for prior in (0.0, 0.05)},
        "views of the paper": other(view=PAPER_VIEW),
        "views: no tone": viewed(tone=0.0),
        "views: no erasing": viewed(erase=0.0),
        "views: no texture": viewed(texture=0.0),
        "views: wider zoom": viewed(scale=(0.6, 1.2)),
        "views: no geometry": viewed(scale=(1.0, 1.0), rotation_deg=0.0, translate_px=0.0),
        "pixels as front end": base.model_copy(
            update={"encoder": base.encoder.model_copy(update={"front_end": "pixels"})}
        ),
        **{f"{count} epochs": other(epochs=count) for count in (2 * epochs, 4 * epochs)},
    }


def measure(
    profile: Profile, images: ImageSet, pool_labels: Tensor, test_labels: Tensor, seed: int, out: Path
) -> Measured:
    """Pretrain and measure."""
    encoder = new_encoder(profile.encoder, CLASSES, seed, DEVICE)
    identity = profile.pretraining_identity(seed, images.fingerprint)
    began_s = time.perf_counter()
    with MetricWriter(out) as metrics:
        pretrain(images.pool, encoder, profile.pretrain, seed=seed, identity=identity, out=out, metrics=metrics)
    seconds = time.perf_counter() - began_s
    by_hcl = profile.graph.model_copy(update={"descriptor_weight": 0.0, "pretrained_weight": 1.0})
    joint = JointModel.build(FeatureSpace(images.pool, encoder, profile.graph), images.pool, None)
    # A vote does not use the graph, so the joint model's graph can stay.
    space = FeatureSpace(images.pool, encoder, by_hcl)
    alone = replace(joint, space=space, features=space.embed_pool(None))
    truth = F.one_hot(pool_labels, CLASSES).float()
    spreads = []
    for number in range(CLUSTERINGS):
        assigned, _ = spherical_kmeans(joint.features, CLUSTERS, generator_for(DEVICE, seed, "clusters", number))
        medoids = torch.tensor(
            [most_typical(joint.features, assigned, cluster) for cluster in assigned.unique().tolist()]
        )
        spreads.append(_right(joint.beliefs(medoids, pool_labels[medoids], CLASSES).argmax(1), pool_labels))
    return Measured(
        alone=_right(alone.predict(images.test, truth).argmax(1), test_labels),
        joint=_right(joint.predict(images.test, truth).argmax(1), test_labels),
        purity=_right(pool_labels[joint.graph.neighbours], pool_labels.unsqueeze(1)),
        spread=statistics.mean(spreads),
        seconds=seconds,
    )


def _right(guesses: Tensor, labels: Tensor) -> float:
    return 100 * float((guesses == labels).float().mean())


def main() -> int:
    """Measure what is not measured yet, and print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.hcl_settings", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder made by `prepare --redraw`")
    parser.add_argument("--out", type=Path, required=True, help="folder for weights and results")
    parser.add_argument("--epochs", type=int, default=2, help="of every setting that is not about length; default: 2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", help="names of settings; default: all")
    given = parser.parse_args()
    redraw_seed = redraw_seed_of(given.data)
    if redraw_seed is None:
        print(f"{given.data} is no re-drawn split; make one with `prepare --redraw SEED`.", file=sys.stderr)
        return 2
    use_all_cores()
    keep_freed_memory()
    images, pool_labels, test_labels = load_split(given.data)
    print("| setting | seed | alone | joint | purity | spread | s |\n|---|---:|---:|---:|---:|---:|---:|")
    for name, profile in settings(given.epochs).items():
        if given.only and name not in given.only:
            continue
        for seed in given.seeds:
            # The name has all that the weights depend on, so results of other data or lengths are not mixed up.
            out = given.out / profile.pretraining_identity(seed, images.fingerprint)[:12]
            result = out / "measured.json"
            if not result.exists():
                out.mkdir(parents=True, exist_ok=True)
                measured = measure(profile, images, pool_labels, test_labels, seed, out)
                result.write_text(json.dumps(asdict(measured)), encoding="utf-8")
            row = json.loads(result.read_text(encoding="utf-8"))
            numbers = " | ".join(f"{row[key]:.2f}" for key in ("alone", "joint", "purity", "spread"))
            print(f"| {name} | {seed} | {numbers} | {row['seconds']:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
