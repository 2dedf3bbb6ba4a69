"""The interface of a segmentation method under evaluation, and the methods that need only this project's code and its libraries.

Methods that need other programs, such as the official SAM 2 predictor, lie in `benchmarks/peers.py`.
"""
