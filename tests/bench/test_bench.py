import math
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from pocketdiffusion.bench.cost import by_module, cost, macs
from pocketdiffusion.bench.latency import busy, cores, latency
from pocketdiffusion.bench.memory import peak
from pocketdiffusion.bench.picture import calls, picture
from pocketdiffusion.bench.table import markdown, short, text
from pocketdiffusion.models.dit import PRESETS, DiT
from pocketdiffusion.pipeline import Schedule


def dit_macs(c, batch, words):
    """Of one call, from the config alone."""
    n, pix, d = (c.side // c.patch) ** 2, c.channels * c.patch**2, c.dim
    inner, cross = c.heads * c.head_dim, c.cross_heads * c.head_dim
    attention = 4 * n * d * inner + 2 * n * n * inner
    crossing = 2 * n * d * cross + 2 * words * d * cross + 2 * n * words * cross
    blocks = c.depth * (attention + crossing + 2 * n * d * c.mlp)
    time_and_text = c.features * d + d * d + 6 * d * d + words * (c.text * d + d * d)
    return batch * (2 * n * pix * d + time_and_text + blocks)


def test_linear():
    found = cost(nn.Linear(20, 30), (torch.zeros(5, 7, 20),))
    assert (found.parameters, found.bytes, found.macs) == (630, 2520, 5 * 7 * 20 * 30)


def test_convolution_with_stride_and_groups():
    found = cost(nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=4), (torch.zeros(2, 8, 10, 10),))
    assert found.macs == 2 * 16 * 5 * 5 * (8 // 4) * 9


def test_buffers_count_as_bytes_and_shared_parameters_once():
    first = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(first, nn.BatchNorm1d(4), first).half()
    found = cost(model.to("meta"), (torch.zeros(2, 4, dtype=torch.half, device="meta"),))
    # the two running statistics, and a counter of 8 bytes
    assert (found.parameters, found.bytes, found.macs) == (16 + 8, 2 * (16 + 8 + 8) + 8, 2 * 2 * 16)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_dit_on_meta(preset):
    with torch.device("meta"):
        model = DiT(PRESETS[preset])
    assert cost(model, model.example(3, "meta")).macs == dit_macs(model.config, 3, 12)


def test_attention_is_counted_on_the_cpu_too():
    model = DiT(PRESETS["smoke"])
    assert cost(model, model.example(2)).macs == dit_macs(model.config, 2, 12)


def test_a_foreign_layer_with_a_fused_fast_path():
    d, n = 16, 10
    model = nn.TransformerEncoderLayer(d, 4, 32, batch_first=True).eval()
    macs = cost(model, (torch.zeros(1, n, d),)).macs
    assert macs == n * (3 * d * d + d * d + 2 * d * 32) + 2 * n * n * d
    assert torch.backends.mha.get_fastpath_enabled()


def test_submodules_add_up_to_the_whole():
    model = DiT(PRESETS["smoke"])
    inputs = model.example()
    whole, parts, finer = cost(model, inputs), by_module(model, inputs), by_module(model, inputs, depth=3)
    assert list(parts) == [name for name, _ in model.named_children()]
    assert sum(p.macs for p in parts.values()) == whole.macs
    assert sum(p.parameters for p in parts.values()) == whole.parameters
    assert parts["blocks"].macs == finer["blocks.0"].macs + finer["blocks.1"].macs
    c, n = model.config, 16
    assert finer["blocks.1.mlp"].macs == 2 * 2 * n * c.dim * c.mlp


@pytest.mark.parametrize(
    "schedule, wanted",
    [
        ({"steps": 5}, 5),
        ({"steps": 5, "guidance": 2.0}, 10),
        # levels 1, 0.8, 0.6, 0.4, 0.2: guidance acts at two of them
        ({"steps": 5, "guidance": 2.0, "interval": (0.3, 0.7)}, 7),
        ({"steps": 5, "sampler": "heun"}, 9),
        ({"times": (1.0, 0.5), "sampler": "renoise"}, 2),
    ],
)
def test_calls_of_the_denoiser(schedule, wanted):
    assert calls(Schedule(**schedule)) == wanted


def test_a_picture_is_its_parts(tiny_pipe):
    """Three guided steps, the text and its empty twin, the decoder: as a count of sampling itself has it."""
    found = picture(tiny_pipe)
    assert found.calls == 6 and found.parameters == sum(p.numel() for p in tiny_pipe.transformer.parameters())
    assert picture(tiny_pipe, 2).macs == found.macs - 2 * found.step
    assert found.macs == macs(tiny_pipe.sample, (["two green stars"],))


def test_latency_of_a_known_duration():
    found = latency(lambda x: time.sleep(0.02), (torch.zeros(1),), runs=5, warmup=1, threads=1)
    assert found.p10 <= found.median <= found.p90
    assert 20 <= found.median < 60
    # half a second at least, so that the load of the cores can be read
    assert 8 <= found.runs <= 26
    assert (found.threads, found.device) == (1, "cpu")


def test_latency_stops_when_its_time_is_up_and_gives_the_threads_back():
    before = torch.get_num_threads()
    found = latency(
        lambda x: time.sleep(0.05), (torch.zeros(1),), runs=1000, warmup=0, threads=before + 1, seconds=0.2
    )
    assert 2 <= found.runs <= 5
    assert (found.threads, torch.get_num_threads()) == (before + 1, before)


@pytest.mark.skipif(math.isnan(busy()), reason="this system does not tell how busy its cores are")
def test_others_on_the_cores_are_noticed():
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.1)
        found = latency(lambda x: time.sleep(0.02), (torch.zeros(1),), threads=len(cores()))
    finally:
        spin.kill()
        spin.wait()
    assert found.others > 0.3 and found.contended


def test_an_idle_machine_is_not_contended(monkeypatch):
    monkeypatch.setattr("pocketdiffusion.bench.latency.busy", lambda: time.process_time() + 100)
    found = latency(lambda x: x + 1, (torch.zeros(1),), threads=1)
    assert found.others == pytest.approx(0, abs=1e-3) and not found.contended


def test_latency_refuses_too_few_runs():
    with pytest.raises(ValueError, match="runs"):
        latency(lambda x: x, (torch.zeros(1),), runs=1)


@pytest.mark.slow
def test_peak_memory_is_weights_and_activations():
    # a process of its own costs seconds, so both at once: every row is read, and appears twice in the output
    found = peak(nn.Embedding(1000, 8000), (torch.arange(2000) % 1000,))
    assert found.weights == 32e6
    # resident memory is counted in pages, and a few of the start are shared
    assert 95e6 <= found.peak < 110e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    model, x = nn.Embedding(1000, 8000, device="cuda"), torch.arange(2000, device="cuda") % 1000
    found = peak(model, (x,))
    assert 96e6 <= found.peak < 99e6
    # 32 MB are read and 64 MB written
    assert 0.005 < latency(model, (x,)).median < 5


def test_a_model_that_does_not_pickle_is_refused():
    class Local(nn.Linear):
        pass

    with pytest.raises(ValueError, match="Local"):
        peak(Local(2, 2), (torch.zeros(1, 2),))


def test_text_table():
    rows = [{"name": "a", "ms": 1.23456}, {"name": "longer", "ms": 10}, {"name": "none"}]
    expected = """
name       ms
------  -----
a       1.235
longer     10
none        -"""
    assert text(rows) == expected.lstrip("\n")


def test_markdown_table_aligns_numbers_and_escapes_pipes():
    assert markdown([{"name": "a|b", "n": 1}]).splitlines() == [
        "| name |   n |",
        "| ---- | --: |",
        "| a\\|b |   1 |",
    ]
    with pytest.raises(ValueError, match="row"):
        markdown([])


def test_short_numbers():
    assert [short(v) for v in (0, 999, 999.9, 1000, 3_241_000, 999_999, 12e9)] == [
        "0",
        "999",
        "1.00 k",
        "1.00 k",
        "3.24 M",
        "1.00 M",
        "12.0 G",
    ]
    assert short(15.2e6, "B") == "15.2 MB"
