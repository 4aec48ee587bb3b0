"What an encoder refuses, and half precision."

from dataclasses import replace

import pytest
import torch

from bertlab.core.files import BertlabError
from bertlab.encoder import Encoder, EncoderConfig
from bertlab.packing import Layout

CONFIG = EncoderConfig(vocab_size=100, d_model=64, heads=4, d_ff=128, layers=3)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"d_model": 1024, "heads": 12}, "cannot be divided among 12 heads"),
        ({"activation": "tanh"}, "Choose one of relu, gelu, swish, geglu"),
        ({"norm": "layer"}, "Choose one of pre, post"),
        ({"positions": "none"}, "Choose one of sinusoidal, learned"),
        ({"layers": 0}, "layers is 0"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"d_ff": 1.5}, "d_ff is 1.5"),
        ({"max_len": "256"}, "max_len is '256'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"layers": 10**6}, "no machine holds that"),
    ],
)
def test_impossible_configs_are_refused(wrong, says):
    with pytest.raises(BertlabError, match=says):
        replace(CONFIG, **wrong)


def test_an_encoder_needs_a_vocabulary():
    with pytest.raises(BertlabError, match="vocab_size is 0"):
        Encoder(EncoderConfig())


def test_a_sentence_beyond_the_positions_is_refused():
    encoder = Encoder(replace(CONFIG, max_len=16))
    with pytest.raises(BertlabError, match="17 tokens, the encoder takes 16"):
        encoder(torch.zeros(17, dtype=torch.int64), Layout.from_lengths([17]))


def test_half_precision_keeps_two_digits():
    torch.manual_seed(0)
    encoder, layout = Encoder(CONFIG).eval(), Layout.from_lengths([5, 2, 9])
    ids = torch.randint(5, 100, (layout.n_tokens,))
    with torch.no_grad():
        out = encoder(ids, layout)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(ids, layout)
    assert (half - out).norm() / out.norm() < 0.02
