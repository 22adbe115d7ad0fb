_base_ = "./maskrcnn_DFvT_tiny_mini.py"
model = dict(
    backbone=dict(embed_dim=96, mlp_ratio=2.0),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
runner = dict(max_epochs=2)
evaluation = dict(interval=2)
