"""Records of the videos of a data set: what lies where, for every layout, without opening an image.

One set of records serves training, inference and evaluation. Layouts, tried in this order (``open_videos``):
DAVIS lists (``ImageSets/2017`` or ``2016``), a split folder with or without a meta (LVOS, YouTube-VOS, MOSE, plain),
and a folder that is one split by itself. Names are never computed: files are listed and sorted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.errors import UserError, UserErrors, nearest
from datasets.meta import FrameRange, ObjectRecord, read_meta
from datasets.names import same_split, sorted_stems

__all__ = ["FORMATS", "FrameRange", "ObjectRecord", "Video", "VideoSet", "open_videos", "same_split", "sorted_stems"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
FORMATS = ("lvos", "davis", "davis2016", "youtube", "plain")
MASK_FOLDERS = ("Annotations", "Annotations_convert")  # the second is what LVOS-api's convert tool writes


@dataclass(frozen=True)
class Video:
    """One video. ``frames`` are the stems of its images (of its masks where there are no images), in order."""

    name: str
    frames: tuple[str, ...]
    image_folder: Path | None
    mask_folder: Path | None
    masks: tuple[str, ...] = ()  # stems that have a mask file, in order
    objects: tuple[ObjectRecord, ...] = ()  # in the meta's order; () without a meta
    attributes: tuple[str, ...] = ()
    merged: bool = False  # DAVIS-2016: every id above 0 is the one object 1
    image_files: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)  # stem -> file name

    def image_path(self, stem: str) -> Path:
        """Path of a frame's image; UserError where the video has no such image."""
        if self.image_folder is None or stem not in self.image_files:
            where = self.image_folder or f"video {self.name}"
            raise UserError(f"{where}: there is no image of frame {stem}; add it or leave the video out")
        return self.image_folder / self.image_files[stem]

    def mask_path(self, stem: str) -> Path:
        """Path that a frame's mask has, whether it exists or not; UserError where the video has no masks at all."""
        if self.mask_folder is None:
            raise UserError(f"video {self.name}: there is no folder of masks; add {MASK_FOLDERS[0]}/{self.name}")
        return self.mask_folder / f"{stem}.png"


@dataclass(frozen=True)
class VideoSet:
    """One split of a data set."""

    root: Path
    split: str  # as asked for
    format: str  # lvos, davis, youtube or plain
    videos: tuple[Video, ...]  # in the list's order, else sorted by name
    meta: Path | None
    objects: str  # late: an object starts where its id first appears; first: objects of the first mask only
    split_name: str  # the folder or list as found
    notes: tuple[str, ...] = ()  # lines that a command prints

    def __getitem__(self, name: str) -> Video:
        for video in self.videos:
            if video.name == name:
                return video
        raise KeyError(name)


def open_videos(
    root: str | Path, split: str, *, format: str | None = None, objects: str | None = None,
    videos: Sequence[str] | None = None, need_images: bool = True,
) -> VideoSet:
    """Find the videos of one split, whatever the layout of ``root``.

    ``split``: its name; ``val`` and ``valid`` mean the same, in any case. ``format``: one of ``FORMATS`` instead of
    the first layout that fits. ``objects``: ``late`` or ``first`` instead of the layout's rule. ``videos``: only
    these. ``need_images``: a video without images is an error (the evaluator needs none).
    Missing or extra masks are not refused here: ``datasets.check`` and the evaluator report them.

    Raises UserError, or UserErrors with everything that is wrong.
    """
    root = Path(root)
    format = None if format in (None, "auto") else format
    objects = None if objects in (None, "auto") else objects
    if format is not None and format not in FORMATS:
        raise UserError(f"data.format: unknown format '{format}'; {nearest(format, FORMATS)}")
    if objects not in (None, "late", "first"):
        raise UserError(f"data.objects: unknown rule '{objects}'; valid names: first, late")
    if not root.is_dir():
        raise UserError(f"{root}: there is no such folder; give the data set's root")
    found = None
    if format in (None, "davis", "davis2016"):
        found = _davis(root, split, format)
    if found is None and format in (None, "lvos", "youtube", "plain"):
        found = _split_folder(root, split, format)
    if found is None:
        raise UserError(_not_found(root, split, format))
    if videos is not None:
        found = _selected(found, videos)
    if not found.videos:
        raise UserError(f"{root}: split '{split}' holds no video folders; expected JPEGImages/<video>/<frame>.jpg")
    if need_images:
        without = [video.name for video in found.videos if not video.image_files]
        if without:
            raise UserErrors([f"{root}: video {name} of split '{split}' has no images; add its folder under "
                              "JPEGImages, or leave it out with --videos" for name in without])
    if objects is not None:
        found = replace(found, objects=objects)
    return found


# ---- layouts


def _davis(root: Path, split: str, format: str | None) -> VideoSet | None:
    years = ("2016",) if format == "davis2016" else ("2017", "2016")
    for year in years:
        folder = root / "ImageSets" / year
        lists = [path for path in _listed(folder) if path.suffix == ".txt" and same_split(path.stem, split)]
        if not lists:
            continue
        if len(lists) > 1:
            raise UserError(_two_match(folder, split, lists))
        names = [line.strip() for line in lists[0].read_text(encoding="utf-8").splitlines() if line.strip()]
        images, masks = (_resolution(root / name) for name in ("JPEGImages", MASK_FOLDERS[0]))
        videos = tuple(_video(name, images, [masks], merged=year == "2016") for name in names)
        return VideoSet(root, split, "davis", videos, None, "first", f"ImageSets/{year}/{lists[0].name}")
    return None


def _resolution(folder: Path) -> Path:
    return folder / "480p" if (folder / "480p").is_dir() else folder


def _split_folder(root: Path, split: str, format: str | None) -> VideoSet | None:
    matches = [path for path in _listed(root) if same_split(path.name, split) and _holds_videos(path)]
    if len(matches) > 1:
        raise UserError(_two_match(root, split, matches))
    notes: tuple[str, ...] = ()
    if matches:
        folder = matches[0]
    elif _holds_videos(root):
        folder = root
        notes = (f"{root} is one split by itself; it is used as '{split}'",)
    else:
        return None
    images = folder / "JPEGImages"
    masks = [folder / name for name in MASK_FOLDERS]
    names = {path.name for parent in (images, *masks) for path in _listed(parent) if path.is_dir()}
    if format == "plain":
        meta = None
    else:
        meta = read_meta(folder, None if folder == root else root, split, names)
        if meta is None and format is not None:
            raise UserError(f"{folder}: data.format={format} needs a meta, and none was found; put "
                            f"{folder.name}_meta.json or meta.json there, or leave data.format out")
    found_format = format or (meta.format if meta else "plain")
    about = meta.videos if meta else {}
    videos = tuple(
        _video(name, images, masks, about[name].objects if name in about else (),
               about[name].attributes if name in about else ())
        for name in sorted(names | {name for name in about if about[name].objects})
    )
    return VideoSet(root, split, found_format, videos, meta.path if meta else None, "late", folder.name,
                    notes + (meta.notes if meta else ()))


def _holds_videos(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in ("JPEGImages", *MASK_FOLDERS))


def _video(
    name: str, images: Path, masks: Sequence[Path], objects: tuple[ObjectRecord, ...] = (),
    attributes: tuple[str, ...] = (), merged: bool = False,
) -> Video:
    image_files = {}
    for path in _listed(images / name):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            image_files.setdefault(path.stem, path.name)
    mask_folder = next((folder / name for folder in masks if (folder / name).is_dir()), None)
    mask_stems = [path.stem for path in _listed(mask_folder) if path.suffix == ".png"] if mask_folder else []
    return Video(
        name=name,
        frames=tuple(sorted_stems(image_files or mask_stems)),
        image_folder=images / name if image_files else None,
        mask_folder=mask_folder,
        masks=tuple(sorted_stems(mask_stems)),
        objects=objects,
        attributes=attributes,
        merged=merged,
        image_files=image_files,
    )


def _listed(folder: Path) -> list[Path]:
    """The entries of a folder by name, without hidden ones; none where it does not exist."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


# ---- selection and messages


def _selected(found: VideoSet, names: Sequence[str]) -> VideoSet:
    known = {video.name: video for video in found.videos}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserErrors([f"{found.root}: split '{found.split}' has no video '{name}'; {_suggest(name, known)}"
                          for name in unknown])
    wanted = set(names)
    return replace(found, videos=tuple(video for video in found.videos if video.name in wanted))


def _suggest(name: str, known: Mapping[str, Video]) -> str:
    hint = nearest(name, known)
    return hint if len(hint) < 200 else f"it has {len(known)} videos, such as {', '.join(sorted(known)[:3])}"



def _two_match(folder: Path, split: str, matches: Sequence[Path]) -> str:
    names = " and ".join(f"'{path.name}'" for path in matches)
    return f"{folder}: {names} both mean the split '{split}'; rename or remove one of them"


def _not_found(root: Path, split: str, format: str | None) -> str:
    splits = [path.name for path in _listed(root) if path.is_dir() and _holds_videos(path)]
    lists = sorted({path.stem for year in ("2017", "2016") for path in _listed(root / "ImageSets" / year)
                    if path.suffix == ".txt"})
    there = f"it has {', '.join(splits + lists)}" if splits or lists else "it has no split"
    if format in ("davis", "davis2016"):
        return f"{root}: data.format={format} needs ImageSets/2017/{split}.txt (or 2016); {there}"
    return (f"{root}: there is no split '{split}'; {there}. Expected ImageSets/2017/{split}.txt, "
            f"{split}/JPEGImages or JPEGImages")
