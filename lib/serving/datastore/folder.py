"""A folder with labels of images: MONAI Label's datastore with a history, made safe against kills, full disks and other servers.

New labels are written completely beside their places, then the JSON file is replaced, then the files are moved. Until then, a label's info
names its temporary file under the key `TEMPORARY`: if the server is killed in between, the next start moves the file.
"""

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastoreModel
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from lib.common.errors import UserError
from lib.imaging.studies import Listing, image_of_label
from lib.serving.datastore.checks import checked_file_name
from lib.serving.datastore.history import DIGEST, FOLDER, LabelHistory, describe_label, restoration, without_storage
from lib.serving.datastore.shared_folder import SharedFolder
from lib.serving.datastore.transaction import Change

TEMPORARY = "temporary"
FINAL, UNSENT = DefaultLabelTag.FINAL.value, "unsent"
KEPT_TAGS = (FINAL, UNSENT)  # What people made; labels with these tags go into the history when they are replaced or removed.

logger = logging.getLogger(__name__)


class FolderDatastore(SharedFolder):
    """A folder of images and labels, see `SharedFolder`.

    Methods that change the folder raise UserError for ids and tags that cannot be file names, ImageNotFoundException for unknown images,
    and OSError if the folder cannot be written to. The folder then stays as it was.

    Attributes:
        listing: The images in the folder that are offered, and those that are left out, if it is a studies folder; otherwise empty.
    """

    listing = Listing()

    def __init__(self, *args, **kwargs):
        self._is_reconciled = False
        super().__init__(*args, **kwargs)

    def add_image(self, image_id, image_filename, image_info):
        """Refuse an image, because only a studies folder takes some: raise UserError."""
        raise UserError("The images come from a DICOM store: send new ones there.")

    def remove_image(self, image_id):
        """Refuse to remove an image, because only a studies folder can: raise UserError."""
        raise UserError("The images come from a DICOM store: delete them there.")

    @property
    def history(self) -> LabelHistory:
        """The history of the labels in this folder."""
        return LabelHistory(self._datastore.label_path(None))

    def image_digest(self, image_id: str) -> str:
        """Return the digest of an image's content, by which everything that is remembered of it is known; "" for unknown images."""
        return ""

    def list_labels(self, image_id: str) -> dict:
        """Return the labels of an image: fields image, digest, labels (the present ones) and history."""
        labels = [describe_label(tag, self.get_label_info(image_id, tag)) for tag in self.get_labels_by_image_id(image_id)]
        return {"image": image_id, DIGEST: self.image_digest(image_id), "labels": labels, "history": self.label_history(image_id)}

    def label_history(self, image_id: str) -> list[dict]:
        """Return the descriptions of an image's earlier labels, see `LabelHistory.items`."""
        if not self.history.items(image_id, ""):
            return []  # The content of an image without a history is not read for its digest.
        return self.history.items(image_id, self.image_digest(image_id))

    def restore_label(self, image_id: str, name: str, by: dict) -> str:
        """Make a label of the history the present one again, and return its tag. The one in its place goes into the history.

        Args:
            by: Who does it: fields client and user.

        Raises:
            UserError: There is no such label, or it was made for another image content.
        """
        file, tag, info = self.history.find(image_id, name, self.image_digest(image_id))
        self.save_label(image_id, str(file), tag, {**without_storage(info), **restoration(name, by)})
        return tag

    def save_label(self, image_id, label_filename, label_tag, label_info):
        """Copy a label, which the caller has checked, into the folder in place of an earlier one with this tag; return its image's id.

        The earlier one goes into the history if people made it.
        """
        image_id, tag = checked_file_name(image_id), checked_file_name(label_tag)
        if tag == FOLDER:
            raise UserError(f"A label cannot have the tag {FOLDER!r}, because this is the name of the folder of earlier labels.")
        ext, digest = self._to_id(os.path.basename(label_filename))[1], self.image_digest(image_id)
        with self._changing() as change:
            labels = _image_entry(change.model, image_id).labels
            destination = self._label_file(change.model, image_id, tag, ext)
            temporary = change.add_file(label_filename, destination)
            if tag in labels:
                self._retire(change, image_id, tag, "replaced", stays=True)
                if labels[tag].ext != ext:
                    change.obsolete_files.append(self._label_file(change.model, image_id, tag, labels[tag].ext))
            labels[tag] = file_entry(destination.name, ext, {**(label_info or {}), DIGEST: digest, TEMPORARY: temporary})
            self._identify(change.model, image_id)
        logger.info("Saved label %s of %s.", tag, image_id)
        return image_id

    def remove_label(self, label_id, label_tag, reason="removed"):
        """Remove a label; do nothing if there is none. One that people made goes into the history, unless the reason is empty."""
        tag = checked_file_name(label_tag)
        with self._changing() as change:
            if change.model.label(label_id, tag):
                self._retire(change, label_id, tag, reason)
                del change.model.objects[label_id].labels[tag]

    def _retire(self, change: Change, image: str, tag: str, reason: str, *, stays: bool = False, tags=KEPT_TAGS) -> None:
        """Plan what happens to the file of a label that is replaced or removed.

        Args:
            reason: What becomes of the label, for the history; "" if it shall not go there.
            stays: Whether the file stays where it is until another one replaces it.
            tags: The tags of the labels that go into the history.
        """
        entry = change.model.objects[image]
        digest, label = entry.image.info.get(DIGEST), entry.labels[tag]
        label = label.model_copy(update={"info": {DIGEST: digest, **label.info}})
        file = self._label_file(change.model, image, tag, label.ext)
        if reason and tag in tags and file.exists():
            change.retirements.append(self.history.plan(image, tag, label, file, reason, stays=stays))
        elif not stays:
            change.obsolete_files.append(file)

    def _identify(self, model: LocalDatastoreModel, image: str) -> None:
        """Note in an image's entry which content it stands for. A folder that is no studies folder knows this by its ids."""

    def update_image_info(self, image_id, info):
        """Add fields to the info of an image."""
        with self._changing() as change:
            _image_entry(change.model, image_id).image.info.update(info)
            self._identify(change.model, image_id)

    def update_label_info(self, label_id, label_tag, info):
        """Add fields to the info of a label, or raise LabelNotFoundException."""
        with self._changing() as change:
            label = change.model.label(label_id, label_tag)
            if label is None:
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            label.info.update(info)

    def _label_file(self, model: LocalDatastoreModel, image: str, tag: str, ext: str) -> Path:
        """Return the path where the label of an image belongs."""
        return Path(model.label_path(tag), self._filename(image, ext))

    def _reconcile_datastore(self):
        """Make the entries match the files in the folder, in memory only if it cannot be written to. The first time, also clean up."""
        self._init_from_datastore_file()
        entries = {i: entry.model_copy(update={"labels": dict(entry.labels)}) for i, entry in self._datastore.objects.items()}
        reconciled = self._datastore.model_copy(update={"objects": entries})
        self._match_files(reconciled)
        if self._is_reconciled and reconciled == self._datastore:
            return
        try:
            if not self._is_reconciled:
                with self._changing() as change:
                    self._clean_up(change)
            with self._changing() as change:
                self._match_files(change.model, change)
        except OSError as e:
            logger.warning("Cannot write to %s: %s. Images and labels can be read all the same.", self._datastore_path, e)
            self._datastore, self._config_ts = reconciled, None
        self._is_reconciled = True

    def _clean_up(self, change: Change) -> None:
        """Move complete labels of a killed server to their places and remove its other temporary files.

        No running server uses these files, because the caller holds the folder's lock.
        """
        for folder in _label_folders(change.model):
            leftovers = {p.name: p for p in folder.glob(".*.tmp")}
            for image, entry in change.model.objects.items():
                label = entry.labels.get(folder.name)
                temporary = label and leftovers.pop(str(label.info.get(TEMPORARY)), None)
                if temporary:
                    change.new_files[temporary] = self._label_file(change.model, image, folder.name, label.ext)
            change.obsolete_files += leftovers.values()
        change.obsolete_files += self.history.leftovers()
        change.obsolete_files += Path(change.model.image_path()).glob(".*.tmp")
        change.obsolete_files += Path(self._datastore_path).glob(f"{change.json_file.name}.*.tmp")

    def _match_files(self, model: LocalDatastoreModel, change: Change | None = None) -> None:
        """Make a model list exactly the files in the folder.

        If several label files belong to one entry (a.nii and a.nii.gz), the entry names the newest.

        Args:
            change: The change of this model; labels of images that were exchanged go into the history with it. None if the model is only
                a copy in memory.
        """
        exchanged = self._match_images(model, change)
        expected = set(change.new_files.values()) if change else set()
        for image, entry in model.objects.items():
            for tag, label in list(entry.labels.items()):
                file = self._label_file(model, image, tag, label.ext)
                if file not in expected and not file.exists():
                    del entry.labels[tag]
        for folder in _label_folders(model):
            for name in _newest_first(folder):
                image, ext = image_of_label(name, model.objects)
                if ext and image in model.objects and image not in exchanged and folder.name not in model.objects[image].labels:
                    model.objects[image].labels[folder.name] = file_entry(name, ext)
        images_in_history = set(self.history.images())
        for image, entry in model.objects.items():
            if entry.labels or image in images_in_history:
                self._identify(model, image)

    def _match_images(self, model: LocalDatastoreModel, change: Change | None) -> set[str]:
        """Remove images from a model whose files are gone, and return the ids of those whose content was exchanged."""
        for image, entry in list(model.objects.items()):
            if not Path(model.image_path(), self._filename(image, entry.image.ext)).exists():
                del model.objects[image]
        return set()


def _image_entry(model: LocalDatastoreModel, image: str) -> ImageLabelModel:
    """Return the entry of an image, or raise ImageNotFoundException."""
    if image not in model.objects:
        raise ImageNotFoundException(f"Image {image} not found")
    return model.objects[image]


def file_entry(name: str, ext: str, info: dict | None = None) -> DataModel:
    """Return a new entry for a file, with the time and the file's name in its info."""
    return DataModel(info={**(info or {}), "ts": int(time.time()), "name": name}, ext=ext)


def _newest_first(folder: Path) -> list[str]:
    """Return the names of the files in a folder that are not hidden, those that were changed last first."""
    def age(name):
        with suppress(OSError):
            return -(folder / name).stat().st_mtime_ns
        return 0

    return sorted((n for n in os.listdir(folder) if not n.startswith(".")), key=age)


def _label_folders(model: LocalDatastoreModel) -> list[Path]:
    """Return the folders of labels, one for each tag."""
    return [p for p in Path(model.label_path(None)).glob("[!.]*") if p.is_dir() and p.name != FOLDER]
