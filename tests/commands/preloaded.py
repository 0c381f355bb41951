"""Imported before commands are forked: what each of them would do again, and what slows all."""

import numba
from hydra.core.config_store import ConfigStore

numba.njit("void()")(lambda: None)  # loads what numba compiles with: half a second
ConfigStore.__deepcopy__ = lambda store, memo: store  # see tests/conftest.py
