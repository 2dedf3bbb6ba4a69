"""Names of the structures that an annotator can choose, and where submitted labels lie."""

from pathlib import Path

from monailabel.datastore.local import LocalDatastore

DEFAULT_LABELS = (
    "lesion", "tumor", "liver", "spleen", "kidney_left", "kidney_right", "pancreas", "gallbladder", "stomach",
    "urinary_bladder", "prostate", "aorta", "inferior_vena_cava", "heart", "lung_left", "lung_right", "brain",
    "vertebra", "bone", "muscle", "other",
)  # fmt: skip


def parse_labels(text: str | None) -> list[str]:
    """Names from `--conf labels "spleen,liver"`, else the default list.

    >>> parse_labels("spleen, liver,spleen")
    ['spleen', 'liver']
    """
    names = [n.strip() for n in (text or "").split(",") if n.strip()]
    return list(dict.fromkeys(names)) or list(DEFAULT_LABELS)


def label_path(datastore, image: str, tag: str) -> Path | None:
    """The file of an image's label with that tag, or None.

    A DICOMweb store would look for a series of the label's name; the file that was submitted lies in its cache.
    """
    found = datastore.get_label_by_image_id(image, tag)
    if not found:
        return None
    kind = LocalDatastore if isinstance(datastore, LocalDatastore) else type(datastore)
    return Path(kind.get_label_uri(datastore, found, tag))
