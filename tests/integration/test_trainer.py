"""transformers.Trainer, unchanged: trains, saves, resumes, evaluates; also on 4-bit models."""

from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import CONFIGS, EXACT, assert_same, bert, every_method, four_bit, llama, trained
from torch import nn

import vbank

VB = CONFIGS[-1]


def rows(count: int = 32) -> list[dict]:
    """Random sentences whose label shows in their second token."""
    ids = torch.randint(0, 40, (count, 6), generator=torch.Generator().manual_seed(4))
    ids[:, 1] = torch.arange(count) % 2
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(row[1])} for row in ids]


def trainer(model: nn.Module, folder: Path, eval_dataset=None, **changes) -> transformers.Trainer:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_train_epochs": 3,
        "learning_rate": 0.02,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "steps",
        "save_steps": 6,
        "seed": 1,
    } | changes
    data = rows() if hasattr(model, "classifier") else language()
    arguments = transformers.TrainingArguments(**settings)
    return transformers.Trainer(model, arguments, train_dataset=data, eval_dataset=eval_dataset)


def language() -> list[dict]:
    return [dict.fromkeys(("input_ids", "labels"), row["input_ids"]) for row in rows()]


def classifier(config: vbank.Config = VB) -> nn.Module:
    torch.manual_seed(0)
    model = bert()
    vbank.attach(model, config, "all-linear", train=["classifier"])
    return model


def losses(run: transformers.Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@every_method
def test_the_loss_falls_and_only_the_adapter_moves(config, tmp_path):
    model = classifier(config)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    run = trainer(model, tmp_path, save_strategy="no", num_train_epochs=8)
    run.train()
    history = losses(run)
    assert len(history) == 32
    assert sum(history[-4:]) < 0.9 * sum(history[:4])
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == set(trained(model))


def test_a_run_resumes_from_its_own_checkpoint_as_if_it_had_not_stopped(tmp_path):
    whole = trainer(classifier(), tmp_path)
    whole.train()
    resumed = trainer(classifier(), tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert len(losses(whole)) == 12
    assert losses(resumed)[-6:] == losses(whole)[-6:]
    assert_same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()), **EXACT)


def test_evaluation_between_steps_changes_nothing(tmp_path):
    plain = trainer(classifier(), tmp_path, save_strategy="no")
    plain.train()
    watched = trainer(classifier(), tmp_path, rows(8), save_strategy="no", eval_strategy="steps", eval_steps=1)
    watched.train()
    assert losses(watched) == losses(plain)
    assert sum("eval_loss" in entry for entry in watched.state.log_history) == 12


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_losses(reentrant, tmp_path):
    plain = trainer(classifier(), tmp_path, save_strategy="no")
    plain.train()
    changed = trainer(
        classifier(),
        tmp_path,
        save_strategy="no",
        gradient_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    changed.train()
    torch.testing.assert_close(torch.tensor(losses(changed)), torch.tensor(losses(plain)), rtol=1e-4, atol=1e-4)


def test_param_groups_go_in_as_the_optimizer(tmp_path):
    model = classifier()
    groups = vbank.param_groups(model, lr={"bank": 0.0, "logits": 0.05, "head": 0.01})
    bank = model.vbank["default"].method.bank.clone()
    run = trainer(model, tmp_path, save_strategy="no")
    run.optimizer = torch.optim.AdamW(groups)
    run.train()
    assert torch.equal(model.vbank["default"].method.bank, bank)
    assert sum(losses(run)[-3:]) < sum(losses(run)[:3])


def test_a_4_bit_model_is_accepted_while_an_adapter_is_attached(tmp_path):
    torch.manual_seed(0)
    model = four_bit(llama(hidden_size=64, intermediate_size=128, initializer_range=0.1))
    kind, state = type(model.hf_quantizer), {n: v.clone() for n, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        trainer(model, tmp_path)
    vbank.attach(model, VB, "all-linear")
    run = trainer(
        model, tmp_path, language()[:4], num_train_epochs=4, save_steps=8, eval_strategy="steps", eval_steps=4
    )
    run.train()
    assert sum(losses(run)[-4:]) < 0.95 * sum(losses(run)[:4])
    end = {n: p.detach().clone() for n, p in trained(model).items()}

    torch.manual_seed(0)
    again = four_bit(llama(hidden_size=64, intermediate_size=128, initializer_range=0.1))
    vbank.attach(again, VB, "all-linear")
    resumed = trainer(again, tmp_path, num_train_epochs=4, save_steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert losses(resumed)[-8:] == losses(run)[-8:]
    assert_same(end, {n: p.detach() for n, p in trained(again).items()}, **EXACT)

    vbank.detach(model)
    assert type(model.hf_quantizer) is kind
    assert_same(state, dict(model.state_dict()), **EXACT)
    with pytest.raises(ValueError, match="cannot perform fine-tuning on purely quantized models"):
        trainer(model, tmp_path)
