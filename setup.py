"""Hands version, requirements and console scripts from `settings.ini` to setuptools; pyproject.toml holds the rest."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
EXTRAS = ("dev", "ray", "data", "video", "app", "contrib", "wandb", "mlflow")

setup(
    version=settings["version"],
    install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split() for extra in EXTRAS},
    entry_points={
        "console_scripts": [
            *settings["console_scripts"].split(),
            *(f"{script} [dev]" for script in settings["dev_scripts"].split()),
        ],
        "nbdev": ["locrl=locrl._modidx:d"],
    },
)
