"Names that `import locrl` offers, for type checkers; `__init__.py` loads each when it is first used"

from . import agents as agents
from . import apps as apps
from . import data as data
from . import envs as envs
from . import evaluation as evaluation
from . import experiments as experiments
from . import figures as figures
from . import files as files
from . import vision as vision
from .agents.double_dqn import DoubleDQN as DoubleDQN
from .apps.localizer import Localizer as Localizer
from .data.scenes import Scenes as Scenes
from .data.voc import ANIMALS as ANIMALS
from .data.voc import VOC as VOC
from .data.voc import VOC_CLASSES as VOC_CLASSES
from .envs.localization import LocalizationEnv as LocalizationEnv
from .evaluation.average_precision import average_precision as average_precision
from .evaluation.protocols import evaluate as evaluate
from .experiments.config import Config as Config
from .experiments.iterations import find_config as find_config
from .experiments.train import train as train
from .vision.encoders import load_encoder as load_encoder
from .vision.encoders import register_encoder as register_encoder

__version__: str
