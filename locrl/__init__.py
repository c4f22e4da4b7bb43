"""An agent that finds an object in a photograph by moving a box.

Importing locrl is quick: each name below is loaded when it is first used.
"""

__version__ = "0.1.0"

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec

import lazy_loader


def _register(gymnasium):
    "Make the environment known to Gymnasium under its name"
    gymnasium.register("locrl/Localization-v0", entry_point="locrl.envs.localization:LocalizationEnv")


class _Registration(MetaPathFinder):
    "Registers the environment when Gymnasium is imported after locrl, so that locrl need not import it"

    def find_spec(self, fullname, path=None, target=None):
        "Find Gymnasium as Python does, and register the environment as soon as it is loaded"
        if fullname != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            _register(module)

        spec.loader.exec_module = load_and_register
        return spec


if "gymnasium" in sys.modules:
    _register(sys.modules["gymnasium"])
else:
    sys.meta_path.insert(0, _Registration())

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["data", "vision", "envs", "agents", "evaluation", "experiments", "apps", "figures", "files"],
    submod_attrs={
        "data.voc": ["VOC", "ANIMALS", "VOC_CLASSES"],
        "data.scenes": ["Scenes"],
        "vision.encoders": ["load_encoder", "register_encoder"],
        "envs.localization": ["LocalizationEnv"],
        "agents.double_dqn": ["DoubleDQN"],
        "evaluation.average_precision": ["average_precision"],
        "evaluation.protocols": ["evaluate"],
        "experiments.config": ["Config"],
        "experiments.iterations": ["find_config"],
        "experiments.train": ["train"],
        "apps.localizer": ["Localizer"],
    },
)
