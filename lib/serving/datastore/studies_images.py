"""The images of a studies folder: everything that can be read is listed, and what clients cannot read is converted."""

import logging
import os
from pathlib import Path

from monailabel.config import Settings
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException

from lib.common.errors import ConflictError, UserError, VolumeError
from lib.imaging.studies import SOURCE, StudiesFolder, image_key
from lib.imaging.study_files import LABEL_ENDINGS, split_ending
from lib.imaging.study_images import StudyImage, content_digest
from lib.imaging.volume import Grid
from lib.serving.datastore.changes import ChangeHandler
from lib.serving.datastore.checks import IMAGE_UPLOAD_ENDINGS, check_image_file, checked_file_name
from lib.serving.datastore.conversion import CONVERTED_ENDING, ConvertedImages
from lib.serving.datastore.folder import FolderDatastore, file_entry
from lib.serving.datastore.history import DIGEST, EXCHANGED, GONE
from lib.serving.datastore.identity import STAMP, ImageIdentities
from lib.serving.datastore.transaction import Change, description_file

_OWN_FIELDS = (SOURCE, DIGEST, STAMP)  # Fields of an image's info that clients cannot change.

logger = logging.getLogger(__name__)


class StudiesImages(FolderDatastore):
    """The images of a studies folder.

    Methods that need an image raise UserError with the reason if its id stands for an image that cannot be used.

    Args:
        extensions: MONAI Label's setting MONAI_LABEL_DATASTORE_FILE_EXT. Other patterns than its default ones limit the listing.
    """

    def __init__(self, datastore_path, *args, extensions=(), **kwargs):
        default = Settings.model_fields["MONAI_LABEL_DATASTORE_FILE_EXT"].default
        self._patterns = [] if set(extensions) == set(default) else list(extensions)
        self._studies: StudiesFolder | None = None
        self._converted = ConvertedImages(datastore_path)
        self._unreadable: set[tuple[str, str]] = set()  # Ids and versions of images whose voxels could not be read.
        self._identities = ImageIdentities()
        super().__init__(datastore_path, *args, extensions=extensions, **kwargs)
        if hasattr(self, "_observer"):
            self._observer.unschedule_all()  # MONAI Label's handler ignores subfolders and other endings than those in its setting.
            handler = ChangeHandler(lambda: self._on_any_event(None), Path(self._datastore_config_path).name)
            self._observer.schedule(handler, self._datastore_path, recursive=True)

    def _to_id(self, file):
        """Return a file's name without its last ending, and the ending in small letters."""
        name, ending = split_ending(file, (*IMAGE_UPLOAD_ENDINGS, *LABEL_ENDINGS))
        return name, ending.lower()

    def _match_images(self, model: LocalDatastoreModel, change: Change | None) -> set[str]:
        """Make a model list the images that the folder holds now, and return the ids of those whose content was exchanged.

        Nothing of an exchanged image stays: its labels go into the history, and what its info says of it is removed.
        """
        if self._studies is None:
            memory_file = self._converted.folder / "dicom_headers.json"
            self._studies = StudiesFolder(model.image_path(), Path(model.labels_dir).parts[:1], self._patterns, memory_file)
        known = {i: image_key(i, entry.image.ext, entry.image.info) for i, entry in model.objects.items()}
        before, listing = self.listing, self._studies.list_images(known)
        self.listing = listing
        for image in set(model.objects) - set(listing.images):
            self._set_aside(change, model, image, GONE)
            del model.objects[image]
        exchanged = {i for i, entry in model.objects.items() if self._identities.is_exchanged(entry.image, listing.images[i])}
        for image in exchanged:
            logger.warning("The file of %s holds another image than before: labels of the earlier one go into the history.", image)
            self._set_aside(change, model, image, EXCHANGED)
        for image, found in listing.images.items():
            if image not in model.objects or image in exchanged:
                model.objects[image] = ImageLabelModel(image=self._new_entry(image, found))
                self._bring_back(change, model, image)
        for image in exchanged:
            self._identify(model, image)
        if {i.version for i in before.images.values()} != {i.version for i in listing.images.values()}:
            self._converted.keep_only(listing.images.values())
        return exchanged

    def _set_aside(self, change: Change | None, model: LocalDatastoreModel, image: str, reason: str) -> None:
        """Plan that all labels of an image, whatever their tags, go into the history; without a change do nothing."""
        for tag in list(model.objects[image].labels) if change else ():
            self._retire(change, image, tag, reason, tags=(tag,))

    def _bring_back(self, change: Change | None, model: LocalDatastoreModel, image: str) -> None:
        """Plan that the labels which left with an image come back with it, if it has the same content; without a change do nothing."""
        for file, tag, info in self.history.of_returned_image(image, lambda: self.image_digest(image)) if change else ():
            ext = self._to_id(file.name)[1]
            model.objects[image].labels[tag] = DataModel(ext=ext, info=info)
            change.new_files[file] = self._label_file(model, image, tag, ext)
            change.obsolete_files.append(description_file(file))

    def image_digest(self, image_id):
        """Return the digest of an image's content at this moment, or "" if the image is unknown or cannot be read."""
        return self._identities.digest(self.listing.images.get(image_id))

    def _identify(self, model: LocalDatastoreModel, image: str) -> None:
        """Note the digest of an image and the stamp of its files in its entry."""
        if found := self.listing.images.get(image):
            model.objects[image].image = self._identities.noted(model.objects[image].image, found)

    def _new_entry(self, image: str, found: StudyImage) -> DataModel:
        """Return the entry of an image that was not listed before."""
        ending = found.key[len(image) :] if found.stack is None and found.key.startswith(image) else ""
        info = {} if found.key == image + ending else {SOURCE: found.key}
        if found.stack is not None:
            info |= {"description": found.stack.description, "warnings": list(found.stack.warnings)}
        return file_entry(self._client_name(image, found), ending, info)

    def _client_name(self, image: str, found: StudyImage) -> str:
        """Return the name of the file with an image that clients get."""
        ending = CONVERTED_ENDING if self._converted.is_needed(found) else split_ending(found.path.name)[1]
        return image.removesuffix(ending) + ending

    def _notice_changes(self, image_id: str) -> None:
        """Look at the folder again if another server has listed an image, or its file was exchanged, and the observer has not noticed yet."""
        found, entry = self.listing.images.get(image_id), self._datastore.objects.get(image_id)
        if entry and (found is None or self._identities.is_exchanged(entry.image, found)):
            self.refresh()

    def _image(self, image_id: str) -> StudyImage | None:
        """Return an image, or None if it is unknown; raise VolumeError with the reason if it cannot be used."""
        self._notice_changes(image_id)
        if image_id in self.listing.refused:
            raise VolumeError(self.listing.refused[image_id])
        return self.listing.images.get(image_id)

    def _known_image(self, image_id: str) -> StudyImage:
        """Return an image; raise ImageNotFoundException if it is unknown, and UserError if it cannot be used."""
        if image := self._image(image_id):
            return image
        raise ImageNotFoundException(f"Image {image_id} not found")

    def get_image_uri(self, image_id):
        """Return the path of a file with an image that every client reads, or "" if the image is unknown; VolumeError if it is damaged."""
        image = self._image(image_id)
        if image is None:
            return ""
        try:
            return str(self._converted.provide(image_id, image))
        except VolumeError:
            self._unreadable.add((image_id, image.version))
            raise

    def get_unlabeled_images(self, label_tag=None, labels=None):
        """Return the ids of the images without a final label, without those that could not be read, so that *Next Sample* goes on."""
        images = super().get_unlabeled_images(label_tag, labels)
        return [i for i in images if i in self.listing.images and (i, self.listing.images[i].version) not in self._unreadable]

    def get_image_info(self, image_id):
        """Return the info of an image; "name" and "path" are those of the file that clients get."""
        image = self._image(image_id)
        if image is None:
            return {}
        info = {key: value for key, value in super().get_image_info(image_id).items() if key not in (SOURCE, STAMP)}
        return {**info, "name": self._client_name(image_id, image), "path": str(self._converted.path(image_id, image))}

    def add_image(self, image_id, image_filename, image_info):
        """Copy an image into the folder and return its id. If the folder has this image under this id, only its info is updated.

        Raises:
            UserError: The file cannot be read as a volume.
            ConflictError: The id or the file's name belongs to another image.
        """
        default_id, ending = self._to_id(os.path.basename(image_filename))
        image_id = checked_file_name(image_id or default_id)
        name = image_id + ending
        if ending not in IMAGE_UPLOAD_ENDINGS:
            raise UserError(f"Images are single files with one of the endings {', '.join(IMAGE_UPLOAD_ENDINGS)}.")
        check_image_file(image_filename, name)
        info = {key: value for key, value in (image_info or {}).items() if key not in _OWN_FIELDS}
        if previous := self._image(image_id):
            if self._identities.digest(previous) != content_digest([Path(image_filename)]):
                raise ConflictError(f"{image_id} is the name of another image: send this one under another name, or delete the other one.")
            self.update_image_info(image_id, info)
            return image_id
        if any(other.key == name for other in self.listing.images.values()):
            raise ConflictError(f"The file {name} holds another image: send this one under another name.")
        with self._changing() as change:
            change.add_file(image_filename, Path(change.model.image_path(), name))
            change.model.objects[image_id] = ImageLabelModel(image=file_entry(name, ending, info))
        self.refresh()
        return image_id

    def remove_image(self, image_id):
        """Remove the files of an image and its labels; files that also belong to another image stay."""
        image = self._known_image(image_id)
        for tag in self.get_labels_by_image_id(image_id):
            self.remove_label(image_id, tag, "the image was removed")
        shared = {file for i, other in self.listing.images.items() if i != image_id for file in other.files}
        for file in set(image.files) - shared:
            file.unlink(missing_ok=True)
        self.refresh()

    def update_image_info(self, image_id, info):
        """Add fields to the info of an image, but for those that say which files and which content belong to it."""
        super().update_image_info(image_id, {key: value for key, value in info.items() if key not in _OWN_FIELDS})

    def image_grid(self, image_id: str) -> Grid:
        """Return the voxel grid of an image, or raise ImageNotFoundException or UserError."""
        return self._known_image(checked_file_name(image_id)).grid()
