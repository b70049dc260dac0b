"""Which frames of which objects are scored, in which order: the official protocols as plain tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.errors import UserError, nearest
from common.files import file_hash
from datasets.readers import given_labels, read_labels
from datasets.records import ObjectRecord, Video, VideoSet

PROTOCOLS = ("lvos", "v1-2022", "davis2017")
TASKS = ("semi-supervised", "unsupervised_multiple", "unsupervised_single")
LISTS = Path(__file__).parent / "lists"
UNSEEN = {"lvos": LISTS / "unseen_videos_v2.txt", "v1-2022": LISTS / "unseen_videos_v1_2022.txt"}
SINGLE_OBJECT_VIDEOS = LISTS / "unsupervised_videos.txt"
STEP = 5  # the official tool walks an object's range in steps of five frame numbers
MOST_ENTRIES = 10**6  # of an object's score array: 46 hours; a larger frame_nums would only exhaust the memory
PROPOSALS = 20  # unsupervised_multiple compares so many proposals with the objects


@dataclass(frozen=True)
class ScoredObject:
    """One object and the frames in which it is scored.

    ``key``: its id as the meta writes it; ``id``: the pixel value. ``index``: position in the meta, from 1.
    ``length``: length of the official score array; ``stems``: the scored frames in order of time, and ``places``:
    where in the array the score of each goes. Entries without a frame stay zero and count (``padding``).
    """

    key: str
    id: int
    index: int
    length: int
    stems: tuple[str, ...]
    places: tuple[int, ...]

    @property
    def padding(self) -> int:
        """Entries of the official array that no frame fills."""
        return self.length - len(set(self.places))


@dataclass(frozen=True)
class ScoredVideo:
    """One video: where its masks lie, its objects, and all frames that any of them needs, sorted."""

    name: str
    unseen: bool | None  # None: the protocol knows no unseen videos
    truth: Path
    prediction: Path
    objects: tuple[ScoredObject, ...]
    stems: tuple[str, ...]
    binary: bool = False  # every non-zero value is object 1 (DAVIS-2016)
    attributes: tuple[str, ...] = ()
    images: Path | None = None  # folder of the images, where there is one: for the report's pictures
    image_suffix: str = ".jpg"


class Remark(NamedTuple):
    """Something that the data set's own description says or lacks, for the audit."""

    kind: str
    video: str
    object: str
    message: str


@dataclass(frozen=True)
class Plan:
    """Everything that a protocol asks of a data set and a folder of predictions."""

    protocol: str
    task: str
    set_name: str  # as in the names of the official CSV files
    videos: tuple[ScoredVideo, ...]
    lists: tuple[Path, ...]
    remarks: tuple[Remark, ...] = ()  # for the audit
    problems: tuple[str, ...] = ()  # why this cannot be scored, one line each; ``videos`` is then for checking only

    def list_hashes(self) -> dict[str, str]:
        """SHA-256 of every list of videos that the protocol used, by file name."""
        return {path.name: file_hash(path) for path in self.lists}


def read_names(path: str | Path) -> list[str]:
    """Names of a list file, one a line, blank lines left out. UserError where the file is missing or no text."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable list of videos ({error}); give a text file, one name a line") from None
    return [name for line in lines if (name := line.strip())]


def make_plan(found: VideoSet, prediction: Path, protocol: str, task: str, unseen: str | Path | None = None) -> Plan:
    """Lay out what is scored.

    Args:
        found: the data set's records; of the ground truth, only the masks that a protocol needs to know its objects
            are read (the first ones of ``davis2017``; all of a set without a meta).
        prediction: folder with one folder of masks a video.
        protocol, task: one of ``PROTOCOLS`` and ``TASKS``.
        unseen: list of unseen videos that replaces the protocol's own.

    What cannot be scored (a range that contradicts itself, too few masks) is in the plan's ``problems``, so that it
    can be told together with what is wrong with the files. UserError for unknown names and for nothing to score.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol: '{protocol}' is unknown; {nearest(protocol, PROTOCOLS)}")
    if task not in TASKS:
        raise UserError(f"--task: '{task}' is unknown; {nearest(task, TASKS)}")
    if task != TASKS[0] and protocol != "lvos":
        raise UserError(f"--task: {task} exists in protocol lvos only, not in {protocol}")
    if unseen is not None and protocol == "davis2017":
        raise UserError("--unseen: protocol davis2017 knows no unseen videos; leave the list out")
    builder = _Builder(found, prediction, protocol, task)
    if protocol == "davis2017":
        return builder.davis()
    return builder.lvos(Path(unseen) if unseen is not None else UNSEEN[protocol])


class _Builder:
    """Collects videos, remarks and problems of one plan."""

    def __init__(self, found: VideoSet, prediction: Path, protocol: str, task: str):
        self.found, self.prediction, self.protocol, self.task = found, prediction, protocol, task
        self.annotations = found.annotations or found.root / "Annotations"
        self._drops = protocol == "lvos" and task == "semi-supervised"  # an object's first and last frame
        self.problems: list[str] = []
        self.remarks: list[Remark] = []

    def _remark(self, kind: str, video: str, key: str, message: str) -> None:
        self.remarks.append(Remark(kind, video, key, message))

    def davis(self) -> Plan:
        videos = []
        for video in self.found.videos:
            stems = tuple(sorted(video.masks))  # the official tool sorts the files' paths
            if len(stems) < 3:
                self.problems.append(f"{self.annotations / video.name}: {len(stems)} masks, but davis2017 drops the "
                                     "first and the last frame, so it needs at least three; add masks or leave the "
                                     "video out")
                continue
            scored = stems[1:-1]
            try:
                count = _davis_objects(video, stems[0])
            except UserError as error:
                videos.append(self._only_checked(video, scored, error))
                continue
            if not count:
                self._remark("no_objects", video.name, "", "the first mask shows no object: nothing is scored")
            if len(scored) > 256:
                self._remark("decay_wraps", video.name, "", f"{len(scored)} scored frames: the official Decay "
                                     "counts them modulo 256; the clean one does not")
            objects = tuple(ScoredObject(str(k), k, k, len(scored), scored, tuple(range(len(scored))))
                            for k in range(1, count + 1))
            videos.append(self._video(video, objects, None))
        return self._plan(videos, self.found.split_name or self.found.split, ())

    def lvos(self, unseen: Path) -> Plan:
        hidden = set(read_names(unseen))
        lists = [unseen]
        unknown = sorted(hidden - {video.name for video in self.found.videos})
        if unknown and unseen != UNSEEN[self.protocol]:
            self._remark("unseen_unknown", "", "", f"{unseen}: {len(unknown)} of {len(hidden)} names are no videos "
                         f"here (first: {unknown[0]})")
        chosen = sorted(self.found.videos, key=lambda video: video.name)
        if self.task == "unsupervised_single":
            lists.append(SINGLE_OBJECT_VIDEOS)
            names = {video.name: video for video in chosen}
            listed = read_names(SINGLE_OBJECT_VIDEOS)
            chosen = [names[name] for name in listed if name in names]
            for name in sorted(set(names) - set(listed)):
                self._remark("not_on_list", name, "", "not on the list of unsupervised videos: not scored")
        if self.found.meta is None:
            self._remark("no_meta", "", "", "no meta file: objects and their frames are taken from the masks")
        videos = []
        for video in chosen:
            ids = [record.id for record in video.objects]
            for record in video.objects:
                if ids.count(record.id) > 1:
                    self._remark("same_id_twice", video.name, record.key, f"the meta lists id {record.id} "
                                 f"{ids.count(record.id)} times: each counts as an object of its own")
            if self.found.meta is not None and not video.objects:
                self._remark("no_objects", video.name, "", "the meta lists no object: nothing is scored")
                continue
            try:
                objects = self._objects(video)
            except UserError as error:
                videos.append(self._only_checked(video, video.masks[1:-1] if self._drops else video.masks, error))
                continue
            videos.append(self._video(video, objects, video.name in hidden))
        name = "valid" if self.found.split.lower() in ("val", "valid", "validation") else self.found.split
        return self._plan(videos, name, lists)

    def _objects(self, video: Video) -> tuple[ScoredObject, ...]:
        if not video.objects or any(record.range is None for record in video.objects):
            objects = [self._listed(video, key, number, index, stems)
                       for index, (key, number, stems) in enumerate(self._from_masks(video), 1)]
        else:
            objects = [self._in_range(video, record, index) for index, record in enumerate(video.objects, 1)]
        if self.task == "unsupervised_multiple" and len(objects) > PROPOSALS:
            self.problems.append(f"{self.annotations / video.name}: {len(objects)} objects, but unsupervised_multiple "
                                 f"compares {PROPOSALS} proposals; leave the video out")
        return tuple(scored for scored in objects if scored is not None)

    def _from_masks(self, video: Video) -> list[tuple[str, int, tuple[str, ...]]]:
        """(key, id, frames) of the objects of a video whose meta gives no ranges: from first appearance to the end."""
        first = {int(number): stem for stem, labels in given_labels(video, self.found.objects).items()
                 for number in np.unique(labels) if number}
        keys = [(record.key, record.id) for record in video.objects if record.id in first]
        for record in video.objects:
            if record.id not in first:
                self._remark("in_no_mask", video.name, record.key, "is in the meta but in no mask: not scored")
        keys = keys or [(str(number), number) for number in sorted(first)]
        return [(key, number, video.masks[video.masks.index(first[number]):]) for key, number in keys]

    def _listed(self, video: Video, key: str, number: int, index: int, stems: Sequence[str]) -> ScoredObject:
        if self._drops:
            stems = stems[1:-1]
            if not stems:
                self._remark("no_scored_frame", video.name, key, "appears in the last two frames only: its "
                                     "official numbers are NaN")
        return ScoredObject(key, number, index, len(stems), tuple(stems), tuple(range(len(stems))))

    def _in_range(self, video: Video, record: ObjectRecord, index: int) -> ScoredObject | None:
        """The official walk through an object's range: ``end`` exclusive, steps of five, ``frame_nums`` entries."""
        assert record.range is not None
        start, end, length = record.range.start, record.range.end, record.range.frame_nums
        count = max(0, -((start - end) // STEP))  # of range(start, end, STEP), which may be beyond its len
        where = f"{self.found.meta}: videos.{video.name}.objects.{record.key}.frame_range"
        drops = self._drops
        single = self.task == "unsupervised_single"
        if length < (2 if drops else 1):
            self.problems.append(f"{where}.frame_nums is {length}; it must be at least {2 if drops else 1}")
            return None
        if length > MOST_ENTRIES:
            self.problems.append(f"{where}.frame_nums is {length}; more than {MOST_ENTRIES} frames are no video: mend "
                                 "the number")
            return None
        if count > length + single:
            self.problems.append(f"{where}: frames {start} to {end} in steps of {STEP} are {count}, more than "
                                 f"frame_nums, {length}; mend the range or frame_nums")
            end = start + length * STEP  # never scored, but the frames that it needs at least are looked for
        stems = tuple(f"{number:08d}" for number in range(start, end, STEP))
        if drops:
            kept = [place for place in range(len(stems)) if place not in (0, length - 1)]
            scored = ScoredObject(record.key, record.id, index, length - 2, tuple(stems[place] for place in kept),
                                  tuple(place - 1 for place in kept))
        elif single:  # the official tool stores frame i at place i - 1: the first one last
            if len(stems) > length:  # one frame too many overwrites the first one
                self._remark("first_frame_lost", video.name, record.key, f"frame_nums is {length}, one less "
                                     f"than the range's {len(stems)} frames: the first frame is not scored")
                stems, places = stems[1:], tuple(range(length))
            else:
                places = tuple((place - 1) % length for place in range(len(stems)))
            scored = ScoredObject(record.key, record.id, index, length, stems, places)
        else:
            scored = ScoredObject(record.key, record.id, index, length, stems, tuple(range(len(stems))))
        self._remark_on_range(video, record, scored, where)
        return scored

    def _only_checked(self, video: Video, stems: Sequence[str], error: UserError) -> ScoredVideo:
        """A video that cannot be scored: the problem is noted, and its other files will be checked all the same."""
        self.problems.append(str(error))
        left = tuple(stem for stem in stems if not str(error).startswith(str(video.mask_path(stem))))
        scored = ScoredObject("", 0, 1, len(left), left, tuple(range(len(left))))
        return self._video(video, (scored,), None)

    def _remark_on_range(self, video: Video, record: ObjectRecord, scored: ScoredObject, where: str) -> None:
        assert record.range is not None
        if scored.padding:
            self._remark("padding", video.name, record.key, f"{where}: frame_nums exceeds the range: "
                                 f"{scored.padding} of {scored.length} entries count as zero in the official numbers, "
                                 "not in the clean ones")
        elif scored.stems and len(range(record.range.start, record.range.end, STEP)) < record.range.frame_nums:
            self._remark("range_ends_early", video.name, record.key, f"{where}: one frame less than frame_nums: the "
                                 "range's last frame is scored; no number is touched by it")
        if not scored.length:
            self._remark("no_scored_frame", video.name, record.key, "no frame of it is scored: its official "
                                 "numbers, and those of its group, are NaN; the clean ones leave it out")
        elif not scored.stems:
            self._remark("no_scored_frame", video.name, record.key, "no frame of it is scored: zeros only")

    def _video(self, video: Video, objects: tuple[ScoredObject, ...], unseen: bool | None) -> ScoredVideo:
        needed = {stem for scored in objects for stem in scored.stems}
        stems = tuple(sorted(needed, key=lambda stem: (len(stem), stem)))
        return ScoredVideo(video.name, unseen, self.annotations / video.name, self.prediction / video.name, objects,
                           stems, video.binary, video.attributes, video.image_folder, video.image_suffix)

    def _plan(self, videos: list[ScoredVideo], set_name: str, lists: Sequence[Path]) -> Plan:
        if not self.problems and not any(video.objects for video in videos):
            raise UserError(f"{self.found.root}: no video with objects to score in split '{self.found.split}'; "
                            "check --data, --split, --task and --protocol (davis2017: objects of the first mask only)")
        return Plan(self.protocol, self.task, set_name, tuple(videos), tuple(lists), tuple(self.remarks),
                    tuple(self.problems))


def _davis_objects(video: Video, stem: str) -> int:
    labels = read_labels(video.mask_path(stem), video.binary)
    return int(labels[labels != 255].max(initial=0))
