"""tql-offline: does a bigger critic help in offline RL, and is the answer true?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tql_offline.version import __version__

if TYPE_CHECKING:
    from tql_offline.sharing.model import load

__all__ = ["__version__", "load"]

# In a checkout `datasets/` and `eval/` are next to this folder; an installed copy has them inside.
# The checkout is searched second, so nothing at its top can shadow a module of the package.
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and str(_CHECKOUT) not in __path__:
    __path__.append(str(_CHECKOUT))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # On first use: PyTorch takes seconds to import, and most commands do without it.
    if name == "load":
        from tql_offline.sharing.model import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
