# The published detector for a CPU and generated images: narrow heads, few RoIs, small images, a short schedule.
# The box head is smaller than the published one in what it predicts, too: one box for all classes, which learns from
# every positive RoI, so that boxes get exact in far fewer iterations. RoIAlign takes one sample a bin, enough for RoIs
# of small images. On a CPU torchvision's RoIAlign is the faster of two that agree, and so is the fused optimiser.
_base_ = "../DFvT/maskrcnn_DFvT_tiny_1x_coco.py"
model = dict(
    neck=dict(out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1, use_torchvision=True)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=4, reg_class_agnostic=True),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=1, use_torchvision=True)),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=4),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=50)),
)
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
img_scale = (160, 128)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", img_scale=img_scale, keep_ratio=True),
    dict(type="RandomFlip", flip_ratio=0.5),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="Pad", size_divisor=32),
    dict(type="DefaultFormatBundle"),
    dict(type="Collect", keys=["img", "gt_bboxes", "gt_labels", "gt_masks"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="MultiScaleFlipAug",
        img_scale=img_scale,
        flip=False,
        transforms=[
            dict(type="Resize", keep_ratio=True),
            dict(type="RandomFlip"),
            dict(type="Normalize", **img_norm_cfg),
            dict(type="Pad", size_divisor=32),
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="Collect", keys=["img"]),
        ],
    ),
]
data = dict(
    samples_per_gpu=4,
    workers_per_gpu=0,
    train=dict(pipeline=train_pipeline),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline),
)
optimizer = dict(lr=0.002, fused=True)
optimizer_config = dict(grad_clip=dict(_delete_=True, max_norm=10.0))
lr_config = dict(_delete_=True, policy="CosineAnnealing", min_lr=0.0, warmup="linear", warmup_iters=50, warmup_ratio=0.01, by_epoch=False)
runner = dict(max_epochs=5)
evaluation = dict(interval=3)
checkpoint_config = dict(interval=1)
log_config = dict(interval=10)
