"""The private names of other packages that locrl uses, with reasons; a test says which of them have moved."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT

SB3 = "Stable-Baselines3 has no public name for it; it is what a subclass of its algorithms works with"
LITE0 = "efficientnet-lite-pytorch names its layers like this, as do the keys of its weights"
CPU = "torch has public CPU capabilities only in its newest releases"
REASONS = {
    **dict.fromkeys(
        [
            "_current_progress_remaining",
            "_custom_logger",
            "_episode_num",
            "_excluded_save_params",
            "_last_episode_starts",
            "_last_obs",
            "_logger",
            "_n_calls",
            "_n_updates",
            "_sample_action",
            "_setup_learn",
            "_update_learning_rate",
            "_vec_normalize_env",
            "_get_indices",
            "_normalize_obs",
            "_normalize_reward",
            "_update_features_extractor",
        ],
        SB3,
    ),
    **dict.fromkeys(
        [
            "_block_args",
            "_blocks",
            "_bn0",
            "_bn1",
            "_bn2",
            "_conv_head",
            "_conv_stem",
            "_depthwise_conv",
            "_expand_conv",
            "_fc",
            "_project_conv",
        ],
        LITE0,
    ),
    **dict.fromkeys(["_is_avx512_bf16_supported", "_is_mkldnn_bf16_supported"], CPU),
}
PUBLIC = {
    "_exit": "os._exit is documented",
    "_make": "namedtuple._make is documented",
    "_other": "the key of a table of ours",
    **dict.fromkeys(
        ["_codecs", "_reconstruct", "_rebuild_tensor_v2"],
        "what pickles of old runs call; `convert` allows these and no others",
    ),
}
MODULES = sorted(path for path in (ROOT / "locrl").rglob("*.py") if not path.name.startswith("_"))


def names_in(node: ast.AST) -> list[str]:
    "Names that `node` looks up: attributes, imports, and strings that may be given to `getattr`"
    if isinstance(node, ast.Attribute):
        return [node.attr]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.Import):
        return [part for alias in node.names for part in alias.name.split(".")]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [*node.module.split("."), *(alias.name for alias in node.names)]
    return []


def defined_in(node: ast.AST) -> list[str]:
    "Names that `node` defines: functions, classes, variables, attributes of `self`"
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return [node.id]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
        return [node.attr]
    return []


def foreign_names() -> set[str]:
    "Private names that locrl looks up and does not define"
    nodes = [node for path in MODULES for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    own = {name for node in nodes for name in defined_in(node)}
    return {name for node in nodes for name in names_in(node) if re.fullmatch(r"_[a-zA-Z]\w*", name)} - own


def test_private_names_are_listed():
    "Every private name of another package has its reason here, and every reason is needed"
    listed = REASONS.keys() | PUBLIC.keys()
    # our subclass defines or sets them too
    ours_too = {"_excluded_save_params", "_sample_action", "_n_updates", "_setup_learn", "_custom_logger"}
    assert foreign_names() <= listed, "use a public way, or give the reason in REASONS and a test below"
    assert listed - ours_too <= foreign_names(), "no longer used: take it out of the list"


@pytest.fixture(scope="module")
def model():
    "A small SB3 DQN in the middle of its training"
    from stable_baselines3 import DQN

    model = DQN("MlpPolicy", "CartPole-v1", learning_starts=4, policy_kwargs=dict(net_arch=[4]), device="cpu")
    model.learn(8)
    return model


@pytest.mark.parametrize("name", [name for name, reason in REASONS.items() if reason is SB3])
def test_stable_baselines3(model, name):
    "SB3 still has each name, where locrl looks for it"
    places = {
        "_get_indices": model.env,
        "_normalize_obs": model.replay_buffer,
        "_normalize_reward": model.replay_buffer,
        "_update_features_extractor": model.policy,
    }
    place = places.get(name, model)
    assert hasattr(place, name), (
        f"Stable-Baselines3 moved {type(place).__name__}.{name}: find its new name, in locrl too"
    )


def test_stable_baselines3_calls_what_we_override(model, monkeypatch):
    "SB3 asks `_sample_action` for every step and `_excluded_save_params` before it saves"
    called = []
    for name in ("_sample_action", "_excluded_save_params"):
        before = getattr(model, name)
        monkeypatch.setattr(
            model,
            name,
            lambda *args, name=name, before=before, **kwargs: called.append(name) or before(*args, **kwargs),
        )
    model.learn(2)
    import io

    model.save(io.BytesIO())
    assert set(called) == {"_sample_action", "_excluded_save_params"}, (
        "SB3 no longer calls these: DoubleDQN's exploration or saving has no effect"
    )


def test_efficientnet_lite0():
    "Every layer is where the embedded encoder takes it from"
    from efficientnet_lite_pytorch import EfficientNet

    net = EfficientNet.from_name("efficientnet-lite0")
    block = net._blocks[1]
    for name in [name for name, reason in REASONS.items() if reason is LITE0]:
        assert any(hasattr(place, name) for place in (net, block)), (
            f"efficientnet-lite-pytorch moved {name}: pin 0.1.0, or follow it in encoders"
        )


@pytest.mark.parametrize(
    "place, name",
    [(torch.cpu, "_is_avx512_bf16_supported"), (torch.ops.mkldnn, "_is_mkldnn_bf16_supported")],
    ids=lambda x: str(x)[:40],
)
def test_torch_tells_bf16(place, name):
    "torch says whether this processor has bf16 arithmetic"
    assert hasattr(place, name), f"torch moved {name}: on a CPU precision='auto' may choose wrongly"
    assert isinstance(getattr(place, name)(), bool)


ENCODE = """
from PIL import Image
from locrl.vision.clip import OpenClipEncoder
encoder = OpenClipEncoder("ViT-B-32", pretrained=None)
print(*encoder.embed_crops([Image.new("RGB", (96, 64), "teal")], [[0., 0., 1., 1.]]).shape)
"""
BROKEN = """
import torch
def refuse(path): raise OSError(f"{path}: built for another torch")
torch.ops.load_library = refuse
"""
HIDDEN = """
import importlib.machinery as machinery
find = machinery.PathFinder.find_spec
def hide(cls, name, *args):
    return None if name == "torchvision" else find(name, *args)
machinery.PathFinder.find_spec = classmethod(hide)
"""


def encode_after(code: str) -> subprocess.CompletedProcess:
    "One encoding with CLIP in a process of its own, after `code`"
    return subprocess.run(
        [sys.executable, "-c", code + ENCODE], capture_output=True, text=True, cwd=Path(__file__).parent
    )


@pytest.mark.parametrize(
    "before",
    [
        "import locrl.vision.encoders; locrl.vision.encoders.ensure_torchvision()\nimport torchvision\n",
        BROKEN,
        BROKEN + "try: import torchvision\nexcept RuntimeError as error: assert 'nms' in str(error)\n",
    ],
    ids=["imported before", "operators of another torch", "an import failed before"],
)
def test_clip_encodes(before):
    "CLIP encodes beside whatever torchvision there is"
    done = encode_after(before)
    assert (done.returncode, done.stdout.strip()) == (0, "1 512"), done.stderr


def test_clip_without_torchvision():
    "Where torchvision is missing, the error says what to install"
    done = encode_after(HIDDEN)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("ImportError: torchvision is missing: pip install torchvision")


def test_torchvision_broken_otherwise(monkeypatch):
    "An import that fails for another reason names both packages and the cure"
    import importlib

    from locrl.vision import encoders

    def refuse(name):
        raise OSError("libjpeg.so: no such file")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(
        ImportError, match=rf"torch {re.escape(torch.__version__)} \(libjpeg.*pip install --upgrade torch torchvision"
    ):
        encoders.ensure_torchvision()
