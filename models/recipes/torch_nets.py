"""Networks of families that torchvision and timm have none of, for PyTorch's exporters: text, speech, experts."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

WIDTH = 96
HEADS = 6
GROUPS = 2
LENGTH = 24
SAMPLES = 2048


class RmsNorm(nn.Module):
    """Root-mean-square norm as transformers' models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width).uniform_(0.5, 1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last axis."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def rotated(x: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (batch, heads, length, width of a head)."""
    width = x.shape[-1]
    frequencies = 1.0 / 10000.0 ** (torch.arange(0, width, 2).float() / width)
    angles = torch.arange(x.shape[2]).float()[:, None] * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    low, high = x[..., : width // 2], x[..., width // 2 :]
    return x * angles.cos() + torch.cat((-high, low), dim=-1) * angles.sin()


class Attention(nn.Module):
    """Attention whose key heads serve several query heads, or, with distances, T5's with a bias for each."""

    def __init__(self, *, distances: bool) -> None:
        super().__init__()
        self.distances = nn.Embedding(2 * LENGTH, HEADS) if distances else None
        self.groups = HEADS if distances else GROUPS
        self.q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.k = nn.Linear(WIDTH, WIDTH // HEADS * self.groups, bias=False)
        self.v = nn.Linear(WIDTH, WIDTH // HEADS * self.groups, bias=False)
        self.o = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Attend to all tokens or, without distances, to those before."""
        batch, length, _ = x.shape
        query = self.q(x).view(batch, length, HEADS, -1).transpose(1, 2)
        key, value = (f(x).view(batch, length, self.groups, -1).transpose(1, 2) for f in (self.k, self.v))
        if self.distances is None:
            query, key = rotated(query), rotated(key)
            key, value = (self.repeated(part) for part in (key, value))
            y = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            place = torch.arange(length)
            bias = self.distances(place[None, :] - place[:, None] + LENGTH).permute(2, 0, 1).unsqueeze(0)
            y = torch.softmax(query @ key.transpose(2, 3) + bias, dim=-1) @ value
        return self.o(y.transpose(1, 2).reshape(batch, length, -1))

    def repeated(self, x: torch.Tensor) -> torch.Tensor:
        """Each head once for every query head that it serves."""
        batch, heads, length, width = x.shape
        x = x[:, :, None].expand(batch, heads, HEADS // GROUPS, length, width)
        return x.reshape(batch, HEADS, length, width)


class SwiGlu(nn.Module):
    """The gated feed-forward layer of Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the layer."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Experts(nn.Module):
    """A mixture of experts, all on all tokens, as a batched product or as an Einsum."""

    def __init__(self, count: int = 4, *, einsum: bool) -> None:
        super().__init__()
        self.count, self.einsum = count, einsum
        self.router = nn.Linear(WIDTH, count)
        self.gate_up = nn.Parameter(torch.randn(count, WIDTH, 2 * WIDTH) / math.sqrt(WIDTH))
        self.down = nn.Parameter(torch.randn(count, WIDTH, WIDTH) / math.sqrt(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the layer."""
        tokens = x.reshape(-1, WIDTH)
        best, places = self.router(tokens).topk(2, dim=1)
        weights = torch.zeros(tokens.shape[0], self.count).scatter(1, places, best.softmax(dim=1))
        if self.einsum:
            gate, up = torch.einsum("td,edf->tef", tokens, self.gate_up).chunk(2, dim=-1)
            y = torch.einsum("tef,efd->ted", functional.silu(gate) * up, self.down)
            return torch.einsum("ted,te->td", y, weights).reshape(x.shape)
        gate, up = torch.matmul(tokens[None], self.gate_up).chunk(2, dim=-1)
        y = torch.matmul(functional.silu(gate) * up, self.down)
        return (y * weights.t()[..., None]).sum(dim=0).reshape(x.shape)


class Layers(nn.Module):
    """Two residual layers of attention and something, with norms in front."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.attention = nn.ModuleList(Attention(distances=kind == "t5") for _ in range(2))
        self.forwards = nn.ModuleList(
            SwiGlu() if kind in ("decoder", "t5") else Experts(einsum=kind == "experts_einsum") for _ in range(2)
        )
        self.norms = nn.ModuleList(RmsNorm(WIDTH) for _ in range(5))
        self.head = nn.Linear(WIDTH, 200, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From embeddings to logits."""
        for index, (attention, forward) in enumerate(zip(self.attention, self.forwards, strict=True)):
            x = x + attention(self.norms[2 * index](x))
            x = x + forward(self.norms[2 * index + 1](x))
        return self.head(self.norms[4](x))


class Translator(nn.Module):
    """PyTorch's own encoder and decoder; the decoder reads what the encoder does."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.Transformer(WIDTH, HEADS, 2, 2, 4 * WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 200)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From embeddings to scores."""
        mask = torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf")), diagonal=1)
        return self.head(self.transformer(x, x, tgt_mask=mask, tgt_is_causal=True))


class Crnn(nn.Module):
    """Convolutions down to a height of one, and bidirectional LSTMs."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 16, 32, 64, 64, 128)
        layers: list[nn.Module] = []
        for index, (before, width) in enumerate(pairwise(widths)):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2) if index < 2 else nn.MaxPool2d((2, 1)))
        self.cnn = nn.Sequential(*layers)
        self.rnn = nn.LSTM(128, 64, num_layers=2, bidirectional=True)
        self.head = nn.Linear(128, 37)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From an image, 32 high, to scores for each step."""
        y, _ = self.rnn(self.cnn(x).squeeze(2).permute(2, 0, 1))
        return self.head(y).permute(1, 0, 2)


class Enhancer(nn.Module):
    """A mask for the frames of a waveform, from an instant norm and two LSTMs."""

    def __init__(self, frame: int = 256, shift: int = 64, features: int = 128) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(1, features, frame, shift, bias=False)
        self.gamma, self.beta = nn.Parameter(torch.rand(features) + 0.5), nn.Parameter(torch.randn(features) * 0.1)
        self.rnn = nn.LSTM(features, 64, num_layers=2, batch_first=True)
        self.dense = nn.Linear(64, features)
        self.decoder = nn.ConvTranspose1d(features, 1, frame, shift, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From a waveform to a waveform."""
        encoded = self.encoder(x.unsqueeze(1))
        y = encoded.transpose(1, 2)
        mean = y.mean(-1, keepdim=True)
        deviation = torch.sqrt(((y - mean) ** 2).mean(-1, keepdim=True) + 1e-7)
        y, _ = self.rnn((y - mean) / deviation * self.gamma + self.beta)
        mask = torch.sigmoid(self.dense(y)).transpose(1, 2)
        return self.decoder(encoded * mask).squeeze(1)


TOKENS, WAVEFORM, LINE = (1, LENGTH, WIDTH), (1, SAMPLES), (1, 1, 32, 64)
NETWORKS = {
    "decoder": (lambda: Layers("decoder"), TOKENS),
    "t5": (lambda: Layers("t5"), TOKENS),
    "experts": (lambda: Layers("experts"), TOKENS),
    "experts_einsum": (lambda: Layers("experts_einsum"), TOKENS),
    "translator": (Translator, TOKENS),
    "crnn": (Crnn, LINE),
    "enhancer": (Enhancer, WAVEFORM),
}
"""How each network is made, and the shape of what it reads."""
