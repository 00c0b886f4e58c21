"""The judge of what a generator draws: a classifier that has learned from real scenes what they show."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from un2clip.world.scenes import ATTRIBUTES

AT_ONCE = 250  # images in one forward


class Judge(nn.Module):
    """A small convolutional classifier of some attributes of a scene, a head each."""

    def __init__(self, attributes: Sequence[str]) -> None:
        super().__init__()
        self.attributes = tuple(attributes)
        widths, layers = (3, 32, 64, 128), []
        for into, out in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.heads = nn.ModuleList([nn.Linear(16 * widths[-1], len(ATTRIBUTES[name])) for name in attributes])

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.body(images)
        return [head(features) for head in self.heads]


def train_judge(
    images: Tensor, labels: Tensor, attributes: Sequence[str], *, seed: int, epochs: int, lr: float
) -> Judge:
    """A judge from real scenes.

    Args:
        images: (N, 3, S, S) float32 in [-1, 1].
        labels: (N, len(attributes)) int64.
        epochs: over all images.
        lr: AdamW's rate, falling by a cosine.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = Judge(attributes)
        steps = epochs * -(-len(images) // 128)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=lr)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        with tqdm(total=steps, unit="step", desc="judge", mininterval=1) as progress:
            for _ in range(epochs):
                for index in torch.randperm(len(images)).split(128):
                    logits = judge(images[index])
                    loss = sum(cross_entropy(each, labels[index, i]) for i, each in enumerate(logits))
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[union-attr]
                    optimizer.step()
                    decay.step()
                    progress.update()
    return judge.eval()


@torch.no_grad()
def right(judge: Judge, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Of how many images the judge names each, in %."""
    parts = [judge(part) for part in images.split(AT_ONCE)]
    return {
        name: 100 * float((torch.cat([part[i] for part in parts]).argmax(dim=1) == labels[:, i]).double().mean())
        for i, name in enumerate(judge.attributes)
    }
