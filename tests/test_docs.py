"""The documentation's pages build and their links lead somewhere."""
import importlib.util
import subprocess
import sys

import pytest

from conftest import ROOT


@pytest.mark.skipif(importlib.util.find_spec("smalldocs") is None, reason="smalldocs needs Python 3.11")
def test_pages_build():
    "The check that .ci/docs.py makes"
    done = subprocess.run([sys.executable, ROOT / ".ci/docs.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
