"""Libraries of extras: imported where they are needed, and asked for by the extra's name where they are missing."""

import importlib
from types import ModuleType

from vlm_jax.errors import UserError


def need(module: str, extra: str) -> ModuleType:
    """Imports a module of an optional library, such as `need("pyarrow.parquet", "formats")`.

    Args:
        module: Its full name.
        extra: The extra of this package that installs it.

    Raises:
        UserError: if the library is not installed, or cannot be imported; it names the extra.
    """
    library = module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or library
        why = "is not installed" if missing.split(".")[0] == library else f"lacks {missing}, which it needs"
    except (ImportError, OSError) as error:
        why = f"cannot be imported ({' '.join(str(error).split())})"
    raise UserError(f"{library} {why}: install the extra [{extra}], as in pip install 'vlm-jax[{extra}]'")
