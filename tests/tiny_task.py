"""A task of one second for the runner: write letters backwards. Scored by generating, with a tiny random Llama."""

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import torch
import transformers

from vbank import tasks
from vbank.tasks.base import Task, TaskData
from vbank.tasks.generation import PadRight, encode_answers, generate
from vbank.tasks.weights import load_generator

LETTERS = "abcdefgh"


def save_llama(folder: Path, **changes: Any) -> Path:
    """A random Llama of two layers, with a tokenizer of letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS, ">"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    settings = {
        "vocab_size": len(words),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "initializer_range": 0.1,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    } | changes
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).save_pretrained(folder)
    return folder


class Backwards(Task):
    """Prompts "a c b >", answers "b c a"."""

    name = "backwards"
    metric = "exact"

    def load(self, source="any", announce=print):
        draw = random.Random(0)
        rows = []
        for _ in range(61):
            word = [draw.choice(LETTERS) for _ in range(draw.randint(2, 5))]
            rows.append({"prompt": " ".join([*word, ">"]), "answer": " ".join(reversed(word))})
        return TaskData(self.name, "generated letters", rows[:43], rows[43:])

    def model(self, settings):
        return load_generator(settings)

    def encode(self, rows, processor, settings):
        return encode_answers([(row["prompt"], row["answer"]) for row in rows], processor, settings.max_length)

    def collator(self, processor):
        return PadRight(processor)

    def measure(self, model, processor, rows, settings, folder):
        rows = rows[: settings.generate or None]
        answers = generate(model, processor, [row["prompt"] for row in rows], settings.max_new_tokens)
        with (folder / "predictions.jsonl").open("w") as out:
            for row, answer in zip(rows, answers, strict=True):
                out.write(json.dumps(row | {"generated": answer}) + "\n")
        right = sum(answer == row["answer"] for row, answer in zip(rows, answers, strict=True))
        return {"exact": right / len(rows)}


BACKWARDS = Backwards()

RECIPE = """
[task]
name = "backwards"
max_length = 16
max_new_tokens = 6
generate = 4
[model]
name = "{folder}"
head = []
[train]
epochs = 2
batch_size = 8
save_steps = 2
[variants.lora.method]
name = "lora"
rank = 2
alpha = 4
lr = 1e-2
[variants.vera.method]
name = "vera"
rank = 8
lr = 2e-2
[variants.tied-lora.method]
name = "tied-lora"
rank = 4
lr = 1e-2
[variants.prolora.method]
name = "prolora"
rank = 4
unshared_rank = 1
share_a = 2
share_b = 2
lr = 1e-2
[variants.vb-lora.method]
name = "vb-lora"
rank = 2
num_vectors = 12
vector_length = 16
lr = {{ bank = 1e-2, logits = 1e-1 }}
[variants.full.method]
name = "full"
lr = 1e-3
"""


def register() -> None:
    """Lets recipes name the task."""
    tasks.TABLE["backwards"] = "tiny_task:BACKWARDS"


def write_recipe(folder: Path, llama: Path) -> str:
    """The recipe's file, for `vbank.recipes.load` with a variant after it."""
    path = folder / "tiny.toml"
    path.write_text(RECIPE.format(folder=llama))
    return str(path)


def main() -> None:
    """The command line with the task in it; dies at the training step that KILL_AT_STEP names."""
    from vbank import cli
    from vbank.training import AdapterTrainer

    register()
    fatal, real, calls = int(os.environ.get("KILL_AT_STEP", "0")), AdapterTrainer.training_step, []

    def training_step(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        if len(calls) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    AdapterTrainer.training_step = training_step
    cli.main()


if __name__ == "__main__":  # `accelerate launch tests/tiny_task.py run ...`
    main()
