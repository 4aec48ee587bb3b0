"Awkward batches, half precision, and what needs a GPU."

import warnings

import pytest
import torch

from bertlab.attention import (
    _supports_varlen,
    bucketed_attention,
    bucketed_plan,
    packed_attention,
    packed_attention_reference,
    packed_self_attention,
    padded_plan,
)
from bertlab.packing import Layout

PLANS = (bucketed_plan, padded_plan)
CASES = [
    ([1, 2, 2, 5, 9, 9], None),  # sorted
    ([5, 2, 9, 0, 5, 1, 2, 9], None),  # not sorted, with an empty sentence
    ([3], None),
    ([5, 2, 9, 5, 1], [4, 4, 7, 4, 12]),
    ([0, 2, 9, 5, 1], [4, 4, 7, 4, 12]),
]


def with_grads(attend, tensors):
    tensors = [x.clone().requires_grad_() for x in tensors]
    out = attend(*tensors)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view(out.shape)
    return [out, *torch.autograd.grad(out, tensors, weights)]


def draw(lengths_q, lengths_k, dtype, device="cpu", width=4):
    torch.manual_seed(0)
    layout_q = Layout.from_lengths(lengths_q, device)
    layout_k = Layout.from_lengths(lengths_k, device) if lengths_k else layout_q
    rows = (layout_q.n_tokens, layout_k.n_tokens, layout_k.n_tokens)
    return layout_q, layout_k, [torch.randn(n, 2, width, dtype=dtype, device=device) for n in rows]


@pytest.mark.parametrize("make_plan", PLANS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths_q, lengths_k", CASES)
def test_both_plans_give_the_reference_and_its_gradients(make_plan, causal, lengths_q, lengths_k):
    if causal and lengths_k:
        pytest.skip("only self-attention is causal")
    layout_q, layout_k, qkv = draw(lengths_q, lengths_k, torch.float64)
    plan = make_plan(layout_q, layout_k)
    found = with_grads(lambda q, k, v: bucketed_attention(q, k, v, plan, causal), qkv)
    expected = with_grads(
        lambda q, k, v: packed_attention_reference(q, k, v, layout_q, layout_k, causal)[0], qkv
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


@pytest.mark.parametrize("make_plan", PLANS)
def test_queries_without_a_key_fetch_zeros(make_plan):
    layout_q, layout_k, (q, k, v) = draw([2, 3], [4, 0], torch.float32)
    out = bucketed_attention(q, k, v, make_plan(layout_q, layout_k))
    assert out[:2].isfinite().all() and not out[2:].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [lengths for lengths, other in CASES if other is None])
def test_both_entry_points_give_the_reference_and_its_gradients(lengths, causal):
    layout = Layout.from_lengths(lengths)
    torch.manual_seed(0)
    qkv = [torch.randn(layout.n_tokens, 3, 2, 8)]
    expected = with_grads(lambda x: packed_attention_reference(*x.unbind(1), layout, layout, causal)[0], qkv)
    for attend in (
        lambda x: packed_self_attention(x, layout, causal),
        lambda x: packed_attention(*x.unbind(1), layout, layout, causal),
    ):
        for a, b in zip(with_grads(attend, qkv), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_half_precision_comes_back_in_half_precision():
    layout = Layout.from_lengths([5, 2, 9])
    torch.manual_seed(0)
    qkv = torch.randn(layout.n_tokens, 3, 2, 8)
    full = with_grads(lambda x: packed_self_attention(x, layout), [qkv])
    half = with_grads(lambda x: packed_self_attention(x, layout), [qkv.bfloat16()])
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - b).norm() / b.norm() < 0.02


class OnCuda:
    "Stands in for a tensor on a GPU."

    is_cuda, dtype = True, torch.bfloat16


def test_dropout_on_a_gpu_is_slower_and_says_so():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not _supports_varlen(OnCuda, 0.1)
        assert not _supports_varlen(torch.zeros(2), 0.1)
    said = ["padded attention runs in its place" in str(w.message) for w in caught]
    assert said == [True] * (torch.__version__ >= (2, 10))  # on the GPU, and only there


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths_q, lengths_k", [([5, 2, 9, 5, 1], None), ([5, 2, 9], [4, 7, 12])])
def test_a_gpu_gives_the_reference(causal, lengths_q, lengths_k):
    if causal and lengths_k:
        pytest.skip("only self-attention is causal")
    layout_q, layout_k, qkv = draw(lengths_q, lengths_k, torch.float32, "cuda", width=64)

    def reference(q, k, v):
        return packed_attention_reference(q, k, v, layout_q, layout_k, causal)[0]

    def fast(q, k, v):
        return packed_attention(q, k, v, layout_q, layout_k, causal)

    expected = with_grads(reference, qkv)
    torch.testing.assert_close(fast(*qkv), expected[0], atol=2e-2, rtol=0)
    for a, b in zip(with_grads(fast, [x.bfloat16() for x in qkv]), expected, strict=True):
        assert (a - b).norm() <= 0.03 * b.norm() + 1e-2
