"""The images of a studies folder as a DICOMweb service (QIDO-RS, WADO-RS, and STOW-RS for segmentations), so that OHIF shows them.

DICOM series are served as they are; everything else becomes DICOM on demand, voxel by voxel. What is stored where does not belong here.
"""
