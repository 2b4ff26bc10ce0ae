"""The guarded call: a function that raises, loops, prints, mutates or returns something odd gets a message."""

import asyncio
import os
import random
import signal
import sys
import threading
import time

import pytest
import torch
from torch import nn

from vbank.exercises.checker import Wrong, judge, require_integer, require_number, require_tensor
from vbank.exercises.guard import describe, guarded, unchanged


def message(function, *arguments, seconds=5.0):
    with pytest.raises(Wrong) as caught:
        guarded(function, seconds, *arguments)
    return str(caught.value)


def test_a_right_call_returns_the_value():
    assert guarded(lambda a, b: a + b, 5.0, 1, 2) == 3
    assert guarded(max, 5.0, [1, 2]) == 2  # a built-in without a signature of its own


def test_what_it_raises_is_told_with_line_and_inputs():
    def divides(x):
        return x / 0  # here

    assert "raised ZeroDivisionError: division by zero at `return x / 0  # here` (inputs: 3)" in message(divides, 3)


def exits(x):
    raise SystemExit(3)


def recurses(x):
    return recurses(x)


def test_leaving_python_and_endless_recursion_are_told():
    assert "raised SystemExit: 3" in message(exits, 1)
    assert "raised RecursionError" in message(recurses, 1)


@pytest.mark.parametrize("kind", [GeneratorExit, asyncio.CancelledError])
def test_what_is_no_exception_is_told(kind):
    def raises(x):
        raise kind

    assert f"raised {kind.__name__}" in message(raises, 1)


def test_an_interrupt_by_the_reader_goes_through():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded(interrupted, 5.0, 1)


@pytest.mark.parametrize("function", [lambda x: x, lambda x, y, z: x])
def test_wrong_number_of_parameters(function):
    said = message(function, 1, 2)
    assert "is called with 2 arguments (1, 2)" in said and "Your function has the parameters (x" in said


def loops(x):
    while True:
        x += 1


def loops_and_catches(x):
    while True:
        try:
            x += 1
        except Exception:
            pass


def loops_and_catches_all(x):
    while True:
        try:
            time.sleep(5)
        except:  # noqa: E722
            continue


def catches_once(x):
    try:
        loops(x)
    except BaseException:
        loops(x)


@pytest.mark.parametrize("function", [loops, loops_and_catches, catches_once, loops_and_catches_all])
def test_endless_loops_are_stopped(function):
    tracer = sys.gettrace()
    start = time.monotonic()
    assert "still running after 0.2 seconds; does a loop ever end? (inputs: 1)" in message(function, 1, seconds=0.2)
    assert time.monotonic() - start < 3
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert sys.gettrace() is tracer


@pytest.mark.parametrize("function", [loops, loops_and_catches, catches_once])
def test_endless_loops_are_stopped_off_the_main_thread(function):
    said = []
    thread = threading.Thread(target=lambda: said.append(message(function, 1, seconds=0.2)), daemon=True)
    thread.start()
    thread.join(10)
    assert "still running after 0.2 seconds" in said[0]


def test_off_the_main_thread_a_right_call_leaves_nothing_behind():
    said = []

    def calls():
        said.extend(guarded(lambda x: x + 1, 0.05, i) for i in range(20))
        time.sleep(0.2)
        said.append("alive")

    thread = threading.Thread(target=calls)
    thread.start()
    thread.join(10)
    assert said == [*range(1, 21), "alive"]


def test_a_call_that_cannot_be_ended_is_announced(capsys):
    def sleeps_in_one_go(x):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # as if inside compiled code
        try:
            time.sleep(0.6)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
        return x

    assert "still running" in message(sleeps_in_one_go, 1, seconds=0.1)
    assert "Interrupt the kernel" in capsys.readouterr().err


def appends_deep_inside(rows):
    rows[1]["list"].append(3)
    return 1


def through_a_view(M):
    M.T[0].mul_(2)
    return M.sum()


def through_numpy(M):
    M.numpy()[0, 0] = 7
    return M.sum()


def reshapes_in_place(M):
    return M.t_().sum()


def records_gradients(M):
    return M.requires_grad_().sum()


def steps(layer):
    with torch.no_grad():
        layer.weight.add_(1)
    return 1


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        (appends_deep_inside, [1, {"list": [1, 2]}]),
        (through_a_view, torch.arange(6.0).view(2, 3)),
        (through_numpy, torch.arange(6.0).view(2, 3)),
        (reshapes_in_place, torch.zeros(2, 3)),
        (records_gradients, torch.zeros(2, 3)),
        (lambda tensors: tensors[0].zero_(), [torch.ones(2), torch.ones(2)]),
        (lambda tensors: tensors.pop(), [torch.ones(2), torch.ones(2)]),
        (lambda x: x.backward() or x, torch.ones((), requires_grad=True)),
        (steps, nn.Linear(2, 2)),
        (lambda numbers: numbers.sort() or 1, [2, 1]),
    ],
)
def test_inputs_that_change_are_told(function, argument):
    assert "changed its input number 2 (y);" in message(lambda x, y: function(y), 0, argument)
    assert "changed its input number 2;" in message(lambda *both: function(both[1]), 0, argument)


@pytest.mark.parametrize(
    "value", [torch.tensor([1.0, float("nan")]), float("nan"), [torch.ones(2)], {"a": (1, [2])}, len, object(), None]
)
def test_inputs_left_alone_pass(value):
    assert guarded(lambda x: 1, 5.0, value) == 1
    assert unchanged(value, value)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: None, "returned nothing; does it end with a return?"),
        (lambda x: print("the answer", x), "returned nothing.* It printed: the answer 3"),
        (lambda x: (i for i in range(x)), "iterator of type generator"),
        (lambda x: map(abs, [x]), "iterator of type map"),
    ],
)
def test_odd_return_values_are_told(function, words):
    with pytest.raises(Wrong, match=words):
        guarded(function, 5.0, 3)


def test_async_functions_are_told():
    async def later(x):
        return x

    assert "plain def" in message(later, 1)


def test_printing_is_shown_only_where_the_answer_is_wrong(capsys):
    def chatty(x):
        print("x" * 10_000)
        return 1 // x

    assert guarded(chatty, 5.0, 1) == 1
    assert capsys.readouterr().out == ""
    said = message(chatty, 0)
    assert "ZeroDivisionError" in said and "It printed: xxx" in said and said.endswith("x ...") and len(said) < 600


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: torch.set_default_dtype(torch.float64), "default dtype"),
        (lambda: torch.set_default_device("meta"), "default device"),
        (lambda: torch.set_grad_enabled(False), "records gradients"),
        (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "threads"),
        (lambda: os.chdir("/"), "current folder"),
    ],
)
def test_settings_changed_for_everybody_are_told_and_put_back(change, words):
    def settings():
        return (
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.get_num_threads(),
            os.getcwd(),
        )

    before = settings()
    assert words in message(lambda x: change() or x, 1)
    assert settings() == before


def test_random_states_are_put_back():
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3).tolist(), random.random()
    torch.manual_seed(5)
    random.seed(5)
    guarded(lambda x: (torch.manual_seed(x), random.seed(x)), 5.0, 1)
    assert (torch.rand(3).tolist(), random.random()) == expected


def test_inputs_are_described_briefly():
    assert describe([torch.zeros(2, 3), 4, "a"]) == "tensor of shape (2, 3), 4, 'a'"
    assert describe([[torch.zeros(2)] * 2, (1, [2, 3])]) == (
        "[tensor of shape (2,), tensor of shape (2,)], (1, [2, 3])"
    )
    assert describe([list(range(10**6))]) == "[0, 1, 2, 3, ...] of 1000000"
    assert describe(["x" * 10**6]) == "a str of length 1000000"
    assert len(describe([[[i] * 9 for i in range(9)]] * 20)) < 310
    long = message(lambda x: {}["k" * 10**5], 1)
    assert len(long) < 600 and "raised KeyError" in long


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1.0], "should be a tensor; yours is of type list"),
        (torch.zeros(3), r"should have shape \(2,\); yours has \(3,\)"),
        (torch.zeros(2, dtype=torch.float64), "should be of type torch.float32"),
        (torch.tensor([1.0, float("nan")]), "holds NaN"),
        (torch.zeros(2, device="meta"), "on the CPU"),
        (torch.zeros(2).to_sparse(), "dense"),
    ],
)
def test_require_tensor(value, words):
    with pytest.raises(Wrong, match=words):
        require_tensor(value, (2,), "It", torch.float32)


@pytest.mark.parametrize("value", [2.0, True, "2", torch.tensor(2), 1j, None])
def test_require_integer(value):
    with pytest.raises(Wrong, match="It should be an int; yours is"):
        require_integer(value, "It")


@pytest.mark.parametrize("value", ["2", True, torch.zeros(2), torch.tensor(1j), float("inf"), float("nan")])
def test_require_number(value):
    with pytest.raises(Wrong):
        require_number(value, "It")
    assert require_number(torch.tensor([2.5]), "It") == 2.5 == require_number(2.5, "It")


def test_a_value_that_the_exercise_cannot_use_is_no_traceback():
    verdict = judge("made-up", lambda function: len(function(1)), lambda x: x, 5.0)
    assert not verdict and "cannot use what your function returned" in verdict.message


def test_many_slow_cases_end_too():
    def exercise(function):
        return sum(function(0.1) for _ in range(100))

    verdict = judge("made-up", exercise, lambda x: time.sleep(x) or 1, 0.2)
    assert not verdict and "took more than 0.6 seconds together" in verdict.message


def test_checkers_may_be_used_with_gradients_off():
    with torch.no_grad():
        assert guarded(lambda x: x + 1, 5.0, 1) == 2
