_base_ = ["../DFvT/maskrcnn_DFvT_small_1x_coco.py", "../_base_/fast.py"]
