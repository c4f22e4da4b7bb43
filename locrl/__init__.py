"""An agent that finds an object in a photograph by moving a box; importing it makes `locrl/Localization-v0` known to Gymnasium"""
__version__ = "0.1.0"

import gymnasium

gymnasium.register("locrl/Localization-v0", entry_point="locrl.env:LocalizationEnv")
