"""Small language models trained here from scratch, for machines without the Hugging Face Hub.

They stand in for GPT-2 and Llama so that the same code runs: they know the style of the texts they were trained on and
nothing else. A score of theirs says nothing about the model whose architecture they share.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_model
from torch import Tensor, nn

from vbank.live import progress
from vbank.suggestions import unknown
from vbank.tasks.sources import DataError

KINDS = ("gpt2", "llama")
VERSION = 1  # part of every name in the cache; a change of the training must raise it
END = {"gpt2": "<|endoftext|>", "llama": "</s>"}
PADDING, BEGIN = "<pad>", "<s>"
STEPS_PER_CHECKPOINT = 100
WARM_UP = 0.05  # share of the steps in which the rate rises


def cache_folder() -> Path:
    """VBANK_CACHE, else the folder vbank in the user's cache."""
    own = os.environ.get("VBANK_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vbank"


def generator(
    kind: str,
    texts: Sequence[str],
    steps: int = 400,
    seed: int = 0,
    vocabulary: int = 2048,
    hidden: int = 128,
    layers: int = 4,
    heads: int | None = None,
    key_value_heads: int | None = None,
    context: int = 256,
    special_tokens: Sequence[str] = (),
    batch_size: int = 4,
    lr: float = 3e-3,
    announce: Callable[[str], object] = print,
) -> Path:
    """A GPT-2 or Llama with its tokenizer, trained here from scratch; read from the cache if it was trained before.

    A byte-level BPE is trained on the texts, then the model on the same texts, joined by the end of text and cut into
    rows of `context` tokens: AdamW (weight decay 0.1), rate rising over 5 % of the steps and falling as a cosine. On
    one machine, the same arguments give the same model. A stopped training goes on from its last checkpoint to that
    model; the folder appears whole or not at all, and of two processes that ask for the same model the second waits.

    Args:
        kind: "gpt2" or "llama"; a Llama splits numbers into digits and begins every text with a token.
        texts: what to train on.
        steps: of the optimizer.
        seed: of the first weights and of the order of the rows.
        vocabulary: tokens of the BPE; fewer if the texts give no more.
        hidden, layers, heads: of the model; a head for every 32 dimensions if None.
        key_value_heads: of a Llama with grouped-query attention; None for one a head.
        context: the most tokens that the model reads.
        special_tokens: tokens of their own, such as "<|user|>".
        batch_size: rows of a step.
        lr: largest learning rate.
        announce: takes lines of text about what is done.

    Returns:
        The folder with configuration, weights and tokenizer, for `from_pretrained`, and about.json.

    Raises:
        DataError: an unknown kind, no texts or too few for one row, or sizes that do not fit each other.
    """
    heads = max(1, hidden // 32) if heads is None else heads
    settings = {
        "kind": kind,
        "steps": steps,
        "seed": seed,
        "vocabulary": vocabulary,
        "hidden": hidden,
        "layers": layers,
        "heads": heads,
        "key_value_heads": heads if key_value_heads is None else key_value_heads,
        "context": context,
        "special_tokens": list(special_tokens),
        "batch_size": batch_size,
        "lr": lr,
    }
    _check(settings, texts)
    digest = hashlib.sha256(json.dumps([VERSION, settings], sort_keys=True).encode())
    for text in texts:
        digest.update(text.encode() + b"\0")
    folder = cache_folder() / "scratch" / f"{kind}-{digest.hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_dir():
        with _alone(folder.with_suffix(".lock")):
            if not folder.is_dir():  # the process that we waited for may have made it
                _make(folder, settings, texts, announce)
                return folder
    announce(f"scratch-{kind}: trained here from scratch before, {_size(folder)}")
    return folder


def _make(folder: Path, settings: dict[str, Any], texts: Sequence[str], announce: Callable[[str], object]) -> None:
    begun = time.process_time()
    tokenizer = bpe(settings["kind"], texts, settings["vocabulary"], settings["special_tokens"])
    shuffled = random.Random(settings["seed"]).sample(texts, len(texts))  # neighbours in a row must not be alike
    rows = packed(shuffled, tokenizer, settings["context"])  # (rows, context)
    with torch.random.fork_rng(devices=[]):  # the model is made and trained on the CPU
        torch.default_generator.manual_seed(settings["seed"])
        model = untrained(settings, tokenizer)
        parameters = sum(p.numel() for p in model.parameters())
        announce(
            f"scratch-{settings['kind']}: training {parameters:,} parameters from scratch on {rows.numel():,} tokens,"
            f" {settings['steps']} steps"
        )
        unfinished = folder.with_suffix(".unfinished")
        unfinished.mkdir(exist_ok=True)
        loss = train(model, rows, settings, unfinished / "checkpoint.pt")
    about = {
        "note": "trained here from scratch; it shares the architecture's name, not its weights",
        "settings": settings,
        "texts": len(texts),
        "tokens": rows.numel(),
        "parameters": parameters,
        "loss": loss,
        "cpu_seconds": round(time.process_time() - begun, 1),
    }
    aside = unfinished / "model"
    aside.mkdir(exist_ok=True)
    model.config.save_pretrained(aside)
    save_model(model, str(aside / "model.safetensors"), metadata={"format": "pt"})
    tokenizer.save_pretrained(aside)
    (aside / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    try:
        os.rename(aside, folder)
    except OSError:  # without a lock, another process may have made the same model
        if not folder.is_dir():
            raise
    shutil.rmtree(unfinished, ignore_errors=True)
    announce(f"scratch-{settings['kind']}: trained here from scratch, {_size(folder)}")


def bpe(kind: str, texts: Sequence[str], vocabulary: int, special_tokens: Sequence[str] = ()) -> Any:
    """A byte-level BPE trained on the texts, as a tokenizer of transformers (Radford et al. 2019, section 2.2)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    end = END[kind]
    named = [PADDING, end] if kind == "gpt2" else [PADDING, end, BEGIN]
    tokenizer = Tokenizer(models.BPE())
    split: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if kind == "llama":
        split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), split])
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*named, *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if kind == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
        )
    begin = BEGIN if kind == "llama" else end
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=PADDING,
        additional_special_tokens=list(special_tokens),
    )


def packed(texts: Sequence[str], tokenizer: Any, context: int) -> Tensor:
    """All texts in one line, an end of text after each, cut into rows of `context` tokens: (rows, context).

    Raises:
        DataError: the texts do not fill one row.
    """
    line = [i for ids in tokenizer(list(texts))["input_ids"] for i in (*ids, tokenizer.eos_token_id)]
    rows = len(line) // context
    if not rows:
        raise DataError(f"{len(texts)} texts give {len(line)} tokens, fewer than one row of {context}; give more texts")
    return torch.tensor(line[: rows * context]).reshape(rows, context)


def untrained(settings: dict[str, Any], tokenizer: Any) -> Any:
    """The model before training; its weights come from torch's global generator."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    tokens: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    hidden, layers, heads = settings["hidden"], settings["layers"], settings["heads"]
    if settings["kind"] == "gpt2":
        shape: dict[str, Any] = {
            "n_embd": hidden,
            "n_layer": layers,
            "n_head": heads,
            "n_positions": settings["context"],
        }
        dropout: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2LMHeadModel(GPT2Config(**shape, **dropout, **tokens))
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=-(-8 * hidden // 3 // 64) * 64,  # Llama's 8/3, up to a block of NF4
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=settings["key_value_heads"],
            max_position_embeddings=settings["context"],
            tie_word_embeddings=True,
            **tokens,
        )
    )


def order_of(rows: int, size: int, seed: int) -> Iterator[Tensor]:
    """Indices of `size` rows a step, for ever: every row once a pass, each pass in an order of its own."""
    draw, left = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(rows, generator=draw)])
        yield left[:size]
        left = left[size:]


def train(model: nn.Module, rows: Tensor, settings: dict[str, Any], checkpoint: Path) -> float:
    """Trains in place, from `checkpoint` on if it is there; returns the mean loss (nats a token) of the last tenth."""
    steps, rise = settings["steps"], max(1, round(WARM_UP * settings["steps"]))
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=(0.9, 0.95))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - rise), eta_min=settings["lr"] / 20)
    linear = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / rise, total_iters=rise)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [linear, cosine], [rise])
    losses: list[float] = []
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "schedule": schedule}
    if checkpoint.is_file():
        saved = torch.load(checkpoint, weights_only=True)
        losses = saved["losses"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    model.train()
    order = order_of(len(rows), settings["batch_size"], settings["seed"])
    for step, chosen in enumerate(progress(order, f"training a small {settings['kind']}", steps), start=1):
        if step > steps:
            break
        if step <= len(losses):  # done before the stop
            continue
        batch = rows[chosen]  # (batch, context)
        logits = model(batch).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % STEPS_PER_CHECKPOINT == 0:
            aside = checkpoint.with_suffix(".tmp")
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"losses": losses}, aside)
            os.replace(aside, checkpoint)
    model.eval()
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


def _check(settings: dict[str, Any], texts: Sequence[str]) -> None:
    if settings["kind"] not in KINDS:
        raise DataError(unknown("scratch model", settings["kind"], KINDS))
    if isinstance(texts, str) or not texts:
        raise DataError("a scratch model needs texts to train on; give a list of at least one")
    for name in ("steps", "hidden", "layers", "heads", "key_value_heads", "context", "batch_size"):
        if settings[name] < 1:
            raise DataError(f"scratch model: {name} is {settings[name]}; expected at least 1")
    if not 0 < settings["lr"] < math.inf:
        raise DataError(f"scratch model: lr is {settings['lr']}; expected a finite number above 0")
    hidden, heads, shared = settings["hidden"], settings["heads"], settings["key_value_heads"]
    if hidden % heads or (hidden // heads) % 2:
        raise DataError(f"scratch model: hidden {hidden} gives {heads} heads no even size; choose another of the two")
    if heads % shared:
        raise DataError(f"scratch model: {heads} heads do not share {shared} key and value heads; choose a divisor")
    if settings["kind"] == "gpt2" and shared != heads:
        raise DataError("scratch model: GPT-2 has no grouped-query attention; leave out key_value_heads, or take llama")
    named = 3 + len(settings["special_tokens"]) + 256
    if settings["vocabulary"] < named:
        raise DataError(f"scratch model: vocabulary {settings['vocabulary']} is below the {named} of bytes and names")


def _size(folder: Path) -> str:
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return f"{about['parameters']:,} parameters, loss {about['loss']:.2f}, {about['cpu_seconds']:.0f} s CPU"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. Windows has no such lock: there the first one to rename wins."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
