"""Inference requests: the checkpoints on offer, the queue of clients, the route `POST /infer/{model}` and the tasks behind it.

Segmentation itself belongs to lib.engine, and saved labels to lib.serving.datastore. Above the lower packages, lib.serving.datastore,
lib.serving.active_learning, lib.serving.observability and the checks and errors of lib.serving.web may be imported.
"""
