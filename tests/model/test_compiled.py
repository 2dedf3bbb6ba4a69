"""torch.compile in the background: what is called as it is, what is called compiled, and that failing changes nothing."""

import shutil
import threading

import pytest
import torch

from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging import metrics
from lib.imaging.masks import deepest_pixel
from lib.model.compiled import OFTEN, PARTS, Compiler, Part
from lib.model.worker_pool import side_by_side
from lib.propagation.gaps import ResultCache
from lib.samples import phantom

CPU = torch.device("cpu")


def doubled(x):
    return 2 * x


def called(part, size, times=OFTEN):
    """What `part` gives in a lane of one core, as tracking calls it."""
    @torch.inference_mode()
    def call():
        for n in range(times):
            found = part(torch.ones(size))
            yield times - n
        return found

    return side_by_side([call()], CPU)[0]


def test_what_is_called_often_is_compiled_behind_the_caller(monkeypatch):
    go_on, threads = threading.Event(), []

    def compile(function, **options):
        threads.append(threading.current_thread().name)
        go_on.wait(10)
        return lambda x: function(x) + 100

    monkeypatch.setattr(torch, "compile", compile)
    compiler = Compiler()
    part = Part(doubled, compiler, "cpu")
    assert called(part, 4, OFTEN + 5).tolist() == [2] * 4, "nobody waits"
    go_on.set()
    assert compiler.wait(10)
    assert called(part, 4).tolist() == [102] * 4
    assert called(part, 3, OFTEN - 1).tolist() == [2] * 3, "seldom"
    assert part(torch.ones(4)).tolist() == [2] * 4, "no tracking: gradients may be wanted"
    assert threads == ["compile"]


def test_without_a_compiler_all_goes_on_as_it_is(monkeypatch, caplog):
    def compile(function, **options):
        raise RuntimeError("No C++ compiler\nand much more")

    monkeypatch.setattr(torch, "compile", compile)
    compiler = Compiler()
    part = Part(doubled, compiler, "cpu")
    for size in (4, 5):
        assert called(part, size).tolist() == [2] * size and compiler.wait(10)
    assert [r.getMessage() for r in caplog.records] == ["torch.compile does not work here, going on without it: No C++ compiler"]


NEEDS_COMPILER = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


@NEEDS_COMPILER
def test_compiled_code_is_not_compiled_again_for_a_caller():
    from torch._dynamo.utils import counters

    layer = torch.nn.Linear(8, 8).eval()
    compiler = Compiler()
    part = Part(lambda x: layer(x.expand(3, 8)).relu().sum(0), compiler, "cpu")
    before = called(part, 8)
    assert compiler.wait(120)
    made, ready = counters["stats"]["unique_graphs"], list(part._ready)
    assert len(ready) == 1 and made
    torch.testing.assert_close(called(part, 8), before)
    assert counters["stats"]["unique_graphs"] == made


@NEEDS_COMPILER
def test_a_compiled_network_draws_the_same():
    volume, labels = phantom.abdomen(3, shape=(96, 96, 24), spacing_mm=(4.0, 4.0, 8.0))
    liver = labels == phantom.LABELS["liver"]
    t = int(liver.sum((0, 1)).argmax())
    y, x = deepest_pixel(liver[:, :, t].T)
    segmenter = Segmenter(memo=ResultCache(limit=0), compiled=True)  # nothing is remembered
    prompts = segmenter.prompts(volume, Options(), positive=[(x, y, t)])
    before = segmenter.segment(volume, prompts, Options()).mask
    assert segmenter.wait(300)
    model = next(iter(segmenter._engines.values())).tracker.model
    parts = [getattr(getattr(model, name), method) for name, method in PARTS]
    seen, ready = dict(model.memory_encoder.forward._seen), [set(p._ready) for p in parts]
    after = segmenter.segment(volume, prompts, Options()).mask
    assert sum(model.memory_encoder.forward._seen.values()) < sum(seen.values()) + 5, "most steps were compiled ones"
    assert before.any() and metrics.dice(before, after) > 0.999
    for right in range(1, OFTEN + 1):
        more = segmenter.prompts(volume, Options(), positive=[(x, y, t), (x + right, y, t), (x, y, t + 4)])
        segmenter.segment(volume, more, Options())
    assert segmenter.wait(300) and all(ready) and len(ready[0]) > 4
    assert [set(p._ready) for p in parts] == ready, "all that clicks call was compiled in the warm-up, or is not compiled"
