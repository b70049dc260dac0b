"""The rules of the memory policies, each on a sequence made by hand (numbers of the papers' codes where known)."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from common.errors import UserError
from configs.schema import MemoryConfig
from models.memory import POLICIES, Bank, Candidate, Evidence, build_policy, register_policy
from models.memory.policies.diversity import Diversity, swap_gain
from models.memory.policies.quality import AbsenceAware, Quality, frame_quality
from models.memory.policies.relevance import MostUsed, RMem

BOUNDED = sorted(name for name, policy in POLICIES.items() if policy.bounded)
UNSAFE = {name for name, policy in POLICIES.items() if not policy.protects_references}  # which is their point


def entries(value: float = 0.0, tokens: int = 4, channels: int = 8) -> list:
    shape = (1, tokens, channels)
    return [(torch.full(shape, float(value)), torch.full(shape, float(value))) for _ in range(2)]


def evidence(presence=(0.1,), confidence=(0.9,), entropy=0.1, rival=0.0, tokens: int = 4) -> Evidence:
    return Evidence(torch.tensor(presence), torch.tensor(confidence), torch.tensor(entropy), torch.tensor(rival),
                    torch.full((tokens,), 0.5))


class Stream:
    """A bank, a policy, and what the network does with them."""

    def __init__(self, policy, capacity: int = 8, bank: Bank | None = None):
        named = isinstance(policy, str)
        self.policy = build_policy(MemoryConfig(policy=policy, capacity=capacity)) if named else policy
        self.bank = bank or Bank(entries(), self.policy.slots())

    def offer(self, frame: int, seen: Evidence | None = None, reference: bool = False, fused=None) -> list[int]:
        fused = fused or entries(frame)
        candidate = Candidate(frame, fused[0][0], 2, reference, seen or evidence())
        if reference and self.policy.protects_references:
            self.bank.add_reference(fused, frame)
        else:
            self.bank.write(fused, self.policy.choose(self.bank, candidate), frame, reference)
        return self.frames()

    def frames(self) -> list[int]:
        """Stored frames, newest first, as the read would see them."""
        seen = min(self.bank.offered, self.bank.capacity)
        return sorted(self.bank.frame[:seen][self.bank.filled[:seen]].tolist(), reverse=True)


def run(policy, until: int, gap: int = 5, capacity: int = 8, **kwargs) -> list[int]:
    stream = Stream(policy, capacity)
    for frame in range(gap, until + 1, gap):
        stream.offer(frame, **kwargs)
    return stream.frames()


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("seen", [evidence(), evidence((0.0,), (0.0,)), evidence(confidence=(0.01,), entropy=0.69)])
def test_a_rule_says_whether_it_declines_and_whether_it_judges(name, seen):
    """Else the read would take empty slots for frames, or the predictor would not gather what the rule asks for."""
    policy = POLICIES[name]
    stream = Stream(name)
    for frame in range(5, 30, 5):
        candidate = Candidate(frame, entries(frame)[0][0], 2, False, seen if policy.needs_evidence else None)
        stream.bank.write(entries(frame), stream.policy.choose(stream.bank, candidate), frame)
    within_reach = stream.bank.filled[:min(stream.bank.offered, stream.bank.capacity)]
    assert within_reach.all() or policy.may_decline


def test_a_name_belongs_to_one_rule():
    with pytest.raises(ValueError, match=r"wants the name 'fifo', which models\.memory\.\S+ has"):
        register_policy("fifo")(type("Other", (POLICIES["uniform"],), {}))
    assert POLICIES["fifo"].__name__ != "Other"


def test_a_bank_of_references_alone_keeps_them():
    stream = Stream("fifo", 2)
    stream.bank.reference[:-1] = stream.bank.filled[:-1] = True
    assert stream.policy.pick(stream.bank, torch.zeros(4)) == stream.bank.capacity


def test_a_reference_has_no_scores_to_judge():
    with pytest.raises(UserError, match="a reference frame has no scores"):
        POLICIES["quality"].evidence(Candidate(5, entries()[0][0], 2, True))


def test_only_the_official_rules_lose_references():
    assert {name for name in UNSAFE if POLICIES[name].__module__.startswith("models.")} == {"lvos6", "fifo_official"}


# The official rules: facts/memory.md, sections 1 to 3.

def test_unbounded_keeps_every_frame():
    assert run("unbounded", 12) == [10, 5, 0]
    assert run("unbounded", 100) == list(range(100, -1, -5))


@pytest.mark.parametrize("until, stored", [
    (30, [30, 25, 20, 15, 10, 5, 0]), (35, [35, 30, 20, 15, 10, 5, 0]), (45, [45, 40, 20, 15, 10, 5, 0]),
    (100, [100, 95, 20, 15, 10, 5, 0])])
def test_lvos6_settles_at_seven_and_drops_the_second_newest(until, stored):
    assert run("lvos6", until) == stored


def test_lvos6_loses_a_late_reference():
    stream = Stream("lvos6")
    for frame in range(5, 36, 5):
        stream.offer(frame)
    assert stream.offer(37, reference=True)[:2] == [37, 35]
    assert stream.offer(42) == [42, 37, 20, 15, 10, 5, 0]
    assert stream.offer(47) == [47, 42, 20, 15, 10, 5, 0]


def test_fifo_official_loses_the_first_reference():
    assert run("fifo_official", 15, capacity=4) == [15, 10, 5, 0]
    assert run("fifo_official", 20, capacity=4) == [20, 15, 10, 5]


# By the clock.

def test_fifo_keeps_the_newest_and_the_reference():
    assert run("fifo", 20, capacity=4) == [20, 15, 10, 5, 0]
    assert run("fifo", 25, capacity=4) == [25, 20, 15, 10, 0]


def test_uniform_drops_the_frame_whose_neighbours_are_closest():
    stream = Stream("uniform", 3)
    assert [stream.offer(frame) for frame in (5, 10, 15)][-1] == [15, 10, 5, 0]
    assert stream.offer(20) == [20, 15, 10, 0]  # the neighbours of each are 10 apart: the oldest leaves
    assert stream.offer(25) == [25, 20, 10, 0]  # of 15 and 20 they are 10 apart, of 10 they are 15
    assert stream.offer(30) == [30, 20, 10, 0]  # 20..30: 25 leaves, though it is the newest


@pytest.mark.parametrize("capacity", [2, 5, 8])
def test_uniform_never_leaves_a_hole_of_twice_the_even_spacing(capacity):
    stream, worst = Stream("uniform", capacity), 0.0
    for frame in range(1, 1500):
        stored = stream.offer(frame)
        if frame > capacity:
            worst = max(worst, max(a - b for a, b in pairwise(stored)) / (frame / capacity))
    assert worst <= 2


# By attention.

class ScriptedRMem(RMem):
    """Relevances made up, as in facts/memory.md, section 6."""

    def relevance(self, bank, candidate):
        table = {15: {0: .5, 5: .1, 10: .4}, 20: {0: .45, 10: .35, 15: .2}, 25: {0: .4, 10: .3, 20: .3}}
        return torch.tensor([table[candidate.frame].get(frame, 0.0) for frame in bank.frame.tolist()])

    def pick(self, bank, score):
        self.scores = {frame: round(-value, 2) for frame, value in zip(bank.frame.tolist(), score.tolist(), strict=True)
                       if value}
        return super().pick(bank, score)


def test_rmem_adds_freshness_to_relevance():
    stream = Stream(ScriptedRMem(MemoryConfig(policy="rmem", capacity=2)))
    stream.offer(5)
    stream.offer(10)
    for frame, stored, scores in ((15, [15, 10, 0], {0: 1.07, 5: .73, 10: 1.03}),
                                  (20, [20, 10, 0], {0: 1.09, 10: 1.02, 15: .86}),
                                  (25, [25, 20, 0], {0: 1.06, 10: .96, 20: .98})):
        assert stream.offer(frame) == stored and stream.policy.scores == scores


def test_rmem_keeps_what_the_objects_look_at():
    def look(*tokens: int) -> list:
        keys = torch.zeros(1, 4, 8)
        for token in tokens:
            keys[0, token, token] = 4
        return [(keys, keys)] * 2

    for foreground, left in (([1.0, 0, 0, 0], 10), ([0, 1.0, 1.0, 1.0], 5)):
        stream = Stream("rmem", 2)
        stream.offer(5, fused=look(0))
        stream.offer(10, fused=look(1, 2, 3))
        seen = dataclasses.replace(evidence(), foreground=torch.tensor(foreground))
        assert stream.offer(15, seen, fused=look(0, 1, 2, 3)) == [15, *({5, 10} - {left}), 0]


def test_most_used_divides_usage_by_age():
    worth = {0: .1, 5: .5, 10: .2, 15: .3, 20: .4}

    class Scripted(MostUsed):
        def attention_received(self, bank, candidate, weight=None):
            return torch.tensor([worth[frame] for frame in bank.frame.tolist()])

    stream = Stream(Scripted(MemoryConfig(policy="most_used", capacity=2)))
    stream.offer(5)
    stream.offer(10)
    assert stream.offer(15) == [15, 5, 0]  # 5: .5, 10: .2
    assert stream.offer(20) == [20, 5, 0]  # 15 is used less than 5 per offer, however short its life
    assert stream.bank.record("age")[:3].tolist() == [4, 3, 0]
    worth |= {5: .3, 15: .4}
    stream = Stream(Scripted(MemoryConfig(policy="most_used", capacity=2)))
    for frame in (5, 10, 15):
        stream.offer(frame)
    assert stream.offer(20) == [20, 15, 0]  # 5 received .9 in all, 15 only .4, but .3 and .4 per offer


def test_attention_received_sums_to_one_and_finds_the_alike_frame():
    torch.manual_seed(0)
    stream = Stream("most_used", 3)
    looks = [torch.randn(1, 4, 8) for _ in range(4)]
    newcomer = Candidate(15, 4 * looks[2], 1)
    stream.offer(5, fused=[(looks[1], looks[1])] * 2)
    without = stream.policy.attention_received(stream.bank, newcomer)
    stream.offer(10, fused=[(looks[2], looks[2])] * 2)
    mass = stream.policy.attention_received(stream.bank, newcomer)
    assert mass.shape == (5,) and math.isclose(mass.sum().item(), 1, rel_tol=1e-5)
    assert mass.argmax() == 2 and mass[3:].abs().max() == 0
    stream.bank.filled[2] = False  # as where a rule has declined: nothing there to receive any
    assert torch.allclose(stream.policy.attention_received(stream.bank, newcomer), without)


# By content.

def test_diversity_takes_the_swap_of_largest_determinant():
    """facts/memory.md, section 10: stored {0, 10} of cosine .9, det .19; a newcomer of cosine .6 gives .64."""
    gram = torch.tensor([[1, .9, 0], [.9, 1, 0], [0, 0, 1]])
    gain = swap_gain(gram, torch.tensor([.6, .2, 0]), torch.tensor([True, True, False]))
    assert math.isclose(math.exp(gain[1]), .64 / .19, rel_tol=1e-5)
    gain = swap_gain(gram, torch.tensor([.9, 0, 0]), torch.tensor([True, True, True]))
    assert math.isclose(math.exp(gain[2]), .62 / .19, rel_tol=1e-5)  # |det|: here it is -.62


class ScriptedDiversity(Diversity):
    table: dict

    def similarities(self, bank, candidate):
        return torch.tensor([self.table[candidate.frame].get(frame, 0.0) for frame in bank.frame.tolist()])


def test_diversity_declines_drift_and_repetition():
    stream = Stream(ScriptedDiversity(MemoryConfig(policy="diversity", capacity=1)))
    stream.policy.table = {10: {0: .9}, 20: {0: .4, 10: .5}, 30: {0: .6, 10: .7}, 40: {0: .8, 30: .7}}
    assert stream.offer(10) == [10, 0]
    assert stream.offer(20) == [10, 0]  # no more similar to the reference than .5: drift
    assert stream.offer(30) == [30, 0]
    assert stream.offer(40) == [30, 0]  # det .36 would replace .64


def test_diversity_is_blind_to_motion():
    torch.manual_seed(0)
    look = torch.randn(1, 4, 8)
    stream = Stream("diversity", 2, Bank([(look, look)], 2))
    assert torch.allclose(stream.policy.similarities(stream.bank, Candidate(5, look.flip(1), 1))[0], torch.tensor(1.0))


# By the network's scores.

def test_quality_reproduces_qdmn():
    """facts/memory.md, section 9, without the slip of one: qualities of 5, 10, ..."""
    class Scripted(Quality):
        def quality(self, evidence):
            return evidence.confidence[0]

    stream = Stream(Scripted(MemoryConfig(policy="quality", capacity=4)))
    for frame, value in zip(range(5, 20, 5), (.95, .90, .60), strict=True):
        stream.offer(frame, evidence(confidence=(value,)))
    assert stream.frames() == [10, 5, 0]  # .60 is no more than .75 of .95, though not of .90, the latest; .90 is
    for frame, value in zip((20, 25), (.92, .85), strict=True):
        stream.offer(frame, evidence(confidence=(value,)))
    assert stream.frames() == [25, 20, 10, 5, 0]  # .60 was too poor; insertion numbers 1, 2, 3, 4
    assert stream.offer(30, evidence(confidence=(.97,))) == [30, 25, 20, 5, 0]  # numbers 1, 3, 4, 5
    assert stream.offer(35, evidence(confidence=(.99,))) == [35, 30, 25, 20, 0]  # numbers 3, 4, 5, 6


def test_quality_compares_with_the_best_and_counts_what_is_written():
    class Scripted(Quality):
        def quality(self, evidence):
            return evidence.confidence[0]

    stream = Stream(Scripted(MemoryConfig(policy="quality", capacity=4)))
    for frame, value in zip(range(5, 35, 5), (.95, .90, .70, .70, .92, .90), strict=True):
        stream.offer(frame, evidence(confidence=(value,)))
    assert stream.frames() == [30, 25, 10, 5, 0]  # .70 is less than .75 of .95, though not of .90, the latest before it
    assert sorted(stream.bank.record("order")[stream.bank.filled].tolist()) == [0, 1, 2, 3, 4]  # 0: the reference


def test_frame_quality_is_zero_without_a_target_and_falls_with_entropy():
    assert frame_quality(evidence(presence=(0.0,), confidence=(0.0,), entropy=0.0)) == 0
    sure, unsure = (frame_quality(evidence(entropy=entropy)) for entropy in (0.1, 0.4))
    assert 0 < unsure < sure <= 0.9


def test_absence_aware_writes_only_what_is_present_and_certain():
    stream = Stream("absence_aware", 4)
    stream.offer(5, evidence(presence=(0.0,), confidence=(0.0,)))
    stream.offer(10, evidence(confidence=(0.3,)))
    stream.offer(15, evidence(presence=(0.1, 0.2), confidence=(0.9, 0.3)))
    assert stream.frames() == [0]
    assert stream.offer(20, evidence(presence=(0.1, 0.0), confidence=(0.9, 0.0))) == [20, 0]  # one is simply away


def test_absence_aware_keeps_frames_with_a_rival():
    stream = Stream("absence_aware", 4)
    for frame in range(5, 50, 5):
        stream.offer(frame, evidence(rival=0.5 if frame in (10, 20) else 0.0))
    assert stream.frames() == [45, 40, 20, 10, 0]
    assert stream.offer(50, evidence(rival=0.5)) == [50, 45, 40, 20, 0]  # the oldest anchor leaves


def test_absence_aware_gives_up_anchors_of_which_there_are_too_many():
    stream = Stream("absence_aware", 4)
    for frame in range(5, 25, 5):
        stream.offer(frame, evidence(rival=0.5))
    assert stream.frames() == [20, 15, 10, 5, 0]  # while there is room
    for frame in range(25, 50, 5):
        stream.offer(frame, evidence())
    assert stream.frames() == [45, 40, 20, 15, 0]  # half of the capacity


def test_absence_aware_takes_what_covers_too_little_for_absent():
    for share, stored in ((0.9e-3, [0]), (1.1e-3, [5, 0])):
        policy = AbsenceAware(MemoryConfig(policy="absence_aware", min_presence=1e-3))
        assert Stream(policy).offer(5, evidence(presence=(share,))) == stored


def test_absence_aware_is_a_rule_of_its_configuration():
    policy = AbsenceAware(MemoryConfig(policy="absence_aware", min_confidence=0.95))
    assert not policy.trusted(evidence()) and policy.trusted(evidence(confidence=(0.96,)))


# What holds for all.

def scripted(frame: int) -> Evidence:
    return evidence(presence=(0.1 * (frame % 7 > 1),), confidence=(0.5 + 0.4 * math.sin(frame),),
                    rival=0.2 * (frame % 3 == 0))


@pytest.mark.parametrize("name", sorted(set(BOUNDED) - UNSAFE))
def test_references_never_leave(name):
    stream, generator = Stream(name, 3), torch.Generator().manual_seed(0)
    late = {20: 20, 55: 55, 57: 57}
    for frame in range(5, 300, 5):
        look = torch.randn(1, 4, 8, generator=generator)
        stream.offer(frame, scripted(frame), fused=[(look, look)] * 2)
        for extra in [value for value in late if frame <= value < frame + 5]:
            stream.offer(extra, reference=True)
    bank = stream.bank
    references = sorted(bank.frame[bank.reference & bank.filled].tolist())
    assert references == [0, *late]
    assert bank.capacity == 1 + stream.policy.slots() + len(late)
    # Whole rows, not only their labels, are where they belong.
    for frame, reference, row in zip(bank.frame.tolist(), bank.reference.tolist(), bank.tensors[1][1][0], strict=True):
        assert not reference or frame not in late or (row == frame).all()


@pytest.mark.parametrize("name", BOUNDED)
def test_bytes_are_constant_once_the_bank_is_full(name):
    stream, sizes = Stream(name, 3), {}
    for frame in range(1, 3001):
        stream.offer(frame, scripted(frame))
        if frame in (30, 300, 3000):
            sizes[frame] = (stream.bank.num_bytes(), len(stream.bank.records), len(vars(stream.policy)))
    assert len(set(sizes.values())) == 1
    assert sizes[30][0] >= sum(tensor.numel() * 4 for kept in stream.bank.tensors for tensor in kept)


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_choosing_never_looks_at_values_on_the_host(name):
    """A fake tensor on a fake CUDA device has no values: any .item() or `if tensor` raises."""
    with FakeTensorMode(), torch.device("cuda"):
        fused = [(torch.empty(1, 4, 8), torch.empty(1, 4, 8))] * 2
        stream = Stream(name, 3, Bank(fused, build_policy(MemoryConfig(policy=name, capacity=3)).slots()))
        seen = Evidence(torch.empty(2), torch.empty(2), torch.empty(()), torch.empty(()), torch.empty(4))
        for frame in range(5, 40, 5):
            candidate = Candidate(frame, fused[0][0], 2, evidence=seen)
            slot = stream.policy.choose(stream.bank, candidate)
            assert slot.shape == () and slot.dtype == torch.int64 and slot.device.type == "cuda"
            stream.bank.write(fused, slot, frame)
            tokens, mask = stream.bank.read(0, stream.policy.may_decline)
            assert tokens[0].device.type == "cuda" and (mask is None) != stream.policy.may_decline


@pytest.mark.parametrize("name", BOUNDED)
def test_a_clone_decides_as_the_original(name):
    """A policy keeps nothing of a video in itself, so that states can be copied and resumed."""
    stream, generator = Stream(name, 3), torch.Generator().manual_seed(1)
    looks = {frame: torch.randn(1, 4, 8, generator=generator) for frame in range(5, 200, 5)}
    for frame in range(5, 100, 5):
        stream.offer(frame, scripted(frame), fused=[(looks[frame],) * 2] * 2)
    twin = Stream(stream.policy, bank=stream.bank.clone())
    for frame in range(100, 200, 5):
        first = stream.offer(frame, scripted(frame), fused=[(looks[frame],) * 2] * 2)
        assert twin.offer(frame, scripted(frame), fused=[(looks[frame],) * 2] * 2) == first


def test_unknown_policy_and_missing_evidence_are_the_users_errors():
    with pytest.raises(UserError, match="most_used"):
        build_policy(MemoryConfig(policy="most_use"))
    stream = Stream("quality")
    with pytest.raises(UserError, match="evidence"):
        stream.policy.choose(stream.bank, Candidate(5, entries()[0][0], 2))
