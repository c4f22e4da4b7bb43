"""A quick encoder that knows cats and dogs, and a small feature store of some pictures, for tests of several wings."""

import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from locrl.data.scenes import Scenes
from locrl.vision.encoders import Encoder, UnknownClassError
from locrl.vision.feature_store import build_store


class Mosaic(Encoder):
    "A quick encoder for tests: 8 x 8 pixel tiles through a fixed random matrix; it knows cats and dogs"

    name = "mosaic"
    dim = 12
    input_size = 32
    grid = (4, 4)

    def __init__(self, seed=0, pause=0.0):
        self.fingerprint, self.pause = f"mosaic {seed}", pause
        self.matrix = torch.randn(3 * 64, self.dim, generator=torch.Generator().manual_seed(seed)) / 14

    def preprocess(self, images, size=None):
        pixels = np.stack([np.asarray(im.resize((32, 32), Image.BILINEAR), np.float32) for im in images])
        return torch.from_numpy(pixels / 255).permute(0, 3, 1, 2)

    def dense(self, pixels):
        time.sleep(self.pause)
        tiles = F.unfold(pixels, 8, stride=8)
        return torch.einsum("bkl,kd->bdl", tiles, self.matrix).unflatten(2, (4, 4))

    def embed_images(self, pixels):
        return self.dense(pixels).mean((2, 3))

    def class_embeddings(self, names):
        for name in names:
            if name not in ("cat", "dog"):
                raise UnknownClassError(name, ["cat", "dog"])
        return F.normalize(self.matrix[: len(names)], dim=1)

    def evidence(self, dense, names):
        return torch.einsum("bdhw,cd->bchw", dense, self.class_embeddings(names)).sigmoid()

    def presence(self, dense, names):
        return self.evidence(dense, names).amax((2, 3))


class Noted(Scenes):
    "The pictures of `pictures`, which take their time and note which process opened them"

    def __init__(self, n, notes):
        super().__init__(n, seed=0, size=(40, 60), classes=("cat", "dog", "bird"))
        self.notes = notes

    def image(self, i):
        "Return picture `i` after a while"
        (self.notes / f"{i}-{os.getpid()}").touch()
        time.sleep(0.2)
        return super().image(i)


def pictures(n=10, seed=0):
    "Some small scenes of three classes"
    return Scenes(n, seed=seed, size=(40, 60), classes=("cat", "dog", "bird"))


def build(root, **changes):
    "A store of `pictures`, seen by `Mosaic`"
    return build_store(pictures(), **dict(encoder=Mosaic(), dim=6, root=root, shard_size=4, batch_size=2) | changes)
