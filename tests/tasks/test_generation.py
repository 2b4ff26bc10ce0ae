"""Rows from prompts and answers, batches, and generation: labels, padding, order, and what is refused."""

import pytest
import tiny_models
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import vbank
from vbank.tasks.generation import IGNORED, PadRight, context_length, encode_answers, generate, prompt_ids
from vbank.tasks.sources import DataError


def words(begin: bool = False, **special) -> PreTrainedTokenizerFast:
    """A word a token: <pad> 0, </s> 1, <s> 2, then w3 to w39."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<s>": 2} | {f"w{i}": i for i in range(3, 40)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    named = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in named.items() if v})


def test_labels_cover_the_answer_and_the_end_of_text():
    (row,) = encode_answers([("w5 w6", "w7 w8")], words(begin=True), 10)
    assert row["input_ids"] == [2, 5, 6, 7, 8, 1]
    assert row["labels"] == [IGNORED, IGNORED, IGNORED, 7, 8, 1]
    (row,) = encode_answers([("w5 w6", "w7 w8")], words(begin=True), 10, loss_on="all")
    assert row["labels"] == row["input_ids"] == [2, 5, 6, 7, 8, 1]


def test_the_prompt_has_the_tokens_that_generation_gives_it():
    tokenizer = words(begin=True)
    (row,) = encode_answers([("w5 w6", "w7")], tokenizer, 10)
    known = prompt_ids("w5 w6", tokenizer)
    assert row["input_ids"][: len(known)] == known


def test_a_long_answer_loses_its_end_and_the_end_of_text():
    (row,) = encode_answers([("w5", "w6 w7 w8")], words(), 3)
    assert row["input_ids"] == [5, 6, 7] and row["labels"] == [IGNORED, 6, 7]


def test_a_prompt_that_leaves_no_room():
    pairs = [("w5", "w6"), ("w5 w6 w7", "w8")]
    with pytest.raises(DataError, match=r"row 1: its prompt has 3 tokens.*max_length 3.*'w5 w6 w7'"):
        encode_answers(pairs, words(), 3)
    said = []
    assert len(encode_answers(pairs, words(), 3, too_long="drop", announce=said.append)) == 1
    assert said == ["left out 1 of 2 rows: prompt longer than max_length 3"]
    with pytest.raises(DataError, match="all 1 prompts fill max_length 3"):
        encode_answers(pairs[1:], words(), 3, too_long="drop")


def test_bad_rows_and_settings():
    with pytest.raises(DataError, match="row 0 has an empty answer.*'w5'"):
        encode_answers([("w5", " ")], words(), 5)
    with pytest.raises(DataError, match="did you mean 'answer'"):
        encode_answers([("w5", "w6")], words(), 5, loss_on="answers")
    with pytest.raises(DataError, match="end-of-text"):
        encode_answers([("w5", "w6")], words(eos_token=None), 5)


def test_padding():
    batch = PadRight(words())([{"input_ids": [5, 6, 1], "labels": [IGNORED, 6, 1]}, {"input_ids": [7], "labels": [7]}])
    assert batch["input_ids"].tolist() == [[5, 6, 1], [7, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 1], [7, IGNORED, IGNORED]]
    assert PadRight(words(pad_token=None))([{"input_ids": [5], "labels": [5]}])["input_ids"].tolist() == [[5]]


@pytest.mark.parametrize("family", [tiny_models.gpt2, tiny_models.llama])
def test_answers_do_not_depend_on_the_batch(family):
    model, tokenizer = family().train(), words()
    vbank.attach(model, vbank.VBLoRA(rank=2, num_vectors=9, vector_length=8, top_k=2), targets="all-linear")
    tiny_models.move(model)
    prompts = ["w5 w6 w7 w8", "w9", "w10 w11", "w9", "w12 w13 w14"]
    alone = [generate(model, tokenizer, [prompt], 6)[0] for prompt in prompts]
    told = []
    together = generate(model, tokenizer, prompts, 6, batch_size=3, progress=lambda *done: told.append(done))
    assert together == alone and any(together) and told == [(3, 5), (5, 5)]
    assert model.training and generate(model, tokenizer, [], 3) == []


def test_greedy_answers_are_the_likeliest_tokens():
    model, tokenizer = tiny_models.gpt2().eval(), words()
    ids = [5, 6]
    with torch.no_grad():
        for _ in range(4):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
    expected = tokenizer.decode([i for i in ids[2:] if i > 2])
    assert generate(model, tokenizer, ["w5 w6"], 4) == [expected]


def beams(model, prompt, steps, length_penalty):
    """The best of all sequences of `steps` words: log-probability over (tokens written) ** length_penalty.

    As wide as the vocabulary, so that nothing is pruned; an end of text ends a sequence, and counts as a token.
    """
    open_, done = [(0.0, [])], []
    for _ in range(steps):
        grown = []
        for total, written in open_:
            with torch.no_grad():
                scores = model(torch.tensor([prompt + written])).logits[0, -1].log_softmax(-1)
            grown += [(total + float(score), [*written, token]) for token, score in enumerate(scores)]
        done += [each for each in grown if each[1][-1] == 1]
        open_ = [each for each in grown if each[1][-1] != 1]
    return max(done + open_, key=lambda each: each[0] / len(each[1]) ** length_penalty)[1]


@pytest.mark.parametrize("length_penalty", [-4.0, 1.0, 4.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beams_find_the_best_sequence(seed, length_penalty):
    """With more beams than first words no sequence of two tokens is lost."""
    torch.manual_seed(seed)
    model, tokenizer = tiny_models.gpt2().eval(), words()
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform, so that greedy and best differ
            parameter.add_(0.3 * torch.randn_like(parameter))
    best = beams(model, [5, 6], 2, length_penalty)
    (found,) = generate(
        model, tokenizer, ["w5 w6"], 2, num_beams=model.config.vocab_size, length_penalty=length_penalty
    )
    assert found == tokenizer.decode([i for i in best if i > 2])


def test_no_run_of_words_stands_twice():
    model, tokenizer = tiny_models.gpt2().eval(), words()

    def pairs(answer):
        said = ["w5", *answer.split()]
        return list(zip(said, said[1:], strict=False))

    free, held = (generate(model, tokenizer, ["w5"], 16, no_repeat_ngram_size=size)[0] for size in (0, 2))
    assert len(set(pairs(free))) < len(pairs(free))  # a tiny model goes round in circles
    assert len(set(pairs(held))) == len(pairs(held)) > 5


def test_the_models_own_generation_settings_stay_out():
    model, tokenizer = tiny_models.llama(), words()
    expected = generate(model, tokenizer, ["w5"], 8)
    model.generation_config.repetition_penalty = 50.0
    assert generate(model, tokenizer, ["w5"], 8) == expected
    assert model.generation_config.repetition_penalty == 50.0


def test_prompts_that_do_not_fit():
    model, tokenizer = tiny_models.gpt2(), words()
    assert context_length(model) == 24
    with pytest.raises(DataError, match=r"prompt 1 has 20 tokens, its answer up to 5, and the model reads 24"):
        generate(model, tokenizer, ["w5", " ".join(["w6"] * 20)], 5)
    with pytest.raises(DataError, match="prompt 0 has no tokens"):
        generate(model, tokenizer, [""], 5)
    with pytest.raises(DataError, match="max_new_tokens 0"):
        generate(model, tokenizer, ["w5"], 0)
