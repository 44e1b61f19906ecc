"""Whether there is anything to compare with: the one test that is left, and skipped, where PyTorch is missing."""

import importlib.util

import pytest


def test_pytorch_is_installed():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed, so jbp is compared with nothing: .venv/bin/pip install torch==2.13.0")
