_base_ = ["../DFvT/maskrcnn_DFvT_base_1x_coco.py", "../_base_/fast.py"]
