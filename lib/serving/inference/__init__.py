"""Inference requests: the checkpoints on offer, the queue of clients, the route `POST /infer/{model}` and the tasks behind it.

Segmentation itself belongs to lib.engine, and saved labels to lib.serving.datastore. Besides the packages below lib.serving, this
package may import lib.serving.datastore, lib.serving.active_learning, lib.serving.observability and the request checks of lib.serving.web.
"""
