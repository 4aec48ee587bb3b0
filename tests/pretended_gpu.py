"""A pretended GPU: code for CUDA runs on the CPU, and what a real device would refuse or wait for is found.

Tensors stay CPU tensors with real values; which of them would live on the device is kept per storage.
`.device`, `.is_cuda`, `.to` and `device=...` report and obey that pretended place, so the code takes its CUDA
branches. Every ATen call below autograd is seen, and
  * tensors of two devices that meet where CUDA would refuse raise `DeviceMismatch`;
  * everything for which the host would wait, and every copy between the two, is counted with its line.
The variable-length attention kernel is replaced by plain attention after its own demands were checked.
"""

import contextlib
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
WAITING_OPS = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive",
    "equal", "is_nonzero", "bincount", "_assert_scalar", "isin",
}  # fmt: skip
INDEX_OPS = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
TAKES_CPU_SCALARS = {
    "where", "fill_", "index_fill", "index_fill_", "masked_fill", "masked_fill_", "lerp",
}  # fmt: skip
HOST_METHODS = ("to", "cuda", "cpu", "numpy", "__array__", "tolist", "get_device", "__dlpack__")
plain = torch._C.DisableTorchFunction


class DeviceMismatch(RuntimeError):
    "Tensors of two devices met."


def calling_line() -> str:
    "The innermost line of the code under test."
    frame = sys._getframe(1)
    while frame:
        name = frame.f_code.co_filename
        library = "site-packages" in name or "/lib/python" in name or name.startswith("<")
        if not library and Path(name) != Path(__file__):
            return f"{Path(name).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "(autograd)"


def tensors_in(*things) -> list[Tensor]:
    return [x for x in tree_leaves(things) if isinstance(x, Tensor)]


class PretendedGPU(contextlib.AbstractContextManager):
    "While the block runs, there is a device `cuda`."

    def __init__(self):
        self.storages: dict[int, StorageWeakRef] = {}  # those on the device; weak, so no address is reused
        self.pinned: dict[int, StorageWeakRef] = {}
        self.waits: Counter = Counter()  # (what, line) -> times
        self.copies: Counter = Counter()
        self.calls: Counter = Counter()  # ATen calls on the device
        self.recording = True
        self.ambient = threading.local()
        self.patches = contextlib.ExitStack()

    def holds(self, t: Tensor) -> bool:
        "Whether a tensor lives on the pretended device."
        with plain():
            reference = self.storages.get(t.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def device_of(self, t: Tensor) -> torch.device:
        return CUDA if self.holds(t) else CPU

    def place(self, t: Tensor, device: torch.device) -> Tensor:
        with plain():
            storage = t.untyped_storage()
        if device.type == "cuda":
            self.storages[storage._cdata] = StorageWeakRef(storage)
        else:
            self.storages.pop(storage._cdata, None)
        return t

    def pin(self, t: Tensor) -> Tensor:
        with plain():
            out = t.clone()
            storage = out.untyped_storage()
            self.pinned[storage._cdata] = StorageWeakRef(storage)
        return out

    def is_pinned(self, t: Tensor) -> bool:
        with plain():
            reference = self.pinned.get(t.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def wait(self, what: str):
        if self.recording:
            self.waits[what, calling_line()] += 1

    def copy(self, what: str):
        if self.recording:
            self.copies[what, calling_line()] += 1

    def reset(self):
        "Forget what was counted."
        for counter in (self.waits, self.copies, self.calls):
            counter.clear()
        for key in [k for k, reference in self.storages.items() if reference.expired()]:
            del self.storages[key]

    def move(self, t: Tensor, device, dtype, non_blocking: bool, memory_format, copy: bool) -> Tensor:
        there, here = torch.device(device).type, self.device_of(t).type
        with plain():
            out = t.to(dtype or t.dtype, memory_format=memory_format or torch.preserve_format)
            if (there != here or copy) and out is t:
                out = t.clone()
        if there == here:
            return out if out is t else self.place(out, torch.device(here))
        if there == "cpu":
            self.wait("copy to the host")
        elif non_blocking and self.is_pinned(t):
            self.copy("pinned, asynchronous")
        elif non_blocking:
            self.copy("pageable, non-blocking")
        else:
            self.wait("blocking copy to the device")
        return self.place(out, torch.device(there))

    def patch(self, owner, name: str, value):
        self.patches.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    def __enter__(self):
        real_autocast = torch.autocast

        def autocast(device_type, *args, **kwargs):  # the CPU's autocast casts the same products
            return real_autocast("cpu" if str(device_type) == "cuda" else device_type, *args, **kwargs)

        self.patch(torch, "autocast", autocast)
        self.patch(torch.cuda, "is_available", lambda: True)
        self.patch(torch.cuda, "is_current_stream_capturing", lambda: False)
        self.patch(torch.cuda, "synchronize", lambda device=None: self.wait("synchronize"))
        self.patch(torch.cuda, "get_device_name", lambda device=None: "a pretended GPU")
        self.patch(torch.cuda, "manual_seed_all", lambda seed: None)
        self.patch(Tensor, "pin_memory", lambda t, *args: self.pin(t))  # in threads no mode is active
        self.patch(Tensor, "is_pinned", lambda t, *args: self.is_pinned(t))
        for module in (torch.nn.utils.clip_grad, sys.modules["torch.optim.optimizer"]):
            # these sort tensors by their device in C++, which knows the truth
            self.patch(module, "_group_tensors_by_device_and_dtype", self.grouped(module))
        self.patches.enter_context(_AtenCalls(self))
        self.patches.enter_context(_PythonCalls(self))
        return self

    def grouped(self, module) -> Callable:
        real = module._group_tensors_by_device_and_dtype

        def group(*args, **kwargs):
            groups = real(*args, **kwargs)
            return {(self.device_of(v[0][0][0]), dtype): v for (_, dtype), v in groups.items()}

        return group

    def __exit__(self, *exc):
        self.patches.close()

    def report(self) -> str:
        rows = [f"  WAIT {n}x {what:36} {line}" for (what, line), n in self.waits.most_common()]
        rows += [f"  copy {n}x {what:36} {line}" for (what, line), n in self.copies.most_common()]
        return "\n".join([f"  {self.calls.total()} ATen calls on the device", *rows])


GETTERS = {
    Tensor.device.__get__: PretendedGPU.device_of,
    Tensor.is_cuda.__get__: PretendedGPU.holds,
    Tensor.is_cpu.__get__: lambda gpu, t: not gpu.holds(t),
}


class _PythonCalls(TorchFunctionMode):
    "What Python sees of a tensor: its device, and moves between devices."

    def __init__(self, gpu: PretendedGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        gpu, kwargs, name = self.gpu, dict(kwargs or {}), getattr(func, "__name__", "")
        t = args[0] if args and isinstance(args[0], Tensor) else None
        if func in GETTERS:
            return GETTERS[func](gpu, t)
        if t is not None and name in HOST_METHODS and func is getattr(Tensor, name, None):
            return self.host_method(name, func, t, args[1:], kwargs)
        if name == "set_" or func is torch.Tensor.data_ptr:
            return func(*args, **kwargs)
        asked = kwargs.get("device")
        asked = torch.device(asked) if isinstance(asked, (str, torch.device, int)) else None
        if asked is not None and asked.type == "cuda":
            kwargs["device"] = CPU
        inputs = [gpu.holds(x) for x in tensors_in(args, kwargs)]
        if func is torch.multinomial and any(inputs) and kwargs.get("generator") is not None:
            raise DeviceMismatch(f"{calling_line()}: a CPU generator for a CUDA tensor")
        before = getattr(gpu.ambient, "cuda", False)
        gpu.ambient.cuda = any(inputs) or (asked is not None and asked.type == "cuda")
        try:
            out = func(*args, **kwargs)
        finally:
            gpu.ambient.cuda = before
        if asked is not None:
            for x in tensors_in(out):
                if func is torch.tensor and asked.type == "cuda":
                    gpu.wait("torch.tensor(..., device=cuda)")
                gpu.place(x, asked)
        elif func in (torch.tensor, torch.from_numpy, torch.as_tensor, torch.frombuffer) and t is None:
            for x in tensors_in(out):
                gpu.place(x, CPU)
        return out

    def host_method(self, name: str, func, t: Tensor, args, kwargs):
        gpu = self.gpu
        if name == "to":
            copy = kwargs.pop("copy", False)
            others = [gpu.device_of(x) if isinstance(x, Tensor) else x for x in args]
            device, dtype, non_blocking, layout = torch._C._nn._parse_to(*others, **kwargs)
            return gpu.move(t, device or gpu.device_of(t), dtype, non_blocking, layout, copy)
        if name in ("cuda", "cpu"):
            return gpu.move(t, name, None, kwargs.get("non_blocking", False), None, False)
        if name in ("numpy", "__array__", "__dlpack__") and gpu.holds(t):
            raise DeviceMismatch(f"{calling_line()}: a CUDA tensor cannot become a numpy array")
        if name == "tolist" and gpu.holds(t):
            gpu.wait("tolist")
        if name == "get_device":
            return 0 if gpu.holds(t) else -1
        return func(t, *args, **kwargs)


class _AtenCalls(TorchDispatchMode):
    "Every ATen call, those of autograd included: do its tensors belong together, and does the host wait?"

    def __init__(self, gpu: PretendedGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        gpu, kwargs, name = self.gpu, kwargs or {}, func._schema.name.split("::")[1]
        inputs = tensors_in(args, kwargs)
        places = [gpu.holds(x) for x in inputs]
        if any(places):
            self.check(func, name, args, kwargs, inputs, places)
            gpu.calls[str(func)] += 1
        with plain():
            out = varlen_attention(func, args, kwargs) if "_varlen_attn" in name else func(*args, **kwargs)
            known = {x.untyped_storage()._cdata for x in inputs}
        if name in ("copy_", "_local_scalar_dense"):
            return out
        on_device = any(places) or (not inputs and getattr(gpu.ambient, "cuda", False))
        for x in tensors_in(out):
            with plain():
                is_new = x.untyped_storage()._cdata not in known
            if is_new:
                gpu.place(x, CUDA if on_device else CPU)
        return out

    def check(self, func, name: str, args, kwargs, inputs: list[Tensor], places: list[bool]):
        gpu = self.gpu
        if name == "copy_":
            target, source = args[0], args[1]
            if gpu.holds(target) != gpu.holds(source):
                gpu.wait("copy_ to the host" if gpu.holds(source) else "copy_ to the device")
            return
        if name in INDEX_OPS:
            self.check_index(func, name, args)
            return
        if name in WAITING_OPS or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            gpu.wait(name)
        strangers = [x for x, here in zip(inputs, places) if not here]
        scalars = all(x.ndim == 0 for x in strangers)
        if strangers and not (scalars and (torch.Tag.pointwise in func.tags or name in TAKES_CPU_SCALARS)):
            shapes = [(tuple(x.shape), "cuda" if here else "cpu") for x, here in zip(inputs, places)]
            raise DeviceMismatch(f"{calling_line()}: {func} of {shapes}")

    def check_index(self, func, name: str, args):
        gpu, indices = self.gpu, [i for i in args[1] if i is not None]
        if not gpu.holds(args[0]) and any(map(gpu.holds, indices)):
            raise DeviceMismatch(f"{calling_line()}: {func} of a CPU tensor with indices on the device")
        for index in indices:
            if index.dtype in (torch.bool, torch.uint8):
                gpu.wait(f"{name} by a mask")
            elif not gpu.holds(index):
                gpu.wait(f"{name}: the index is copied to the device")
        if "put" in name and gpu.holds(args[0]) and not gpu.holds(args[2]) and args[2].ndim:
            raise DeviceMismatch(f"{calling_line()}: {func} of CPU values into a CUDA tensor")


def varlen_attention(func, args, kwargs):
    "Torch's variable-length attention, computed plainly once the demands of its kernel are met."
    window = kwargs.get("window_size")
    if "backward" in func._schema.name:
        grad, q, k, v, _, _, cu_q, cu_k, *rest = args
        window = window or next((x for x in rest if isinstance(x, (list, tuple)) and len(x) == 2), [-1, -1])
        return plain_varlen(q, k, v, cu_q, cu_k, list(window) == [-1, 0], grad)
    q, k, v, cu_q, cu_k, max_q, max_k, *rest = args
    assert q.dtype in (torch.bfloat16, torch.float16) and q.dtype == k.dtype == v.dtype
    assert cu_q.dtype == cu_k.dtype == torch.int32 and cu_q.is_contiguous() and cu_k.is_contiguous()
    assert q.ndim == k.ndim == v.ndim == 3 and q.shape[2] <= 256 and q.shape[2] % 8 == 0
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    assert int(cu_q.diff().max()) <= max_q and int(cu_k.diff().max()) <= max_k
    assert int(cu_q[-1]) == len(q) and int(cu_k[-1]) == len(k)
    window = window or next((x for x in rest if isinstance(x, (list, tuple))), None)
    causal = list(window) == [-1, 0] if window else bool(rest[0]) if rest else False
    out = plain_varlen(q, k, v, cu_q, cu_k, causal)
    return out, q.new_zeros(q.shape[1], len(q), dtype=torch.float32), torch.zeros(2, dtype=torch.uint64)


def plain_varlen(q, k, v, cu_q, cu_k, causal: bool, grad=None):
    "Attention sentence by sentence; with `grad`, the three gradients, by hand, since autograd is above."
    lengths_q, lengths_k = cu_q.diff().tolist(), cu_k.diff().tolist()
    queries, keys, values = (
        x.transpose(0, 1).float().split(lengths, 1)  # [h, i, d]
        for x, lengths in ((q, lengths_q), (k, lengths_k), (v, lengths_k))
    )
    grads = grad.transpose(0, 1).float().split(lengths_q, 1) if grad is not None else [None] * len(queries)
    parts = []
    for a, b, c, g in zip(queries, keys, values, grads):
        scores = a @ b.mT / a.shape[-1] ** 0.5
        if causal:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
        weights = scores.softmax(-1)
        if g is None:
            parts.append((weights @ c,))
            continue
        along = g @ c.mT
        inner = weights * (along - (along * weights).sum(-1, keepdim=True)) / a.shape[-1] ** 0.5
        parts.append((inner @ b, inner.mT @ a, weights.mT @ g))
    found = tuple(torch.cat(x, 1).transpose(0, 1).to(q.dtype).contiguous() for x in zip(*parts))
    return found[0] if grad is None else found
