"""Faults are injected with forks, signals, mount namespaces and POSIX locks."""

import os

collect_ignore_glob = [] if os.name == "posix" else ["test_*.py"]
