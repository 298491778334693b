"""What a trained network can be run with: torch's own int8, torch.compile, ONNX Runtime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from frugal.doctor.check import DISTRIBUTION, Check, one_line, version
from frugal.doctor.installation import EXTRAS


def backends() -> Iterator[Check]:
    import torch

    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    yield Check("backends", "torch int8", "ok" if engines else "missing", ", ".join(engines) or "no engine")
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
        yield Check("backends", "ONNX Runtime", "ok", f"{onnxruntime.__version__}: {providers}")
    else:
        yield Check("backends", "ONNX Runtime", "missing", "not installed", f'pip install "{DISTRIBUTION}[onnx]"')


def compiling() -> Iterator[Check]:
    import torch
    import torch._inductor.config as inductor

    begin = time.perf_counter()
    x = torch.randn(64)
    try:
        # A cache would prove that it compiled yesterday.
        with warnings.catch_warnings(), inductor.patch(force_disable_caches=True):
            warnings.simplefilter("ignore")
            y = torch.compile(lambda t: torch.sin(t) * 2 + 1)(x)
        torch.testing.assert_close(y, torch.sin(x) * 2 + 1)
    except Exception as error:
        fix = "install a C++ compiler and Python's headers; on Debian: apt-get install g++ python3-dev"
        yield Check("backends", "torch.compile", "missing", one_line(error), fix)
        return
    yield Check("backends", "torch.compile", "ok", f"compiled and right, {time.perf_counter() - begin:.1f} s")


def onnx_export() -> Iterator[Check]:
    if any(version(name) is None for name in EXTRAS["onnx"][0]):
        return
    import onnxruntime
    import torch

    begin = time.perf_counter()
    network, x = torch.nn.Linear(4, 2).eval(), torch.randn(3, 4)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network, (x,), str(path), dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        y = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(y), network(x).detach(), rtol=1e-4, atol=1e-5)
    yield Check("backends", "ONNX export", "ok", f"exported, run and right, {time.perf_counter() - begin:.1f} s")
