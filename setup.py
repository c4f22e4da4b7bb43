"""Reads version, requirements and console scripts from `settings.ini`, so that each stands in one place."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent/"settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

setup(
    version=cfg["version"],
    description=cfg["description"],
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
