"""DDMemory (a reconstruction): the properties that protect its global memory, and what else must hold."""

import io

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from common.errors import UserError
from configs import load_config, model_config_path
from models import build_network, load_state
from models.identity import IdentityBank
from models.memory.global_bank import (
    ELSEWHERE,
    OWNERS,
    DenseBank,
    Frame,
    SlotBank,
    owner_shares,
    token_certainty,
    token_owners,
)

GRID, SIZE = (4, 6), (49, 81)  # tokens and pixels of the small frames here
FORMS = ["dense", "slots"]


def config(form: str, *overrides: str, name: str = "ddmemory"):
    return load_config(model_config_path(name), [f"model.global_bank={form}", "model.blocks=2", "model.channels=32",
                                                 "model.heads=2", *overrides])


def trained(network):
    """Weights as after training: nothing that starts at zero is zero."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in network.named_parameters():
        if name.startswith(network.added_parts):
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def network_of(form: str, *overrides: str):
    torch.manual_seed(0)
    return trained(build_network(config(form, *overrides))).eval()


def frames(count: int, size=SIZE) -> torch.Tensor:
    return torch.rand(count, 1, 3, *size, generator=torch.Generator().manual_seed(1))


def labels(*boxes: tuple[int, int, int, int]) -> torch.Tensor:
    """A label map of one box an object: (top, bottom, left, right) in pixels."""
    mask = torch.zeros(1, *SIZE, dtype=torch.uint8)
    for index, (top, bottom, left, right) in enumerate(boxes, start=1):
        mask[:, top:bottom, left:right] = index
    return mask


TWO = ((0, 32, 0, 32), (16, 49, 48, 81))
SURE = torch.ones(1, 15)  # certainty of the tokens of entry()


def fresh_bank(form: str, **settings):
    """As before any training; without places for what is elsewhere, unless they are asked for."""
    torch.manual_seed(0)
    model = config(form).model.model_copy(update={"global_elsewhere": 0, **settings})
    return {"dense": DenseBank, "slots": SlotBank}[form](model).requires_grad_(False)


def bank_of(form: str, **settings):
    """As after training: nothing that starts at zero is zero."""
    bank = fresh_bank(form, **settings)
    generator = torch.Generator().manual_seed(5)
    for parameter in bank.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return bank


def entry(seed: int, grid=(3, 5)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, grid[0] * grid[1], 32, generator=generator), \
        torch.randn(1, grid[0] * grid[1], 32, generator=generator)


def shares_of(*boxes) -> torch.Tensor:
    return owner_shares(labels(*boxes)[:, :48, :80], align_corners=False)  # (1, 12, 15)


def on_fake_device(network: torch.nn.Module) -> torch.nn.Module:
    """The network with parameters that have a shape and a device, and no values; inside a FakeTensorMode."""
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for name, value in table.items():
                if value is not None:
                    fake = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                    table[name] = torch.nn.Parameter(fake, False) if table is module._parameters else fake
    return network


def equal(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# 1. Before anything is written, it is plain AOT.

@pytest.mark.parametrize("form", FORMS)
def test_starts_as_plain_aot(form):
    def logits(network, configuration):
        with torch.inference_mode():
            state = network.start(network.encode(video[0]), labels(*TWO), 2, configuration.memory)
            out = []
            for frame in video[1:]:
                found, tokens = network.segment(network.encode(frame), state)
                out.append(found)
                state = network.memorise(tokens, labels(*TWO), state)
        return torch.stack(out)

    video = frames(5)
    plain = config("dense", "model.family=aot", "memory.policy=unbounded")  # gap 9999: reference and previous frame
    torch.manual_seed(0)
    aot = build_network(plain).eval()
    ours = config(form, "memory.global_interval=3")
    network = build_network(ours).eval()
    load_state(network, aot.state_dict(), "AOT's weights")
    expected, found = logits(aot, plain), logits(network, ours)
    if form == "dense":  # copies of what a softmax reads change nothing in it
        assert torch.allclose(found[:3], expected[:3], atol=1e-5)
    assert not torch.allclose(found[3], expected[3], atol=1e-4)  # frame 3 was written, and is read
    assert not torch.allclose(logits(trained(network), ours), found, atol=1e-4)  # and what can be learnt has an effect


# 2. Bytes.

@pytest.mark.parametrize("form", FORMS)
def test_bytes_are_constant(form):
    network = network_of(form, "memory.global_interval=1")
    sizes = []
    with torch.inference_mode():
        features = network.encode(frames(1)[0])
        state = network.start(features, labels(*TWO), 2)
        _, tokens = network.segment(features, state)
        for frame in range(1, 1001):
            state = network.memorise(tokens, labels(*TWO), state)
            if frame in (10, 1000):
                sizes.append((state.num_bytes(), len(vars(state.extra)), len(state.short)))
    assert sizes[0] == sizes[1]
    assert all(torch.isfinite(tensor).all() for bank in state.extra.banks for tensor in bank[:6])
    assert all((bank[6].isneginf() == (bank[4] == 0)).all() for bank in state.extra.banks if form == "dense")  # empty


# 3. and 4. Absence.

def test_slots_of_an_absent_object_do_not_move():
    bank = bank_of("slots")
    before = bank.start(entry(0), shares_of(*TWO))
    after, _ = bank.write(before, entry(1), shares_of(TWO[0]), SURE)
    own = [owner for owner in range(11) for _ in range(bank.per_owner)]
    changed = (after[0] != before[0]).any(-1)[0].tolist()
    assert {owner for owner, moved in zip(own, changed, strict=True) if moved} == {0, 1}
    counted = (after[1] != before[1])[0].tolist()
    assert {owner for owner, moved in zip(own, counted, strict=True) if moved} == {0, 1}


def after_frames_without_foreground(network):
    """The state after three of them, the global memory before them, and the last one's tokens."""
    state = network.start(network.encode(frames(1)[0]), labels(*TWO), 2)
    before = state.extra.clone()
    for frame in frames(3):
        _, tokens = network.segment(network.encode(frame), state)
        state = network.memorise(tokens, labels(), state)
    return state, before, tokens


@pytest.mark.parametrize(("form", "settings"), [("dense", ["model.global_elsewhere=0"]), ("slots", [])])
def test_frames_without_foreground_change_nothing(form, settings):
    network = network_of(form, "memory.global_interval=1", *settings)
    with torch.inference_mode():
        state, before, tokens = after_frames_without_foreground(network)
        assert all(equal(a, b) for a, b in zip(state.extra.banks, before.banks, strict=True))
        assert state.extra.openness.item() == state.extra.confidence.item() == 0
        state = network.memorise(tokens, labels(*TWO), state)
        assert not equal(state.extra.banks[0], before.banks[0])


def test_frames_without_foreground_are_remembered_apart():
    network = network_of("dense", "memory.global_interval=1", "model.global_elsewhere=1")
    with torch.inference_mode():
        state, before, _ = after_frames_without_foreground(network)
        for bank, old, new in zip(network.global_banks, before.banks, state.extra.banks, strict=True):
            apart = old[2][0] == ELSEWHERE
            assert apart.sum() == GRID[0] * GRID[1] and not old[4][0, apart].any()
            assert all(torch.equal(a[:, ~apart], b[:, ~apart]) for a, b in zip(old[:5], new[:5], strict=True))
            assert torch.equal(new[2], old[2]) and new[4][0, apart].any()
            assert torch.equal(new[5][0, :ELSEWHERE], old[5][0, :ELSEWHERE]) and new[5][0, ELSEWHERE] > 0
            bias = bank.read(new)[2][0]
            assert torch.equal(bias.isneginf(), new[4][0] == 0), "an empty place is not read"
            assert torch.equal(bias[~apart], bank.read(old)[2][0, ~apart])


def test_what_is_elsewhere_and_what_is_not_take_no_places_of_each_other():
    bank = fresh_bank("dense", global_frames=1, global_elsewhere=1)
    scene, away = owned_by(0, 0, 0, 1), owned_by(*[ELSEWHERE] * 4)
    state = bank.start(token_map(0, 1, 2, 3), scene)
    for write in range(4):
        state, _ = bank.write(state, token_map(*range(4 + 4 * write, 8 + 4 * write)), away, torch.ones(1, 4))
    apart, held = state[2][0] == ELSEWHERE, state[0][0].argmax(-1)
    assert held[~apart].tolist() == [0, 1, 2, 3]
    assert sorted((held[apart] // 4).tolist()) == [1, 2, 3, 4]  # one new token of each write
    for write in range(4):
        state, _ = bank.write(state, token_map(*range(20 + write, 24 + write)), scene, torch.ones(1, 4))
    assert torch.equal(state[2][0] == ELSEWHERE, apart) and torch.equal(state[0][0].argmax(-1)[apart], held[apart])
    state, _ = bank.write(state, token_map(*held[apart].tolist()), away, torch.ones(1, 4))
    assert state[4][0, apart].tolist() == [2, 2, 2, 2]  # known


def test_an_empty_place_is_like_nothing():
    bank = fresh_bank("dense", global_frames=1, global_elsewhere=1)
    state = bank.start(token_map(0, 1, 2, 3), owned_by(0, 0, 0, 1))
    nothing = torch.zeros(1, 4, 32), torch.ones(1, 4, 32)  # keys like those of empty places
    (_, value, owner, _, count, *_), _ = bank.write(state, nothing, owned_by(*[ELSEWHERE] * 4), torch.ones(1, 4))
    filled = (owner == ELSEWHERE) & (count > 0)
    assert filled.any() and (value[filled] == 1).all()


def test_empty_places_do_not_change_what_is_alike():
    first, later = (tuple(token + 5 for token in entry(seed)) for seed in (0, 1))  # keys have a common mean
    frame, alike = Frame(*later, token_owners(shares_of(*TWO)), SURE, SURE), []
    for elsewhere in (0, 3):
        bank = fresh_bank("dense", global_frames=1, global_elsewhere=elsewhere)
        alike.append(bank._likest(frame, bank.start(first, shares_of(*TWO))))
    torch.testing.assert_close(*alike)


def test_samples_with_and_without_objects_stand_beside_each_other():
    bank = bank_of("dense", global_frames=1, global_elsewhere=1)
    first, second = shares_of(*TWO), shares_of()
    both = [torch.cat(pair) for pair in zip(entry(1), entry(2), strict=True)]
    pair = bank.start(tuple(torch.cat([token] * 2) for token in entry(0)), torch.cat([first] * 2))
    pair, _ = bank.write(pair, both, torch.cat([first, second]), torch.cat([SURE] * 2))
    for index, (given, shares) in enumerate(((1, first), (2, second))):
        alone, _ = bank.write(bank.start(entry(0), first), entry(given), shares, SURE)
        for one, two in zip(alone, pair, strict=True):
            torch.testing.assert_close(one[0], two[index])


# 5. The ends of the gate.

def test_open_gate_keeps_exactly_the_last_frame_and_closed_gate_the_first():
    bank = bank_of("dense", global_gate="open", global_frames=1, global_likeness=-1.0)  # every token is known
    torch.nn.init.zeros_(bank.gate.correction.weight)  # as at the start
    first = entry(0)
    last = tuple(token + 0.01 * torch.randn(token.shape) for token in first)  # each is likest to the one it comes from
    state = bank.start(first, shares_of(*TWO))
    kept, openness = bank.write(state, last, shares_of(*TWO), 0 * SURE)
    assert equal(kept, state) and openness == 0
    after, openness = bank.write(state, last, shares_of(*TWO), SURE)
    assert openness == 1 and equal(after[:2], last) and after[3].unique().tolist() == [1]


# The dense form's rule: what is known, what is new, what leaves.

def token_map(*directions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of one token each direction: the unit vectors of these axes."""
    key = torch.eye(32)[list(directions)].unsqueeze(0)
    return key, 2 * key


def owned_by(*owners: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor([owners]), OWNERS).transpose(1, 2).float()


def test_new_tokens_replace_the_least_used_of_the_owner_that_has_most():
    bank = bank_of("dense", global_gate="open", global_frames=1)
    torch.nn.init.zeros_(bank.gate.correction.weight)
    whose = owned_by(0, 0, 0, 0, 0, 1, 1, 2)
    state = bank.start(token_map(0, 1, 2, 3, 4, 5, 6, 7), whose)
    # Object 1 is away; object 2 shows a new side; of the background two places are new and 0, 1 and 3 are seen again.
    new = token_map(0, 1, 3, 0, 1, 10, 11, 12)
    (keys, _, owner, used, *_), _ = bank.write(state, new, owned_by(0, 0, 0, 0, 0, 0, 0, 2), torch.ones(1, 8))
    held = dict(zip(keys[0].argmax(-1).tolist(), zip(owner[0].tolist(), used[0].tolist(), strict=True), strict=True))
    assert held.keys() - {10, 11} == {0, 1, 3, 5, 6, 7, 12}  # 2 and 4, seen longest ago, made room for two new tokens
    assert held[5] == held[6] == (1, 0) and held[7] == (2, 0) and held[12] == (2, 1)  # absent object: as it was
    assert held[0] == held[3] == (0, 1)


def test_likeness_counts_within_an_owner_only():
    bank = bank_of("dense", global_frames=1)
    state = bank.start(token_map(0, 1, 2, 3), owned_by(0, 0, 0, 1))
    after, _ = bank.write(state, token_map(0, 1, 2, 0), owned_by(0, 0, 0, 1), torch.ones(1, 4))
    # What looks like the background's 0, but is object 1's, became a token of its own.
    assert sorted(after[0][0].argmax(-1)[after[2][0] == 1].tolist()) == [0, 3]


def test_an_owner_weighs_as_in_whole_frames_however_many_tokens_it_has():
    bank = bank_of("dense", global_frames=2, global_weight=3.0)
    state = bank.start(token_map(0, 1, 2, 3), owned_by(0, 0, 0, 1))
    assert bank.read(state)[2].exp().unique().tolist() == [1.5]  # two copies of each token weigh as three
    whose = owned_by(0, 0, 0, 1)
    for write in range(4, 8):
        state, _ = bank.write(state, token_map(0, 1, 2, write), whose, torch.ones(1, 4))
    owner, weight = state[2], bank.read(state)[2].exp()
    assert (owner == 1).sum() > 2  # it gathered looks,
    assert weight[owner == 1].sum() == pytest.approx(3) and weight[owner == 0].sum() == pytest.approx(9)  # no weight


def test_uncertain_tokens_are_not_written():
    bank = bank_of("dense", global_frames=1)
    state = bank.start(entry(0), shares_of(*TWO))
    half = SURE.clone()
    half[:, 7:] = 0
    whole, _ = bank.write(state, entry(1), shares_of(*TWO), half)
    strange = tuple(torch.cat([token[:, :7], 100 + token[:, 7:]], 1) for token in entry(1))
    assert equal(bank.write(state, strange, shares_of(*TWO), half)[0], whole)


def test_a_token_belongs_to_the_object_that_covers_more_than_a_third():
    shares = torch.zeros(1, OWNERS, 3)
    shares[0, :2] = torch.tensor([[0.7, 0.6, 1.0], [0.3, 0.4, 0.0]])
    assert token_owners(shares).tolist() == [[0, 1, 0]]


def test_open_slots_keep_exactly_the_last_frame():
    bank = bank_of("slots", global_gate="open")
    torch.nn.init.zeros_(bank.gate.correction.weight)
    everywhere = shares_of((0, 49, 0, 81))
    fresh = bank.start(entry(1), everywhere)
    late, _ = bank.write(bank.start(entry(0), everywhere), entry(1), everywhere, SURE)
    assert torch.equal(late[0], fresh[0]) and torch.equal(late[2], fresh[2])
    assert late[1].max() == 2  # writes


def test_a_slot_gathers_only_what_its_owner_holds_most_of():
    bank = bank_of("slots")
    shares = torch.zeros(1, OWNERS, 15)
    shares[:, 0], shares[:, 1], shares[:, 2] = 0.3, 0.5, 0.2
    slots, count, _ = bank.start(entry(0), shares)
    assert (count > 0).view(11, -1).any(1).tolist() == [False, True, *[False] * 9]
    assert slots[0, : bank.per_owner].abs().sum() == 0


def test_a_slot_is_a_mean_of_its_owners_tokens_however_strongly_others_are_asked_for():
    bank = bank_of("slots")
    key, value = (token.clone() for token in entry(0))
    key[:, 3:] *= 50  # of the background: the scores of these are far above any of the object's
    shares = torch.zeros(1, OWNERS, 15)
    shares[:, 1, :3], shares[:, 0, 3:] = 1, 1
    slots, _, _ = bank.start((key, value), shares)
    ours = slots[0].unflatten(0, (11, -1))[1]  # (slots of the object, 2 C)
    tokens = torch.cat([key, value], -1)[0, :3]
    least, most = tokens.amin(0), tokens.amax(0)
    assert (ours >= least - 1e-4).all() and (ours <= most + 1e-4).all() and ours.norm(dim=-1).min() > 0.5


# 6. Objects are alike.

def test_permuted_objects_permute_slots():
    bank = bank_of("slots")
    kept, swapped = (bank.start(entry(0), shares) for shares in (shares_of(*TWO), shares_of(*TWO[::-1])))
    kept, _ = bank.write(kept, entry(1), shares_of(*TWO), SURE)
    swapped, _ = bank.write(swapped, entry(1), shares_of(*TWO[::-1]), SURE)
    per = bank.per_owner
    order = [*range(per), *range(2 * per, 3 * per), *range(per, 2 * per), *range(3 * per, 11 * per)]
    assert equal([tensor[:, order] for tensor in kept[:2]], swapped[:2])
    read = [bank.read(state) for state in (kept, swapped)]
    assert equal([tensor[:, order] for tensor in read[0]], read[1])


# 7. Truncated back-propagation.

@pytest.mark.parametrize("form", FORMS)
def test_gradient_reaches_the_first_write_of_its_window_and_no_further(form):
    network = network_of(form).train()
    memory = config(form, "memory.global_interval=1").memory
    leaves = [frame.clone().requires_grad_() for frame in frames(5)]
    features = [network.encode(frame) for frame in leaves]
    state = network.start(features[0], labels(*TWO), 2, memory)
    writes = []
    for index in range(1, 5):
        logits, tokens = network.segment(features[index], state)
        state = network.memorise(tokens, labels(*TWO), state)
        if index == 2:
            state = state.detach()
        state.short = state.detach().short  # only the global memory joins the frames here
        writes.append(state.extra.banks[0][0])
    *_, bias = network.global_banks[0].read(state.extra.banks[0])
    assert not bias.requires_grad, "or fused attention makes its gradient, a whole matrix of scores, for nothing"
    reaches = torch.autograd.grad(logits.square().mean(), leaves, allow_unused=True)
    assert [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in reaches] \
        == [False, False, False, True, True]  # 0, 1, 2: before the cut


# 8. Resumption.

@pytest.mark.parametrize("form", FORMS)
def test_a_saved_state_goes_on_to_the_same_masks(form):
    network = network_of(form, "memory.global_interval=2")
    video = frames(8)

    def go(state, part):
        out = []
        for frame in part:
            logits, tokens = network.segment(network.encode(frame), state)
            masks = network.upsample(logits, SIZE).argmax(1)
            state = network.memorise(tokens, masks, state)
            out.append(logits)
        return state, torch.stack(out)

    with torch.inference_mode():
        state = network.start(network.encode(video[0]), labels(*TWO), 2)
        state, _ = go(state, video[1:4])
        stream = io.BytesIO()
        torch.save(state, stream)
        twin = state.clone()
        _, expected = go(state, video[4:])
        stream.seek(0)
        assert torch.equal(go(torch.load(stream, weights_only=False), video[4:])[1], expected)
        assert torch.equal(go(twin, video[4:])[1], expected)


# What else must hold.

@pytest.mark.parametrize("form", FORMS)
def test_ten_thousand_writes_neither_drift_nor_fail(form):
    bank = bank_of(form)
    for parameter in bank.gate.correction.parameters():
        parameter.data.mul_(20)  # a network trained badly
    kinds = [entry(seed) for seed in range(7)]
    longest = max(tensor.norm(dim=-1).max() for pair in kinds for tensor in pair)
    state = bank.start(kinds[0], shares_of(*TWO))
    with torch.inference_mode():
        for index in range(10_000):
            state, _ = bank.write(state, kinds[index % 7], shares_of(*TWO[index % 3 :]), 0.9 * SURE)
    assert all(torch.isfinite(tensor).all() for tensor in state)
    assert state[0].norm(dim=-1).max() <= 2 * 2**0.5 * longest
    assert form == "slots" or state[1].norm(dim=-1).max() <= 2 * longest


def test_before_training_a_token_is_the_mean_of_what_it_met():
    bank = fresh_bank("dense", global_frames=1)
    seen = [tuple(token + 0.1 * torch.randn(token.shape) for token in entry(0)) for _ in range(5)]
    state = bank.start(seen[0], shares_of(*TWO))
    for frame in seen[1:]:
        state, _ = bank.write(state, frame, shares_of(*TWO), SURE)
    assert state[4].unique().tolist() == [5.0]  # the writes in each token
    for kept, tokens in zip(state[:2], zip(*seen, strict=True), strict=True):
        assert torch.allclose(kept, torch.stack(tokens).mean(0), atol=1e-5)


def test_a_mean_gate_never_closes():
    bank = fresh_bank("dense", global_frames=1, global_writes=4)
    first, later = entry(0), tuple(token + 0.1 for token in entry(0))
    state = bank.start(first, shares_of(*TWO))
    for _ in range(50):
        state, openness = bank.write(state, later, shares_of(*TWO), SURE)
    assert openness == pytest.approx(1 / 5) and torch.allclose(state[1], later[1], atol=1e-4)


def test_a_constant_gate_takes_half():
    bank = fresh_bank("dense", global_frames=1, global_gate="constant")
    state = bank.start(entry(0), shares_of(*TWO))
    for _ in range(3):
        state, openness = bank.write(state, entry(0), shares_of(*TWO), SURE)
    assert openness == 0.5


def test_within_an_owner_a_token_weighs_the_writes_in_it():
    bank = fresh_bank("dense", global_frames=2, global_weight=2.0)
    state = bank.start(token_map(0, 1, 2, 3), owned_by(0, 0, 0, 1))
    for _ in range(3):  # object 1 shows a new side, again and again
        state, _ = bank.write(state, token_map(0, 1, 2, 4), owned_by(0, 0, 0, 1), torch.ones(1, 4))
    keys, owner, weight = state[0][0].argmax(-1), state[2][0], bank.read(state)[2][0].exp()
    of_side = [float(weight[(owner == 1) & (keys == side)].sum()) for side in (3, 4)]
    assert of_side == pytest.approx([2 * 2 / 5, 2 * 3 / 5])  # two copies of the first, three of the second; two frames


@pytest.mark.parametrize("align_corners", [True, False])
def test_an_object_has_the_tokens_that_its_identity_is_added_to(align_corners):
    masks = torch.randint(0, 4, (1, *SIZE), generator=torch.Generator().manual_seed(0)).cummax(2).values
    masks = masks[:, 1 - align_corners:, 1 - align_corners:]  # 16 k + 1 pixels, or 16 k
    bank = IdentityBank(11, align_corners, normalise=False).requires_grad_(False)
    bank.conv.weight.copy_(torch.eye(11)[:, :, None, None].expand_as(bank.conv.weight))  # counts the pixels of each
    bank.conv.bias.zero_()
    counted = bank(masks, objects=10)  # (1, L, 11)
    torch.testing.assert_close(owner_shares(masks, align_corners)[:, :ELSEWHERE].transpose(1, 2),
                               counted / counted.sum(-1, keepdim=True))
    assert torch.equal(owner_shares(masks, align_corners, 3), owner_shares(masks, align_corners))  # ids are 1 to 3


def test_certainty_is_the_margin():
    logits = torch.zeros(1, 2, 13, 21)
    logits[:, 1, :7, :11] = 9.0
    shares = owner_shares(labels((0, 24, 0, 40)), True)
    certainty = token_certainty(logits, shares, True, 1e-4).view(GRID)
    assert (certainty[:2, :3] > 0.9).all() and (certainty[2:, 4:] == 0).all()
    assert torch.equal(token_certainty(logits, owner_shares(labels(), True), True, 1e-4).view(GRID), certainty)
    assert token_certainty(logits, shares, True, 0.5).sum() == 0  # too small to count, but not away


@pytest.mark.parametrize("void", [False, True])
def test_all_of_a_frame_without_any_object_is_elsewhere(void):
    shares = owner_shares(labels((0, 24, 0, 40)), True)
    assert shares.sum(1).allclose(torch.ones(1, 24)) and not shares[:, ELSEWHERE].any()
    assert token_owners(shares).unique().tolist() == [0, 1]
    nothing = labels()
    nothing[:, :24, :24] = 255 * void  # belongs to nothing
    assert token_owners(owner_shares(nothing, True)).unique().tolist() == [ELSEWHERE]


def test_a_frame_with_too_little_of_an_object_changes_nothing():
    network = network_of("dense", "memory.global_interval=1", "memory.min_presence=0.5")
    with torch.inference_mode():
        state = network.start(network.encode(frames(1)[0]), labels(*TWO), 2)
        before = state.extra.clone()
        _, tokens = network.segment(network.encode(frames(2)[1]), state)
        state = network.memorise(tokens, labels((0, 24, 0, 40)), state)
        assert all(equal(a, b) for a, b in zip(state.extra.banks, before.banks, strict=True))
        state = network.memorise(tokens, labels(), state)  # none at all: remembered
        assert not equal(state.extra.banks[0], before.banks[0])


def test_a_reference_is_never_elsewhere():
    bank = fresh_bank("dense", global_frames=1, global_elsewhere=1)
    state = bank.start(entry(0), shares_of())  # as of an object that is lost when its mask is made smaller
    assert (state[2] == ELSEWHERE).sum() == 15 and (state[2] == 0).sum() == 15
    for write in range(1, 12):
        state, _ = bank.write(state, entry(write), shares_of(*TWO), SURE)
    assert (state[2] == 1).any() and (state[2] == ELSEWHERE).sum() == 15


def test_openness_is_that_of_what_is_held():
    opened = [bank.write(bank.start(entry(0), shares_of(*TWO)), entry(0), shares_of(*TWO), SURE)[1]
              for bank in (fresh_bank("dense", global_elsewhere=elsewhere) for elsewhere in (0, 2))]
    assert torch.equal(*opened) and opened[0] > 0


@pytest.mark.parametrize(("shares", "told"), [(shares_of((0, 49, 0, 81)), True), (shares_of(), False)])
def test_the_gate_is_told_of_objects_and_of_nothing_else(shares, told):
    openness = []
    for weight in (0.0, 9.0):  # 9: opens where objects are
        bank = fresh_bank("dense", global_frames=1, global_elsewhere=1)
        bank.gate.update.weight[:, -1] = weight
        state, _ = bank.write(bank.start(entry(0), shares_of((0, 49, 0, 81))), entry(0), shares, SURE)
        openness.append(bank.write(state, entry(0), shares, SURE)[1].item())
    assert (openness[0] != openness[1]) == told and openness[0] > 0


def test_new_tokens_of_objects_come_before_a_background_that_is_not_known_at_all():
    bank = fresh_bank("dense", global_frames=1)
    state = bank.start(token_map(*range(8)), owned_by(*[1] * 8))  # no background
    key = torch.eye(32)[[8, 9, 10, 11, 0, 1, 12, 13]]
    key[4:6, 14] = 1.5  # a little like the object's 0 and 1
    whose = owned_by(0, 0, 0, 0, 1, 1, 0, 0)
    state, _ = bank.write(state, (key.unsqueeze(0), key.unsqueeze(0)), whose, torch.ones(1, 8))
    assert (state[0][0, :, 14] > 0).sum() == 2 and (state[2] == 0).sum() == 0  # room for two


def test_interval_says_which_frames_are_written():
    network = network_of("dense", "memory.global_interval=3")
    written = []
    with torch.inference_mode():
        features = network.encode(frames(1)[0])
        state = network.start(features, labels(*TWO), 2)
        for frame in range(1, 10):
            _, tokens = network.segment(features, state)
            state = network.memorise(tokens, labels(*TWO), state)
            written += [frame] if state.extra.last_write == frame else []
    assert written == [3, 6, 9]


@pytest.mark.parametrize("form", FORMS)
def test_a_late_object_enters_the_global_memory(form):
    network = network_of(form)
    with torch.inference_mode():
        features = network.encode(frames(1)[0])
        state = network.start(features, labels(TWO[0]), 1)
        before = state.extra.clone()
        state = network.add_objects(features, labels(*TWO), state, 2)
        assert state.extra.last_write == 1 and not torch.equal(state.extra.banks[0][0], before.banks[0][0])
        if form == "slots":
            per = network.global_banks[0].per_owner
            assert not before.banks[0][1][:, 2 * per : 3 * per].any()
            assert state.extra.banks[0][1][:, 2 * per : 3 * per].all()


@pytest.mark.parametrize("form", FORMS)
def test_state_is_float32_under_autocast(form):
    network = network_of(form, "memory.global_interval=1")
    shares = owner_shares(labels(*TWO), True)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            state = network.start(network.encode(frames(1)[0]), labels(*TWO), 2)
            for frame in frames(3):
                before = state.extra
                _, tokens = network.segment(network.encode(frame), state)
                state = network.memorise(tokens, labels(*TWO), state)
            certainty = token_certainty(tokens[-1][0], shares, True, 1e-4)
        exact, _ = network.global_banks[0].write(before.banks[0], state.short[-1][0], shares, certainty)
    assert equal(exact, state.extra.banks[0])  # and nothing inside was rounded
    kept = {tensor.dtype for bank in state.extra.banks for tensor in bank}
    assert kept <= {torch.float32, torch.bool, torch.int64}


@pytest.mark.parametrize("form", FORMS)
def test_every_part_learns(form):
    """Zero at the start, but not dead: after two steps every parameter of the global memory has a gradient."""
    torch.manual_seed(0)
    network = build_network(config(form)).train()
    memory = config(form, "memory.global_interval=1").memory
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(3):
        features = network.encode(frames(4).flatten(0, 1)).chunk(4)
        state = network.start(features[0], labels(*TWO), 2, memory)
        loss = 0.0
        for part in features[1:]:
            logits, tokens = network.segment(part, state)
            loss = loss + logits.square().mean()
            state = network.memorise(tokens, labels(*TWO), state)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    dead = [name for name, parameter in network.named_parameters() if name.startswith(network.added_parts)
            and (parameter.grad is None or parameter.grad.abs().sum() == 0)]
    assert not dead


def test_samples_with_fewer_objects_stand_beside_others():
    network = network_of("slots", "memory.global_interval=1")
    pair = torch.cat([labels(TWO[0]), labels(*TWO)])
    with torch.inference_mode():
        features = network.encode(frames(2).flatten(0, 1))
        state = network.start(features, pair, [1, 2])
        _, tokens = network.segment(features, state)
        state = network.memorise(tokens, pair, state)
        both, _ = network.segment(features, state)
        single = network.start(network.encode(frames(2)[0]), pair[:1], 1)
        _, tokens = network.segment(network.encode(frames(2)[0]), single)
        single = network.memorise(tokens, pair[:1], single)
        alone, _ = network.segment(network.encode(frames(2)[0]), single)
    assert torch.allclose(both[:1, :2], alone, atol=1e-4)


def test_gradients_are_finite_beside_samples_without_objects():
    network = network_of("dense", "memory.global_interval=1").train()
    first, second = torch.cat([labels(*TWO)] * 2), torch.cat([labels(*TWO), labels()])
    features = network.encode(frames(4).flatten(0, 1).repeat_interleave(2, 0)).chunk(4)
    state = network.start(features[0], first, [2, 2])
    loss = 0.0
    for part in features[1:]:
        logits, tokens = network.segment(part, state)
        loss = loss + logits.square().mean()
        state = network.memorise(tokens, second, state)
    loss.backward()
    assert (state.extra.banks[0][2] == ELSEWHERE).sum(1).tolist() == [2 * GRID[0] * GRID[1]] * 2
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("form", FORMS)
def test_runs_on_a_device_without_looking_at_values(form):
    """Fake tensors on a fake CUDA device: nothing names a device, nothing waits for one."""
    network = build_network(config(form, "memory.global_interval=1")).eval().requires_grad_(False)
    with FakeTensorMode(), torch.no_grad():
        fake = on_fake_device(network)
        features = fake.encode(torch.empty(1, 3, *SIZE, device="cuda"))
        mask = torch.empty(1, *SIZE, dtype=torch.uint8, device="cuda")
        state = fake.start(features, mask, 2)
        for _ in range(3):
            logits, tokens = fake.segment(features, state)
            state = fake.memorise(tokens, mask, state)
        state = fake.add_objects(features, mask, state, 3)
        assert logits.device.type == "cuda" and state.num_bytes() > 0


def test_official_weights_leave_only_the_added_parts_fresh():
    network = build_network(config("dense"))
    aot = {key: value for key, value in network.state_dict().items() if not key.startswith(network.added_parts)}
    load_state(network, aot, "AOT's weights")
    half = {**aot, "global_marks": network.global_marks.detach()}
    with pytest.raises(UserError, match="missing"):
        load_state(network, half, "damaged weights")
