"""What a segmentation model is and does: samples, shards, plans, networks, training, prediction.

Knows nothing of Ray, MLflow, DVC or where files lie; `pipeline` brings those.
"""
