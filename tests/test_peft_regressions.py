"""Where PEFT's VB-LoRA and VeRA fail, each failure a test of ours.

Each test also shows what PEFT 0.21 does. Where a later PEFT does better, a warning says so and the test still passes.
Rows of a mixed batch that name another adapter are tested with serving.
"""

import copy
import warnings

import peft
import peft_side
import pytest
import safetensors.torch
import tiny_models
import torch
from peft import VBLoRAConfig, VeraConfig
from tiny_models import every_method, logits, move, tokens
from torch.utils._python_dispatch import TorchDispatchMode

import vbank

EQUAL = 1e-5
QV = ["query", "value"]
BANK = {"num_vectors": 9, "vector_length": 8}


def of_peft(fails: bool, what: str) -> None:
    if not fails:
        warnings.warn(f"PEFT {peft.__version__} no longer {what}", stacklevel=2)


def theirs(base, **settings):
    config = VBLoRAConfig(**{"r": 2, "target_modules": QV, "topk": 2} | BANK | settings)
    return peft.get_peft_model(copy.deepcopy(base), config)


def ours(base, targets=QV, **settings):
    model = copy.deepcopy(base)
    vbank.attach(model, vbank.VBLoRA(**{"rank": 2} | BANK | settings), targets)
    return model


def payload(folder):
    (file,) = folder.glob("*.safetensors")
    return safetensors.torch.load_file(file)


def exceeding(parameter, k):
    """Fill logits (.., h) with rows whose k - 1 largest weights, as rounded, add up to more than one."""
    generator = torch.Generator().manual_seed(0)
    largest = torch.randn(100_000, k - 1, generator=generator)
    values = torch.cat([largest, largest.new_full((len(largest), 1), -25.0)], dim=-1).sort(descending=True).values
    values = values[values.softmax(-1)[:, :-1].sum(-1) > 1]
    with torch.no_grad():
        rows = parameter.fill_(-50.0).view(-1, parameter.shape[-1])
        chosen = torch.rand(rows.shape, generator=generator).argsort(-1)[:, :k]
        rows.scatter_(-1, chosen, values[torch.arange(len(rows)) % len(values)])


# Compact files


@pytest.mark.parametrize("k", [3, 4, 8])
def test_compact_files_give_no_nan(bert, k, tmp_path):
    """PEFT stores the k - 1 largest weights and takes the last as log(1 - sum); a rounded sum above 1 gives NaN."""
    model = ours(bert, top_k=k)
    exceeding(model.vbank.adapter("default").method.logits, k)
    wanted = logits(model.eval(), tokens())
    vbank.save(model, tmp_path / "ours")
    vbank.to_peft(model, tmp_path / "ours for peft", compact=True)
    again = copy.deepcopy(bert)
    vbank.load(again, tmp_path / "ours")
    torch.testing.assert_close(logits(again.eval(), tokens()), wanted, rtol=0, atol=EQUAL)
    read_by_peft = logits(peft_side.loaded(bert, tmp_path / "ours for peft"), tokens())
    torch.testing.assert_close(read_by_peft, wanted, rtol=0, atol=EQUAL)

    broken = theirs(bert, topk=k, save_only_topk_weights=True)
    for name, parameter in broken.named_parameters():
        if "logits" in name:
            exceeding(parameter, k)
    wanted = logits(broken.eval(), tokens())
    broken.save_pretrained(tmp_path / "theirs")
    sums = [v.sum(-1) for key, v in payload(tmp_path / "theirs").items() if key.endswith("weights")]
    assert max(total.max() for total in sums) > 1  # the case at hand
    of_peft(
        logits(peft_side.loaded(bert, tmp_path / "theirs"), tokens()).isnan().any(), "reads its compact file as NaN"
    )
    model = copy.deepcopy(bert)
    vbank.from_peft(model, tmp_path / "theirs")
    torch.testing.assert_close(logits(model.eval(), tokens()), wanted, rtol=0, atol=EQUAL)


@pytest.mark.parametrize("k", [2, 3])
def test_compact_files_in_bfloat16_can_be_read(bert, k, tmp_path):
    """PEFT scatters bfloat16 logits into a float32 matrix, which fails."""
    broken = theirs(bert, topk=k, save_only_topk_weights=True)
    for name, parameter in broken.named_parameters():
        if "vblora" in name:
            parameter.data = torch.randn_like(parameter).bfloat16()
    broken.save_pretrained(tmp_path)
    values = payload(tmp_path)
    assert values["base_model.vblora_vector_bank"].dtype == torch.bfloat16
    try:
        peft_side.loaded(bert, tmp_path)
        of_peft(False, "fails to read compact bfloat16")
    except RuntimeError:
        pass
    model = copy.deepcopy(bert)
    method = vbank.from_peft(model, tmp_path).method
    assert method.bank.dtype == torch.bfloat16 and logits(model.eval(), tokens()).isfinite().all()
    layer = "bert.encoder.layer.1.attention.self.value"
    start, middle, _ = method.spans[method.index[layer]]
    key = f"base_model.model.{layer}.vblora_logits_A_topk"
    weights = values[f"{key}_weights"].float().view(-1, k - 1)
    weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
    wanted = torch.zeros(4, 9).scatter_(-1, values[f"{key}_indices"].long().view(-1, k), weights)
    indices, kept = (of_all[start:middle] for of_all in method.selected)
    found = torch.zeros(4, 9).scatter_(-1, indices, kept.float())
    torch.testing.assert_close(found, wanted, rtol=0, atol=2**-8)


@pytest.mark.parametrize(
    ("h", "dtype", "bits"), [(255, torch.uint8, 8), (256, torch.uint8, 8), (257, torch.uint16, 16)]
)
def test_an_index_takes_one_byte_up_to_256_vectors(bert, h, dtype, bits, tmp_path):
    """PEFT takes two bytes at h = 256, whose largest index is 255."""
    model = ours(bert, num_vectors=h)
    with torch.no_grad():
        model.vbank.adapter("default").method.logits[:, -1] = 1.0  # the largest index is in use
    vbank.save(model, tmp_path / "v")
    indices = payload(tmp_path / "v")["indices"]
    assert indices.dtype == dtype and indices.long().max() == h - 1
    vbank.to_peft(model, tmp_path / "p", compact=True)
    kinds = {v.dtype for key, v in payload(tmp_path / "p").items() if key.endswith("indices")}
    assert {kind.itemsize * 8 for kind in kinds} == {bits}
    read = logits(peft_side.loaded(bert, tmp_path / "p"), tokens())
    torch.testing.assert_close(read, logits(model.eval(), tokens()), rtol=0, atol=EQUAL)
    if h == 256:
        theirs(bert, num_vectors=h, save_only_topk_weights=True).save_pretrained(tmp_path / "theirs")
        size = next(v.element_size() for k, v in payload(tmp_path / "theirs").items() if k.endswith("indices"))
        of_peft(size == 2, "takes two bytes for an index below 256")


def test_compact_files_resume_training(bert, tmp_path):
    """PEFT's hold infinite logits when loaded, and its training forward refuses them."""
    model = move(ours(bert, top_k=3)).eval()
    wanted = logits(model, tokens()).detach()
    vbank.save(model, tmp_path / "ours")
    again = copy.deepcopy(bert)
    method = vbank.load(again, tmp_path / "ours", trainable=True).method
    torch.testing.assert_close(logits(again.eval(), tokens()), wanted, rtol=0, atol=EQUAL)
    again.train()
    optimizer = torch.optim.AdamW(vbank.param_groups(again, lr={"bank": 1e-3, "logits": 1e-2}))
    before, losses = method.logits.detach().clone(), []
    for _ in range(5):
        optimizer.zero_grad()
        loss = logits(again, tokens()).square().mean()
        loss.backward()
        losses.append(loss.item())
        assert method.logits.grad.isfinite().all() and method.logits.grad.any()
        optimizer.step()
    assert losses[-1] < losses[0] and not torch.equal(method.logits, before) and method.logits.isfinite().all()

    theirs(bert, save_only_topk_weights=True).save_pretrained(tmp_path / "theirs")
    stuck = peft.PeftModel.from_pretrained(copy.deepcopy(bert), tmp_path / "theirs", is_trainable=True).train()
    try:
        logits(stuck, tokens())
        of_peft(False, "refuses to train on a compact file")
    except RuntimeError:
        pass


@pytest.mark.parametrize("layers", [1, 2])
def test_veras_file_holds_what_is_trained_and_a_seed(bert, layers, tmp_path):
    """PEFT's holds both projections too: 6.8 MB for 129,024 trained parameters."""
    base = tiny_models.bert(num_hidden_layers=layers)
    model = copy.deepcopy(base)
    vbank.attach(model, vbank.VeRA(rank=256), QV)
    vbank.save(model, tmp_path / "v")
    trained = vbank.count(model).trainable
    assert trained == 2 * layers * (256 + 16)
    size = sum(file.stat().st_size for file in (tmp_path / "v").iterdir())
    assert sum(t.nbytes for t in payload(tmp_path / "v").values()) == 4 * trained and size <= 4 * trained + 4096
    vbank.to_peft(model, tmp_path / "p", compact=True)
    assert sum(t.nbytes for t in payload(tmp_path / "p").values()) == 4 * trained
    stored = peft.get_peft_model(copy.deepcopy(base), VeraConfig(r=256, target_modules=QV))
    stored.save_pretrained(tmp_path / "theirs")
    pair = sum(t.nbytes for t in payload(tmp_path / "theirs").values()) - 4 * trained
    of_peft(pair == 4 * 2 * 256 * 16, "stores VeRA's projections by default")


# Construction


def test_the_bank_does_not_depend_on_the_number_of_targets(bert):
    """PEFT draws it anew for every target, and keeps the last."""
    banks, of_theirs = [], []
    for targets in (["query"], QV, [*QV, "key"]):
        torch.manual_seed(3)
        banks.append(ours(bert, targets).vbank.adapter("default").method.bank)
        torch.manual_seed(3)
        of_theirs.append(theirs(bert, target_modules=targets).base_model.vblora_vector_bank["default"])
    assert torch.equal(banks[0], banks[1]) and torch.equal(banks[0], banks[2])
    of_peft(not torch.equal(of_theirs[0], of_theirs[1]), "draws the bank once a target")


def test_counts_are_those_of_one_adapter(bert):
    """PEFT adds up all adapters of the model."""
    alone = vbank.count(ours(bert))
    model = ours(bert)
    vbank.attach(model, vbank.VBLoRA(rank=2, **BANK), QV, name="other")
    vbank.attach(model, vbank.LoRA(rank=8), QV, name="third")
    for name in ("default", "other"):
        counted = vbank.count(model, name)
        assert (counted.trainable, counted.stored, counted.bytes) == (alone.trainable, alone.stored, alone.bytes)
    assert alone.trainable == 9 * 8 + 4 * 2 * (2 + 2) * 9  # the bank; 4 layers, rank 2, 16 / 8 tiles in A and in B
    both = theirs(bert)
    single = both.base_model.get_nb_savable_parameters()[0]
    both.add_adapter("other", VBLoRAConfig(r=2, target_modules=QV, topk=2, **BANK))
    of_peft(both.base_model.get_nb_savable_parameters("default")[0] != single, "counts all adapters together")


def test_top_k_above_the_bank_is_refused_at_once(bert):
    """PEFT accepts it and fails in the first forward."""
    with pytest.raises(ValueError, match="top_k is 10 but the bank has num_vectors = 9"):
        vbank.VBLoRA(rank=2, top_k=10, **BANK)
    try:
        model = theirs(bert, topk=10)
    except ValueError:
        of_peft(False, "accepts topk above num_vectors")
    else:
        with pytest.raises(RuntimeError):
            logits(model, tokens())


def test_a_vector_length_that_does_not_divide_lists_all_layers(bert):
    """PEFT names the first side of the first layer, without the layer's name."""
    with pytest.raises(ValueError) as refusal:
        ours(bert, "all-linear", vector_length=12)
    said = str(refusal.value)
    for layer in (0, 1):
        for end in ("attention.self.query (16 -> 16)", "intermediate.dense (16 -> 32)", "output.dense (32 -> 16)"):
            assert f"encoder.layer.{layer}.{end}" in said
    assert "lengths that divide all layers: 1, 2, 4, 8, 16" in said
    with pytest.raises(ValueError) as theirs_said:
        theirs(bert, vector_length=12, target_modules="all-linear")
    of_peft("query" not in str(theirs_said.value), "leaves the layers unnamed")


def test_bank_and_logits_have_rates_of_their_own(bert):
    """The authors' runs use 1e-3 and 1e-2; PEFT's model offers one list of parameters."""
    model = ours(bert)
    method = model.vbank.adapter("default").method
    groups = vbank.param_groups(model, lr={"bank": 1e-3, "logits": 1e-2})
    assert [(g["lr"], [p.shape for p in g["params"]]) for g in groups] == [
        (1e-3, [method.bank.shape]),
        (1e-2, [method.logits.shape]),
    ]
    optimizer = torch.optim.SGD(groups)
    logits(model.train(), tokens()).sum().backward()
    before = {key: p.detach().clone() for key, p in (("bank", method.bank), ("logits", method.logits))}
    optimizer.step()
    torch.testing.assert_close(method.bank, before["bank"] - 1e-3 * method.bank.grad)
    torch.testing.assert_close(method.logits, before["logits"] - 1e-2 * method.logits.grad)
    groups = torch.optim.SGD([p for p in theirs(bert).parameters() if p.requires_grad], lr=1e-3).param_groups
    of_peft(not hasattr(peft.tuners.vblora.VBLoRAModel, "param_groups") and len(groups) == 1, "lacks groups")


def test_quantised_layers_merge(bert):
    """PEFT's VB-LoRA adds the update to the packed 4-bit weight, whose shape is another."""
    base = tiny_models.four_bit(copy.deepcopy(bert)).eval()
    model = move(ours(base), std=0.5).eval()
    wanted = logits(model, tokens()).detach()
    assert (wanted - logits(base, tokens())).abs().max() > 0.05
    vbank.merge(model)
    torch.testing.assert_close(logits(model, tokens()), wanted, rtol=0, atol=1e-4)
    vbank.unmerge(model)
    torch.testing.assert_close(logits(model, tokens()), wanted, rtol=0, atol=0)
    try:
        packed = theirs(base)
        packed.merge_and_unload()
        of_peft(False, "fails to merge into 4-bit layers")
    except (RuntimeError, TypeError, ValueError):
        pass


# The training step


class Waits(TorchDispatchMode):
    """Counts the operations that make the host wait for the device: their results decide what runs next."""

    ASKED = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "item")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.ASKED:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def waits(model):
    """What of a training step waits; the second one, for the first makes what is kept."""
    x = torch.randn(3, 7, 16)  # embeddings: transformers looks into token ids
    for _ in range(2):
        with Waits() as mode:
            model(inputs_embeds=x).logits.square().sum().backward()
    return mode.seen


def test_the_counter_sees_a_wait():
    with Waits() as mode:
        bool(torch.ones(3).isinf().any())
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert len(mode.seen) == 3


@every_method
def test_no_training_step_waits_for_the_device(bert, config):
    """PEFT's asks in each layer whether a logit is infinite."""
    model = copy.deepcopy(bert).train()
    vbank.attach(model, config, QV)
    assert waits(model) == waits(copy.deepcopy(bert).train()) == []
    if config.method == "vb-lora":
        of_peft(len(waits(theirs(bert).train())) >= 4, "waits in every layer of a training forward")


@pytest.mark.gpu
@every_method
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
def test_no_training_step_waits_on_cuda(bert, config, autocast):
    """CUDA's own debug mode raises an error at a wait; the optimizer's step is part of the training step."""
    model = copy.deepcopy(bert).cuda()
    vbank.attach(model, config, QV, train=["classifier"])
    optimizer = torch.optim.AdamW(vbank.param_groups(model, lr=1e-3), fused=True)
    x = torch.randn(3, 7, 16, device="cuda")  # no mask: transformers asks whether it is all ones
    model.train()
    losses = []
    for step in range(4):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step makes what is kept
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                loss = model(inputs_embeds=x).logits.float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        losses.append(loss.detach())
    assert torch.stack(losses).isfinite().all() and losses[-1] < losses[0]
