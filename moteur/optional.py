"""Optional packages, imported when they are needed and not before."""

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: Its name.
        extra: The extra of this library that installs it.

    Raises:
        ModuleNotFoundError: If it is not installed; the message says what to install.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".", maxsplit=1)[0] != error.name.split(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"{module} is not installed: pip install '.[{extra}]' in a clone of moteur", name=error.name
        ) from error
