"""The file formats NIfTI, NRRD and MetaImage: what their headers say about the voxel grid, and their voxels.

DICOM has a package of its own, `lib.imaging.dicom`. Only the modules of lib.imaging and the lower packages may be imported.
"""
