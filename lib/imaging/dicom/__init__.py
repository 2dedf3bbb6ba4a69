"""DICOM: which volumes the files of a folder hold, where their voxels lie, their values, and segmentations of them (DICOM SEG).

Networks (DICOMweb) do not belong here. Only the modules of lib.imaging and the lower packages may be imported.
"""
