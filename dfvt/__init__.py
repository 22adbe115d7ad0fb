"""DFvT object detection: train, compare and extend DFvT detectors on today's PyTorch.

Importing this package makes the backbone `DFvT` and the fast heads known to mmdet, without importing mmdet
(which takes seconds): they are registered when mmdet's models are imported, before or after this package.
"""

from types import ModuleType

from wrapt import register_post_import_hook

__version__ = "0.1.0"


def _register_models(_: ModuleType) -> None:
    import dfvt.models  # noqa: F401


register_post_import_hook(_register_models, "mmdet.models")
