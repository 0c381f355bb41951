"""Imported before commands are forked: each would wait half a second for its first kernel."""

import numba

numba.njit("void()")(lambda: None)  # loads what numba compiles with
