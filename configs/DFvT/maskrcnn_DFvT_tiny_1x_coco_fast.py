_base_ = ["./maskrcnn_DFvT_tiny_1x_coco.py", "../_base_/fast.py"]
