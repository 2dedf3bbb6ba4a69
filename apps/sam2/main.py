"""MONAI Label app: interactive segmentation of volumes with SAM 2. Start it with

monailabel start_server --app apps/sam2 --studies DIR [--conf labels "spleen,liver"] [--conf checkpoint tiny]
    [--conf window abdomen] [--conf channel 0] [--conf versions DIR] [--conf cache DIR] [--conf rounds DIR]
    [--conf random any_volume] [--conf auto_scoring true] [--conf concurrent 1] [--conf queue 64] [--conf queue_per_client 8]
    [--conf store_seconds 60] [--conf lend_minutes 15] [--conf cors_origins https://seg.example.org]
"""

import hashlib
import sys
from functools import cached_property
from pathlib import Path

# The console script does not have the repository on its path, and MONAI Label creates an empty lib/ in this folder.
ROOT = str(Path(__file__).resolve().parents[2])
if ROOT in sys.path:
    sys.path.remove(ROOT)
sys.path.insert(0, ROOT)

from monailabel.interfaces.app import MONAILabelApp  # noqa: E402

from lib.engine.request import parse_bool  # noqa: E402
from lib.engine.segmenter import Segmenter  # noqa: E402
from lib.model.device import available_devices  # noqa: E402
from lib.model.feature_cache import FeatureCache  # noqa: E402
from lib.model.feature_overflow import HOST_BYTES, FeatureOverflow  # noqa: E402
from lib.serving.active_learning.annotation_records import AnnotationRecords  # noqa: E402
from lib.serving.active_learning.scoring import SliceDice, SliceQuality  # noqa: E402
from lib.serving.active_learning.strategies import AnyVolume, FirstVolume, WorstSlice, WorstVolume  # noqa: E402
from lib.serving.app import HttpErrorsMixin, PrefetchMixin, RoutesMixin, SharingMixin  # noqa: E402
from lib.serving.datastore.labels import parse_labels  # noqa: E402
from lib.serving.datastore.mixin import DatastoreMixin  # noqa: E402
from lib.serving.inference.checkpoint_catalog import CheckpointCatalog  # noqa: E402
from lib.serving.inference.tasks import Sam2Scribbles, Sam2Task, VolumeCache  # noqa: E402
from lib.serving.training import Sam2Train  # noqa: E402


class Sam2App(HttpErrorsMixin, PrefetchMixin, SharingMixin, RoutesMixin, DatastoreMixin, MONAILabelApp):
    """The MONAI Label app with its tasks. Constructing it loads no checkpoint and starts no thread."""

    def __init__(self, app_dir, studies, conf):
        super().__init__(
            app_dir, studies, conf,
            name="SAM 2 volumes",
            description="Click on one slice of a CT or MR volume; SAM 2 carries the mask through all of them",
            version="0.1",
            labels=parse_labels(conf.get("labels")),
        )  # fmt: skip
        # MONAI Label would start a process for each scoring method at every Next Sample; the strategies need only the records.
        self._auto_update_scoring = parse_bool(conf.get("auto_scoring", "false"))

    def init_infers(self):
        channel = self.conf.get("channel")
        overflow = FeatureOverflow(HOST_BYTES if available_devices()[0] != "cpu" else 0, self.conf.get("cache"))
        segmenter = Segmenter(FeatureCache(overflow=overflow))
        volumes = VolumeCache(channel=int(channel) if channel else None)
        window = self.conf.get("window", "auto")
        tasks = (("sam2", Sam2Task, 3), ("sam2_slice", Sam2Task, 2), ("sam2_scribbles", Sam2Scribbles, 3))
        return {
            name: task(segmenter, volumes, self.labels, self._catalog(), self.records, dimension=dimension, window=window)
            for name, task, dimension in tasks
        }

    def init_trainers(self):
        return {"sam2": Sam2Train(self._catalog().versions, self.conf.get("window", "auto"))}

    def _catalog(self) -> CheckpointCatalog:
        folder = self.conf.get("versions", Path(self.app_dir, "model", "versions"))
        return CheckpointCatalog.of(self.conf.get("checkpoint", "embedded"), folder)

    def init_strategies(self):
        kinds = {"worst_slice": WorstSlice, "worst_volume": WorstVolume, "any_volume": AnyVolume, "first": FirstVolume}
        strategies = {name: kind(self.records, self.lending, self.readable_volumes) for name, kind in kinds.items()}
        name = self.conf.get("random", "worst_slice")  # OHIF always asks for the strategy "random".
        if name not in strategies:
            raise ValueError(f"--conf random {name}: choose one of {', '.join(strategies)}.")
        return {"random": strategies[name], **strategies}

    def init_scoring_methods(self):
        window = self.conf.get("window", "auto")
        methods = (SliceDice(self.records), SliceQuality(self.records, self._catalog(), Segmenter, window))
        return {m.name: m for m in methods}

    @cached_property
    def records(self) -> AnnotationRecords:
        """The records of the volumes being annotated, kept beside the datastore."""
        folder = self.conf.get("rounds")
        if not folder:
            digest = hashlib.blake2b(str(self.studies).encode(), digest_size=8).hexdigest()
            studies = Path(self.studies)
            folder = studies / "sam2_rounds" if studies.is_dir() else Path(self.app_dir, "model", "rounds", digest)
        return AnnotationRecords(folder, lambda image: self.datastore().image_digest(image))
