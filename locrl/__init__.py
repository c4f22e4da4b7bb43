"""An agent that finds an object in a photograph by moving a box. Importing locrl is quick: each name below is loaded when it is first used."""
__version__ = "0.1.0"

import gymnasium
import lazy_loader

gymnasium.register("locrl/Localization-v0", entry_point="locrl.envs.localization:LocalizationEnv")

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
