"""A few generated images, and a detector small enough to train on them in seconds.

torch and mmcv are imported for those who ask for the detector only: that takes seconds.
"""

from __future__ import annotations

import copy
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dfvt.data.coco import describe_dataset
from dfvt.data.manifest import DatasetManifest
from dfvt.data.shapes import SHAPE_CLASSES, generate_shapes

if TYPE_CHECKING:
    from mmcv import Config

MINI = Path(__file__).parents[2] / "configs" / "mini" / "maskrcnn_DFvT_tiny_mini.py"
HEIGHT, WIDTH = 64, 80
NUM_TRAIN, NUM_VAL, BATCH_SIZE = 8, 6, 2
DEBUG_OPTIONS = {
    "model.backbone.embed_dim": 16,
    "model.backbone.num_heads": (1, 2, 4, 8),
    "model.backbone.drop_path_rate": 0.1,
    "model.neck.in_channels": [16, 32, 64, 128],
    "model.neck.out_channels": 16,
    "model.rpn_head.in_channels": 16,
    "model.rpn_head.feat_channels": 16,
    "model.roi_head.bbox_roi_extractor.out_channels": 16,
    "model.roi_head.bbox_head.in_channels": 16,
    "model.roi_head.bbox_head.fc_out_channels": 32,
    "model.roi_head.mask_roi_extractor.out_channels": 16,
    "model.roi_head.mask_head.num_convs": 1,
    "model.roi_head.mask_head.in_channels": 16,
    "model.roi_head.mask_head.conv_out_channels": 16,
    "model.train_cfg.rpn.sampler.num": 16,
    "model.train_cfg.rpn_proposal.nms_pre": 50,
    "model.train_cfg.rpn_proposal.max_per_img": 30,
    "model.train_cfg.rcnn.sampler.num": 16,
    "model.test_cfg.rpn.nms_pre": 50,
    "model.test_cfg.rpn.max_per_img": 30,
    "model.test_cfg.rcnn.max_per_img": 10,
    "model.test_cfg.rcnn.score_thr": 0.0,  # so that a hardly trained detector has predictions to compare
    "data.samples_per_gpu": BATCH_SIZE,
    "data.workers_per_gpu": 0,
    "optimizer.lr": 1e-3,
    "lr_config.warmup_iters": 2,
    "runner.max_epochs": 2,
    "evaluation.interval": 1,
    "checkpoint_config.interval": 1,
    "log_config.interval": 2,
}


@pytest.fixture(scope="session")
def preloaded_forkserver() -> None:
    """Let processes of the start method `forkserver` begin as copies of one that has imported a training.

    There is one such server a process, so all tests that start processes in this way share what it imports.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the copies have the server's environment
    multiprocessing.set_forkserver_preload(["dfvt.engine.train", "dfvt.engine.infer", "dfvt.engine.launch"])


@pytest.fixture(scope="module")
def forked_processes(preloaded_forkserver: None) -> Iterator[None]:
    """Have `torch.multiprocessing.spawn` start copies of a process that has imported a training.

    A new interpreter imports torch and mmdet for seconds, each process of a launch anew. What the processes
    do, and how they end, is the same. `test_launch.py` starts new interpreters.
    """
    import torch.multiprocessing

    def spawn(function: Any, args: Any = (), nprocs: int = 1, join: bool = True) -> Any:
        return torch.multiprocessing.start_processes(function, args, nprocs, join, start_method="forkserver")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.multiprocessing, "spawn", spawn)
        yield


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DatasetManifest:
    """Generated images of 64×80 pixels; image 5 of each split has a crowd region."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    generate_shapes(root, seed=3, num_train=NUM_TRAIN, num_val=NUM_VAL, height=HEIGHT, width=WIDTH)
    return describe_dataset(
        "mini",
        root,
        train_annotations="annotations/instances_train2017.json",
        train_images="train2017",
        val_annotations="annotations/instances_val2017.json",
        val_images="val2017",
        generated=True,
    )


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its tables made, which takes MLflow seconds, and with the experiment `another`."""
    from dfvt.tracking.mlflow import RunRecorder

    folder = tmp_path_factory.mktemp("empty store")
    RunRecorder.open(
        f"sqlite:///{folder / 'mlflow.db'}",
        "another",
        artifact_root=folder / "mlartifacts",
        run_name="tiny",
        tags={},
        params={},
    ).finish()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def session_config(shapes: DatasetManifest, one_thread: None) -> Config:
    from dfvt.engine.config import load_config

    cfg = load_config(MINI, DEBUG_OPTIONS)
    train = {"ann_file": str(shapes.train_annotations_path), "img_prefix": str(shapes.train_images_path)}
    val = {"ann_file": str(shapes.val_annotations_path), "img_prefix": str(shapes.val_images_path)}
    for split, paths in (("train", train), ("val", val), ("test", val)):
        cfg.data[split].update(paths, classes=tuple(shape.name for shape in SHAPE_CLASSES))
        for step in cfg.data[split].pipeline:
            if "img_scale" in step:
                step.img_scale = (WIDTH, HEIGHT)
    return cfg


@pytest.fixture
def config(session_config: Config) -> Config:
    """Config of a debug-size Mask R-CNN DFvT on `shapes`: two epochs of four iterations."""
    return copy.deepcopy(session_config)


@pytest.fixture(scope="module")
def detector(session_config: Config) -> Any:
    """The config's detector with random weights, the same each time, which keeps all that it finds."""
    import torch

    from dfvt.engine.infer import build_bare_detector

    torch.manual_seed(0)
    model: Any = build_bare_detector(session_config)
    model.init_weights()
    model.roi_head.test_cfg.score_thr = 0.0  # random weights are sure of nothing
    return model


@pytest.fixture
def checkpoint(config: Config, tmp_path: Path) -> Path:
    """A file of its random weights, the same each time."""
    import torch

    from dfvt.engine.infer import build_bare_detector

    torch.manual_seed(0)
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": build_bare_detector(config).state_dict()}, path)
    return path


@pytest.fixture
def config_file(config: Config, tmp_path: Path) -> str:
    """A file of the config."""
    from dfvt.engine.config_text import config_text

    (tmp_path / "config.py").write_text(config_text(config, formatted=False))
    return str(tmp_path / "config.py")
