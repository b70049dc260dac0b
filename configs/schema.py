"""The schema of the configuration, and its documentation: every key, its type, range, default and where that is from.

Defaults are those of the official AOT code (aot-benchmark, ``configs/default.py``) unless a comment says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Edge = Annotated[float, Field(ge=1)]  # pixels


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, assignments are checked like values from a file."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)


class SourceConfig(Section):
    """One data set of a training mixture."""

    root: str  # data root, or the folder of images for static ones; relative to data.root where that is set
    split: str = "train"
    kind: Literal["video", "static"] = "video"  # static: pictures, without split and steps between frames
    format: Literal["auto", "lvos", "davis", "youtube", "plain", "coco", "voc"] = "auto"
    repeat: Annotated[float, Field(gt=0)] = 1.0  # weight: how often each video is seen (DAVIS 5 beside YouTube-VOS 1)
    max_gap: Positive = 3  # largest step between frames of a clip: 3 YouTube-VOS, 12 DAVIS

    @field_validator("max_gap")
    @classmethod
    def _of_videos(cls, gap: int, others: ValidationInfo) -> int:
        if others.data.get("kind") == "static" and (gap != 3 or others.data.get("split") != "train"):
            raise ValueError("pictures (kind: static) have neither splits nor steps between frames; leave out "
                             "`split` and `max_gap`")
        return gap


class DataConfig(Section):
    """Where the videos lie. Data roots are read where they are and never written to."""

    root: str | None = None  # the data set; train.py uses it where `sources` is empty
    split: str = "train"
    format: Literal["auto", "lvos", "davis", "youtube", "plain"] = "auto"
    objects: Literal["auto", "late", "first"] = "auto"  # late: from where an id first appears; first: of the first mask
    workers: Annotated[int, Field(ge=0)] = 2  # decoding processes a rank
    sources: list[SourceConfig] = Field(default_factory=list)  # a mixture for training


class ModelConfig(Section):
    """The network."""

    name: str = "aott"  # the variant: a file of configs/models
    family: Literal["aot", "deaot", "ddmemory"] = "aot"
    # small (ours, learns from nothing), mobilenetv2, resnet50, resnet101, swin_base, or any timm name with features
    encoder: str = "mobilenetv2"
    encoder_weights: str | None = None  # file of ImageNet weights: torchvision's, timm's or the official names
    blocks: Positive = 1  # transformer blocks (LSTT) or gated propagation modules
    channels: Annotated[int, Field(ge=16, multiple_of=16)] = 256  # width of the tokens
    heads: Positive = 8  # attention heads, among which the channels divide; DeAOT: 1
    align_corners: bool = True  # also the rounding of the input: 16k + 1 (True) or 16k (False: Swin)
    drop_path: Share = 0.1  # stochastic depth in training
    conv_dropout: Share = 0.1  # DeAOT: channel dropout of the depthwise convolutions in training
    start: Literal["official", "matching"] = "official"  # first weights; matching (ours): for short trainings
    # True: stem and first stage do not learn (official freeze_at = 2); all: nothing of it does
    freeze_encoder: bool | Literal["all"] = True
    # DDMemory only: a reconstruction of ours, see docs/memory.md
    global_bank: Literal["dense", "slots"] = "dense"
    global_frames: Positive = 2  # size of the dense form, in frames' worth of tokens
    global_elsewhere: Annotated[int, Field(ge=0)] = 2  # beside these, for frames without any object (0: none)
    global_weight: Annotated[float, Field(gt=0)] = 5.0  # dense form: frames that an owner's tokens weigh as, together
    global_likeness: Annotated[float, Field(ge=-1, le=1)] = 0.7  # cosine of keys at which the dense form knows a token
    global_slots: Positive = 6  # slot form: slots of each owner (10 objects and the background)
    global_gate: Literal["mean", "constant", "open"] = "mean"  # where the update gate starts; open: no gate
    global_writes: Positive = 200  # writes that a token or slot is the mean of, at most

    @field_validator("heads")
    @classmethod
    def _divides(cls, heads: int, others: ValidationInfo) -> int:
        channels = others.data.get("channels", heads)
        if channels % heads:
            raise ValueError(f"the {channels} channels do not divide into so many heads; choose another number")
        return heads


class MemoryConfig(Section):
    """What is remembered, and for how long."""

    policy: str = "unbounded"  # a name of models.memory.policies
    capacity: Positive = 8  # long-term frames kept beside the references, for bounded policies (RMem: 8)
    gap: Positive = 9999  # frames between offers to the long-term memory; L variants: 5
    short_skip: Positive = 1  # the short-term memory is this many frames back
    global_interval: Positive = 5  # DDMemory: frames between writes to the global bank
    min_presence: Share = 0.0001  # share of the frame that a target must cover to count as present
    min_confidence: Share = 0.5  # mean margin inside the predicted objects that counts as certain


class TrainConfig(Section):
    """The schedule, the losses and the clips (facts: aot-benchmark, configs/pre_ytb_dav.py)."""

    steps: Positive = 100_000
    stop_at: Positive | None = None  # stop early without changing the schedule
    batch: Positive = 16  # clips a step, over all ranks
    accumulate: Positive = 1  # micro-batches a step
    frames: Annotated[int, Field(ge=2)] = 5  # frames a clip: the reference and the predicted ones
    crop: Positive = 465  # pixels; 464 where align_corners is false
    short_edge: Positive = 480  # pixels: videos are scaled so that their short edge is this times one of `scales`
    scales: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (0.7, 1.3)  # from, to
    optimiser: Literal["adamw", "muon"] = "adamw"  # muon (ours): orthogonalised steps for the weight matrices
    lr: Annotated[float, Field(gt=0)] = 2e-4
    lr_min: Annotated[float, Field(ge=0, validate_default=True)] = 2e-5  # 1e-5 for other encoders than MobileNetV2
    warmup: Share = 0.05  # share of the steps
    power: Annotated[float, Field(gt=0)] = 0.9  # of the polynomial decay
    encoder_lr_ratio: Share = 0.1  # of (lr - lr_min)
    added_lr_ratio: Annotated[float, Field(gt=0)] = 1.0  # the same for parts that a family adds (DDMemory; ours)
    matrix_lr_ratio: Annotated[float, Field(gt=0)] = 3.0  # the same for the weight matrices under muon
    weight_decay: Annotated[float, Field(ge=0)] = 0.07
    clip_gradient: Annotated[float, Field(gt=0)] = 5.0
    ema: Share = 0.1  # the average spans this share of the steps; 0 switches it off
    aux_weight: Annotated[float, Field(ge=0)] = 1.0  # loss of the reference frame
    aux_ratio: Share = 1.0  # share of the steps over which aux_weight falls to 0
    hard_ratio: Annotated[float, Field(gt=0, le=1)] = 0.15  # share of the pixels in the cross-entropy at the end
    hard_from: Share = 0.5  # share of the steps over which hard_ratio is reached
    feed_predictions_from: Share = 0.5  # share of the steps from which the network's own masks feed its memory
    memory_gap: Positive = 9999  # as memory.gap, in training clips; L variants: 2
    global_interval: Positive = 1  # as memory.global_interval, in training clips (DDMemory; ours)
    detach_every: Annotated[int, Field(ge=0)] = 0  # frames between cuts of back-propagation through the memory; 0: none
    returns: Share = 0.0  # share of the clips in which an object leaves and comes back (DDMemory's last stage; ours)
    stale_local: Share = 0.0  # probability that the short-term memory of a step stays at the references (ours)
    previous_frame_reference: bool = False  # the second frame is given as a reference too
    shuffle_identities: bool = True
    few_identities: bool = False  # shuffle a clip's n objects over the first n identities only (ours: short schedules)
    augmentation: Literal["v1", "v2"] = "v1"  # DeAOT: v2
    merge: Share = 0.3  # probability that a second sample is pasted onto a clip; 1.0 for static images
    merge_more: Share = 0.0  # after each pasted sample, probability of one more (ours: several objects a clip)
    cut: Share = 0.0  # probability that an object of a clip is cut in two, or halved (ours)
    leave: Share = 0.0  # probability that pasted objects leave for a while, and that the whole scene does (ours)
    camera: Share = 0.0  # probability that a video clip is seen from elsewhere, by a camera that wanders (ours)
    newcomers: bool = False  # objects that appear after the reference are background (ours; official: clips avoid them)
    reverse: Share = 0.5  # probability that a clip runs backwards
    amp: Literal["none", "fp16", "bf16"] = "none"  # float32 on processors without instructions for it
    deterministic: bool = False  # bit-equal on the same card, slower
    weights: str | None = None  # weights to start from
    after: str | None = None  # recipe, beside this one, that is trained first; this one starts from its weights
    checkpoint_every: Positive = 1000
    keep_checkpoints: Positive = 3
    log_every: Positive = 20
    image_every: Positive = 500
    validate_every: Annotated[int, Field(ge=0)] = 0  # 0: at the end only
    validate_root: str | None = None
    validate_split: str = "val"
    validate_protocol: Literal["lvos", "v1-2022", "davis2017"] = "lvos"

    @field_validator("scales")
    @classmethod
    def _ordered(cls, scales: tuple[float, float]) -> tuple[float, float]:
        if scales[0] > scales[1]:
            raise ValueError("from is above to; write the smaller one first")
        return scales

    @field_validator("lr_min")
    @classmethod
    def _below(cls, lowest: float, others: ValidationInfo) -> float:
        rate = others.data.get("lr", lowest)
        if lowest > rate:
            raise ValueError(f"above train.lr, {rate:g}, at which the schedule starts; lower it, too")
        return lowest


class InferenceConfig(Section):
    """One frame at a time. Sizes in pixels; images are never enlarged except by `scales`."""

    # Limit; auto: none, but 624 with other scales than 1, as the official evaluator has it.
    short_edge: Edge | Literal["auto"] | None = "auto"
    long_edge: Edge | None = 1040.0  # limit: 1.3 * 800 (official), the LVOS setting
    scales: list[Annotated[float, Field(gt=0)]] = Field(default_factory=lambda: [1.0], min_length=1)
    flip: bool = False
    streams: Positive = 1  # videos at once on one device
    amp: Literal["none", "fp16", "bf16"] = "none"  # as train.amp
    graphs: bool = False  # CUDA graphs, where they apply: a CUDA device, one scale, no flip, at most ten objects
    compile: bool = False  # torch.compile of encoder and decoder: same masks, slow start

    @property
    def short_limit(self) -> float | None:
        """What ``short_edge`` means, in pixels; None: no limit."""
        if self.short_edge == "auto":
            return None if self.scales == [1.0] else 624.0
        return self.short_edge


class Config(Section):
    """The whole tree."""

    name: str = "run"  # of the run; RUN defaults to runs/<name>
    seed: Annotated[int, Field(ge=0)] = 0
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    inference: InferenceConfig = Field(default_factory=InferenceConfig)
