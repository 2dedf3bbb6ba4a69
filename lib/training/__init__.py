"""Training of SAM 2 networks: generated and labelled clips, losses, the training loop, fine-tuning and calibration.

Evaluation protocols (`lib.evaluation`) and the MONAI Label training task (`lib.serving`) do not belong here. Modules may import
`common`, `imaging`, `prompts`, `model`, `propagation`, `quality` and `engine`; only `lib.model` knows the `sam2` library.
"""
