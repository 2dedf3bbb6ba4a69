"""Where images and labels are stored: a folder, a DICOM store with a local cache, and volumes that clients upload for a session.

What a label means to a model does not belong here. Above the lower packages, only the request checks of lib.serving.web may be imported.
"""
