"""mmdet's `custom_imports`: modules of the user that register backbones, heads, data sets or steps."""

from __future__ import annotations

import sys
from pathlib import Path

from mmcv import Config
from mmcv.utils import import_modules_from_strings


def import_custom_modules(cfg: Config) -> None:
    """Import the modules that `custom_imports` of a config names, relative to the working directory.

    Every process that builds from the config must do so: what a module registers is known to its own process.

    Raises:
        ValueError: a module cannot be imported.
    """
    section = cfg.get("custom_imports")
    if not section:
        return
    folder = str(Path.cwd())
    if folder not in sys.path:  # of the script `dfvt` it is not
        sys.path.insert(0, folder)
    try:
        import_modules_from_strings(**section)
    except Exception as error:  # the module's own, whatever it is
        cause = error.__context__ if isinstance(error, ImportError) and error.__context__ else error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise ValueError(
            f"custom_imports of the config names {_names(section.get('imports'))}, which cannot be imported "
            f"in {folder} ({reason}): run the command in the folder that holds the module, or install the "
            "module"
        ) from error


def refuse_custom_modules(cfg: Config, name: str) -> None:
    """Refuse a config that wants modules imported and is no file that the user named.

    Raises:
        ValueError: it does.
    """
    section = cfg.get("custom_imports")
    if section:
        raise ValueError(
            f"{name} has custom_imports of {_names(section.get('imports'))}, but the config of a logged "
            "model runs no code: download the model, put the modules beside it, and name its config.py and "
            "checkpoint.pth"
        )


def _names(imports: object) -> str:
    return ", ".join(map(str, imports)) if isinstance(imports, list | tuple) else str(imports)
