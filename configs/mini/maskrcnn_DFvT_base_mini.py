_base_ = "./maskrcnn_DFvT_tiny_mini.py"
model = dict(
    backbone=dict(embed_dim=128, depths=(2, 2, 6, 2), num_heads=(4, 8, 16, 32), mlp_ratio=2.0),
    neck=dict(in_channels=[128, 256, 512, 1024]),
    test_cfg=dict(
        rpn=dict(nms=dict(type="soft_nms", iou_threshold=0.7)),
        rcnn=dict(nms=dict(type="soft_nms", iou_threshold=0.5)),
    ),
)
runner = dict(max_epochs=2)
evaluation = dict(interval=2)
