"""Options, environment and folders shared by all tests."""
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

FLAGS = ("slow", "gpu", "net")
ROOT = Path(__file__).resolve().parents[1]

hypothesis.settings.register_profile("locrl", parent=hypothesis.settings.default, deadline=None)
hypothesis.settings.load_profile("locrl")


def pytest_addoption(parser):
    "`--slow`, `--gpu` and `--net`"
    for flag in FLAGS:
        parser.addoption(f"--{flag}", action="store_true", help=f"run the tests and notebook cells marked {flag}")


def pytest_configure(config):
    "One thread and one cache folder for each test process; the cache goes away with the session unless it was named"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("MPLBACKEND", "agg")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is None and "LOCRL_CACHE" not in os.environ:
        cache = os.environ["LOCRL_CACHE"] = tempfile.mkdtemp(prefix="locrl-tests-")
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))
    elif worker is not None:
        os.environ["LOCRL_CACHE"] = str(Path(os.environ["LOCRL_CACHE"]) / worker)


def pytest_collection_modifyitems(config, items):
    "Skips what is marked with a flag that was not asked for"
    for item in items:
        for flag in FLAGS:
            if flag in item.keywords and not config.getoption(flag):
                item.add_marker(pytest.mark.skip(reason=f"runs with --{flag}"))
