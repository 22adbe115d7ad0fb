# What a Hopper GPU trains fastest with; the recipe's longest side is 1,333 pixels.
fast_heads = True
normalize_on_device = True
channels_last = True
canvases = [
    *[(608, 800), (608, 1088), (800, 800), (800, 1088), (800, 1344)],
    *[(800, 608), (1088, 608), (1088, 800), (1344, 800), (1344, 1344)],
]
group_by_canvas = True
cuda_graphs = True
