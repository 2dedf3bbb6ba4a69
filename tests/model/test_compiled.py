"""torch.compile in the background: what is called as it is, what is called compiled, and that failing changes nothing."""

import shutil
import threading
from contextlib import nullcontext

import pytest
import torch

from lib.model.compiled import OFTEN, Compiler, Part
from lib.model.lanes import share

CPU = torch.device("cpu")


def doubled(x):
    return 2 * x


def called(part, size, times=OFTEN):
    """What `part` gives in a lane of one core, as tracking calls it."""
    @torch.inference_mode()
    def call(_):
        return [part(torch.ones(size)) for _ in range(times)][-1]

    return share(call, [0], CPU, threads=1)[0]


def test_what_is_called_often_is_compiled_behind_the_caller(monkeypatch):
    go_on, threads = threading.Event(), []

    def compile(function, **options):
        threads.append((threading.current_thread().name, torch.get_num_threads()))
        go_on.wait(10)
        return lambda x: function(x) + 100

    monkeypatch.setattr(torch, "compile", compile)
    compiler = Compiler()
    part = Part(doubled, compiler, nullcontext)
    assert called(part, 4, OFTEN + 5).tolist() == [2] * 4, "nobody waits"
    go_on.set()
    assert compiler.wait(10)
    assert called(part, 4).tolist() == [102] * 4
    assert called(part, 3, OFTEN - 1).tolist() == [2] * 3, "seldom"
    assert part(torch.ones(4)).tolist() == [2] * 4, "no tracking: gradients may be wanted"
    assert [name for name, _ in threads] == ["compile"]


def test_without_a_compiler_all_goes_on_as_it_is(monkeypatch, caplog):
    def compile(function, **options):
        raise RuntimeError("No C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", compile)
    compiler = Compiler()
    part = Part(doubled, compiler, nullcontext)
    for size in (4, 5):
        assert called(part, size).tolist() == [2] * size and compiler.wait(10)
    assert [r.getMessage() for r in caplog.records] == ["torch.compile does not work here, going on without it: No C++ compiler"]


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_compiled_code_is_not_compiled_again_for_a_caller(monkeypatch):
    from torch._dynamo.utils import counters

    layer = torch.nn.Linear(8, 8).eval()
    compiler = Compiler()
    part = Part(lambda x: layer(x.expand(3, 8)).relu().sum(0), compiler, nullcontext)
    before = called(part, 8)
    assert compiler.wait(120)
    made, ready = counters["stats"]["unique_graphs"], list(part._ready)
    assert len(ready) == 1 and made
    torch.testing.assert_close(called(part, 8), before)
    assert counters["stats"]["unique_graphs"] == made
