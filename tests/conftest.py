"Slow tests (soaks) run only when asked for: `pytest --run-slow`, or BERTLAB_SLOW=1."

import os
import signal

import pytest

# Under nohup, or in the background of a script, signals are ignored, and every process that is started inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: a soak of minutes, run by --run-slow or BERTLAB_SLOW=1")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-slow") or os.environ.get("BERTLAB_SLOW") == "1":
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow: ask for it with --run-slow"))
