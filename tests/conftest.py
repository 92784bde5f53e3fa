"""Hooks and fixtures. What test files import from here is in common.py: pytest-xdist's controller, which runs no test, does without."""

import gc

import forked
import pytest

SLOW = {"launchers", "ray_engine", "wandb_server", "bank_faults", "end_to_end", "sweeps", "report_html", "int8_static", "encoder_families"}
forked.make_place()  # before pytest-xdist starts its processes, which share it


def __getattr__(name: str):
    """The attributes of common.py."""
    if name.startswith(("pytest", "__")):  # which pytest looks for
        raise AttributeError(name)
    import common

    return getattr(common, name)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    """Import the package with shape checks, before a test file does without them."""
    if hasattr(session.config, "workerinput") or session.config.getoption("dist", "no") == "no":
        import common  # noqa: F401


def pytest_collection_modifyitems(items):
    """The slowest files first: of two workers, neither ends with a long test while the other has none left."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in SLOW)  # stable


def pytest_collection_finish():
    """The modules of the tests are not looked through again either."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup():
    """Shapes are checked in the first calls of each test."""
    import shapes

    shapes.begin_test()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Say how a worker of pytest-xdist that crashed had ended, and how much memory there was: its exit code -9 is a kill from outside."""
    if error:
        import psutil

        code, memory = node.gateway._io.popen.wait(timeout=10), psutil.virtual_memory().available / 2**30
        reporter = node.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"[{node.gateway.id}] ended with exit code {code}; {memory:.1f} GiB of memory available")


@pytest.fixture(scope="session")
def encoder():
    import common

    return common.tiny_encoder()


@pytest.fixture
def generator():
    import torch

    return torch.Generator().manual_seed(7)
