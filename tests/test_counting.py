"""Counts: the figures that the papers print, counts by hand, and a live model against shapes alone."""

import functools
import re

import pytest
import torch
from torch import nn

import vbank
from vbank import LoRA, PRoLoRA, Site, TiedLoRA, VBLoRA, VeRA
from vbank.architectures import build, sites

sites_of = functools.cache(sites)
MANY = VBLoRA(4, num_vectors=2048, vector_length=256)


def counted(model: str, targets: str, config: vbank.Config) -> vbank.Count:
    return vbank.count_sites(config, sites_of(model, targets))


# What the papers print and these counts reproduce, to every digit printed. Cells that do not are further down.
PRINTED = [
    # VB-LoRA, Table 1
    ("0.295M", "roberta-base", "qv", LoRA(8)),
    ("0.786M", "roberta-large", "qv", LoRA(8)),
    ("0.043M", "roberta-base", "qv", VeRA(1024)),
    ("0.061M", "roberta-large", "qv", VeRA(256)),
    ("0.157M", "roberta-base", "all-linear", VeRA(1024)),
    ("0.258M", "roberta-large", "all-linear", VeRA(256)),
    ("0.043M", "roberta-base", "qv", TiedLoRA(16)),
    ("0.066M", "roberta-large", "qv", TiedLoRA(8)),
    # VeRA, Tables 3 and 4
    ("0.098M", "gpt2-medium", "qv", VeRA(1024)),
    ("0.17M", "gpt2-large", "qv", VeRA(1024)),
    ("1.6M", "llama2-7b", "all-linear", VeRA(1024)),
    ("2.4M", "llama2-13b", "all-linear", VeRA(1024)),
    ("159.9M", "llama2-7b", "all-linear", LoRA(64)),
    ("250.3M", "llama2-13b", "all-linear", LoRA(64)),
    # PRoLoRA, Tables 1 and 2
    ("5.00M", "llama2-7b", "all-linear", LoRA(2)),
    ("39.98M", "llama2-7b", "all-linear", LoRA(16)),
    ("159.91M", "llama2-7b", "all-linear", LoRA(64)),
    ("1.42M", "llama2-7b", "all-linear", VeRA(256)),
    ("5.00M", "llama2-7b", "all-linear", PRoLoRA(8, 0, 4, 4)),
    ("19.99M", "llama2-7b", "all-linear", PRoLoRA(32, 0, 4, 4)),
    # VB-LoRA, Table 4
    ("168M", "mistral-7b", "all-linear", LoRA(64)),
    ("200M", "gemma-7b", "all-linear", LoRA(64)),
]


# VeRA's Table 1 cuts the digits off instead of rounding.
CUT = [
    ("36.8K", "roberta-base", LoRA(1)),
    ("18.4K", "roberta-base", VeRA(1)),
    ("589.8K", "roberta-base", LoRA(16)),
    ("18.8K", "roberta-base", VeRA(16)),
    ("9437.1K", "roberta-base", LoRA(256)),
    ("24.5K", "roberta-base", VeRA(256)),
    ("98.3K", "roberta-large", LoRA(1)),
    ("49.2K", "roberta-large", VeRA(1)),
    ("1572.8K", "roberta-large", LoRA(16)),
    ("25165.8K", "roberta-large", LoRA(256)),
    ("61.4K", "roberta-large", VeRA(256)),
]


def rounds_to(printed: str, value: float) -> bool:
    number, unit = printed[:-1], printed[-1]
    digits = len(number.partition(".")[2])
    return f"{value / {'K': 1e3, 'M': 1e6}[unit]:.{digits}f}" == number


@pytest.mark.parametrize("printed, model, config", CUT, ids=lambda v: v if isinstance(v, str) else "")
def test_trained_parameters_that_vera_prints(printed, model, config):
    count = counted(model, "qv", config).trainable
    assert f"{count // 100 / 10:.1f}K" == printed


@pytest.mark.parametrize("printed, model, targets, config", PRINTED, ids=lambda v: v if isinstance(v, str) else "")
def test_trained_parameters_that_the_papers_print(printed, model, targets, config):
    count = counted(model, targets, config)
    assert rounds_to(printed, count.trainable), count.trainable
    assert count.stored == count.trainable and count.bytes == 4 * count.trainable


@pytest.mark.parametrize(
    "printed, model, targets",
    [
        ("0.027M", "roberta-base", "all-linear"),
        ("0.033M", "roberta-large", "all-linear"),
    ],
)
def test_stored_parameters_that_vb_lora_prints(printed, model, targets):
    assert rounds_to(printed, counted(model, targets, VBLoRA(4)).stored)


def test_vb_lora_on_roberta_base_query_and_value_exactly():
    count = counted("roberta-base", "qv", VBLoRA(4))
    bank, sub_vectors = 90 * 256, 24 * 4 * (768 + 768) // 256  # 23,040 and 576
    assert count.groups["bank"].trained == bank and count.groups["logits"].trained == sub_vectors * 90 == 51_840
    assert count.stored == bank + sub_vectors * (1 + 2 / 4) == 23_904  # Table 1 prints 0.023M
    assert count.bytes == 95_616
    assert count.sites == 24


def test_vb_lora_on_llama2_7b_exactly():
    count = counted("llama2-7b", "all-linear", MANY)
    sub_vectors = 39_040
    assert count.groups["logits"].trained == sub_vectors * 2048
    assert count.stored == 2048 * 256 + sub_vectors * (1 + 2 / 2) == 602_368  # an index of h = 2,048 takes 2 bytes
    assert count.bytes == 2_409_472


@pytest.mark.parametrize("rank, printed_13b, printed_70b", [(2, 6.26, 11.27), (16, 50.07, 90.18), (64, 200.28, 360.71)])
def test_cells_of_prolora_table_1_that_take_32_layers(rank, printed_13b, printed_70b):
    # the models have 40 and 80 layers; printed is what 32 give, at 70B also without grouped-query attention
    thirteen = counted("llama2-13b", "all-linear", LoRA(rank)).trainable
    assert thirteen == 40 * rank * (4 * (5120 + 5120) + 3 * (5120 + 13824))
    assert round(thirteen * 32 / 40 / 1e6, 2) == printed_13b
    seventy = counted("llama2-70b", "all-linear", LoRA(rank)).trainable
    assert seventy == 80 * rank * (2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672))
    without_groups = 32 * rank * (4 * (8192 + 8192) + 3 * (8192 + 28672))
    assert round(without_groups / 1e6, 2) == printed_70b


@pytest.mark.parametrize("rank, printed_qv", [(16, 43_392)])
def test_tied_lora_takes_its_pair_from_the_largest_layer(rank, printed_qv):
    assert counted("roberta-base", "qv", TiedLoRA(rank)).trainable == printed_qv
    everything = counted("roberta-base", "all-linear", TiedLoRA(rank))
    assert everything.groups["A"].trained == everything.groups["B"].trained == 16 * 3072
    scales = everything.groups["u"].trained + everything.groups["v"].trained
    assert scales == 72 * 16 + 12 * (5 * 768 + 3072)
    assert rounds_to("0.109M", scales + 2 * 16 * 768)  # Table 1 counts a pair of 768 x 768 there
    assert everything.trainable == scales + 2 * 16 * 3072


def test_the_unit_is_a_float32():
    count = vbank.count_sites(VBLoRA(1, 300, 2, 3), [Site("w", 2, 2)], itemsize=2)
    assert count.stored == 600 + 2 * (2 + 3 / 2)  # independent of the precision
    assert count.bytes == 2 * 600 + 2 * (2 * 2 + 3 * 2)


# A live model.


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.up, self.classifier = nn.Linear(12, 8), nn.Linear(8, 20), nn.Linear(20, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.up(self.query(x)))


CONFIGS = [
    LoRA(3),
    VeRA(5),
    VeRA(5, train_b=False),
    TiedLoRA(3),
    PRoLoRA(5, 1, 3, 3),
    VBLoRA(3, num_vectors=7, vector_length=4, top_k=3),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.method)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_live_model_counts_as_shapes_alone_do(config, device):
    with torch.device(device):
        model = Net()
    adapter = vbank.attach(model, config, targets=["query", "up"])
    count = vbank.count(model)
    assert count == vbank.count_sites(config, adapter.sites)
    assert count.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count.sites == 2 and count.head is None


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.method)
def test_bytes_follow_the_adapters_precision(config):
    model = Net()
    adapter = vbank.attach(model, config, targets=["query", "up"], dtype=torch.bfloat16)
    count = vbank.count(model)
    assert count.bytes == sum(t.numel() * t.element_size() for t in adapter.method.compact_tensors().values())
    assert count == vbank.count_sites(config, adapter.sites, itemsize=2)


def test_roberta_on_the_meta_device():
    model = build("roberta-base")
    vbank.attach(model, VBLoRA(4), targets="qv")
    assert vbank.count(model) == counted("roberta-base", "qv", VBLoRA(4))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 23_040 + 51_840


def test_several_adapters_are_not_summed():
    model = Net()
    vbank.attach(model, LoRA(3), targets=["query"])
    alone = vbank.count(model)
    vbank.attach(model, VeRA(5), targets=["query", "up"], name="second")
    assert vbank.count(model, name="default") == alone and alone.trainable == 3 * 20
    assert vbank.count(model).trainable == 2 * 5 + 8 + 20  # the active one
    assert vbank.count(model, name="second") == vbank.count(model)
    vbank.activate(model, "default")
    assert vbank.count(model) == alone


def test_a_head_is_counted_apart():
    model = Net()
    vbank.attach(model, LoRA(3), targets=["query"], train=["classifier"])
    count = vbank.count(model)
    assert count.trainable == 60 and count.stored == 60.0 and count.bytes == 240
    assert (count.head.trained, count.head.stored, count.head.nbytes) == (63, 63.0, 252)  # 20 * 3 + 3
    assert count.trainable + count.head.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_an_adapter_from_a_compact_file_trains_nothing(tmp_path):
    model = Net()
    vbank.attach(model, CONFIGS[-1], targets=["query", "up"])
    stored = vbank.count(model)
    vbank.save(model, tmp_path / "adapter", form="compact")
    fresh = Net()
    vbank.load(fresh, tmp_path / "adapter")
    count = vbank.count(fresh)
    assert count.trainable == 0
    assert (count.stored, count.bytes) == (stored.stored, stored.bytes)


def test_an_unknown_or_missing_adapter_is_named():
    model = Net()
    with pytest.raises(ValueError, match=r"Net has no adapter; attach one with vbank\.attach"):
        vbank.count(model)
    vbank.attach(model, LoRA(3), targets=["query"])
    with pytest.raises(ValueError, match=r"no adapter is called 'other'; there are 'default'"):
        vbank.count(model, name="other")


def test_the_printed_table():
    model = Net()
    vbank.attach(model, VBLoRA(3, 300, 4, 3), targets=["query"], train=["classifier"])
    # 15 sub-vectors, each of 300 logits, or two weights and three 2-byte indices
    assert str(vbank.count(model)).splitlines() == [
        "                        trained           stored          bytes",
        "bank                      1,200          1,200.0          4,800",
        "logits                    4,500             52.5            210",
        "---------------------------------------------------------------",
        "VB-LoRA, 1 layer          5,700          1,252.5          5,010",
        "head, apart                  63             63.0            252",
    ]
    lines = str(vbank.count_sites(LoRA(3), [Site("w", 1000, 1000)])).splitlines()
    assert [re.split(r"\s{2,}", line.strip()) for line in lines] == [
        ["trained", "stored", "bytes"],
        ["A", "3,000", "3,000.0", "12,000"],
        ["B", "3,000", "3,000.0", "12,000"],
        ["-" * len(lines[0])],
        ["LoRA, 1 layer", "6,000", "6,000.0", "24,000"],
    ]
    assert len({len(line) for line in lines}) == 1
