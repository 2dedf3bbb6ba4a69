"""Which image a request means."""

from fastapi import HTTPException

from lib.imaging.studies import Listing
from lib.serving.datastore.folder import FolderDatastore
from lib.serving.dicomweb.index import SeriesIndex
from lib.serving.web.http_errors import clear_errors


def known_image(app, image: str) -> str:
    """Return the id of an image that is named by its id or SeriesInstanceUID. Only ids of the datastore pass: they become names of files.

    Raises:
        HTTPException: 422 without a name, 404 for an unknown image, 400 with the reason for one that cannot be used, 502 if the DICOM store
            does not answer.
    """
    if not image:
        raise HTTPException(422, "Say which image: ?image=ID.")
    image, _ = SeriesIndex.of(app).resolve(image)
    if reason := listing_of(app).refused.get(image):
        raise HTTPException(400, reason)
    with clear_errors():
        if image not in app.datastore().list_images():
            raise HTTPException(404, "There is no such image in the datastore.")
    return image


def listing_of(app) -> Listing:
    """Return what the app's studies folder holds; it is empty for a DICOM store."""
    store = app.datastore()
    return store.listing if isinstance(store, FolderDatastore) else Listing()
