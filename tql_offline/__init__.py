"""tql-offline: does a bigger critic help in offline RL, and is the answer true?"""

from pathlib import Path

from tql_offline.version import __version__

__all__ = ["__version__"]

# In a checkout `datasets/` and `eval/` lie beside this folder; an installed copy has them inside.
# The checkout is searched second, so nothing at its top can shadow a module of the package.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and str(_CHECKOUT) not in __path__:
    __path__.append(str(_CHECKOUT))
