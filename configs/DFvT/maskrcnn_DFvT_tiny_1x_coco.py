_base_ = "./maskrcnn_DFvT_small_1x_coco.py"
model = dict(
    backbone=dict(embed_dim=48, mlp_ratio=4.0),
    neck=dict(in_channels=[48, 96, 192, 384]),
)
