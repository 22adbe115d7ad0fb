"""DFvT object detection: train, compare and extend DFvT detectors on today's PyTorch.

Importing this package makes the backbone `DFvT` known to mmdet, without importing mmdet (which takes
seconds): the registration happens when mmdet's model registry is imported, before or after this package.
"""

from types import ModuleType

from wrapt import register_post_import_hook

__version__ = "0.1.0"


def _register_backbone(_: ModuleType) -> None:
    import dfvt.models  # noqa: F401


register_post_import_hook(_register_backbone, "mmdet.models.builder")
